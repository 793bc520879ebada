"""The crystals that pymatgen contains: prototypes of the AFLOW library.

Mehl et al., Computational Materials Science 136, S1 (2017), doi 10.1016/j.commatsci.2017.01.017.
They are real crystals under pymatgen's license and need no download.
"""

import gzip
import json
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flowllm.errors import FlowllmError

LICENCE = "MIT, pymatgen"

_PACKAGE = "pymatgen.analysis.prototypes"
_FILE = "aflow_prototypes.json.gz"


def origin() -> str:
    """Return the origin of the bundled crystals, with the version of pymatgen."""
    return f"pymatgen {metadata.version('pymatgen')}, {_FILE}"


def prototypes() -> Iterator[dict[str, Any]]:
    """Yield every prototype as a row in MP-20's format, in the file's order.

    A few AFLOW labels (stoichiometry, Pearson symbol, space group number, Wyckoff letters) have
    several prototypes; with the reduced formula a label is unique.

    Raises:
        FlowllmError: this version of pymatgen has no such file.
    """
    from pymatgen.core import Structure

    # The module is found without its import, which takes ten seconds.
    spec = find_spec(_PACKAGE)
    path = Path(spec.origin if spec and spec.origin else _PACKAGE).with_name(_FILE)
    if not path.is_file():
        raise FlowllmError(
            f"{_PACKAGE}/{_FILE} is not in pymatgen {metadata.version('pymatgen')}; "
            "install the version in envs/constraints.txt, or set data.source to a folder"
        )
    for entry in json.loads(gzip.decompress(path.read_bytes())):
        label = entry["tags"]["aflow"]
        # Only the lattice and the sites are read, so that the entry's class is not needed.
        structure = Structure.from_dict({key: entry["snl"][key] for key in ("lattice", "sites")})
        yield {
            "material_id": f"{label}-{structure.composition.reduced_formula}",
            "cif": structure.to(fmt="cif"),
            "spacegroup.number": label.split("_")[2],
        }
