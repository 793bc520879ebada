"""Energies and crystals from finished DFT runs, corrected as the Materials Project corrects."""

import gzip
import json
import math
import re
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pymatgen.core import Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedStructureEntry
from pymatgen.io.vasp.outputs import Vasprun

CorrectionScheme = Literal["MP2020", "MP2020_plus_u_only", "none"]
StrictAnions = Literal["require_bound", "require_exact", "no_check"]

GPAW_OUTPUT = "gpaw_result.json"
"""Written by `gpaw_static.py`."""

_LEG = re.compile(r"vasprun\.xml\.relax(\d+)(?:\.gz)?")

_RUN_TYPES = {"GGA": "GGA", "PBE": "GGA", "GGA+U": "GGA+U", "PBE+U": "GGA+U"}
"""pymatgen's name of a run, and the name under which MP2020 knows it. Anything else (a metaGGA, a
van der Waals term) is on another scale."""


class RunProblem(Exception):  # noqa: N818
    """A run's energy cannot be used.

    Attributes:
        status: short name, the row's status.
    """

    def __init__(self, status: str, detail: str) -> None:
        """Name what is wrong and say it in full."""
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True)
class DftRun:
    """One finished run.

    Attributes:
        structure: the last structure.
        energy: eV of the cell, uncorrected.
        run_type: GGA or GGA+U, by VASP; or GPAW.
        parameters: what the correction scheme needs to know of the run.
        converged_electronic: the last electronic loop reached its threshold.
        converged_ionic: the relaxation reached its threshold, or there was none to do.
        num_steps: ionic steps.
    """

    structure: Structure
    energy: float
    run_type: str
    parameters: dict[str, Any]
    converged_electronic: bool
    converged_ionic: bool
    num_steps: int


def find_output(folder: Path) -> Path | None:
    """The run's result; None where there is none.

    For VASP the last vasprun.xml, plain or gzipped.

    A run in two legs (custodian's double relaxation) leaves vasprun.xml.relax1 and .relax2; without
    a plain vasprun.xml the last leg counts.
    """
    for name in (GPAW_OUTPUT, "vasprun.xml", "vasprun.xml.gz"):
        if (folder / name).exists():
            return folder / name
    legs = {path: _LEG.fullmatch(path.name) for path in folder.glob("vasprun.xml.relax*")}
    numbers = {path: int(match[1]) for path, match in legs.items() if match}
    return max(numbers, key=numbers.__getitem__, default=None)


def read_run(path: Path) -> DftRun:
    """Read a result that `find_output` found.

    Raises:
        RunProblem: it is cut short (`unfinished`), not what its name says (`unreadable`), or
            another functional's than the input sets ask for (`wrong_functional`).
    """
    return _read_gpaw(path) if path.name == GPAW_OUTPUT else _read_vasp(path)


def _read_gpaw(path: Path) -> DftRun:
    try:
        result = json.loads(path.read_text())
        structure = Structure(result["cell"], result["atomic_numbers"], result["frac_coords"])
        energy = float(result["energy"])
        converged = bool(result["converged"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunProblem("unreadable", f"{path.name}: {type(error).__name__}: {error}") from error
    if not math.isfinite(energy):
        raise RunProblem("unreadable", f"{path.name}: energy {energy}")
    return DftRun(structure, energy, "GPAW", {}, converged, converged, 1)


def _read_vasp(path: Path) -> DftRun:
    """Read a vasprun.xml."""
    _check_finished(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unconverged: the row says so
            vasprun = Vasprun(
                str(path), parse_dos=False, parse_eigen=False, parse_potcar_file=False
            )
    # pymatgen raises whatever its parser stumbles over; the file is one crystal's.
    except Exception as error:
        detail = f"{path.name}: {type(error).__name__}: {str(error)[:200]}"
        raise RunProblem("unreadable", detail) from error
    return _run_of(vasprun)


def _check_finished(path: Path) -> None:
    """VASP closes the file's outermost element when it ends; what runs or was killed has not."""
    tail = b""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            while block := handle.read(1 << 22):
                tail = (tail + block)[-64:]
    except EOFError as error:
        raise RunProblem("unfinished", f"{path.name} is cut short ({error})") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise RunProblem("unreadable", f"{path.name}: {error}") from error
    if not tail.rstrip().endswith(b"</modeling>"):
        steps = _finished_steps(path)
        raise RunProblem(
            "unfinished", f"{path.name} does not end with </modeling>; {steps} finished"
        )


def _finished_steps(path: Path) -> str:
    """How many ionic steps a run that was cut short has finished, for whoever restarts it."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
        count = sum(line.count(b"</calculation>") for line in handle)
    return f"{count} ionic step" + "s" * (count != 1)


def _run_of(vasprun: Vasprun) -> DftRun:
    if not vasprun.ionic_steps:
        raise RunProblem("unfinished", "no ionic step was finished")
    run_type = _RUN_TYPES.get(vasprun.run_type)
    if run_type is None:
        raise RunProblem(
            "wrong_functional", f"a {vasprun.run_type} run; its energies are not GGA's or GGA+U's"
        )
    parameters = {
        "run_type": run_type,
        "is_hubbard": vasprun.is_hubbard,
        "hubbards": vasprun.hubbards,
        "potcar_symbols": vasprun.potcar_symbols,
    }
    return DftRun(
        structure=vasprun.final_structure,
        energy=float(vasprun.final_energy),
        run_type=run_type,
        parameters=parameters,
        converged_electronic=bool(vasprun.converged_electronic),
        converged_ionic=bool(vasprun.converged_ionic),
        num_steps=len(vasprun.ionic_steps),
    )


def scheme_of(run: DftRun, scheme: CorrectionScheme) -> str:
    """The correction scheme of a run: the given one, or GPAW's, which has no corrections."""
    return "GPAW" if run.run_type == "GPAW" else scheme


def corrected_energy(run: DftRun, scheme: CorrectionScheme, strict_anions: StrictAnions) -> float:
    """Energy of the cell in eV with the scheme's correction.

    MP2020 (Wang et al. 2021) is given the run type of every entry: without it pymatgen drops an
    entry that is not GGA+U, and plain oxides and halides stay uncorrected. That is what the public
    codes' published rates have; `MP2020_plus_u_only` does the same, for comparison with them.

    Raises:
        RunProblem: the scheme has no correction for the run (`no_correction`).
    """
    if run.run_type == "GPAW" or scheme == "none":
        return run.energy
    if scheme == "MP2020_plus_u_only" and run.run_type != "GGA+U":
        return run.energy
    entry = ComputedStructureEntry(run.structure, run.energy, parameters=run.parameters)
    compatibility = MaterialsProject2020Compatibility(
        check_potcar=False, strict_anions=strict_anions
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # guessed oxidation states
        processed = compatibility.process_entry(entry)
    if processed is None:
        raise RunProblem("no_correction", "MP2020 does not cover the run's settings or elements")
    return float(processed.energy)
