"""Infilling (`flowllm infill`): which element is hidden in a crystal.

The model must have been trained on this task. Nothing is sampled: the model's probability of each
element's symbol is computed, so that the answer is reproducible and shows the model's confidence.
"""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from flowllm.crystal import Crystal
from flowllm.llm.prompts import PromptTokens
from flowllm.llm.text_parts import element_symbol


@torch.no_grad()
def element_chances(
    model: PreTrainedModel,
    prompts: PromptTokens,
    crystal: Crystal,
    hidden: int,
    elements: Sequence[int],
) -> list[float]:
    """Return the probability that each element is the hidden one, normalized over the elements.

    Args:
        model: merged model.
        prompts: the prompts and the model's tokenizer.
        crystal: the crystal.
        hidden: atomic number of the element to hide.
        elements: atomic numbers of the possible answers.
    """
    asked = prompts.infilling(prompts.crystal_text.describe(crystal), hidden)
    prompt = torch.tensor([asked.tokens[: asked.prompt_length]], device=model.device)
    answers = [torch.tensor(prompts.answer(element_symbol(z))) for z in elements]
    tokens = pad_sequence(answers, batch_first=True).to(model.device)
    counted = pad_sequence([torch.ones(len(answer)) for answer in answers], batch_first=True)
    # The prompt is computed once, and all answers use its cached keys and values.
    first = model(prompt, use_cache=True)
    first.past_key_values.batch_repeat_interleave(len(answers))
    later = model(tokens[:, :-1], past_key_values=first.past_key_values).logits
    logits = torch.cat([first.logits[:, -1:].expand(len(answers), -1, -1), later], dim=1)
    log_chance = logits.float().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    chances: list[float] = (log_chance.cpu() * counted).sum(1).softmax(0).tolist()
    return chances
