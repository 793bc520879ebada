"""DFT input folders for relaxed crystals, for VASP (pymatgen's sets), GPAW and Quantum ESPRESSO.

GPAW and Quantum ESPRESSO use the cutoff and the density of k-points of the configuration, and GPAW
also the Materials Project's initial magnetic moments. The energies of different codes cannot be
compared.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata as package_metadata
from pathlib import Path

from pymatgen.core import SETTINGS, Structure
from pymatgen.core.periodic_table import Element
from pymatgen.io.pwscf import PWInput
from pymatgen.io.vasp import Kpoints
from pymatgen.io.vasp.sets import MPRelaxSet, MPScanRelaxSet, MPStaticSet

from flowllm.config.sections.energies import DftInputs
from flowllm.crystal import MAX_ATOMIC_NUMBER, Crystal
from flowllm.errors import FlowllmError
from flowllm.io.file_errors import explain
from flowllm.io.files import atomic_folder

VaspSet = MPRelaxSet | MPScanRelaxSet | MPStaticSet

VASP_SETS: dict[str, type[VaspSet]] = {
    "MPRelaxSet": MPRelaxSet,
    "MPScanRelaxSet": MPScanRelaxSet,
    "MPStaticSet": MPStaticSet,
}

OTHER_SETS = {"gpaw": "GPAWStatic", "espresso": "EspressoRelax"}
"""The input set of each code other than VASP."""

GPAW_INPUT = "gpaw.json"
ESPRESSO_INPUT = "pw.in"

_GPAW_SETUPS = frozenset(
    Element.from_Z(z).symbol for z in (*range(1, 43), *range(44, 57), *range(72, 84), 86)
)
"""Elements with a PBE setup in gpaw-setups 0.9.20000; technetium and the lanthanides have none."""

_EV_PER_RYDBERG = 13.605693


@dataclass(frozen=True)
class InputFolder:
    """The inputs that were written for one crystal.

    Attributes:
        potcar_symbols: one pseudopotential per species, in the order of the POSCAR.
        structure_hash: SHA-256 of the file that has the structure (POSCAR, gpaw.json or pw.in).
    """

    potcar_symbols: list[str]
    structure_hash: str


def input_set_of(code: str, section: DftInputs) -> str:
    """Return the name of the input set of a code."""
    return OTHER_SETS.get(code, section.input_set)


def input_set_version() -> str:
    """Return the version of pymatgen, which defines the input sets."""
    return f"pymatgen {package_metadata.version('pymatgen')}"


def missing_pseudopotentials(crystal: Crystal, input_set: str) -> list[str]:
    """Return the symbols of the crystal's elements for which the set has no pseudopotential."""
    symbols = {Element.from_Z(int(number)).symbol for number in set(crystal.atomic_numbers)}
    return sorted(symbols - _known_elements(input_set))


@cache
def _known_elements(input_set: str) -> frozenset[str]:
    """Return the symbols of the elements for which a set has a pseudopotential."""
    if input_set in VASP_SETS:
        return frozenset(VASP_SETS[input_set].CONFIG["POTCAR"])
    if input_set == OTHER_SETS["gpaw"]:
        return _GPAW_SETUPS
    # Users bring their own pseudopotentials for Quantum ESPRESSO, which stops where one is missing.
    return frozenset(Element.from_Z(z).symbol for z in range(1, MAX_ATOMIC_NUMBER + 1))


def folder_name(crystal_id: str) -> str:
    """Return the name of a crystal's folder: its id, or a safe part of it and a digest."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", crystal_id):
        return crystal_id
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", crystal_id)[:80].lstrip("._-")
    return f"{safe}-{hashlib.sha256(crystal_id.encode()).hexdigest()[:12]}"


def write_folder(
    crystal: Crystal,
    input_set: str,
    section: DftInputs,
    folder: Path,
    before_replacing: Callable[[], object] = lambda: None,
) -> InputFolder:
    """Write the inputs of one calculation.

    A folder that has the same inputs is not changed, so that its results are kept.

    Args:
        crystal: the crystal.
        input_set: name from `input_set_of`.
        section: cutoff and density of k-points for the codes other than VASP.
        folder: the folder to write.
        before_replacing: called before other inputs in that folder are replaced.

    Raises:
        FlowllmError: pymatgen is configured with pseudopotentials and one is missing, the folder
            has other inputs and further files, or the folder cannot be written.
    """
    structure = crystal.to_structure()
    if input_set in VASP_SETS:
        files, pseudopotentials = _vasp_files(structure, VASP_SETS[input_set], folder)
    elif input_set == OTHER_SETS["gpaw"]:
        files, pseudopotentials = _gpaw_files(structure, section)
    else:
        files, pseudopotentials = _espresso_files(structure, section)
    with _explaining_write_errors(folder):
        if not _has_files(folder, files):
            if folder.exists():
                before_replacing()
            with atomic_folder(folder) as temporary:
                for name, text in files.items():
                    (temporary / name).write_text(text, encoding="utf-8")
    [with_structure] = {"POSCAR", GPAW_INPUT, ESPRESSO_INPUT} & set(files)
    structure_hash = hashlib.sha256(files[with_structure].encode()).hexdigest()
    return InputFolder(pseudopotentials, structure_hash)


def _vasp_files(
    structure: Structure, input_set: type[VaspSet], folder: Path
) -> tuple[dict[str, str], list[str]]:
    """Return the text of each file, and one pseudopotential per species.

    The files are INCAR, KPOINTS, POSCAR, and POTCAR where pymatgen has the pseudopotentials, else
    POTCAR.spec.

    Raises:
        FlowllmError: pymatgen is configured with pseudopotentials and one is missing.
    """
    inputs = input_set(structure)
    try:
        written = inputs.get_input_set(potcar_spec=not SETTINGS.get("PMG_VASP_PSP_DIR"))
    except FileNotFoundError as error:
        raise FlowllmError(
            f"{folder}: a POTCAR is missing under PMG_VASP_PSP_DIR: {error}. Add it there, or "
            "unset PMG_VASP_PSP_DIR in pymatgen's configuration to write POTCAR.spec"
        ) from error
    files = {name: str(content) for name, content in written.items() if content is not None}
    return files, list(inputs.potcar_symbols)


def _gpaw_files(structure: Structure, section: DftInputs) -> tuple[dict[str, str], list[str]]:
    """Return gpaw.json, which `gpaw_static.py` reads, and one setup per species."""
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
    """Return pw.in, a variable-cell relaxation, and one pseudopotential per species, SYMBOL.UPF."""
    names = {element.symbol: f"{element.symbol}.UPF" for element in structure.elements}
    cutoff = section.plane_wave_cutoff / _EV_PER_RYDBERG
    inputs = PWInput(
        structure,
        pseudo=names,
        control={"calculation": "vc-relax", "pseudo_dir": "../../pseudopotentials"},
        # Ultrasoft pseudopotentials need a density cutoff of up to eight times the wave cutoff.
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
    return {ESPRESSO_INPUT: str(inputs)}, list(names.values())


def _kpoints(structure: Structure, section: DftInputs) -> list[int]:
    """Return the k-points per axis for a density in reciprocal space, as MPRelaxSet does."""
    # pymatgen's annotation is int; the density is only multiplied.
    density = section.kpoint_density
    mesh = Kpoints.automatic_density_by_vol(structure, density)  # type: ignore[arg-type]
    return [int(number) for number in mesh.kpts[0]]


def _magnetic_moments(structure: Structure) -> list[float]:
    """Return the initial moment of each atom in Bohr magnetons, as in MPRelaxSet."""
    moments = MPRelaxSet.CONFIG["INCAR"]["MAGMOM"]
    return [float(moments.get(site.specie.symbol, 0.6)) for site in structure]


def _has_files(folder: Path, files: Mapping[str, str]) -> bool:
    """Return whether a folder has the inputs, or had them before a restart.

    `job_array.sh` and custodian keep a replaced input under the suffix `.orig`.

    Raises:
        FlowllmError: the folder has other inputs and further files, e.g. results.
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
    other_files = sorted(found - set(files))
    if other_files:
        raise FlowllmError(
            f"{folder} contains other inputs and {', '.join(other_files[:5])}, possibly results of "
            "an earlier selection. Move the folder away and run dft_inputs again"
        )
    return False


@contextmanager
def _explaining_write_errors(path: Path) -> Iterator[None]:
    """Replace an OSError by a message with the folder, the reason and a remedy.

    Errors within `atomic_folder` have that message already.

    Raises:
        FlowllmError: the disk, the quota or the inodes are used up, or the path cannot be written.
    """
    try:
        yield
    except OSError as error:
        above = (place for place in (path, *path.parents) if place.exists() and not place.is_dir())
        raise FlowllmError(
            f"{explain(error, next(above, path))}; then run dft_inputs again: folders that are "
            "written are kept"
        ) from error
