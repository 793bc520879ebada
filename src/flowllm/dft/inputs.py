"""VASP input folders for relaxed crystals, by pymatgen's input sets."""

import hashlib
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib import metadata as package_metadata
from pathlib import Path

from pymatgen.core import SETTINGS
from pymatgen.core.periodic_table import Element
from pymatgen.io.vasp.sets import MPRelaxSet, MPScanRelaxSet, MPStaticSet, VaspInputSet

from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError

INPUT_SETS: dict[str, type[VaspInputSet]] = {
    "MPRelaxSet": MPRelaxSet,
    "MPScanRelaxSet": MPScanRelaxSet,
    "MPStaticSet": MPStaticSet,
}


@dataclass(frozen=True)
class InputFolder:
    """What was written for one crystal.

    Attributes:
        potcar_symbols: the pseudopotentials by species, in the POSCAR's order.
        structure_hash: SHA-256 of the POSCAR.
    """

    potcar_symbols: list[str]
    structure_hash: str


def input_set_version() -> str:
    """The version that defines the input sets: pymatgen's."""
    return f"pymatgen {package_metadata.version('pymatgen')}"


def missing_pseudopotentials(crystal: Crystal, input_set: str) -> list[str]:
    """Symbols of the crystal's elements for which the set names no POTCAR."""
    known = _potcar_elements(input_set)
    symbols = {Element.from_Z(int(number)).symbol for number in set(crystal.atomic_numbers)}
    return sorted(symbols - known)


@cache
def _potcar_elements(input_set: str) -> frozenset[str]:
    return frozenset(INPUT_SETS[input_set].CONFIG["POTCAR"])


def folder_name(crystal_id: str) -> str:
    """A name for a crystal's folder: its id, or where that is no safe name, a part and a digest."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", crystal_id):
        return crystal_id
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", crystal_id)[:80].lstrip("._-")
    return f"{safe}-{hashlib.sha256(crystal_id.encode()).hexdigest()[:12]}"


def write_folder(crystal: Crystal, input_set: str, folder: Path) -> InputFolder:
    """Write INCAR, KPOINTS, POSCAR and POTCAR.spec, or POTCAR where pymatgen has them.

    A folder with the same inputs is left as it is, with whatever results it holds.

    Raises:
        FlowllmError: pymatgen is configured with pseudopotentials and one is missing, or the folder
            is there with other inputs and with files that are not ours.
    """
    spec_only = not SETTINGS.get("PMG_VASP_PSP_DIR")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        inputs = INPUT_SETS[input_set](crystal.to_structure())
        inputs.write_input(str(temporary), potcar_spec=spec_only)
        written = InputFolder(
            potcar_symbols=list(inputs.potcar_symbols),
            structure_hash=hashlib.sha256((temporary / "POSCAR").read_bytes()).hexdigest(),
        )
        temporary.chmod(0o755)
        _put_in_place(temporary, folder)
    except FileNotFoundError as error:
        raise FlowllmError(
            f"{folder}: a POTCAR is missing under PMG_VASP_PSP_DIR: {error}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return written


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename the new folder, unless the same inputs lie there already."""
    if folder.exists():
        names = {path.name for path in temporary.iterdir()}
        found = {path.name for path in folder.iterdir()}
        same = all(
            (folder / name).exists()
            and (folder / name).read_bytes() == (temporary / name).read_bytes()
            for name in names
        )
        if same:
            return
        if found - names:
            raise FlowllmError(
                f"{folder} holds other inputs and {', '.join(sorted(found - names)[:5])}: "
                "results of an earlier selection? Move the folder away and run dft_inputs again"
            )
        shutil.rmtree(folder)
    temporary.rename(folder)
