"""Checks of what the language model is asked for, before it is trained."""

from collections.abc import Iterator
from pathlib import Path

from flowllm.config.model import Config
from flowllm.config.sections.conditions import BaseConditions
from flowllm.data.csv_file import read_csv
from flowllm.data.rows import PROPERTY_COLUMNS
from flowllm.data.wishes import ELEMENTS_MODE, Own, Words, parse_wish, read_wishes
from flowllm.errors import FlowllmError

_COMPOSITION = ("formula", "elements", "num_atoms")
"""Conditions that follow from the crystals, whatever columns the source has."""


def check_prompts(config: Config) -> str:
    """Check that the model is trained on each kind of prompt that it is sampled with.

    Raises:
        FlowllmError: it is not; the message names the share to raise.
    """
    llm = config.finetune_llm
    rows = (*config.methods, *config.csp_methods)
    asked = "flows are trained on pairs, which are sampled" if config.used_flows else None
    if config.csp_methods:
        asked = asked or "csp_methods are sampled"
    if asked and not llm.formula_share + llm.properties_share:
        raise FlowllmError(
            f"{asked} with the formula, but finetune_llm.formula_share and properties_share are 0, "
            "so that no training text has one; raise formula_share"
        )
    free = 1 - llm.infill_share - llm.formula_share - llm.properties_share
    conditions = {base.name: base.conditions for base in config.bases}
    if any(conditions[base] is None for base in config.sampled_bases) and free < 1e-9:
        raise FlowllmError(
            "bases are sampled without a condition, but finetune_llm.infill_share, formula_share "
            "and properties_share are 1 together, so that no training text lacks one; lower them"
        )
    return f"{len(rows)} methods use prompts that the model is trained on"


def check_bases(config: Config) -> str:
    """Check the conditions of the bases: their values, and that the model is trained on them.

    Raises:
        FlowllmError: a condition is invalid, or no training text can give it.
    """
    own: Own = {name: about.categories for name, about in config.prepare.properties.items()}
    asked = [(base.name, words) for base in config.bases for words in _wishes(base.conditions, own)]
    if not asked:
        return "no conditions"
    columns = _columns(config)
    for name, words in asked:
        try:
            _check_wish(config, words, own, columns)
        except ValueError as error:
            raise FlowllmError(f"{name}: {error}") from error
    return f"wishes that the model is trained on: {len(asked)}"


def _wishes(conditions: BaseConditions | None, own: Own) -> Iterator[Words]:
    if conditions is not None:
        file = conditions.file
        yield from [conditions.words()] if file is None else read_wishes(Path(file), own)


def _check_wish(config: Config, words: Words, own: Own, columns: set[str] | None) -> None:
    """Check one wish.

    Raises:
        ValueError: it is invalid, or no training text can give it.
    """
    llm = config.finetune_llm
    wish = parse_wish(words, config.prepare.max_atoms, own)
    in_prompt = [name for name in wish.given() if name != "num_atoms"]
    if words.get(ELEMENTS_MODE) == "subset":
        in_prompt.remove("elements")
    alone = in_prompt == ["formula"] and llm.formula_share
    if in_prompt and not (llm.properties_share or alone):
        raise ValueError(
            f"asks for {', '.join(in_prompt)}, but finetune_llm.properties_share is "
            f"{llm.properties_share:g}, so that no training text gives such conditions; raise it"
        )
    theirs = {ours: column for column, ours in PROPERTY_COLUMNS.items()}
    theirs |= {name: about.column for name, about in config.prepare.properties.items()}
    for name in in_prompt:
        if name not in _COMPOSITION and columns is not None and theirs[name] not in columns:
            raise ValueError(
                f"asks for {name}, but the source {config.data.source} has no column "
                f"{theirs[name]!r}, so that no training text gives it; add the column, or remove "
                "the condition"
            )


def _columns(config: Config) -> set[str] | None:
    """Return the columns of a local source, None where they are not known yet.

    They are not for a file that cannot be read, which another check names.
    """
    files = sorted(Path(config.data.source).expanduser().glob("*.csv"))
    if not files:
        return None
    try:
        return {name for path in files for name in next(read_csv(path))[1]}
    except FlowllmError:
        return None
