"""Checks of a base model that need no weights: heads, context, tokenizer. All before training."""

from collections.abc import Iterable, Sequence

from transformers import PretrainedConfig

from flowllm.errors import FlowllmError
from flowllm.llm.prompts import UNCONDITIONAL, Conditions, PromptTokens


def check_heads(config: PretrainedConfig, gpus: int, key: str) -> None:
    """Check that vLLM can share a model's attention heads among GPUs.

    Args:
        config: the model's.
        gpus: GPUs of a sampling job.
        key: where the configuration gives them.

    Raises:
        FlowllmError: the heads do not divide by the GPUs.
    """
    heads = config.get_text_config().num_attention_heads
    if gpus > 1 and heads % gpus:
        raise FlowllmError(
            f"{key} is {gpus}, but the {heads} attention heads of finetune_llm.base_model do not "
            f"divide by it; set {key} to a divisor of {heads}"
        )


def context_of(config: PretrainedConfig) -> int | None:
    """Return the tokens of a model's context; None where its configuration names no limit."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def check_training_context(config: PretrainedConfig, name: str, longest_text: int) -> None:
    """Check that the longest training text fits into a model's context.

    Args:
        config: the base model's.
        name: of the base model.
        longest_text: tokens of prompt and answer.

    Raises:
        FlowllmError: it does not fit.
    """
    context = context_of(config)
    if context is not None and longest_text > context:
        raise FlowllmError(
            f"finetune_llm.base_model {name}: its context has {context} tokens "
            f"(max_position_embeddings), but the longest training text has {longest_text}; lower "
            f"finetune_llm.max_tokens to {context} or prepare.max_atoms, or take a base model with "
            "a longer context"
        )


def check_sampling_context(
    config: PretrainedConfig, name: str, *, prompt: int, answer: int, max_atoms: int
) -> None:
    """Check that the longest prompt and the longest answer fit into a model's context together.

    Args:
        config: the model's.
        name: of the model, a base model or a merged one.
        prompt: tokens of the longest prompt.
        answer: tokens of the longest answer.
        max_atoms: atoms of that answer.

    Raises:
        FlowllmError: they do not fit.
    """
    context = context_of(config)
    if context is not None and prompt + answer > context:
        raise FlowllmError(
            f"{name}: its context has {context} tokens (max_position_embeddings), but sampling "
            f"needs {prompt + answer}: {prompt} of the longest prompt and {answer} of a crystal of "
            f"{max_atoms} atoms; lower prepare.max_atoms, shorten prompts, or take a base model "
            "with a longer context"
        )


def check_tokenizer(
    prompts: PromptTokens, vocab_size: int, texts: Iterable[str], asked: Sequence[Conditions] = ()
) -> None:
    """Check that a tokenizer gives crystal texts back, and prompts with what they say.

    Some lose line breaks or cases, put spaces into numbers, or know no token for a character. A
    model trained with such a tokenizer writes texts that cannot be read, or reads prompts that do
    not say what was asked.

    Args:
        prompts: prompts as tokens.
        vocab_size: tokens that the model knows.
        texts: crystal texts beside the one with all elements and numbers.
        asked: conditions of prompts.

    Raises:
        FlowllmError: a text does not come back, or a token is unknown to the model.
    """
    every = prompts.every_number_and_element()
    for text in (*texts, every):
        tokens = prompts.answer(text)
        if prompts.end_token_id in tokens[:-1]:
            raise FlowllmError(
                f"{prompts.name}: its end token occurs within crystal text, so that an answer "
                "would end there; take a base model with another tokenizer"
            )
        _check_line_by_line(prompts.name, text, prompts.decode(tokens))
    for conditions in (UNCONDITIONAL, *asked):
        decoded = "".join(prompts.decode(prompts.prompt(conditions)).split())
        for condition in conditions.given():
            if "".join(conditions.words(condition).split()) not in decoded:
                raise FlowllmError(
                    f"{prompts.name}: its tokenizer does not give {condition} "
                    f"{conditions.words(condition)!r} of a prompt back; take a base model with "
                    "another tokenizer"
                )
    largest = max(*prompts.answer_tokens(), *prompts.prompt(UNCONDITIONAL))
    if largest >= vocab_size:
        raise FlowllmError(
            f"{prompts.name}: its tokenizer gives token {largest}, but the model knows the tokens "
            f"0 to {vocab_size - 1} (vocab_size); tokenizer and model are not of one kind"
        )


def _check_line_by_line(name: str, text: str, decoded: str) -> None:
    """Compare words line by line: spaces around them do not matter to who reads crystal text."""
    lines, found = text.strip().split("\n"), decoded.strip().split("\n")
    if len(lines) != len(found):
        raise FlowllmError(
            f"{name}: its tokenizer does not give line breaks back: a crystal text of {len(lines)} "
            f"lines comes back as {len(found)}; take a base model with another tokenizer"
        )
    for number, (line, came) in enumerate(zip(lines, found, strict=True), start=1):
        if line.split() != came.split():
            raise FlowllmError(
                f"{name}: its tokenizer does not give crystal text back: line {number}, {line!r}, "
                f"comes back as {came!r}; take a base model with another tokenizer"
            )
