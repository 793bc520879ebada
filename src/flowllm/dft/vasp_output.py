"""Energies from VASP's vasprun.xml: finished, cut short at any place, or restarted.

A folder holds the results of several attempts where a run was restarted. The newest with an ionic
step that converged electronically counts, and of its steps the last such one. Unless the run is
finished and converged, that energy is an upper bound of what relaxation would have come to.
"""

import codecs
import gzip
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
from flowllm.dft.runs import AskedRun, DftRun, RunProblem
from flowllm.dft.vasp_convergence import find_outcar, is_static, why_not_converged
from flowllm.dft.vasp_settings import check_settings

NAME = "vasprun.xml"

_PACKED = "|".join(re.escape(suffix) for suffix in PACKED_SUFFIXES)
_EARLIER = re.compile(
    rf"vasprun\.xml\.(?P<kind>relax|cut)(?P<number>[0-9]+)(?:{_PACKED})"
    rf"|(?P<archive>error)\.(?P<attempt>[0-9]+)\.(?:tar(?:{_PACKED})|tgz)"
)
_NEWEST_FIRST = {"relax": 0, "cut": 1, "error": 2}
"""Legs of custodian's double relaxation; what job_array.sh keeps of a run that it starts again;
what custodian keeps of a run before it changes the inputs."""

_STEP_END = b"</calculation>"
_FILE_END = b"</modeling>"

_MAX_MEMBERS = 1000
"""Of an archive; custodian's have some twenty."""

_RUN_TYPES = {"GGA": "GGA", "PBE": "GGA", "GGA+U": "GGA+U", "PBE+U": "GGA+U"}
"""pymatgen's name of a run, and the name under which MP2020 knows it. Anything else (a metaGGA, a
van der Waals term) is on another scale."""

_FINAL = ("wrong_functional", "other_settings")
"""Statuses that no earlier attempt makes good."""


def find_vasp_outputs(folder: Path) -> list[Path]:
    """The folder's results, and archives of results, the newest first, whatever they are."""
    paths = {path.name: path for path in folder.iterdir()}
    current = [f"{NAME}{suffix}" for suffix in PACKED_SUFFIXES]
    ages = {}
    for path in paths.values():
        if found := _EARLIER.fullmatch(path.name):
            kind, number = found["kind"] or found["archive"], found["number"] or found["attempt"]
            ages[path] = (_NEWEST_FIRST[kind], -float(number), path.name)
    return [paths[name] for name in current if name in paths] + sorted(ages, key=ages.__getitem__)


def read_vasp(outputs: list[Path], asked: AskedRun | None = None) -> DftRun:
    """Read the newest result that has an energy.

    Args:
        outputs: what `find_vasp_outputs` found, at least one.
        asked: what the manifest says of the run.

    Raises:
        RunProblem: none has an energy; what is wrong with the newest. Or a result is of another
            functional than the input sets ask for (`wrong_functional`), or has other settings than
            its own inputs (`other_settings`).
    """
    problems: list[RunProblem] = []
    for path in outputs:
        try:
            run = _read_output(path, asked or AskedRun())
        except RunProblem as problem:
            if problem.status in _FINAL:
                raise
            problems.append(problem)
            continue
        if not problems:
            return run
        # The attempt after this one was not made for nothing: its relaxation was to go on.
        shortfall = f"{problems[0]}; taken instead: {run.shortfall or path.name}"
        return replace(run, converged_ionic=False, shortfall=shortfall)
    raise problems[0]


def _read_output(path: Path, asked: AskedRun) -> DftRun:
    """Read one vasprun.xml, plain, packed or in an archive."""
    with temporary_file(".xml") as whole:
        try:
            with _opened(path) as source:
                finished = _copy_whole_steps(source, whole, path.name)
        except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
            raise RunProblem("unreadable", f"{path.name}: {error}") from error
        whole.flush()
        return _parse(Path(whole.name), path, finished, asked)


@contextmanager
def _opened(path: Path) -> Iterator[BoundedReader]:
    """The text of a result; in an archive that of its vasprun.xml."""
    with opened(path) as source:
        earlier = _EARLIER.fullmatch(path.name)
        if earlier is None or earlier["archive"] is None:
            yield source
            return
        try:
            # As a stream: nothing is unpacked to disk, and links are not followed.
            with tarfile.open(fileobj=source, mode="r|") as archive:
                yield _member(archive, path.name)
        except EOFError as error:
            raise RunProblem("unfinished", f"{path.name} is cut short ({error})") from error


def _member(archive: tarfile.TarFile, name: str) -> BoundedReader:
    """The vasprun.xml of an archive."""
    for number, member in enumerate(archive):
        inside = f"{name}: {member.name[-80:]}"
        if number == _MAX_MEMBERS:
            raise RunProblem("unreadable", f"{name} has more than {_MAX_MEMBERS} files in it")
        if Path(member.name).name not in (NAME, f"{NAME}.gz") or member.isdir():
            continue
        handle = archive.extractfile(member) if member.isreg() else None
        if handle is None:
            raise RunProblem("unreadable", f"{inside} is a link or a device, not a file")
        return unpacked(handle, member.size, inside)
    raise RunProblem("unreadable", f"{name}: no {NAME} in it")


def _copy_whole_steps(source: BoundedReader, target: IO[bytes], name: str) -> bool:
    """Copy a result; one that is cut short up to its last whole ionic step, and closed there.

    Returns:
        Whether VASP closed the file, as it does when it ends; what runs or was killed has not.

    Raises:
        RunProblem: it is no XML, or has definitions of its own (`unreadable`).
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
    """Blocks of XML up to the first zero byte: some file systems end a killed run's file in them.

    Raises:
        RunProblem: the first byte is not XML's (`unreadable`).
    """
    begun = False
    for block in source.blocks():
        begin = block.removeprefix(codecs.BOM_UTF8).lstrip()
        if not begun and begin and not begin.startswith(b"<"):
            raise RunProblem("unreadable", f"{name} begins with {begin[:16]!r}, so it is no XML")
        begun = begun or bool(begin)
        text, zero, _ = block.partition(b"\0")
        yield text
        if zero:
            return


def _parse(path: Path, output: Path, finished: bool, asked: AskedRun) -> DftRun:
    """Read whole steps; `output` is the file that the user knows."""
    name = output.name
    if not path.stat().st_size > len(_FILE_END) + 1:
        raise RunProblem("unfinished", f"{name} was cut short before its first ionic step was done")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unconverged: the row says so
            vasprun = Vasprun(
                str(path), parse_dos=False, parse_eigen=False, parse_potcar_file=False
            )
            return _run_of(vasprun, output, finished, asked)
    except RunProblem:
        raise
    # pymatgen raises whatever its parser stumbles over; the file is one crystal's.
    except Exception as error:
        detail = f"{name}: {type(error).__name__}: {str(error)[:200]}"
        raise RunProblem("unreadable", detail) from error


def _run_of(vasprun: Vasprun, output: Path, finished: bool, asked: AskedRun) -> DftRun:
    """The last electronically converged step of a parsed run."""
    name = output.name
    run_type = _run_type(vasprun, name)
    held = check_settings(vasprun, asked, output.parent, name)
    steps = vasprun.ionic_steps
    step, structure, energy = _last_good_step(vasprun, name)
    shortfall = None
    if step < len(steps):
        shortfall = "the electronic loop hit its limit after it"
    elif not is_static(vasprun):
        why = why_not_converged(vasprun, find_outcar(output)) if finished else "it was cut short"
        shortfall = why or held
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
    """GGA or GGA+U, as MP2020 knows it.

    Raises:
        RunProblem: the run is of another functional (`wrong_functional`).
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
        detail = f"{name}: a {found[:40]} run; its energies are not GGA's or GGA+U's"
        raise RunProblem("wrong_functional", detail)
    others = [title for title in vasprun.potcar_symbols if not title.startswith("PAW_PBE ")]
    # Without GGA in the INCAR the pseudopotentials decide on the functional.
    if others and found.startswith("GGA"):
        raise RunProblem("wrong_functional", f"{name}: the POTCAR {others[0][:40]} is not PBE's")
    return _RUN_TYPES[found]


def _last_good_step(vasprun: Vasprun, name: str) -> tuple[int, Structure, float]:
    """Number, structure and energy (eV) of the last step that converged electronically."""
    steps = vasprun.ionic_steps
    without_number = False
    for step in range(len(steps), 0, -1):
        vasprun.ionic_steps = steps[:step]  # pymatgen speaks of the last
        energy = float(vasprun.final_energy)
        structure = steps[step - 1]["structure"]
        if vasprun.converged_electronic and structure is not None:
            if math.isfinite(energy):
                vasprun.ionic_steps = steps
                return step, structure, energy
            without_number = True
    if without_number:
        raise RunProblem("unreadable", f"{name}: no step has an energy that is a finite number")
    detail = f"{name}: the electronic loop converged in none of {len(steps)} ionic steps"
    raise RunProblem("unconverged_electronic", detail)
