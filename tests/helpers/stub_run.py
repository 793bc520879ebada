"""A finished run of the tiny configuration in which every stage only made its files.

For tests of the workflow alone: `python -m flowllm STAGE` is answered by `main` below.
"""

import os
import stat
import sys
from itertools import pairwise
from pathlib import Path

from flowllm.llm.model_identity import merged_identity
from flowllm.runtime.identity import with_identity
from tiny_run import TINY, snakemake

BESIDE = {
    "download": ("train.csv",),
    "metrics": ("{stem}.parquet",),
    "match_csp": ("{stem}.parquet",),
    "report": ("figures/a.svg", "tables/a.csv"),
}
"""Files that a stage makes beside its output."""


def main() -> None:
    """Make the files of one job; its content is the command, so that equal jobs are equal."""
    words = sys.argv[1:]
    stage = words[2]
    options = dict(pairwise(words[3:]))
    out = Path(options["--out"])
    if stage == "prepare":
        paths = [out / f"{name}.parquet" for name in ("train", "val", "test", "rejected")]
    elif stage in ("finetune_llm", "merge_adapter", "train_rfm"):
        paths = [out / "weights"]
    else:
        paths = [out, *(out.parent / one.format(stem=out.stem) for one in BESIDE.get(stage, ()))]
        paths += [Path(options[name]) for name in ("--base", "--trajectories") if name in options]
    if stage == "merge_adapter":
        write_identity(out, Path(options["--adapter"]))
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():  # refine's --base is its input
            # The crystals have more than 1 MB, up to which Snakemake compares contents by default.
            path.write_text(" ".join(words) * (10_000 if stage == "prepare" else 1))


def write_identity(out: Path, adapter: Path) -> None:
    """Write the identity of a merged model, as its stage does."""
    with with_identity(out, merged_identity(adapter, {}, 1)):
        pass


def make_stub(folder: Path) -> Path:
    """Return a folder for the search path in which `python` makes the files of a job."""
    folder.mkdir()
    stub = folder / "python"
    stub.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c "
        f'\'import sys; sys.path.insert(0, "{Path(__file__).parent}"); '
        'import stub_run; stub_run.main()\' "$@"\n'
    )
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    return folder


def stub_snakemake(bin_folder: Path, *words: str, cwd: Path) -> str:
    """Run snakemake on the tiny configuration with jobs that only make their files."""
    search = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    return snakemake(*words, *TINY, cwd=cwd, search=search)
