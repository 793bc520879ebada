"""Number of items of each stage (pair, sample, text or crystal), for `flowllm estimate`."""

from math import ceil

from flowllm.commands.jobs import Target
from flowllm.config.model import Config
from flowllm.config.sections.flow import TRAIN_COMPOSITIONS
from flowllm.config.stages import STAGES
from flowllm.data.sources import catalogue

Crystals = dict[str, int]
"""Crystals in each split, and `rows` in total, where known."""


def count_items(config: Config, crystals: Crystals, target: Target) -> dict[str, int | None]:
    """Return the number of items of every stage, None where it depends on unknown data."""
    sizes, flow = config.sizes, config.train_rfm
    train, test, every = crystals.get("train"), crystals.get("test"), crystals.get("rows")
    bases = {method.base for method in config.methods}
    flows = config.used_flows
    pairs = _trained(sizes.num_pairs, flow.epochs, flow.batch_size, flow.max_steps)
    samples = None if config.external_samples else len(config.methods) * sizes.num_samples
    kinds = 2 if target == "all_dft" else 1
    predictions = {base.name: base.attempts * sizes.num_csp_crystals for base in config.csp_bases}
    items = dict.fromkeys(STAGES, samples)
    return items | {
        "download": every,
        "prepare": every,
        "finetune_llm": _texts(config, train),
        "fetch_model": 1,
        "merge_adapter": 1,
        "invariance": config.invariance.num_crystals if config.asks_llm else 0,
        "sample_pairs": sizes.num_pairs + sizes.num_val_pairs if flows else 0,
        "train_rfm": len(flows) * pairs,
        "sample_base": len(config.sampled_bases) * sizes.num_samples,
        "sample_compositions": len(bases & {TRAIN_COMPOSITIONS}) * sizes.num_samples,
        "sample_csp": sum(predictions[base] for base in {one.base for one in config.csp_methods}),
        "refine": None
        if config.given_bases
        else len(config.methods) * sizes.num_samples
        + sum(predictions[method.base] for method in config.csp_methods),
        "match_csp": len(config.csp_methods) * sizes.num_csp_crystals,
        "import_samples": None,
        "reference_hull": train,
        "second_energies": _plus(samples, train) if config.potential.check is not None else 0,
        "stability": _times(samples, kinds),
        "dft_inputs": selected_for_dft(config),
        "dft_collect": selected_for_dft(config),
        "dft_hull": 1,
        "fingerprints": _plus(samples, test),
        "metrics": _times(samples, kinds),
        "report": 1,
    }


def selected_for_dft(config: Config) -> int | None:
    """Return the most crystals that get DFT inputs, over all rows of the results.

    Of another model's samples, whose number is in their file, at most `max_crystals` are selected,
    and of the selection `candidates` a share of the others.
    """
    section = config.dft_inputs
    rows, others = len(config.methods), len(config.external_samples)
    if section.selection == "all":
        return None if others else rows * config.sizes.num_samples
    drawn = config.sizes.num_samples
    own = min(drawn, section.max_crystals)
    if section.selection == "candidates" and section.control_share > 0:
        if others:
            return None
        own += ceil(section.control_share * (drawn - own))
    return rows * own + others * section.max_crystals


def split_sizes(config: Config) -> Crystals:
    """Return the rows per split and in total of a data set of the catalogue, {} for other data."""
    source = catalogue().get(config.data.source)
    if source is None:
        return {}
    limit = config.prepare.max_rows
    rows = {split: file.rows for split, file in source.files.items()}
    sizes = {split: min(n, limit) if limit else n for split, n in rows.items()}
    return sizes | {"rows": sum(sizes.values())}


def _texts(config: Config, train: int | None) -> int | None:
    section = config.finetune_llm
    if train is None:
        return section.max_steps * section.batch_size if section.max_steps else None
    return _trained(train, section.epochs, section.batch_size, section.max_steps)


def _trained(rows: int, epochs: int, batch_size: int, max_steps: int | None) -> int:
    """Return the rows of all optimizer steps; `max_steps` ends a training before its epochs do."""
    if max_steps is None or max_steps >= epochs * ceil(rows / batch_size):
        return rows * epochs
    return min(rows * epochs, max_steps * batch_size)


def _plus(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def _times(count: int | None, factor: int) -> int | None:
    return None if count is None else count * factor
