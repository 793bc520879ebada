"""Energies from VASP's vasprun.xml: finished, cut short at any place, or restarted.

A folder holds the results of several attempts where a run was restarted. The newest with an ionic
step that converged electronically counts, and of its steps the last such one. Unless the run is
finished and converged, that energy is an upper bound of what relaxation would have come to.
"""

import gzip
import math
import re
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BufferedIOBase
from pathlib import Path
from typing import IO

from pymatgen.core import Structure
from pymatgen.io.vasp.outputs import Vasprun

from flowllm.dft.runs import DftRun, RunProblem

NAME = "vasprun.xml"

_EARLIER = re.compile(
    r"(?:vasprun\.xml\.(?P<kind>relax|cut)|(?P<archive>error)\.)(?P<number>\d+)(?:\.gz|\.tar\.gz)?"
)
_NEWEST_FIRST = {"relax": 0, "cut": 1, "error": 2}
"""Legs of custodian's double relaxation; what job_array.sh keeps of a run that it starts again;
what custodian keeps of a run before it changes the inputs."""

_STEP_END = b"</calculation>"
_FILE_END = b"</modeling>"
_BLOCK = 1 << 20

_RUN_TYPES = {"GGA": "GGA", "PBE": "GGA", "GGA+U": "GGA+U", "PBE+U": "GGA+U"}
"""pymatgen's name of a run, and the name under which MP2020 knows it. Anything else (a metaGGA, a
van der Waals term) is on another scale."""


def find_vasp_outputs(folder: Path) -> list[Path]:
    """The folder's results, and archives of results, the newest first."""
    current = [folder / name for name in (NAME, f"{NAME}.gz") if (folder / name).exists()]
    ages = {}
    for path in folder.iterdir():
        if found := _EARLIER.fullmatch(path.name):
            kind = found["kind"] or found["archive"]
            ages[path] = (_NEWEST_FIRST[kind], -int(found["number"]), path.name)
    return current + sorted(ages, key=ages.__getitem__)


def read_vasp(outputs: list[Path]) -> DftRun:
    """Read the newest result that has an energy.

    Args:
        outputs: what `find_vasp_outputs` found, at least one.

    Raises:
        RunProblem: none has an energy; what is wrong with the newest. Or a result is of another
            functional than the input sets ask for (`wrong_functional`).
    """
    problems: list[RunProblem] = []
    for path in outputs:
        try:
            run = _read_output(path)
        except RunProblem as problem:
            if problem.status == "wrong_functional":
                raise
            problems.append(problem)
            continue
        if not problems:
            return run
        # The attempt after this one was not made for nothing: its relaxation was to go on.
        shortfall = f"{problems[0]}; taken instead: {run.shortfall or path.name}"
        return replace(run, converged_ionic=False, shortfall=shortfall)
    raise problems[0]


def _read_output(path: Path) -> DftRun:
    """Read one vasprun.xml, plain, gzipped or in an archive."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as whole:
        try:
            with _opened(path) as source:
                finished = _copy_whole_steps(source, whole)
        except (gzip.BadGzipFile, zlib.error, tarfile.TarError) as error:
            raise RunProblem("unreadable", f"{path.name}: {error}") from error
        whole.flush()
        return _parse(Path(whole.name), path.name, finished)


@contextmanager
def _opened(path: Path) -> Iterator[BufferedIOBase]:
    """The text of a result; in an archive that of its vasprun.xml."""
    if not path.name.endswith(".tar.gz"):
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            yield handle
        return
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                inside = archive.extractfile(member)  # None for a folder
                if Path(member.name).name == NAME and isinstance(inside, BufferedIOBase):
                    yield inside
                    return
    except EOFError as error:
        raise RunProblem("unfinished", f"{path.name} is cut short ({error})") from error
    raise RunProblem("unreadable", f"{path.name}: no {NAME} in it")


def _copy_whole_steps(source: BufferedIOBase, target: IO[bytes]) -> bool:
    """Copy a result; one that is cut short up to its last whole ionic step, and closed there.

    Returns:
        Whether VASP closed the file, as it does when it ends; what runs or was killed has not.
    """
    written = step_end = 0
    tail = b""
    for block in _blocks(source):
        target.write(block)
        window = tail + block
        found = window.rfind(_STEP_END)
        if found >= 0:
            step_end = written - len(tail) + found + len(_STEP_END)
        written += len(block)
        tail = window[-64:]
    if tail.rstrip().endswith(_FILE_END):
        return True
    target.truncate(step_end)
    target.seek(step_end)
    target.write(b"\n" + _FILE_END)
    return False


def _blocks(source: BufferedIOBase) -> Iterator[bytes]:
    """All that can be read; a gzip file that is cut short ends where it is."""
    try:
        # read1 gives what there is before it stumbles, read would lose it.
        while block := source.read1(_BLOCK):
            yield block
    except EOFError:
        return


def _parse(path: Path, name: str, finished: bool) -> DftRun:
    """Read whole steps; `name` is what the user knows the file by."""
    if not path.stat().st_size > len(_FILE_END) + 1:
        raise RunProblem("unfinished", f"{name} was cut short before its first ionic step was done")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unconverged: the row says so
            vasprun = Vasprun(
                str(path), parse_dos=False, parse_eigen=False, parse_potcar_file=False
            )
            return _run_of(vasprun, name, finished)
    except RunProblem:
        raise
    # pymatgen raises whatever its parser stumbles over; the file is one crystal's.
    except Exception as error:
        detail = f"{name}: {type(error).__name__}: {str(error)[:200]}"
        raise RunProblem("unreadable", detail) from error


def _run_of(vasprun: Vasprun, name: str, finished: bool) -> DftRun:
    """The last electronically converged step of a parsed run."""
    run_type = _RUN_TYPES.get(vasprun.run_type)
    if run_type is None:
        detail = f"{name}: a {vasprun.run_type} run; its energies are not GGA's or GGA+U's"
        raise RunProblem("wrong_functional", detail)
    steps = vasprun.ionic_steps
    is_static = vasprun.parameters.get("NSW", 0) <= 1
    reached = is_static or (finished and bool(vasprun.converged_ionic))
    step, structure, energy = _last_good_step(vasprun, name)
    shortfall = None
    if step < len(steps):
        shortfall = "the electronic loop hit its limit after it"
    elif not reached:
        shortfall = "the relaxation hit its limit of steps" if finished else "it was cut short"
    return DftRun(
        structure=structure,
        energy=energy,
        run_type=run_type,
        parameters={
            "run_type": run_type,
            "is_hubbard": vasprun.is_hubbard,
            "hubbards": vasprun.hubbards,
            "potcar_symbols": vasprun.potcar_symbols,
        },
        converged_electronic=step == len(steps),
        converged_ionic=shortfall is None,
        num_steps=len(steps),
        shortfall=shortfall and f"{name}: step {step} of {len(steps)}, {shortfall}",
    )


def _last_good_step(vasprun: Vasprun, name: str) -> tuple[int, Structure, float]:
    """Number, structure and energy (eV) of the last step that converged electronically."""
    steps = vasprun.ionic_steps
    for step in range(len(steps), 0, -1):
        vasprun.ionic_steps = steps[:step]  # pymatgen speaks of the last
        energy = float(vasprun.final_energy)
        structure = steps[step - 1]["structure"]
        if vasprun.converged_electronic and math.isfinite(energy) and structure is not None:
            vasprun.ionic_steps = steps
            return step, structure, energy
    detail = f"{name}: the electronic loop converged in none of {len(steps)} ionic steps"
    raise RunProblem("unconverged_electronic", detail)
