"""Train the velocity field of Riemannian flow matching on sampled pairs (paper, section 4.2)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from flowllm.config.sections.flow import Flow, TrainRfm
from flowllm.config.stage_settings import StageSettings
from flowllm.errors import FlowllmError
from flowllm.io.files import check_folder
from flowllm.io.shards import Shards
from flowllm.io.start_files import flow_start_files
from flowllm.rfm.base_distribution import base_distribution_of
from flowllm.rfm.loader import PreparedPairs
from flowllm.rfm.loss import standardization_of
from flowllm.rfm.model import save_model, standardization_of_field
from flowllm.rfm.pairs import PairOptions, count_rows, prepare_shard, read_counts
from flowllm.rfm.start import load_start
from flowllm.rfm.train import train
from flowllm.runtime.distributed import launch, make_fabric
from flowllm.runtime.log import Progress, log
from flowllm.runtime.provenance import StageRun, stage_run
from flowllm.runtime.resume import keep_seconds, partial_folder
from flowllm.runtime.tensorboard import events_path
from flowllm.runtime.threads import usable_cores
from flowllm.seeds import generator

PARALLEL_ROWS = 20_000
"""Pairs from which worker processes prepare them faster (about 1 ms per pair)."""


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    train_rfm: TrainRfm
    flow: Flow


def run(settings: Settings, *, pairs: Shards, val_pairs: Shards, out: Path) -> None:
    """Train the velocity network of one flow on pairs of crystals.

    Args:
        settings: section `train_rfm` and the row `flow`.
        pairs: Shards of training pairs: files, or FOLDER=COUNT. Repeat the option for each.
        val_pairs: Shards of validation pairs, likewise.
        out: Folder of the model to write.

    Raises:
        FlowllmError: the start does not fit the settings, no pair of a split can be used, or
            training diverges.
    """
    section: TrainRfm = settings.train_rfm
    flow: Flow = settings.flow
    fabric = make_fabric(section.precision)
    launch(fabric)
    inputs = {"pairs": pairs, "val_pairs": val_pairs}
    if section.start is not None:
        inputs["start"] = flow_start_files(section.start, flow.name)
    leader = fabric.is_global_zero
    with stage_run(settings, inputs=inputs, output=out, leader=leader, check=check_folder) as run:
        earlier = load_start(section, flow)
        with fabric.rank_zero_first():
            folder = partial_folder(out, run)
            start = base_distribution_of(flow, pairs)
            own = flow.augment_axes
            augment_axes = section.augment_axes if own is None else own
            options = PairOptions(section.angle_bounds, section.match_atoms, start, settings.seed)
            train_set, train_counts = prepare_split(
                "train", pairs, folder, options, augment_axes=augment_axes
            )
            val_set, val_counts = prepare_split("val", val_pairs, folder, options)
            keep_seconds(folder, run)
        if earlier is None:
            moments_rng = generator(settings.seed, "train_rfm", "standardization")
            standardization = standardization_of(train_set, moments_rng)
        else:
            standardization = standardization_of_field(earlier)
        trained = train(
            section,
            settings.seed,
            train_set,
            val_set,
            standardization,
            folder / "checkpoint.pt",
            events_path(out),
            fabric,
            earlier,
            on_save=partial(keep_seconds, folder, run),
        )
        if leader:
            counts = {"pairs": dict(train_counts), "val_pairs": dict(val_counts)}
            description = {**trained.summary, "counts": counts, "settings": settings.values}
            save_model(out, trained.field, trained.weights, start, description, trained.curve)
        del train_set, val_set  # their files are mapped, and some file systems then keep the folder
        fabric.barrier()  # the leader deletes that folder at the end
        _count(run, train_counts, val_counts, trained.summary)


def prepare_split(
    split: str,
    shards: Sequence[Path],
    folder: Path,
    options: PairOptions,
    *,
    augment_axes: bool = False,
) -> tuple[PreparedPairs, Counter[str]]:
    """Prepare a split's shards in parallel, unless they are prepared, and open them.

    Raises:
        FlowllmError: no pair of the split can be used.
    """
    prepared = [folder / f"{split}-{index:05d}.arrow" for index in range(len(shards))]
    missing = [(s, p) for s, p in zip(shards, prepared, strict=True) if not p.exists()]
    progress = Progress(f"train_rfm: {split} shards prepared", len(missing))
    workers = min(usable_cores(), len(missing))
    if workers > 1 and count_rows([shard for shard, _ in missing]) >= PARALLEL_ROWS:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for _ in pool.map(partial(_prepare, options), missing):
                progress.advance()
    else:
        for one in missing:
            _prepare(options, one)
            progress.advance()
    counts = sum(map(read_counts, prepared), Counter())
    log.info("train_rfm: %s pairs: %s", split, dict(counts))
    if counts["pairs"] == 0:
        raise FlowllmError(
            f"{shards[0].parent}: no pair can be used to train the flow ({dict(counts)}); see the "
            "column error of the shards, and sample_pairs in the configuration"
        )
    opened = PreparedPairs(
        prepared, options.base_distribution, options.angle_bounds, augment_axes=augment_axes
    )
    return opened, counts


def _prepare(options: PairOptions, paths: tuple[Path, Path]) -> None:
    prepare_shard(*paths, options)


def _count(
    run: StageRun, train: Counter[str], val: Counter[str], summary: Mapping[str, Any]
) -> None:
    kept = ("pairs", "reduced")
    failed = sum(counts[name] for counts in (train, val) for name in counts if name not in kept)
    used = train["pairs"] + val["pairs"]
    run.count(
        rows_in=used + failed,
        rows_out=used,
        rows_failed=failed,
        rows_reduced=train["reduced"] + val["reduced"],
        steps=summary["steps"],
        skipped_steps=summary["skipped_steps"],
    )
