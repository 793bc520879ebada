"""DFT input folders for relaxed crystals, of VASP (pymatgen's sets), GPAW and Quantum ESPRESSO.

The two open codes get the cutoff and the mesh of the configuration, and GPAW the Materials
Project's initial magnetic moments. Their energies are on scales of their own, never on VASP's.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata as package_metadata
from pathlib import Path

from pymatgen.core import SETTINGS, Structure
from pymatgen.core.periodic_table import Element
from pymatgen.io.pwscf import PWInput
from pymatgen.io.vasp import Kpoints, Poscar
from pymatgen.io.vasp.sets import MPRelaxSet, MPScanRelaxSet, MPStaticSet, VaspInputSet

from flowllm.config.sections.energies import DftInputs
from flowllm.crystal import MAX_ATOMIC_NUMBER, Crystal
from flowllm.errors import FlowllmError
from flowllm.io.file_errors import explain
from flowllm.io.files import atomic_folder

VASP_SETS: dict[str, type[VaspInputSet]] = {
    "MPRelaxSet": MPRelaxSet,
    "MPScanRelaxSet": MPScanRelaxSet,
    "MPStaticSet": MPStaticSet,
}

OPEN_SETS = {"gpaw": "GPAWStatic", "espresso": "EspressoRelax"}
"""The one set of inputs that each other code has."""

GPAW_INPUT = "gpaw.json"

_GPAW_SETUPS = frozenset(
    Element.from_Z(z).symbol for z in (*range(1, 43), *range(44, 57), *range(72, 84), 86)
)
"""Elements with a PBE setup in gpaw-setups 0.9.20000: no technetium, no lanthanides."""

_EV_PER_RYDBERG = 13.605693


@dataclass(frozen=True)
class InputFolder:
    """What was written for one crystal.

    Attributes:
        potcar_symbols: the pseudopotentials by species, in the POSCAR's order.
        structure_hash: SHA-256 of the POSCAR.
    """

    potcar_symbols: list[str]
    structure_hash: str


def input_set_of(code: str, section: DftInputs) -> str:
    """Name of a code's set of inputs."""
    return OPEN_SETS.get(code, section.input_set)


def input_set_version() -> str:
    """The version that defines the input sets: pymatgen's."""
    return f"pymatgen {package_metadata.version('pymatgen')}"


def missing_pseudopotentials(crystal: Crystal, input_set: str) -> list[str]:
    """Symbols of the crystal's elements for which the set has no pseudopotential."""
    symbols = {Element.from_Z(int(number)).symbol for number in set(crystal.atomic_numbers)}
    return sorted(symbols - _known_elements(input_set))


@cache
def _known_elements(input_set: str) -> frozenset[str]:
    if input_set in VASP_SETS:
        return frozenset(VASP_SETS[input_set].CONFIG["POTCAR"])
    if input_set == OPEN_SETS["gpaw"]:
        return _GPAW_SETUPS
    # Quantum ESPRESSO's are the user's own: whether one is there is seen when it runs.
    return frozenset(Element.from_Z(z).symbol for z in range(1, MAX_ATOMIC_NUMBER + 1))


def folder_name(crystal_id: str) -> str:
    """A name for a crystal's folder: its id, or where that is no safe name, a part and a digest."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", crystal_id):
        return crystal_id
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", crystal_id)[:80].lstrip("._-")
    return f"{safe}-{hashlib.sha256(crystal_id.encode()).hexdigest()[:12]}"


def write_folder(crystal: Crystal, input_set: str, section: DftInputs, folder: Path) -> InputFolder:
    """Write the inputs of one calculation.

    A folder with the same inputs is left as it is, with whatever results it holds.

    Args:
        crystal: the crystal.
        input_set: what `input_set_of` gave.
        section: cutoff and mesh of the codes other than VASP.
        folder: where.

    Raises:
        FlowllmError: pymatgen is configured with pseudopotentials and one is missing, the folder
            is there with other inputs and with files that are not ours, or it cannot be written.
    """
    structure = crystal.to_structure()
    if input_set in VASP_SETS:
        files, pseudopotentials = _vasp_files(structure, VASP_SETS[input_set], folder)
    elif input_set == OPEN_SETS["gpaw"]:
        files, pseudopotentials = _gpaw_files(structure, section)
    else:
        files, pseudopotentials = _espresso_files(structure, section)
    with naming_output_errors(folder):
        if not _has_files(folder, files):
            with atomic_folder(folder) as temporary:
                for name, text in files.items():
                    (temporary / name).write_text(text, encoding="utf-8")
    structure_hash = hashlib.sha256(Poscar(structure).get_str().encode()).hexdigest()
    return InputFolder(pseudopotentials, structure_hash)


def _vasp_files(
    structure: Structure, input_set: type[VaspInputSet], folder: Path
) -> tuple[dict[str, str], list[str]]:
    """INCAR, KPOINTS, POSCAR, and POTCAR.spec, or POTCAR where pymatgen has them."""
    inputs = input_set(structure)
    try:
        written = inputs.get_input_set(potcar_spec=not SETTINGS.get("PMG_VASP_PSP_DIR"))
    except FileNotFoundError as error:
        raise FlowllmError(
            f"{folder}: a POTCAR is missing under PMG_VASP_PSP_DIR: {error}"
        ) from error
    files = {name: str(content) for name, content in written.items() if content is not None}
    return files, list(inputs.potcar_symbols)


def _gpaw_files(structure: Structure, section: DftInputs) -> tuple[dict[str, str], list[str]]:
    """What `gpaw_static.py` reads."""
    calculation = {
        "atomic_numbers": list(structure.atomic_numbers),
        "cell": structure.lattice.matrix.tolist(),
        "frac_coords": structure.frac_coords.tolist(),
        "magnetic_moments": _magnetic_moments(structure),
        "cutoff_ev": section.plane_wave_cutoff,
        "kpoints": _kpoints(structure, section),
        "xc": "PBE",
    }
    text = json.dumps(calculation, indent=1, sort_keys=True) + "\n"
    return {GPAW_INPUT: text}, [f"{element.symbol}.PBE" for element in structure.elements]


def _espresso_files(structure: Structure, section: DftInputs) -> tuple[dict[str, str], list[str]]:
    """pw.in, a variable-cell relaxation; the pseudopotentials are looked for as {symbol}.UPF."""
    names = {element.symbol: f"{element.symbol}.UPF" for element in structure.elements}
    cutoff = section.plane_wave_cutoff / _EV_PER_RYDBERG
    inputs = PWInput(
        structure,
        pseudo=names,
        control={"calculation": "vc-relax", "pseudo_dir": "../../pseudopotentials"},
        # Ultrasoft pseudopotentials need the density up to eight times the cutoff.
        system={
            "ecutwfc": round(cutoff, 3),
            "ecutrho": round(8 * cutoff, 3),
            "occupations": "smearing",
            "smearing": "mv",
            "degauss": 0.01,
        },
        electrons={"conv_thr": 1e-8},
        kpoints_grid=_kpoints(structure, section),
    )
    return {"pw.in": str(inputs)}, list(names.values())


def _kpoints(structure: Structure, section: DftInputs) -> list[int]:
    """Mesh of a density of k-points in reciprocal space, as the Materials Project's sets choose."""
    mesh = Kpoints.automatic_density_by_vol(structure, section.kpoint_density)
    return [int(number) for number in mesh.kpts[0]]


def _magnetic_moments(structure: Structure) -> list[float]:
    """Initial moments by element as in MPRelaxSet, in Bohr magnetons."""
    moments = MPRelaxSet.CONFIG["INCAR"]["MAGMOM"]
    return [float(moments.get(site.specie.symbol, 0.6)) for site in structure]


def _has_files(folder: Path, files: Mapping[str, str]) -> bool:
    """Whether a folder has the inputs already, or had them: `job_array.sh` and custodian keep what
    they replace under `.orig`.

    Raises:
        FlowllmError: it has others, and files that are not ours.
    """
    if not folder.exists():
        return False
    found = {path.name for path in folder.iterdir()}
    if all(
        any(
            kept in found and (folder / kept).read_bytes() == text.encode()
            for kept in (name, f"{name}.orig")
        )
        for name, text in files.items()
    ):
        return True
    foreign = sorted(found - set(files))
    if foreign:
        raise FlowllmError(
            f"{folder} holds other inputs and {', '.join(foreign[:5])}: "
            "results of an earlier selection? Move the folder away and run dft_inputs again"
        )
    return False


@contextmanager
def naming_output_errors(path: Path) -> Iterator[None]:
    """Say which folder could not be written, why, and what to do.

    Raises:
        FlowllmError: the disk, the quota or the inodes are used up, or the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        above = (place for place in (path, *path.parents) if place.exists() and not place.is_dir())
        raise FlowllmError(
            f"{explain(error, next(above, path))}; then run dft_inputs again: folders that are "
            "written are kept"
        ) from error
