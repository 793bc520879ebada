"""Write crystals in the formats of other programs: CIF folder, CSV of pymatgen JSON, extended XYZ.

LeMat-GenBench and similar leaderboards read the CIF folder and the CSV. In the CSV an apostrophe
precedes an id that a spreadsheet would run as a formula.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import ase
import ase.io
from ase.calculators.singlepoint import SinglePointCalculator
from cyclopts import Parameter
from cyclopts.types import PositiveInt
from pymatgen.core import Structure

from flowllm.commands.inspect import CRYSTAL_COLUMNS, read
from flowllm.dft.inputs import folder_name
from flowllm.errors import FlowllmError
from flowllm.io.files import atomic_folder, atomic_path
from flowllm.io.tables import crystal_of
from flowllm.plain_text import spreadsheet_text
from flowllm.runtime.log import log, setup_logging

Format = Literal["cif", "csv", "extxyz"]

ENERGY_COLUMNS = ("final_energy_per_atom", "corrected_energy_per_atom", "energy_per_atom")
"""Columns in eV per atom, of the potential, of DFT, or of crystals on request; the first one of a
table is exported."""


def run(
    files: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    out: Path,
    form: Annotated[Format, Parameter(name="--format")],
    limit: PositiveInt | None = None,
) -> None:
    """Write crystals as a folder of CIF files, CSV or extended XYZ, e.g. for LeMat-GenBench.

    Args:
        files: Tables of crystals, e.g. the relaxed shards of one method.
        out: File to write; for `cif` a new folder.
        form: Format of the output.
        limit: Number of crystals to write, from the first on. [all]

    Raises:
        FlowllmError: as `export`.
    """
    setup_logging(None)
    export(files, out, form, limit)


def export(paths: Sequence[Path], out: Path, form: Format, limit: int | None = None) -> int:
    """Write the crystals of some tables; rows without a crystal are counted in the log.

    Args:
        paths: tables of crystals, e.g. the relaxed shards of one method.
        out: a new folder for `cif`, a file otherwise.
        form: the format.
        limit: number of crystals to write, from the first on; None for all.

    Returns:
        The number of crystals written.

    Raises:
        FlowllmError: a table is missing or contains no crystals, two crystals have one id, or the
            folder exists.
    """
    rows = [row for path in paths for row in _rows(path)]
    crystals = ((row, crystal) for row in rows if (crystal := crystal_of(row)) is not None)
    items = [(row, crystal.to_structure()) for row, crystal in islice(crystals, limit)]
    _check_ids(row for row, _ in items)
    writers = {"cif": _write_cifs, "csv": _write_csv, "extxyz": _write_extxyz}
    writers[form](items, out)
    left_out = sum(row["lengths"] is None for row in rows)
    log.info("export: %d crystals to %s; %d rows have none", len(items), out, left_out)
    return len(items)


Items = Sequence[tuple[dict[str, Any], Structure]]


def _rows(path: Path) -> list[dict[str, Any]]:
    table = read(path)
    if not {"id", *CRYSTAL_COLUMNS} <= set(table.column_names):
        raise FlowllmError(
            f"{path}: contains no crystals; name a table of crystals, e.g. a relaxed shard"
        )
    columns = ["id", *CRYSTAL_COLUMNS, *(c for c in ENERGY_COLUMNS if c in table.column_names)]
    return [row | {"table": path} for row in table.select(columns).to_pylist()]


def _check_ids(rows: Iterable[dict[str, Any]]) -> None:
    """Reject a repeated id: methods of one base share ids, and one CIF would replace another.

    Raises:
        FlowllmError: names the id and the tables that have it.
    """
    tables: dict[str, Path] = {}
    for row in rows:
        if first := tables.get(row["id"]):
            raise FlowllmError(
                f"id {row['id']} is in {first} and in {row['table']}; export them separately"
            )
        tables[row["id"]] = row["table"]


def _energy(row: dict[str, Any], structure: Structure) -> float | None:
    """Return a cell's energy in eV, None where the table has none."""
    found = [row[name] for name in ENERGY_COLUMNS if row.get(name) is not None]
    return found[0] * len(structure) if found else None


def _write_cifs(items: Items, out: Path) -> None:
    if out.exists():
        raise FlowllmError(f"{out}: exists; name a new folder")
    with atomic_folder(out) as temporary:
        for row, structure in items:
            (temporary / f"{folder_name(row['id'])}.cif").write_text(structure.to(fmt="cif"))


def _write_csv(items: Items, out: Path) -> None:
    with atomic_path(out) as temporary, temporary.open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(["material_id", "structure", "energy"])
        for row, structure in items:
            text = json.dumps(structure.as_dict(), sort_keys=True)
            writer.writerow([spreadsheet_text(row["id"]), text, _energy(row, structure)])


def _write_extxyz(items: Items, out: Path) -> None:
    with atomic_path(out) as temporary:
        ase.io.write(temporary, [_atoms(*item) for item in items], format="extxyz")


def _atoms(row: dict[str, Any], structure: Structure) -> ase.Atoms:
    """Return a crystal for ASE's writer, with its id and its energy."""
    atoms = ase.Atoms(
        numbers=structure.atomic_numbers,
        positions=structure.cart_coords,
        cell=structure.lattice.matrix,
        pbc=True,
    )
    # The id is on one line of the file; ASE escapes the quotes in it, but not the backslashes.
    atoms.info["id"] = " ".join(row["id"].splitlines()).replace("\\", "\\\\")
    energy = _energy(row, structure)
    if energy is not None:
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms
