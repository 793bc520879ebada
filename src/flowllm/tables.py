"""The Arrow schemas of every artefact, and how they are written and read.

Every table of crystals starts with the same columns (`CRYSTAL`), so that any stage, or a person
with pandas, reads any of them the same way. Writing goes to a temporary name in the same folder and
is renamed at the end: a reader never sees half a file.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError

SCHEMA_VERSION = 1
"""Raised when a column of any schema below changes its name, type or meaning."""

METADATA_KEY = b"flowllm"
ROW_GROUP_ROWS = 4096

_VECTOR = pa.list_(pa.float32(), 3)
_COORDS = pa.list_(_VECTOR)

_CRYSTAL = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("atomic_numbers", pa.list_(pa.uint8())),
    pa.field("frac_coords", _COORDS),
    pa.field("lengths", _VECTOR),
    pa.field("angles", _VECTOR),
]
"""Present in every table of crystals; the four array columns are null where `status` is not ok."""

_OUTCOME = [
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
]
"""`status` is "ok" or the short name of what went wrong; `error` says it in full."""

_SAMPLE = [
    pa.field("prompt", pa.string()),
    pa.field("text", pa.string()),
    pa.field("attempts", pa.int32()),
    # What was wrong with each earlier attempt, by the codec's reason names.
    pa.field("rejections", pa.list_(pa.string())),
    pa.field("num_tokens", pa.int32()),
]


def _extend(*groups: Sequence[pa.Field]) -> pa.Schema:
    return pa.schema([field for group in groups for field in group])


CRYSTALS = _extend(
    _CRYSTAL,
    [
        pa.field("num_atoms", pa.int32()),
        pa.field("formula", pa.string()),
        pa.field("reduced_formula", pa.string()),
        # Null where the source does not say.
        pa.field("formation_energy_per_atom", pa.float64()),
        pa.field("band_gap", pa.float64()),
        pa.field("e_above_hull", pa.float64()),
        pa.field("space_group_number", pa.int32()),
    ],
)
"""crystals/{train,val,test}.parquet; `id` is the source's material_id."""

REJECTED = pa.schema(
    [
        pa.field("split", pa.string()),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("material_id", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
    ]
)
"""crystals/rejected.parquet: every source row that is in no split, and why."""

PAIRS = _extend(
    _CRYSTAL,
    [
        # c1: the training crystal, atoms in the same species order as c0 above.
        pa.field("target_frac_coords", _COORDS),
        pa.field("target_lengths", _VECTOR),
        pa.field("target_angles", _VECTOR),
        pa.field("material_id", pa.string(), nullable=False),
        pa.field("draw", pa.int64(), nullable=False),
        pa.field("formula", pa.string()),
    ],
    _SAMPLE,
    _OUTCOME,
)
"""pairs/{train,val}/shard-*.parquet; `id` is `{split}-{draw:08d}`, the crystal columns are c0."""

BASE = _extend(_CRYSTAL, [pa.field("formula", pa.string())], _SAMPLE, _OUTCOME)
"""base/{base}/shard-*.parquet: what the LLM proposed; `id` is `{base}-{index:06d}`."""

GENERATED = _extend(
    _CRYSTAL,
    [pa.field("formula", pa.string()), pa.field("num_steps", pa.int32())],
    _OUTCOME,
)
"""generated/{setting}/shard-*.parquet: after flow matching; same ids as the base crystals."""

RELAXED = _extend(
    _CRYSTAL,
    [
        pa.field("formula", pa.string()),
        pa.field("potential", pa.string()),
        # eV per atom, by the named potential.
        pa.field("initial_energy_per_atom", pa.float64()),
        pa.field("final_energy_per_atom", pa.float64()),
        # Initial less final energy: what the relaxation gained, in eV per atom and eV.
        pa.field("delta_energy_per_atom", pa.float64()),
        pa.field("delta_energy_per_cell", pa.float64()),
        pa.field("max_force", pa.float64()),  # eV/angstrom, at the end
        pa.field("num_steps", pa.int32()),
        pa.field("converged", pa.bool_()),
    ],
    _OUTCOME,
)
"""relaxed/{setting}/shard-*.parquet: after the potential's relaxation; same ids."""

TIMES = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("seconds", pa.float64())])
"""relaxed/{setting}/_shard-*.parquet.times: wall time of each crystal, beside its table and not in
it, since the table's bytes repeat from run to run and times do not."""

HULL_ENTRIES = pa.schema(
    [
        pa.field("entry_id", pa.string(), nullable=False),
        pa.field("formula", pa.string(), nullable=False),
        pa.field("num_atoms", pa.int32(), nullable=False),
        pa.field("energy_per_atom", pa.float64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # potential or dft, one in a file
        # Whose energy it is, e.g. CHGNet 0.3.0, or DFT with its correction scheme.
        pa.field("source", pa.string(), nullable=False),
    ]
)
"""hull/{kind}.parquet: the entries of a reference hull; energies in eV per atom."""

STABILITY = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("formula", pa.string()),
        pa.field("num_elements", pa.int32()),
        pa.field("energy_per_atom", pa.float64()),
        pa.field("energy_source", pa.string()),  # e.g. CHGNet, or DFT with its correction scheme
        pa.field("hull_source", pa.string()),
        pa.field("e_above_hull", pa.float64()),  # eV per atom; negative: below the reference hull
        pa.field("stable", pa.bool_()),
        pa.field("metastable", pa.bool_()),
        *_OUTCOME,
    ]
)
"""stability/{setting}.parquet and stability_dft/{setting}.parquet; one row a generated crystal."""

DFT_MANIFEST = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string()),  # of the run's folder, relative to the manifest's
        pa.field("formula", pa.string()),
        pa.field("input_set", pa.string()),
        pa.field("input_set_version", pa.string()),  # pymatgen's, which defines the set
        pa.field("potcar_symbols", pa.list_(pa.string())),
        pa.field("structure_hash", pa.string()),  # SHA-256 of the POSCAR as written
        *_OUTCOME,
    ]
)
"""dft_inputs/{setting}/manifest.parquet; status says why a crystal got no folder."""

DFT_RESULTS = _extend(
    _CRYSTAL,
    [
        pa.field("path", pa.string()),
        pa.field("formula", pa.string()),
        # eV per atom; corrected by `correction_scheme`.
        pa.field("raw_energy_per_atom", pa.float64()),
        pa.field("corrected_energy_per_atom", pa.float64()),
        pa.field("correction_scheme", pa.string()),
        pa.field("run_type", pa.string()),
        pa.field("converged_electronic", pa.bool_()),
        pa.field("converged_ionic", pa.bool_()),
        pa.field("num_steps", pa.int32()),
    ],
    _OUTCOME,
)
"""dft/{setting}.parquet; one row a manifest row, crystal columns are the DFT-relaxed crystal."""

FINGERPRINTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        # Null where status is not ok.
        pa.field("structure_fingerprint", pa.list_(pa.float64())),  # CrystalNN "ops", 61
        pa.field("composition_fingerprint", pa.list_(pa.float64())),  # Magpie, 132, not scaled
        pa.field("density", pa.float64()),  # g/cm3
        pa.field("num_elements", pa.int32()),
        *_OUTCOME,
    ]
)
"""fingerprints/test.parquet and fingerprints/{setting}.parquet, before any relaxation."""

METRICS_PER_CRYSTAL = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("formula", pa.string()),
        pa.field("generated", pa.bool_(), nullable=False),
        pa.field("num_elements", pa.int32()),
        pa.field("structurally_valid", pa.bool_(), nullable=False),
        pa.field("compositionally_valid", pa.bool_(), nullable=False),
        # Whether it has fingerprints, and whether they are near some of the test split's.
        pa.field("fingerprinted", pa.bool_(), nullable=False),
        pa.field("covered", pa.bool_(), nullable=False),
        pa.field("relaxed", pa.bool_(), nullable=False),
        pa.field("e_above_hull", pa.float64()),
        pa.field("stable", pa.bool_(), nullable=False),
        pa.field("metastable", pa.bool_(), nullable=False),
        # Smallest id of the class of matching relaxed crystals; null where nothing was relaxed.
        pa.field("duplicate_group", pa.string()),
        pa.field("unique", pa.bool_(), nullable=False),
        pa.field("novel", pa.bool_(), nullable=False),
        pa.field("matched_material_id", pa.string()),
        pa.field("sun", pa.bool_(), nullable=False),
        # Generated against relaxed (paper, table 2): the matcher's defaults, and the wider
        # tolerances of the authors' code.
        pa.field("matches_relaxed", pa.bool_(), nullable=False),
        pa.field("rmsd_to_relaxed", pa.float64()),
        pa.field("matches_relaxed_loose", pa.bool_(), nullable=False),
        pa.field("rmsd_to_relaxed_loose", pa.float64()),
        # Why pymatgen could not compare the crystal, where it could not.
        pa.field("error", pa.string()),
    ]
)
"""metrics/{setting}.parquet: the flags behind every rate, one row a generated crystal."""


def crystal_columns(crystal: Crystal | None, prefix: str = "") -> dict[str, Any]:
    """Return a crystal as the four array columns of a row; None gives nulls.

    With `prefix="target_"` the atom types are left out: a pair has one composition.
    """
    if crystal is None:
        columns: dict[str, Any] = dict.fromkeys(
            ("atomic_numbers", "frac_coords", "lengths", "angles")
        )
    else:
        columns = {
            "atomic_numbers": crystal.atomic_numbers.tolist(),
            "frac_coords": crystal.frac_coords.tolist(),
            "lengths": crystal.lengths.tolist(),
            "angles": crystal.angles.tolist(),
        }
    if prefix:
        del columns["atomic_numbers"]
    return {prefix + name: value for name, value in columns.items()}


def crystal_of(row: Mapping[str, Any], prefix: str = "") -> Crystal | None:
    """Return the crystal of a row as `Table.to_pylist` gives it, or None where it is null."""
    if row[prefix + "lengths"] is None:
        return None
    return Crystal(
        atomic_numbers=np.asarray(row["atomic_numbers"], dtype=np.uint8),
        frac_coords=np.asarray(row[prefix + "frac_coords"], dtype=np.float32).reshape(-1, 3),
        lengths=np.asarray(row[prefix + "lengths"], dtype=np.float32),
        angles=np.asarray(row[prefix + "angles"], dtype=np.float32),
    )


def write_table(
    path: Path,
    rows: Iterable[Mapping[str, Any]] | pa.Table,
    schema: pa.Schema,
    metadata: Mapping[str, Any],
) -> None:
    """Write one Parquet file atomically: zstd, streaming row groups, metadata in the footer.

    Args:
        path: the final name; its folder is made where missing.
        rows: dictionaries with the schema's columns (missing ones become null), or a table.
        schema: one of this module's schemas.
        metadata: what the file is made of (`runlog.StageRun.metadata`); the same content and the
            same metadata give the same bytes.
    """
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=schema)
    footer = {"schema_version": SCHEMA_VERSION, **metadata}
    table = table.cast(schema).replace_schema_metadata(
        {METADATA_KEY: json.dumps(footer, sort_keys=True).encode()}
    )
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=ROW_GROUP_ROWS)


def read_table(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet file and check it against the schema it should have.

    Raises:
        FlowllmError: the file is missing, is not Parquet, or lacks a column or has another type;
            the message names the file and the column.
    """
    try:
        found = pq.read_schema(path)
        for name in columns or schema.names:
            if name not in found.names:
                raise FlowllmError(f"{path}: column {name!r} is missing; made by another version?")
            if found.field(name).type != schema.field(name).type:
                raise FlowllmError(
                    f"{path}: column {name!r} is {found.field(name).type}, "
                    f"expected {schema.field(name).type}"
                )
        return pq.read_table(path, columns=list(columns or schema.names))
    except FileNotFoundError as error:
        raise FlowllmError(f"{path}: no such file") from error
    except (pa.ArrowInvalid, OSError) as error:
        # Arrow reports a broken footer or page as either.
        raise FlowllmError(
            f"{path}: not a readable Parquet file ({error}); delete it and run its stage again"
        ) from error


def read_tables(
    paths: Sequence[Path], schema: pa.Schema, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read shards in the given order as one table.

    Raises:
        FlowllmError: as `read_table`, or an id stands in two shards.
    """
    table = pa.concat_tables([read_table(path, schema, columns) for path in paths])
    if "id" in table.column_names:
        ids = table.column("id").to_pylist()
        if len(set(ids)) != len(ids):
            twice, _ = Counter(ids).most_common(1)[0]
            raise FlowllmError(f"{paths[0].parent}: id {twice!r} stands in more than one row")
    return table


def read_metadata(path: Path) -> dict[str, Any]:
    """Return what `write_table` put in a file's footer; empty where it is not ours."""
    raw = (pq.read_schema(path).metadata or {}).get(METADATA_KEY)
    return json.loads(raw) if raw else {}


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` that becomes `path` when the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers of one file apart; the last to finish wins, whole.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
