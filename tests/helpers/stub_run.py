"""A finished run of the tiny configuration in which every stage only made its files.

For tests of the workflow alone: `python -m flowllm STAGE` is answered by `main` below. The variable
STUB_ENDS has, as JSON by stage, how jobs end instead.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

from flowllm.io.files import write_text
from flowllm.llm.model_identity import merged_identity
from flowllm.runtime.identity import with_identity
from flowllm.runtime.provenance import provenance_path
from tiny_run import TINY, snakemake

BESIDE = {
    "download": ("train.csv",),
    "metrics": ("{stem}.parquet",),
    "match_csp": ("{stem}.parquet",),
    "report": ("figures/a.svg", "tables/a.csv"),
}
"""Files that a stage makes beside its output."""


FOLDERS = ("finetune_llm", "merge_adapter", "train_rfm")


def main() -> None:
    """Make the files of one job; its content is the command, so that equal jobs are equal."""
    words = sys.argv[1:]
    stage = words[2]
    options = dict(pairwise(words[3:]))
    out = Path(options["--out"])
    paths = [out, *(out.parent / one.format(stem=out.stem) for one in BESIDE.get(stage, ()))]
    if stage == "prepare":
        paths = [out / f"{name}.parquet" for name in ("train", "val", "test", "rejected")]
    elif stage in FOLDERS:
        paths = [out / "weights"]
    names = ("--trajectories",) if stage == "refine" else ("--base", "--trajectories")
    paths += [Path(options[name]) for name in names if name in options]
    end = json.loads(os.environ.get("STUB_ENDS", "{}")).get(stage)
    if end is not None:
        end_before_writing(end, out)
    if stage == "merge_adapter":
        write_identity(out, Path(options["--adapter"]))
    # The crystals have more than 1 MB, up to which Snakemake compares contents by default.
    text = " ".join(words) * (10_000 if stage == "prepare" else 1)
    if stage == "fetch_model":  # `flowllm check` reads it
        text = json.dumps({"base_model": options["--base-model"], "commit": None})
    for path in paths:
        write_text(path, text)
    if end == "before its record":
        sys.exit(1)
    write_record(out, stage, json.loads(options["--settings"]))
    if end == "after its record":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "told to stop at its end":  # as SLURM tells all processes of a job
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.run(["scancel", "--signal=TERM", os.environ["SLURM_JOB_ID"]], check=True)
        time.sleep(2)


def end_before_writing(end: str, out: Path) -> None:
    """End this job before its files are written, or wait until the test lets it go on."""
    if end == "at its start":
        sys.exit(1)
    if end == "without writing":
        sys.exit(0)
    if end == "killed":
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_name(f".{out.name}.tmp").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "waiting":
        Path("waiting").mkdir(exist_ok=True)
        Path("waiting", str(os.getpid())).touch()
        while not Path("go on").exists():
            time.sleep(0.05)


def write_identity(out: Path, adapter: Path) -> None:
    """Write the identity of a merged model, as its stage does."""
    with with_identity(out, merged_identity(adapter, {}, 1)):
        pass


def write_record(out: Path, stage: str, settings: dict) -> None:
    """Write the record of a job as a stage does, without inputs."""
    record = {
        "stage": stage,
        "seed": settings.pop("seed"),
        "stage_version": settings.pop("version"),
        "settings": settings,
        "inputs": {},
        "input_paths": {},
        "counts": {},
        "started": "2026-11-29T00:00:00+00:00",
        "seconds": 0.1,
        "peak_memory_mb": 1,
        "hardware": {"cpus": 1},
    }
    write_text(provenance_path(out), json.dumps(record))


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
