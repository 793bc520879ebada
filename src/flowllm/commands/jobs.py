"""The jobs of a configuration, one by one: their outputs, logs and items.

The workflow derives the same jobs from the same configuration; the tests compare the two.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowllm.config.model import Config
from flowllm.config.sections.flow import TRAIN_COMPOSITIONS
from flowllm.config.stages import STAGES

Target = Literal["all", "all_dft"]

_PREPARED = ("train", "val", "test", "rejected")


@dataclass(frozen=True)
class Job:
    """One job of the workflow.

    Attributes:
        stage: the stage's name.
        names: the job's wildcards in the order of its output's path; empty for a stage of one job.
        output: the stage's `--out`, relative to the run's folder; the record is beside it.
        row: name of the configuration's row (flow, base, method) that the job is given.
        first: first draw, for a stage that draws.
        count: number of draws, for a stage that draws.
        items: number of items that its progress counts, None where it depends on the data.
    """

    stage: str
    names: tuple[str, ...]
    output: Path
    row: str | None = None
    first: int | None = None
    count: int | None = None
    items: int | None = None

    @property
    def label(self) -> str:
        """Its names, as in the name of its log, e.g. `train-00007`."""
        return "-".join(self.names)

    @property
    def log(self) -> Path:
        """Its log, relative to the run's folder."""
        if self.stage == "report" or not self.names:
            return Path("logs", f"{self.label or self.stage}.log")
        return Path("logs", self.stage, f"{self.label}.log")

    @property
    def files(self) -> tuple[Path, ...]:
        """Paths, relative to the run's folder, that exist when the job has finished."""
        if self.stage == "prepare":
            return tuple(self.output / f"{name}.parquet" for name in _PREPARED)
        return (self.output,)

    @property
    def comment(self) -> str:
        """The comment that Snakemake's SLURM plugin gives the job."""
        wildcards = "_".join(self.names).replace("/", "_")
        return f"rule_{self.stage}" + (f"_wildcards_{wildcards}" if wildcards else "")


def jobs_of(config: Config, target: Target) -> list[Job]:
    """Return the jobs of a run from the start, in the order of the pipeline.

    Args:
        config: the configuration.
        target: all, or all_dft with the stages for DFT energies.
    """
    jobs = [*_data_and_models(config), *_samples(config), *_results(config, target)]
    order = list(STAGES)
    return sorted(jobs, key=lambda job: order.index(job.stage))


def count_jobs(config: Config, target: Target) -> dict[str, int]:
    """Return the number of jobs of every stage in a run from the start."""
    counted = Counter(job.stage for job in jobs_of(config, target))
    return {stage: counted[stage] for stage in STAGES}


def _data_and_models(config: Config) -> Iterator[Job]:
    yield Job("download", (), Path("download/manifest.json"))
    yield Job("prepare", (), Path("crystals"))
    if config.asks_llm or config.used_flows:
        yield Job("fetch_model", (), Path("llm/base_model.json"))
        yield Job("finetune_llm", (), Path("llm/adapter"))
        yield Job("merge_adapter", (), Path("llm/model"))
    if config.asks_llm:
        yield Job("invariance", (), Path("llm/invariance.parquet"))
    sizes = config.sizes
    flows = sorted(config.used_flows)
    if flows:
        for split, total in (("train", sizes.num_pairs), ("val", sizes.num_val_pairs)):
            for shard, first, count in _shards(total, sizes.pairs_per_shard):
                output = Path("pairs", split, _file(shard))
                yield Job("sample_pairs", (split, shard), output, None, first, count, count)
    for flow in flows:
        yield Job("train_rfm", (flow,), Path("rfm", flow), flow)
    yield Job("reference_hull", (), Path("hull/potential.parquet"))


def _samples(config: Config) -> Iterator[Job]:
    sizes = config.sizes
    attempts = {base.name: base.attempts for base in config.csp_bases}
    draws = _shards(sizes.num_samples, sizes.samples_per_shard)
    predicted = _shards(sizes.num_csp_crystals, sizes.csp_crystals_per_shard)
    for base in sorted({method.base for method in config.methods} - config.given_bases.keys()):
        for shard, first, count in draws:
            output = Path("base", base, _file(shard))
            if base == TRAIN_COMPOSITIONS:
                yield Job("sample_compositions", (shard,), output, None, first, count, count)
            else:
                yield Job("sample_base", (base, shard), output, base, first, count, count)
    for base in sorted({method.base for method in config.csp_methods}):
        for shard, first, count in predicted:
            output, items = Path("base", base, _file(shard)), count * attempts[base]
            yield Job("sample_csp", (base, shard), output, base, first, count, items)
    for method in config.methods:
        given = config.given_bases.get(method.base)
        for shard, _, count in _shards(given.shards, 1) if given else draws:
            names, file = (method.name, shard), Path(method.name, _file(shard))
            known = None if given else count
            yield Job("refine", names, "generated" / file, method.name, items=known)
            yield Job("prerelax", names, "relaxed" / file, items=known)
    for method in config.csp_methods:
        for shard, _, count in predicted:
            output = Path("generated", method.name, _file(shard))
            items = count * attempts[method.base]
            yield Job("refine", (method.name, shard), output, method.name, items=items)
    for row in config.external_samples:
        for shard, _, _ in _shards(row.shards, 1):
            names, file = (row.name, shard), Path(row.name, _file(shard))
            yield Job("import_samples", names, "generated" / file, row.name)
            yield Job("prerelax", names, "relaxed" / file)
    if config.potential.check is not None:
        for name in ("hull", *_result_rows(config)):
            yield Job("second_energies", (name,), Path("second_energies", f"{name}.parquet"))
    if config.select.skip:
        for name in _result_rows(config):
            yield Job("select", (name,), Path("selected", f"{name}.parquet"))


def _result_rows(config: Config) -> list[str]:
    """Return the names of the methods and of the external samples."""
    return [row.name for row in config.methods] + [row.name for row in config.external_samples]


def _results(config: Config, target: Target) -> Iterator[Job]:
    rows = _result_rows(config)
    kinds = ["potential", "dft"] if target == "all_dft" else ["potential"]
    for row in rows:
        for kind in kinds:
            yield Job("stability", (kind, row), Path("stability", kind, f"{row}.parquet"))
            yield Job("metrics", (kind, row), Path("metrics", kind, f"{row}.json"))
        yield Job("dft_inputs", (row,), Path("dft_inputs", row, "manifest.parquet"))
    for name in ("test", *rows):
        yield Job("fingerprints", (name,), Path("fingerprints", f"{name}.parquet"))
    for method in config.csp_methods:
        yield Job("match_csp", (method.name,), Path("csp", f"{method.name}.json"))
    if target == "all_dft":
        yield Job("dft_hull", (), Path("hull/dft.parquet"))
        for row in rows:
            yield Job("dft_collect", (row,), Path("dft", f"{row}.parquet"))
    report = "report_dft" if target == "all_dft" else "report"
    yield Job("report", (report,), Path(report, "index.html"))


def _shards(total: int, per_shard: int) -> list[tuple[str, int, int]]:
    """Return each shard's name, first draw and number of draws."""
    starts = range(0, total, per_shard)
    return [
        (f"{shard:05d}", first, min(per_shard, total - first)) for shard, first in enumerate(starts)
    ]


def _file(shard: str) -> str:
    return f"shard-{shard}.parquet"
