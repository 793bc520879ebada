"""Infilling (`flowllm infill`): which element hides in a crystal, by a model trained on that task.

Nothing is drawn: the model's probability of each element's symbol is computed, so that the answer
repeats and shows how sure the model is.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from pymatgen.core.periodic_table import Element
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from flowllm.config import Config
from flowllm.crystal import Crystal
from flowllm.data.cif import crystal_from_cif
from flowllm.data.cif_blocks import read_cif_text
from flowllm.data.rejected import RejectedError
from flowllm.device import pick_device
from flowllm.errors import FlowllmError
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.prompts import PromptTokens
from flowllm.llm.text import element_symbol


def infill(config: Config, *, model: Path, cif: Path, hidden: str) -> dict[str, float]:
    """Hide an element of a crystal and ask a model for it.

    Args:
        config: its prompts, and the cell that the model was trained on.
        model: folder of the merged model.
        cif: the crystal.
        hidden: symbol of the element to hide.

    Returns:
        Symbols of the elements of the model's training, likeliest first, to their probabilities.

    Raises:
        FlowllmError: the file holds no such crystal, or the model was not trained on the task.
    """
    opened = ModelFolder(model, config.prompts)
    opened.record.check_infilling(model)
    try:
        crystal = crystal_from_cif(read_cif_text(cif), config.prepare.cell, opened.record.max_atoms)
    except (OSError, RejectedError) as error:
        raise FlowllmError(f"{cif}: {error}") from error
    if not Element.is_valid_symbol(hidden) or Element(hidden).Z not in crystal.atomic_numbers:
        raise FlowllmError(f"{cif}: {crystal.formula} has no {hidden} to hide")
    elements = opened.record.elements
    loaded = opened.language_model(pick_device())
    chances = element_chances(loaded, opened.prompts, crystal, Element(hidden).Z, elements)
    by_chance = sorted(zip(chances, elements, strict=True), reverse=True)
    return {element_symbol(z): chance for chance, z in by_chance}


@torch.no_grad()
def element_chances(
    model: PreTrainedModel,
    prompts: PromptTokens,
    crystal: Crystal,
    hidden: int,
    elements: Sequence[int],
) -> list[float]:
    """Return how likely each element is the hidden one, given that it is one of them.

    Args:
        model: the merged model.
        prompts: its prompts as tokens.
        crystal: the crystal.
        hidden: atomic number of the element to hide.
        elements: atomic numbers that may be the answer.
    """
    asked = prompts.infilling(crystal, hidden)
    prompt = torch.tensor([asked.tokens[: asked.prompt_length]], device=model.device)
    answers = [torch.tensor(prompts.answer(element_symbol(z))) for z in elements]
    tokens = pad_sequence(answers, batch_first=True).to(model.device)
    counted = pad_sequence([torch.ones(len(answer)) for answer in answers], batch_first=True)
    # The prompt goes through the model once; the answers share what it left in the cache.
    first = model(prompt, use_cache=True)
    first.past_key_values.batch_repeat_interleave(len(answers))
    later = model(tokens[:, :-1], past_key_values=first.past_key_values).logits
    logits = torch.cat([first.logits[:, -1:].expand(len(answers), -1, -1), later], dim=1)
    log_chance = logits.float().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return (log_chance.cpu() * counted).sum(1).softmax(0).tolist()
