"""Energies from VASP's vasprun.xml: of finished, truncated and restarted runs.

After a restart, a folder contains the results of several attempts. The energy is that of the last
electronically converged ionic step of the newest attempt that has such a step. Unless this run is
finished and converged, the energy is an upper bound of the relaxed crystal's energy.
"""

import codecs
import gzip
import io
import lzma
import math
import re
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from pymatgen.core import Structure
from pymatgen.io.vasp.outputs import Vasprun

from flowllm.dft.bounded import (
    PACKED_SUFFIXES,
    BoundedReader,
    opened,
    temporary_file,
    unpacked,
)
from flowllm.dft.runs import DftRun, RequestedRun, RunProblem
from flowllm.dft.vasp_convergence import find_outcar, is_static, why_not_converged
from flowllm.dft.vasp_settings import check_settings

NAME = "vasprun.xml"

_PACKED = "|".join(re.escape(suffix) for suffix in PACKED_SUFFIXES)
_EARLIER = re.compile(
    rf"vasprun\.xml\.(?P<kind>relax|cut)(?P<number>[0-9]+)(?:{_PACKED})"
    rf"|(?P<archive>error)\.(?P<attempt>[0-9]+)\.(?:tar(?:{_PACKED})|tgz)"
)
_NEWEST_FIRST = {"relax": 0, "cut": 1, "error": 2}
"""Order of the older results: legs of custodian's double relaxation (relax), results that
job_array.sh keeps before it starts a run again (cut), and archives that custodian makes before it
changes the inputs (error)."""

_STEP_END = b"</calculation>"
_FILE_END = b"</modeling>"

_MAX_ARCHIVE_FILES = 1000
"""Custodian's archives have about 20 files."""

_RUN_TYPES = {"GGA": "GGA", "PBE": "GGA", "GGA+U": "GGA+U", "PBE+U": "GGA+U"}
"""MP2020's run type by pymatgen's name of the functional. Energies of any other functional (a
metaGGA, a van der Waals term) cannot be compared with these."""

_FINAL_STATUSES = ("wrong_functional", "other_settings")
"""Problems of the newest result for which no earlier attempt is read."""


def find_vasp_outputs(folder: Path) -> list[Path]:
    """Return the paths of results and archives of results in a folder, the newest first.

    The paths are selected by name only; they may be folders or broken links.
    """
    paths = {path.name: path for path in folder.iterdir()}
    current = [f"{NAME}{suffix}" for suffix in PACKED_SUFFIXES]
    order = {}
    for path in paths.values():
        if found := _EARLIER.fullmatch(path.name):
            kind, number = found["kind"] or found["archive"], found["number"] or found["attempt"]
            order[path] = (_NEWEST_FIRST[kind], -float(number), path.name)
    return [paths[name] for name in current if name in paths] + sorted(order, key=order.__getitem__)


def read_vasp(outputs: list[Path], requested: RequestedRun | None = None) -> DftRun:
    """Read the newest result that has an energy.

    Args:
        outputs: paths from `find_vasp_outputs`, at least one.
        requested: the run that the manifest requests.

    Raises:
        RunProblem: no result has an energy; the problem is that of the newest one. Or a result has
            another functional than the input sets (`wrong_functional`), or other settings than its
            inputs (`other_settings`).
    """
    problems: list[RunProblem] = []
    for path in outputs:
        try:
            run = _read_output(path, requested or RequestedRun())
        except RunProblem as problem:
            if problem.status in _FINAL_STATUSES:
                raise
            problems.append(problem)
            continue
        if not problems:
            return run
        # A newer attempt was started, so this one is not taken as converged.
        shortfall = f"{problems[0]}; used instead: {run.shortfall or path.name}"
        return replace(run, converged_ionic=False, shortfall=shortfall)
    raise problems[0]


def _read_output(path: Path, requested: RequestedRun) -> DftRun:
    """Read one vasprun.xml, plain, packed or in an archive."""
    with temporary_file(".xml") as complete:
        try:
            with _opened(path) as source:
                finished = _copy_complete_steps(source, complete, path.name)
        except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
            raise RunProblem("unreadable", f"{path.name}: {error}") from error
        complete.flush()
        return _parse(Path(complete.name), path, finished, requested)


@contextmanager
def _opened(path: Path) -> Iterator[BoundedReader]:
    """Open the text of a result, or of the vasprun.xml in an archive.

    Raises:
        RunProblem: the result cannot be opened, or an archive has no vasprun.xml (`unreadable`) or
            is truncated (`unfinished`).
    """
    with opened(path) as source:
        earlier = _EARLIER.fullmatch(path.name)
        if earlier is None or earlier["archive"] is None:
            yield source
            return
        try:
            # As a stream, nothing is unpacked to disk and links are not followed.
            with tarfile.open(fileobj=source, mode="r|") as archive:
                yield _member(archive, path.name)
        except EOFError as error:
            raise RunProblem("unfinished", f"{path.name} is truncated ({error})") from error


def _member(archive: tarfile.TarFile, name: str) -> BoundedReader:
    """Return the vasprun.xml of an archive.

    Raises:
        RunProblem: the archive has none, or it is not a regular file (`unreadable`).
    """
    for number, member in enumerate(archive):
        inside = f"{name}: {member.name[-80:]}"
        if number == _MAX_ARCHIVE_FILES:
            raise RunProblem("unreadable", f"{name} contains more than {_MAX_ARCHIVE_FILES} files")
        if Path(member.name).name not in (NAME, f"{NAME}.gz") or member.isdir():
            continue
        handle = archive.extractfile(member) if member.isreg() else None
        if not isinstance(handle, io.BufferedReader):
            raise RunProblem("unreadable", f"{inside} is a link or a device, not a regular file")
        return unpacked(handle, member.size, inside)
    raise RunProblem("unreadable", f"{name} contains no {NAME}")


def _copy_complete_steps(source: BoundedReader, target: IO[bytes], name: str) -> bool:
    """Copy a result; a truncated one up to its last complete ionic step, with a closing tag.

    Args:
        source: the unpacked vasprun.xml.
        target: an empty file.
        name: file name for messages.

    Returns:
        Whether VASP closed the file, as it does when it ends; False for a run that is in progress
        or was killed.

    Raises:
        RunProblem: the source is not XML, or has a DOCTYPE (`unreadable`).
    """
    written = step_end = 0
    tail = b""
    for block in _text(source, name):
        target.write(block)
        window = tail + block
        if b"<!DOCTYPE" in window:
            raise RunProblem("unreadable", f"{name} has a DOCTYPE, which VASP does not write")
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


def _text(source: BoundedReader, name: str) -> Iterator[bytes]:
    """Yield blocks of XML up to the first zero byte.

    Some file systems fill the end of a killed run's file with zero bytes.

    Raises:
        RunProblem: the text does not begin as XML does (`unreadable`).
    """
    is_checked = False
    for block in source.blocks():
        start = block.removeprefix(codecs.BOM_UTF8).lstrip()
        if not is_checked and start and not start.startswith(b"<"):
            raise RunProblem("unreadable", f"{name} begins with {start[:16]!r}, so it is not XML")
        is_checked = is_checked or bool(start)
        text, zero, _ = block.partition(b"\0")
        yield text
        if zero:
            return


def _parse(path: Path, output: Path, finished: bool, requested: RequestedRun) -> DftRun:
    """Parse complete ionic steps with pymatgen.

    Args:
        path: the copy with the complete steps.
        output: the original file, for messages and for the files in its folder.
        finished: whether VASP closed the original file.
        requested: the run that the manifest requests.

    Raises:
        RunProblem: the run has no usable energy.
    """
    name = output.name
    if not path.stat().st_size > len(_FILE_END) + 1:
        raise RunProblem(
            "unfinished", f"{name} was truncated before its first ionic step was complete"
        )
    try:
        with warnings.catch_warnings():
            # pymatgen warns of unconverged runs, which the status of the row covers.
            warnings.simplefilter("ignore")
            vasprun = Vasprun(
                str(path), parse_dos=False, parse_eigen=False, parse_potcar_file=False
            )
            return _run_of(vasprun, output, finished, requested)
    except RunProblem:
        raise
    # pymatgen's parser raises exceptions of many types, and one file must not stop the stage.
    except Exception as error:
        detail = f"{name}: {type(error).__name__}: {str(error)[:200]}"
        raise RunProblem("unreadable", detail) from error


def _run_of(vasprun: Vasprun, output: Path, finished: bool, requested: RequestedRun) -> DftRun:
    """Return the last electronically converged step of a parsed run."""
    name = output.name
    run_type = _run_type(vasprun, name)
    settings_shortfall = check_settings(vasprun, requested, output.parent, name)
    steps = vasprun.ionic_steps
    step, structure, energy = _last_converged_step(vasprun, name)
    shortfall = None
    if step < len(steps):
        shortfall = "the electronic loop of a later step reached its limit"
    elif is_static(vasprun):
        shortfall = settings_shortfall
    else:
        why = (
            why_not_converged(vasprun, find_outcar(output)) if finished else "the file is truncated"
        )
        shortfall = why or settings_shortfall
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


def _run_type(vasprun: Vasprun, name: str) -> str:
    """Return GGA or GGA+U.

    Raises:
        RunProblem: the run has another functional (`wrong_functional`).
    """
    try:
        found = vasprun.run_type
    except AttributeError:  # pymatgen reads GGA = 91 as a number
        found = f"GGA = {vasprun.parameters.get('GGA')}"
    if vasprun.parameters.get("LMETAGGA"):
        found = "metaGGA"
    if vasprun.incar.get("LVDW"):
        found = f"{found}+vdW-DFT-D2"
    if found not in _RUN_TYPES:
        detail = f"{name}: the functional is {found[:40]}, expected GGA or GGA+U"
        raise RunProblem("wrong_functional", detail)
    others = [title for title in vasprun.potcar_symbols if not title.startswith("PAW_PBE ")]
    # Without GGA in the INCAR, the pseudopotentials determine the functional.
    if others and found.startswith("GGA"):
        raise RunProblem("wrong_functional", f"{name}: the POTCAR {others[0][:40]} is not for PBE")
    return _RUN_TYPES[found]


def _last_converged_step(vasprun: Vasprun, name: str) -> tuple[int, Structure, float]:
    """Return number (from 1), structure and energy (eV per cell) of the last converged step.

    A step is converged where its electronic loop is.

    Raises:
        RunProblem: no step converged (`unconverged_electronic`), or no converged step has a finite
            energy (`unreadable`).
    """
    steps = vasprun.ionic_steps
    has_nonfinite = False
    for step in range(len(steps), 0, -1):
        vasprun.ionic_steps = steps[:step]  # pymatgen's properties describe the last step
        energy = float(vasprun.final_energy)
        structure = steps[step - 1]["structure"]
        if vasprun.converged_electronic and structure is not None:
            if math.isfinite(energy):
                vasprun.ionic_steps = steps
                return step, structure, energy
            has_nonfinite = True
    if has_nonfinite:
        raise RunProblem("unreadable", f"{name}: no step has a finite energy")
    detail = f"{name}: the electronic loop converged in none of {len(steps)} ionic steps"
    raise RunProblem("unconverged_electronic", detail)
