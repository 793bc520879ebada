"""Only what a change invalidates runs again: dry runs on a finished run, one for each change.

docs/reruns.md is this table; `PYTHONPATH=tests/helpers python tests/workflow/test_reruns.py >
docs/reruns.md` writes it.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from flowllm.config.stages import STAGES
from tiny_run import ROOT, dry_runs, planned, snakemake
from tiny_run import TINY as TINY_FILES

TINY = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text())

Jobs = dict[str, int]

REPORT: Jobs = {"report": 1}
METRICS: Jobs = {"metrics": 2, **REPORT}
RELAXED: Jobs = {"stability": 2, "dft_inputs": 2, **METRICS}
GENERATED: Jobs = {"prerelax": 4, "fingerprints": 2, **RELAXED}
REFINED: Jobs = {"refine": 4, **GENERATED}
SAMPLED: Jobs = {"sample_pairs": 3, "train_rfm": 1, "sample_base": 2, **REFINED}
TUNED: Jobs = {"finetune_llm": 1, "merge_adapter": 1, "invariance": 1, **SAMPLED}
PREPARED: Jobs = {"reference_hull": 1, **TUNED, "fingerprints": 3}
DATA: Jobs = {"download": 1, "prepare": 1, **PREPARED}
ALL: Jobs = {"fetch_model": 1, **DATA}


@dataclass(frozen=True)
class Change:
    """A change to a finished run.

    Attributes:
        words: what changed, as the documentation says it.
        reruns: jobs a rule that run again.
        config: overlay of the configuration.
        run: edits the run's folder, given a copy of it.
        code: edits the repository, given a copy of it.
        conda: whether the run was made, and goes on, with `--sdm conda`.
    """

    words: str
    reruns: Jobs
    config: dict = field(default_factory=dict)
    run: Callable[[Path], None] | None = None
    code: Callable[[Path], None] | None = None
    conda: bool = False


def edited(path: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text, f"{path} does not hold {old!r}"
        (root / path).write_text(text.replace(old, new))

    return edit


def appended(path: str, text: str) -> Callable[[Path], None]:
    def append(root: Path) -> None:
        with (root / path).open("a") as file:
            file.write(text)

    return append


def removed(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).unlink()


def all_removed(*paths: str) -> Callable[[Path], None]:
    def remove(root: Path) -> None:
        for path in paths:
            shutil.rmtree(root / path)

    return remove


def archived(*parts: str, and_restored: bool = False) -> Callable[[Path], None]:
    def archive(root: Path) -> None:
        words = [sys.executable, "-m", "flowllm"]
        moved = ["archive", "run", *parts, "--to", str(root.parent / "archive")]
        subprocess.run([*words, *moved], cwd=root, check=True)
        if and_restored:
            subprocess.run([*words, "restore", "run"], cwd=root, check=True)

    return archive


def made_again(root: Path) -> None:
    """Make the merged model again, by its rule."""
    shutil.rmtree(root / "run/llm/model")
    snakemake("--cores", "2", "run/llm/model", *TINY_FILES, cwd=root)


def an_hour_ahead(path: str) -> Callable[[Path], None]:
    later = time.time() + 3600
    return lambda root: os.utime(root / path, (later, later))


NEW_SETTING = {**TINY["methods"][0], "name": "new"}
NEW_BASE = {"name": "hot", "temperature": 1.2, "top_p": 0.9}
BRANCH: Jobs = {
    **{"refine": 2, "prerelax": 2, "fingerprints": 1, "stability": 1, "dft_inputs": 1},
    **{"metrics": 1, "report": 1},
}
EXTENDED = {
    "bases": [*TINY["bases"], NEW_BASE],
    "methods": [*TINY["methods"], {**NEW_SETTING, "base": "hot"}],
}
PARTS = ("crystals", "llm/adapter", "llm/model", "pairs", "rfm", "base", "generated", "relaxed")
RAISED = """
from dataclasses import replace
STAGES["refine"] = replace(STAGES["refine"], version=99)
"""
CRYSTALS = "run/crystals/train.parquet"

CHANGES = (
    Change("nothing", {}),
    Change("the seed", ALL, {"seed": 43}),
    Change("`data`: another source", DATA, {"data": {"source": "mp_20"}}),
    Change("`prepare`", {**PREPARED, "prepare": 1}, {"prepare": {"max_rows": 20}}),
    Change(
        "`prompts`",
        TUNED,
        {"prompts": {"introduction": "This is a crystal."}},
    ),
    Change("`finetune_llm`", TUNED, {"finetune_llm": {"learning_rate": 0.01}}),
    Change(
        "`merge_adapter`",
        {"merge_adapter": 1, "invariance": 1, **SAMPLED},
        {"merge_adapter": {"into": "original"}},
    ),
    Change(
        "`invariance`", {"invariance": 1, "report": 1}, {"invariance": {"num_transformations": 3}}
    ),
    Change(
        "`sample_pairs`",
        {"sample_pairs": 3, "train_rfm": 1, **BRANCH},
        {"sample_pairs": {"temperature": 0.8}},
    ),
    Change("`train_rfm`", {"train_rfm": 1, **BRANCH}, {"train_rfm": {"learning_rate": 0.01}}),
    Change("`sample_base`", {"sample_base": 2, **REFINED}, {"sample_base": {"max_attempts": 3}}),
    Change("`refine`", REFINED, {"refine": {"integrator": "rk4"}}),
    Change(
        "`select`: known and repeated drafts are no longer relaxed",
        {"select": 2, "prerelax": 4, **RELAXED},
        {"select": {"skip": ["known", "repeated"]}},
    ),
    Change(
        "`prerelax.max_force` or `max_steps`, which the hull's crystals have, too",
        {"prerelax": 4, "reference_hull": 1, **RELAXED},
        {"prerelax": {"max_force": 0.05}},
    ),
    Change(
        "`prerelax`, another key",
        {"prerelax": 4, **RELAXED},
        {"prerelax": {"chunk_size": 3}},
    ),
    Change(
        "`potential.check`: a second potential, or another one",
        {"second_energies": 3, **RELAXED},
        {"potential": {"check": "chgnet-0.2.0"}},
    ),
    Change(
        "`reference_hull`", {"reference_hull": 1, **RELAXED}, {"reference_hull": {"chunk_size": 2}}
    ),
    Change("`stability`", RELAXED, {"stability": {"metastable_below": 0.1}}),
    Change("`dft_inputs`", {"dft_inputs": 2}, {"dft_inputs": {"selection": "first"}}),
    Change("`fingerprints`", {"fingerprints": 3, **METRICS}, {"fingerprints": {"max_seconds": 9}}),
    Change("`metrics`", METRICS, {"metrics": {"novelty_against": "train_val"}}),
    Change("`report`", REPORT, {"report": {"color": "#000000"}}),
    Change("`resources`: more memory for a rule", {}, {"resources": {"prepare": {"mem_mb": 9}}}),
    Change("`nodes`: a training on two", {}, {"nodes": {"finetune_llm": 2, "train_rfm": 2}}),
    Change(
        "`sizes.num_pairs` grows from 12 to 20: of its 2 shards one is filled up, and one added",
        {"sample_pairs": 2, "train_rfm": 1, **BRANCH},
        {"sizes": {"num_pairs": 20}},
    ),
    Change(
        "`sizes.pairs_per_shard`, the number of shards: 3 of 4 pairs instead of 8 and 4",
        {"sample_pairs": 3, "train_rfm": 1, **BRANCH},
        {"sizes": {"pairs_per_shard": 4}},
    ),
    Change(
        "`sizes.num_samples` grows from 5 to 6: the last shard of 2 is filled up (with "
        "`select.skip`, all shards are relaxed again)",
        {"sample_base": 1, "refine": 2, "prerelax": 2, "fingerprints": 2, **RELAXED},
        {"sizes": {"num_samples": 6}},
    ),
    Change(
        "`methods`: one more row on a base that exists",
        BRANCH,
        {"methods": [*TINY["methods"], NEW_SETTING]},
    ),
    Change(
        "`bases` and `methods`: one more sampling temperature",
        {"sample_base": 2, **BRANCH},
        EXTENDED,
    ),
    Change(
        "a data file: `crystals/train.parquet` has other content",
        {**PREPARED, "fingerprints": 2},
        run=appended(CRYSTALS, "x"),
    ),
    Change(
        "only the time of a small file: touched, or a clock that is an hour ahead",
        {},
        run=an_hour_ahead(CRYSTALS),
    ),
    Change(
        "a deleted shard of relaxed crystals, which the report reads",
        {"prerelax": 1, "stability": 1, "dft_inputs": 1, "metrics": 1, "report": 1},
        run=removed("run/relaxed/FlowLLM-tau0.7-p0.9/shard-00000.parquet"),
    ),
    Change(
        "a deleted shard of pairs, which the report reads (as a target of its own, before this: "
        "that shard only)",
        {"sample_pairs": 1, "train_rfm": 1, **BRANCH},
        run=removed("run/pairs/train/shard-00000.parquet"),
    ),
    Change(
        "a deleted shard of generated crystals, while all that was made from it exists: only "
        "stages that have finished read it",
        {},
        run=removed("run/generated/FlowLLM-tau0.7-p0.9/shard-00000.parquet"),
    ),
    Change(
        "the merged model `llm/model/` is deleted",
        {},
        run=all_removed("run/llm/model"),
    ),
    Change(
        "the merged model is deleted, and one more sampling temperature",
        {"merge_adapter": 1, "sample_base": 2, **BRANCH},
        EXTENDED,
        run=all_removed("run/llm/model"),
    ),
    Change(
        "the merged model is deleted, then made again from the same adapter", {}, run=made_again
    ),
    Change(
        "the merged model is deleted, then made again, and one more sampling temperature",
        {"sample_base": 2, **BRANCH},
        EXTENDED,
        run=made_again,
    ),
    Change(
        "`crystals/` is deleted: the report reads `crystals/rejected.parquet`",
        {"prepare": 1},
        run=all_removed("run/crystals"),
    ),
    Change(
        "`crystals/` is deleted, and one more row on a base that exists",
        {"prepare": 1, **BRANCH},
        {"methods": [*TINY["methods"], NEW_SETTING]},
        run=all_removed("run/crystals"),
    ),
    Change(
        "`crystals/` is deleted, and `prepare` changed",
        {**PREPARED, "prepare": 1},
        {"prepare": {"max_rows": 20}},
        run=all_removed("run/crystals"),
    ),
    Change(
        "all parts that `flowllm archive` lists are archived",
        {},
        run=archived(*PARTS),
    ),
    Change(
        "all parts are archived and restored, and one more sampling temperature (without "
        "`flowllm restore` no job starts, and the message names it)",
        {"sample_base": 2, **BRANCH},
        EXTENDED,
        run=archived(*PARTS, and_restored=True),
    ),
    Change("the deleted report", REPORT, run=removed("run/report/index.html")),
    Change(
        "a stage's version in `config.stages.STAGES` (a fixed defect): refine",
        REFINED,
        code=appended("src/flowllm/config/stages.py", RAISED),
    ),
    Change(
        "a stage's source, its version kept (a comment, a faster loop)",
        {},
        code=appended("src/flowllm/stages/refine.py", "\n# Edited.\n"),
    ),
    Change(
        "a rule's command line",
        REFINED,
        code=edited("workflow/rules/refine.smk", "python -m flowllm", "python -m  flowllm"),
    ),
    Change(
        "a package's version in `envs/` (without `--sdm conda`); the records tell the versions",
        {},
        code=edited("envs/rfm.yaml", "torch==", "torch==1"),
    ),
    Change(
        "a package's version in `envs/rfm.yaml`, with `--sdm conda`",
        {"train_rfm": 1, **REFINED},
        code=edited("envs/rfm.yaml", "torch==", "torch==1"),
        conda=True,
    ),
)


CONDA = """#!/bin/sh
# What Snakemake asks conda for; no environment is made.
case "$*" in
    "info --json") echo '{"conda_prefix": "/opt/conda", "platform": "linux-64"}' ;;
    "--version") echo "conda 25.1.0" ;;
    "config "*) echo '{"get": {"channel_priority": "strict"}}' ;;
esac
"""


@pytest.fixture(scope="module")
def plans(finished_run, tmp_path_factory) -> dict[str, Jobs]:
    """The jobs that each change brings about, by its words."""
    scratch = tmp_path_factory.mktemp("changes")
    conda = tmp_path_factory.mktemp("bin") / "conda"
    conda.write_text(CONDA)
    conda.chmod(0o755)
    numbered = list(enumerate(CHANGES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{conda.parent}{os.pathsep}{os.environ['PATH']}")
        outputs = dry_runs([request(one, finished_run, scratch / str(i)) for i, one in numbered])
    return {change.words: planned(out) for change, out in zip(CHANGES, outputs, strict=True)}


def request(change: Change, finished_run: Path, scratch: Path) -> tuple[str, list[str]]:
    """Make a change to copies, and return the folder and the words of its dry run."""
    scratch.mkdir()
    run, code = finished_run, ROOT
    if change.run is not None or change.conda:
        run = scratch / "run"
        shutil.copytree(finished_run, run)
    if change.run is not None:
        change.run(run)
    with_conda = ["--sdm", "conda"] if change.conda else []
    if change.conda:  # the run's jobs as if each had run in its environment
        snakemake("--touch", "--cores", "1", *with_conda, *TINY_FILES, cwd=run)
    if change.code is not None:
        code = scratch / "code"
        for name in ("src", "workflow", "envs"):
            shutil.copytree(ROOT / name, code / name)
        shutil.copy(ROOT / "Snakefile", code)
        shutil.copy(ROOT / "config.yaml", code)
        change.code(code)
    overlay = scratch / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(change.config))
    files = [ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml", overlay]
    words = ["--snakefile", str(code / "Snakefile"), "--configfile", *map(str, files)]
    return str(run), [*words, *with_conda]


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.words)
def test_only_what_a_change_invalidates_reruns(plans, change):
    assert plans[change.words] == with_all(change.reruns)


def with_all(jobs: Jobs) -> Jobs:
    """The plan with the target, which is no job where nothing is to do."""
    return {**jobs, "all": 1} if jobs else {}


def page() -> str:
    """docs/reruns.md."""
    total = sum(ALL.values())
    lines = [
        "# What runs again after a change",
        "",
        "Snakemake runs a job again when its inputs, its part of the configuration, its stage's",
        "version or its command changed, and then what depends on it. The run below has",
        f"{total} jobs (`tests/tiny.yaml`: 3 shards of pairs, 2 methods of 2 shards each, of",
        "which one refines and so depends on the flow). Every line is a dry run in",
        "`tests/workflow/test_reruns.py`; that file writes this one.",
        "",
        "Deleted outputs of `download`, `prepare`, `fetch_model` and `merge_adapter` are made",
        "again with the same content where a planned job reads them, and nothing else that was",
        "made from them runs again. `flowllm archive RUN` lists what can leave the run's folder,",
        "and what that frees ([Artifacts](artefacts.md#free-disk-space)).",
        "",
        "The files of a base model (`finetune_llm.base_model`) are no inputs of the workflow:",
        "other weights in its folder, or a newer commit on the hub, rerun nothing. A run trains",
        "on the commit that `fetch_model` has recorded. An unfinished training starts again if",
        "the weights of the folder have changed, and `merge_adapter` rejects an adapter that was",
        "trained on others. `snakemake --forcerun fetch_model finetune_llm` trains on the new",
        "ones.",
        "",
        "| What changed | Jobs that run again |",
        "|---|---|",
    ]
    for change in CHANGES:
        counts = [(rule, change.reruns[rule]) for rule in STAGES if rule in change.reruns]
        ran = [rule if count == 1 else f"{rule} ×{count}" for rule, count in counts]
        whole = ", ".join(ran) if change.reruns != ALL else f"all {total}"
        lines.append(f"| {change.words} | {whole or 'none'} |")
    lines += [
        "",
        "A job that was refused, failed or was cancelled after a change has not replaced its",
        "outputs. When the configuration is changed back, it does not run again",
        "(`tests/workflow/test_kept_outputs.py`, docs/faults.md).",
    ]
    return "\n".join(lines) + "\n"


def test_the_documentation_has_this_table():
    written = (ROOT / "docs" / "reruns.md").read_text()
    assert written == page(), (
        "run: PYTHONPATH=tests/helpers python tests/workflow/test_reruns.py > docs/reruns.md"
    )


if __name__ == "__main__":
    print(page(), end="")
