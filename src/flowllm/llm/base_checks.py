"""Checks of a base model before training: attention heads, context and tokenizer.

None of them needs the model's weights.
"""

from collections.abc import Iterable, Sequence

from transformers import PretrainedConfig

from flowllm.errors import FlowllmError
from flowllm.llm.prompts import UNCONDITIONAL, Conditions, PromptTokens


def heads_of(config: PretrainedConfig) -> int:
    """Return the number of attention heads of a model."""
    heads: int = config.get_text_config().num_attention_heads
    return heads


def check_heads(heads: int, gpus: int, key: str) -> None:
    """Check that vLLM can divide a model's attention heads among GPUs.

    Args:
        heads: number of attention heads of the model.
        gpus: GPUs per sampling job.
        key: configuration key of the number of GPUs, for the message.

    Raises:
        FlowllmError: the number of heads is not divisible by the number of GPUs.
    """
    if gpus > 1 and heads % gpus:
        raise FlowllmError(
            f"{key} is {gpus}, but the {heads} attention heads of finetune_llm.base_model are not "
            f"divisible by it. Set {key} to a divisor of {heads}."
        )


def context_of(config: PretrainedConfig) -> int | None:
    """Return the context length of a model in tokens; None if its configuration has no limit."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def check_training_context(config: PretrainedConfig, name: str, longest_text: int) -> None:
    """Check that the longest training text fits into a model's context.

    Args:
        config: configuration of the base model.
        name: name of the base model, for the message.
        longest_text: tokens of the longest prompt and answer together.

    Raises:
        FlowllmError: the text is longer than the context.
    """
    context = context_of(config)
    if context is not None and longest_text > context:
        raise FlowllmError(
            f"finetune_llm.base_model {name}: its context has {context} tokens "
            f"(max_position_embeddings), but the longest training text has {longest_text}. Lower "
            f"finetune_llm.max_tokens to {context}, lower prepare.max_atoms, or take a base model "
            "with a longer context."
        )


def check_sampling_context(
    config: PretrainedConfig, name: str, *, prompt: int, answer: int, max_atoms: int
) -> None:
    """Check that the longest prompt and the longest answer together fit into a model's context.

    Args:
        config: configuration of the model.
        name: name of the base model or folder of the merged model, for the message.
        prompt: tokens of the longest prompt.
        answer: tokens of the longest answer.
        max_atoms: number of atoms of that answer.

    Raises:
        FlowllmError: the two are longer than the context.
    """
    context = context_of(config)
    if context is not None and prompt + answer > context:
        raise FlowllmError(
            f"{name}: its context has {context} tokens (max_position_embeddings), but sampling "
            f"needs {prompt + answer}: {prompt} for the longest prompt and {answer} for a crystal "
            f"of {max_atoms} atoms. Lower prepare.max_atoms, shorten the prompts, or take a base "
            "model with a longer context."
        )


def check_tokenizer(
    prompts: PromptTokens, vocab_size: int, texts: Iterable[str], asked: Sequence[Conditions] = ()
) -> None:
    """Check that a tokenizer reproduces crystal texts and the conditions in prompts.

    Some tokenizers drop line breaks, change upper and lower case, insert spaces into numbers, or
    have no token for a character. A model trained with such a tokenizer generates texts that cannot
    be decoded, or its prompts do not contain the conditions.

    Args:
        prompts: the prompts and the tokenizer.
        vocab_size: size of the model's vocabulary.
        texts: crystal texts to check, in addition to one with all elements and numbers.
        asked: conditions of prompts to check.

    Raises:
        FlowllmError: a text is not reproduced, the end token occurs within a text, or a token is
            not in the model's vocabulary.
    """
    every = prompts.crystal_text.every_line()
    for text in (*texts, every):
        tokens = prompts.answer(text)
        if prompts.end_token_id in tokens[:-1]:
            raise FlowllmError(
                f"{prompts.name}: the end token of its tokenizer occurs within crystal text, so "
                "that an answer would end there; take a base model with another tokenizer"
            )
        _check_lines(prompts.name, text, prompts.decode(tokens))
    for conditions in (UNCONDITIONAL, *asked):
        _check_conditions(prompts, conditions)
    largest = max(*prompts.answer_tokens(), *prompts.prompt(UNCONDITIONAL))
    if largest >= vocab_size:
        raise FlowllmError(
            f"{prompts.name}: its tokenizer uses token {largest}, but the model's vocabulary "
            f"(vocab_size) has the tokens 0 to {vocab_size - 1}. The tokenizer belongs to another "
            "model; restore the model's own tokenizer files."
        )


def _check_conditions(prompts: PromptTokens, conditions: Conditions) -> None:
    """Check that a prompt contains its conditions after encoding; white space does not matter."""
    decoded = "".join(prompts.decode(prompts.prompt(conditions)).split())
    for condition in conditions.given():
        if "".join(conditions.words(condition).split()) not in decoded:
            raise FlowllmError(
                f"{prompts.name}: its tokenizer does not reproduce the {condition} "
                f"{conditions.words(condition)!r} of a prompt; take a base model with another "
                "tokenizer"
            )


def _check_lines(name: str, text: str, decoded: str) -> None:
    """Compare two texts word by word in each line; spaces around words do not matter."""
    lines, found = text.strip().split("\n"), decoded.strip().split("\n")
    if len(lines) != len(found):
        raise FlowllmError(
            f"{name}: its tokenizer does not reproduce line breaks: a crystal text of {len(lines)} "
            f"lines is decoded to {len(found)}; take a base model with another tokenizer"
        )
    for number, (line, came) in enumerate(zip(lines, found, strict=True), start=1):
        if line.split() != came.split():
            raise FlowllmError(
                f"{name}: its tokenizer does not reproduce crystal text: line {number}, {line!r}, "
                f"is decoded to {came!r}; take a base model with another tokenizer"
            )
