"""The Arrow schemas of every artefact, and how they are written and read.

Every table of crystals starts with the same columns (`CRYSTAL`), so that any stage, or a person
with pandas, reads any of them the same way. Writing goes to a temporary name in the same folder and
is renamed at the end: a reader never sees half a file.
"""

import errno
import glob
import json
import os
import re
import shutil
import time
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
from flowllm.faults import FULL, explain, is_refusal, remake
from flowllm.processes import HOST, PLACE, is_alive
from flowllm.row_checks import Fault, find_fault

SCHEMA_VERSION = 1
"""Raised when a column of any schema below changes its name, type or meaning."""

METADATA_KEY = b"flowllm"
ROW_GROUP_ROWS = 4096

FULL_BELOW = 1 << 16
"""Bytes; torch says of a full disk only that a position is unexpected."""

ABANDONED_SECONDS = 86400.0
"""Age of a temporary file or folder by which a writer on another host has ended."""

_HERE = f"{HOST}.{PLACE}"
"""Where this process's number means it, in the names of temporary files."""

_SAYS_FULL = re.compile("no space left|disk quota exceeded", re.IGNORECASE)

_VECTOR = pa.list_(pa.float32(), 3)
_COORDS = pa.list_(_VECTOR)


def _column(name: str, kind: pa.DataType, meaning: str, *, nullable: bool = True) -> pa.Field:
    """Return a column whose meaning is written into every file, and into the documentation."""
    return pa.field(name, kind, nullable=nullable, metadata={"meaning": meaning})


_ID = _column("id", pa.string(), "stable from stage to stage", nullable=False)

_CRYSTAL = [
    _ID,
    _column("atomic_numbers", pa.list_(pa.uint8()), "element of each atom"),
    _column("frac_coords", _COORDS, "fractional coordinates of each atom, in [0, 1)"),
    _column("lengths", _VECTOR, "of the lattice vectors, angstrom"),
    _column("angles", _VECTOR, "of the lattice vectors, degrees"),
]
"""Present in every table of crystals; the four array columns are null where `status` is not ok."""

_OUTCOME = [
    _column("status", pa.string(), "ok, or the short name of what went wrong", nullable=False),
    _column("error", pa.string(), "what went wrong in full; null where status is ok"),
]

_FORMULA = _column("formula", pa.string(), "of the whole cell")

_SAMPLE = [
    _column("prompt", pa.string(), "what the language model was given"),
    _column("text", pa.string(), "what it answered, at the last attempt"),
    _column("attempts", pa.int32(), "drafts made"),
    _column("rejections", pa.list_(pa.string()), "what was wrong with each earlier draft"),
    _column("num_tokens", pa.int32(), "length of the text"),
]


def _extend(*groups: Sequence[pa.Field]) -> pa.Schema:
    return pa.schema([field for group in groups for field in group])


CRYSTALS = _extend(
    _CRYSTAL,
    [
        _column("num_atoms", pa.int32(), "atoms in the cell"),
        _FORMULA,
        _column("reduced_formula", pa.string(), "the same, reduced"),
        _column("formation_energy_per_atom", pa.float64(), "eV/atom; null if the source is silent"),
        _column("band_gap", pa.float64(), "eV; null if the source is silent"),
        _column("e_above_hull", pa.float64(), "eV/atom; null if the source is silent"),
        _column("space_group_number", pa.int32(), "1 to 230; null if the source is silent"),
    ],
)
"""crystals/{train,val,test}.parquet; `id` is the source's material_id."""

REJECTED = pa.schema(
    [
        _column("split", pa.string(), "train, val or test; null if the source has no split"),
        _column("file", pa.string(), "of the source", nullable=False),
        _column("row", pa.int64(), "in the file, from 0", nullable=False),
        _column("material_id", pa.string(), "the source's, where it has one"),
        _column("reason", pa.string(), "short name of why it was rejected", nullable=False),
        _column("detail", pa.string(), "the same in full"),
    ]
)
"""crystals/rejected.parquet: every source row that is in no split, and why."""

INVARIANCE = pa.schema(
    [
        _column("id", pa.string(), "of the validation crystal", nullable=False),
        _column("num_atoms", pa.int32(), "atoms in the cell", nullable=False),
        _column("perplexity", pa.float64(), "a token of its text as it stands", nullable=False),
        _column("ipt_translation", pa.float64(), "equation 9, moved as a whole", nullable=False),
        _column("ipt_permutation", pa.float64(), "equation 9, atoms reordered", nullable=False),
    ]
)
"""llm/invariance.parquet: how much descriptions of one crystal differ for the language model."""

PAIRS = _extend(
    _CRYSTAL,
    [
        _column("target_frac_coords", _COORDS, "of c1, the training crystal, species as in c0"),
        _column("target_lengths", _VECTOR, "of c1, angstrom"),
        _column("target_angles", _VECTOR, "of c1, degrees"),
        _column("material_id", pa.string(), "of c1", nullable=False),
        _column("draw", pa.int64(), "number of the draw in its split", nullable=False),
        _FORMULA,
    ],
    _SAMPLE,
    _OUTCOME,
)
"""pairs/{train,val}/shard-*.parquet; `id` is `{split}-{draw:08d}`, the crystal columns are c0."""

BASE = _extend(_CRYSTAL, [_FORMULA], _SAMPLE, _OUTCOME)
"""base/{base}/shard-*.parquet: what the LLM proposed, or sample_compositions drew; `id` is
`{base}-{index:06d}`."""

CSP_BASE = _extend(
    _CRYSTAL,
    [_FORMULA, _column("material_id", pa.string(), "of the test crystal", nullable=False)],
    _SAMPLE,
    _OUTCOME,
)
"""base/{csp base}/shard-*.parquet: the LLM's crystals of the test split's formulas; `id` is
`{base}-{number of the test crystal:06d}-{attempt:03d}`."""

GENERATED = _extend(
    _CRYSTAL,
    [_FORMULA, _column("num_steps", pa.int32(), "integration steps")],
    _OUTCOME,
)
"""generated/{setting}/shard-*.parquet: after flow matching; same ids as the base crystals."""

_SOURCE_NAME = _column("source_name", pa.string(), "file, key or id of another model's sample")

IMPORTED = _extend(
    _CRYSTAL,
    [_FORMULA, _column("num_steps", pa.int32(), "0: no integration steps"), _SOURCE_NAME],
    _OUTCOME,
)
"""generated/{external}/shard-*.parquet: other models' samples, read as `GENERATED` is."""

TRAJECTORIES = _extend(
    _CRYSTAL,
    [
        _column("step", pa.int32(), "number of the integration step", nullable=False),
        _column("time", pa.float64(), "t, 0 to 1", nullable=False),
    ],
)
"""trajectories/{setting}/shard-*.parquet: `id` is the generated row's; null crystals are none."""

RELAXED = _extend(
    _CRYSTAL,
    [
        _FORMULA,
        _column("potential", pa.string(), "whose energies, and how the crystals were relaxed"),
        _column("initial_energy_per_atom", pa.float64(), "eV/atom, as generated"),
        _column("final_energy_per_atom", pa.float64(), "eV/atom, as relaxed"),
        _column("delta_energy_per_atom", pa.float64(), "eV/atom that the relaxation gained"),
        _column("delta_energy_per_cell", pa.float64(), "eV that the relaxation gained"),
        _column("max_force", pa.float64(), "eV/angstrom, at the end"),
        _column("num_steps", pa.int32(), "relaxation steps"),
        _column("converged", pa.bool_(), "whether max_force fell below prerelax.max_force"),
    ],
    _OUTCOME,
)
"""relaxed/{setting}/shard-*.parquet: after the potential's relaxation; same ids."""

TIMES = pa.schema([_ID, _column("seconds", pa.float64(), "wall time of the crystal")])
"""relaxed/{setting}/_shard-*.parquet.times: wall time of each crystal, beside its table and not in
it, since the table's bytes repeat from run to run and times do not."""

HULL_ENTRIES = pa.schema(
    [
        _column("entry_id", pa.string(), "the source's", nullable=False),
        _column("formula", pa.string(), "of the entry's cell", nullable=False),
        _column("num_atoms", pa.int32(), "in the entry's cell", nullable=False),
        _column("energy_per_atom", pa.float64(), "eV/atom", nullable=False),
        _column("kind", pa.string(), "potential or dft, one in a file", nullable=False),
        _column("source", pa.string(), "whose energy, relaxation or correction", nullable=False),
        _column("converged", pa.bool_(), "false: the energy is an upper bound; null: not known"),
    ]
)
"""hull/{kind}.parquet: the entries of a reference hull."""

STABILITY = pa.schema(
    [
        _ID,
        _FORMULA,
        _column("num_elements", pa.int32(), "distinct elements"),
        _column("energy_per_atom", pa.float64(), "eV/atom"),
        _column("energy_source", pa.string(), "whose energy, relaxation or correction"),
        _column("hull_source", pa.string(), "the same of the hull"),
        _column("e_above_hull", pa.float64(), "eV/atom; negative: below the reference hull"),
        _column("stable", pa.bool_(), "by stability.stable_below and min_elements"),
        _column("metastable", pa.bool_(), "by stability.metastable_below and min_elements"),
        *_OUTCOME,
    ]
)
"""stability/{kind}/{setting}.parquet; one row a generated crystal."""

DFT_MANIFEST = pa.schema(
    [
        _ID,
        _column("path", pa.string(), "the run's folder, relative to the manifest's"),
        _FORMULA,
        _column("input_set", pa.string(), "dft_inputs.input_set, or dft.code's own set"),
        _column("input_set_version", pa.string(), "of pymatgen, which defines the set"),
        _column("potcar_symbols", pa.list_(pa.string()), "pseudopotentials, in POSCAR's order"),
        _column("structure_hash", pa.string(), "SHA-256 of the POSCAR as written"),
        *_OUTCOME,
    ]
)
"""dft_inputs/{setting}/manifest.parquet; status says why a crystal got no folder."""

DFT_RESULTS = _extend(
    _CRYSTAL,
    [
        _column("path", pa.string(), "the run's folder, relative to the manifest's"),
        _FORMULA,
        _column("raw_energy_per_atom", pa.float64(), "eV/atom, the code's"),
        _column("corrected_energy_per_atom", pa.float64(), "eV/atom, by correction_scheme"),
        _column("correction_scheme", pa.string(), "dft_collect.correction_scheme"),
        _column("run_type", pa.string(), "of the run, e.g. GGA or GGA+U"),
        _column("converged_electronic", pa.bool_(), "the last ionic step's electronic loop"),
        _column("converged_ionic", pa.bool_(), "false: the energy is an upper bound"),
        _column("num_steps", pa.int32(), "whole ionic steps"),
    ],
    _OUTCOME,
)
"""dft/{setting}.parquet; one row a manifest row, crystal columns are the DFT-relaxed crystal."""

FINGERPRINTS = pa.schema(
    [
        _ID,
        _column("structure_fingerprint", pa.list_(pa.float64()), "CrystalNN's ops, 61 numbers"),
        _column("composition_fingerprint", pa.list_(pa.float64()), "Magpie's, 132, not scaled"),
        _column("density", pa.float64(), "g/cm3"),
        _column("num_elements", pa.int32(), "distinct elements"),
        *_OUTCOME,
    ]
)
"""fingerprints/test.parquet and fingerprints/{setting}.parquet, before any relaxation."""

METRICS_PER_CRYSTAL = pa.schema(
    [
        _ID,
        _SOURCE_NAME,
        _FORMULA,
        _column("generated", pa.bool_(), "there is a crystal", nullable=False),
        _column("num_elements", pa.int32(), "distinct elements"),
        _column("structurally_valid", pa.bool_(), "no atoms too close", nullable=False),
        _column("compositionally_valid", pa.bool_(), "charges can balance", nullable=False),
        _column("fingerprinted", pa.bool_(), "it has both fingerprints", nullable=False),
        _column("covered", pa.bool_(), "near some of the test split's", nullable=False),
        _column("relaxed", pa.bool_(), "there is a relaxed crystal", nullable=False),
        _column("e_above_hull", pa.float64(), "eV/atom"),
        _column("stable", pa.bool_(), "as in the stability table", nullable=False),
        _column("metastable", pa.bool_(), "as in the stability table", nullable=False),
        _column("duplicate_group", pa.string(), "smallest id of its class of matching crystals"),
        _column("unique", pa.bool_(), "first of its class", nullable=False),
        _column("novel", pa.bool_(), "matches no training crystal", nullable=False),
        _column("matched_material_id", pa.string(), "the training crystal that it matches"),
        _column("sun", pa.bool_(), "stable, unique and novel", nullable=False),
        _column("matches_relaxed", pa.bool_(), "generated and relaxed match", nullable=False),
        _column("rmsd_to_relaxed", pa.float64(), "in units of (V/N)^(1/3)"),
        _column(
            "matches_relaxed_loose",
            pa.bool_(),
            "the same by the tolerances of the authors' code",
            nullable=False,
        ),
        _column("rmsd_to_relaxed_loose", pa.float64(), "the same by those tolerances"),
        _column("error", pa.string(), "why pymatgen could not compare the crystal"),
    ]
)
"""metrics/{kind}/{setting}.parquet: the flags behind every rate, one row a generated crystal."""


CSP_FORMAT = 1
"""Raised when a key of csp/{setting}.json changes its name or meaning."""

CSP = pa.schema(
    [
        _column("material_id", pa.string(), "of the test crystal", nullable=False),
        _FORMULA,
        _column("attempts", pa.int32(), "predictions of it", nullable=False),
        _column("matches", pa.int32(), "how many of them are valid and match it", nullable=False),
        _column("rmsd_first", pa.float64(), "of the first, in units of (V/N)^(1/3), if it matches"),
        _column("rmsd_best", pa.float64(), "of the nearest, likewise"),
        _column("compositionally_valid", pa.bool_(), "charges can balance", nullable=False),
        _column("error", pa.string(), "why pymatgen could not compare an attempt"),
    ]
)
"""csp/{setting}.parquet: crystal structure prediction, one row a test crystal."""


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
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            row_group_size=ROW_GROUP_ROWS,
            write_page_checksum=True,
        )


def read_table(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet file, and check it against the schema it should have, row by row.

    A file without our footer (written by pandas, say) is taken by its columns and rows alone.

    Raises:
        FlowllmError: the file is missing, cannot be read, is not Parquet, is of another version of
            the schemas, lacks a column, or has another type or a wrong value in one; the message
            names the file, the column and the row.
    """
    names = list(columns or schema.names)
    with naming_damage(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        found = file.schema_arrow
        _check_version(path, _footer(path, found))
        for name in names:
            if name not in found.names:
                raise FlowllmError(f"{path}: column {name!r} is missing; made by another version?")
            if found.field(name).type != schema.field(name).type:
                raise FlowllmError(
                    f"{path}: column {name!r} is {found.field(name).type}, "
                    f"expected {schema.field(name).type}"
                )
        table = file.read(columns=names).select(names)
        if (fault := find_fault(table, schema)) is not None:
            raise FlowllmError(_row_message(path, file, fault))
    return table


@contextmanager
def naming_damage(path: Path, message: str = "not a readable Parquet file") -> Iterator[None]:
    """Say of a file that cannot be read why, and what to do about it.

    Args:
        path: the file, of Parquet or another of Arrow's forms.
        message: what to say of a damaged one.

    Raises:
        FlowllmError: it is missing, the system refuses it, or it is of another form.
    """
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # Arrow reports a broken footer or page as any of these, an OSError then without number.
        if isinstance(error, MemoryError):
            raise
        if isinstance(error, OSError) and is_refusal(error):
            raise FlowllmError(explain(error, path)) from error
        if path.is_dir():
            raise FlowllmError(f"{path}: a folder, and a file is expected there") from error
        said = str(error).splitlines()[0]
        raise FlowllmError(f"{path}: {message} ({said}); {remake(path)}") from error


def _footer(path: Path, schema: pa.Schema) -> dict[str, Any]:
    """Return what `write_table` put in a file's footer; empty where it is not ours.

    Raises:
        FlowllmError: it is ours and cannot be read.
    """
    raw = (schema.metadata or {}).get(METADATA_KEY)
    try:
        footer = json.loads(raw) if raw else {}
        if footer != {} and not isinstance(footer.get("schema_version"), int):
            raise TypeError("it has no schema_version")
    except (ValueError, TypeError, AttributeError) as error:
        raise FlowllmError(
            f"{path}: FlowLLM's part of its footer is damaged ({error}); {remake(path)}"
        ) from error
    return footer


def _check_version(path: Path, footer: Mapping[str, Any]) -> None:
    version = footer.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        by = footer.get("package_version", "another version")
        cure = "update FlowLLM" if version > SCHEMA_VERSION else remake(path)
        raise FlowllmError(
            f"{path}: schema_version {version}, expected {SCHEMA_VERSION} (made by flowllm {by}); "
            f"{cure}, or use that version"
        )


def _row_message(path: Path, file: pq.ParquetFile, fault: Fault) -> str:
    """Return which row is wrong, with its id where the file has ids."""
    name = ""
    if "id" in file.schema_arrow.names:
        name = f" (id {file.read(columns=['id']).column(0)[fault.row].as_py()!r})"
    return (
        f"{path}, row {fault.row}{name}: {fault.field} {fault.problem}; the table was edited or "
        f"is damaged: {remake(path)}"
    )


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
    """Return what `write_table` put in a file's footer; empty where it is not ours.

    Raises:
        FlowllmError: the file is missing, cannot be read or is not Parquet.
    """
    with naming_damage(path):
        return _footer(path, pq.read_schema(path))


def count_rows(path: Path) -> int:
    """Return the number of rows of a Parquet file, from its footer.

    Raises:
        FlowllmError: the file is missing, cannot be read or is not Parquet.
    """
    with naming_damage(path):
        return int(pq.read_metadata(path).num_rows)


def column_names(path: Path) -> list[str]:
    """Return the columns of a Parquet file.

    Raises:
        FlowllmError: the file is missing, cannot be read or is not Parquet.
    """
    with naming_damage(path):
        return list(pq.read_schema(path).names)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` that becomes `path` when the block ends without error.

    What is written is on the disk before it gets its name. A symbolic link in the place of `path`
    is replaced by the file; what it points at stays as it is.

    Raises:
        FlowllmError: the disk is full, or the system refuses the file.
    """
    with _naming_refusal(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        with naming_full_disk(path), _naming_refusal(path, temporary):
            yield temporary
            _save_to_disk(temporary)
            temporary.replace(path)
            _save_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder that takes the place of `folder` when the block ends without error.

    What is written is on the disk before it gets its name. Where `folder` is a symbolic link, what
    it points at is written (`check_folder`).

    Raises:
        FlowllmError: the disk is full, the system refuses the folder, or it cannot be replaced.
    """
    place = check_folder(folder)
    temporary = _temporary_name(place)
    with _naming_refusal(folder, temporary):
        temporary.mkdir(parents=True)
    try:
        with naming_full_disk(place), _naming_refusal(folder, temporary):
            yield temporary
            for path in (*temporary.rglob("*"), temporary):
                _save_to_disk(path)
            _take_place(temporary, place)
            _save_to_disk(place.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_folder(folder: Path) -> Path:
    """Return where an output folder is written, which is asked before long work too.

    A link to a folder that does not exist yet or is empty is followed: a place on another disk.
    What another link points at may be another run's, and is never replaced.

    Raises:
        FlowllmError: the folder cannot be replaced when the work is done.
    """
    with _naming_refusal(folder):
        place = Path(os.path.realpath(folder)) if folder.is_symlink() else folder
        is_file = place.exists() and not place.is_dir()
    if is_file:
        raise FlowllmError(f"{folder}: a file, and a folder belongs there; move it away")
    if os.path.ismount(place):
        raise FlowllmError(
            f"{folder}: a mount point, which cannot be replaced; mount its parent folder instead"
        )
    if folder.is_symlink() and place.is_dir() and any(place.iterdir()):
        raise FlowllmError(
            f"{folder}: a symbolic link to {place}, which is not empty and may be another run's; "
            "remove the link, or empty that folder. To keep models on another disk, link the "
            "folder above (Snakemake removes the link of an output)"
        )
    check_writable(place)
    return place


def check_file(path: Path) -> None:
    """Refuse an output file that could not be written, before the work for it.

    Raises:
        FlowllmError: it is a folder, or the folder that it belongs in cannot be written to.
    """
    with _naming_refusal(path):
        is_folder = path.is_dir() and not path.is_symlink()
    if is_folder:
        raise FlowllmError(f"{path}: a folder, and a file belongs there; move it away")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Refuse an output whose folder cannot be made or written to.

    Raises:
        FlowllmError: names the folder and what is wrong.
    """
    with _naming_refusal(path):
        above = next(one for one in path.absolute().parents if one.exists())
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
        effective = os.access in os.supports_effective_ids
        if not os.access(above, os.W_OK | os.X_OK, effective_ids=effective):
            read_only = os.statvfs(above).f_flag & os.ST_RDONLY
            number = errno.EROFS if read_only else errno.EACCES
            raise OSError(number, os.strerror(number), str(above))


def _take_place(new: Path, folder: Path) -> None:
    """Rename a folder; an older one in its place is removed after that, so that one is whole."""
    old = folder.with_name(f".{folder.name}.old.{new.name.removeprefix('.')}")
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _save_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk: they outlive a power cut."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        # Some network file systems know no fsync of a folder.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF)):
            raise
    finally:
        os.close(number)


def _temporary_name(path: Path) -> Path:
    """Return a name beside `path` that no other process takes; remove what killed ones left."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        host, _, process = left.name[len(path.name) + 2 : -len(".tmp")].rpartition(".")
        if process.isdecimal() and _is_abandoned(left, host, int(process)):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    # Host, place and process keep two writers of one file apart; the last to finish wins, whole.
    return path.with_name(f".{path.name}.{_HERE}.{os.getpid()}.tmp")


def _is_abandoned(left: Path, host: str, process: int) -> bool:
    """Whether the writer of a temporary file has ended; another place's is taken to after a day."""
    if host == _HERE:
        return not is_alive(process)
    try:
        return time.time() - left.stat().st_mtime > ABANDONED_SECONDS
    except FileNotFoundError:  # it has its final name by now
        return False


@contextmanager
def _naming_refusal(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Say which output the system refuses, and what to do.

    Args:
        path: the output.
        temporary: where it is written; errors of files elsewhere stay what they are. Without, all
            errors are the output's.

    Raises:
        FlowllmError: the system refuses it; a full disk is `naming_full_disk`'s.
    """
    try:
        yield
    except OSError as error:
        named = os.fsdecode(error.filename or "")
        ours = temporary is None or named.startswith(str(temporary))
        if error.errno is None or error.errno in FULL or not ours:
            raise
        shown = named if temporary is None and named else path
        raise FlowllmError(explain(error, shown)) from error


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Say which file did not fit, and what to do, where writing it fills the disk.

    Raises:
        FlowllmError: the disk is full; every other error stays what it is.
    """
    try:
        yield
    except FlowllmError:
        raise
    except Exception as error:  # Arrow, torch and safetensors each have their own
        free = shutil.disk_usage(path.parent).free
        full = getattr(error, "errno", None) in FULL
        if not (full or _SAYS_FULL.search(str(error)) or free < FULL_BELOW):
            raise
        raise FlowllmError(
            f"{path}: no space left on the device ({free >> 20} MiB free); free some, or raise the "
            "quota (also of files), and run the same again: finished parts are kept"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
