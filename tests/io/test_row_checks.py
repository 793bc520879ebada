"""Rows that cannot be what they say are named with file, row and field, before anything is made."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crystals import perovskite, rocksalt
from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.io import schemas, tables
from flowllm.io.row_checks import find_wrong_value
from flowllm.io.schemas import SCHEMA_VERSION
from flowllm.io.tables import crystal_columns, read_table, write_table
from tables_parts import crystals

GROUP = tables.ROW_GROUP_ROWS


def pair(name: str, crystal: Crystal) -> dict:
    return {
        "id": name,
        **crystal_columns(crystal),
        **crystal_columns(crystal, "target_"),
        "material_id": "mp-1",
        "draw": 0,
        "attempts": 1,
        "status": "ok",
    }


def edited(field: str, change):
    def edit(row: dict) -> None:
        row[field] = change(row[field])

    return edit


NAN = float("nan")
WRONG = {
    "a coordinate short": (edited("frac_coords", lambda x: x[:-1]), "coordinates of 1 of 2 atoms"),
    "a target's coordinate short": (
        edited("target_frac_coords", lambda x: x[:-1]),
        "target_frac_coords has the coordinates of 1 of 2",
    ),
    "an atom short": (edited("atomic_numbers", lambda x: x[:-1]), "coordinates of 2 of 1 atoms"),
    "no atoms": (edited("atomic_numbers", lambda _: []), "atomic_numbers is empty"),
    "Z = 0": (edited("atomic_numbers", lambda x: [*x[:-1], 0]), "has 0, which is"),
    "Z = 119": (edited("atomic_numbers", lambda x: [119, *x[1:]]), "has 119, which is"),
    "Z = 200": (edited("atomic_numbers", lambda x: [200, *x[1:]]), "has 200, which is"),
    "a null atom": (edited("atomic_numbers", lambda x: [None, *x[1:]]), "number of no element"),
    "NaN coordinate": (edited("frac_coords", lambda x: [[NAN, 0, 0], *x[1:]]), r"outside of \[0"),
    "a coordinate of 7": (edited("frac_coords", lambda x: [[7, 0, 0], *x[1:]]), r"outside of \[0"),
    "a null coordinate": (edited("frac_coords", lambda x: [[None, 0, 0], *x[1:]]), "outside of"),
    "a null vector": (edited("target_frac_coords", lambda x: [None, *x[1:]]), "target_frac_coords"),
    "no lengths": (edited("lengths", lambda _: None), "lengths is null at status ok"),
    "no crystal": (edited("frac_coords", lambda _: None), "frac_coords is null at status ok"),
    "length 0": (edited("lengths", lambda x: [0, *x[1:]]), "lengths are not all positive"),
    "length -1": (edited("target_lengths", lambda x: [-1, *x[1:]]), "target_lengths are not all"),
    "length NaN": (edited("lengths", lambda x: [NAN, *x[1:]]), "lengths are not all positive"),
    "length inf": (edited("lengths", lambda x: [math.inf, *x[1:]]), "lengths are not all positive"),
    "angle 0": (edited("angles", lambda x: [0, *x[1:]]), "angles are not all between"),
    "angle 180": (edited("angles", lambda x: [180, *x[1:]]), "angles are not all between"),
    "angle NaN": (edited("target_angles", lambda x: [NAN, *x[1:]]), "target_angles are not all"),
    "a flat cell": (edited("angles", lambda _: [120, 120, 120]), "angles span no volume"),
    "draw -1": (edited("draw", lambda _: -1), "draw is less than 0"),
}


@pytest.mark.parametrize("place", [0, 2, GROUP + 3], ids=["first", "middle", "second row group"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_row_is_named(tmp_path, case, place):
    edit, message = WRONG[case]
    rows = [pair(f"train-{i}", rocksalt()) for i in range(place + 2)]
    edit(rows[place])
    path = tmp_path / "shard.parquet"
    write_table(path, rows, schemas.PAIRS, {})
    where = rf"shard\.parquet, row {place} \(id 'train-{place}'\): .*{message}"
    with pytest.raises(FlowllmError, match=where) as caught:
        read_table(path, schemas.PAIRS)
    assert f"`snakemake {path}`" in str(caught.value)


def test_only_the_columns_that_are_read_are_checked(tmp_path):
    path = tmp_path / "t.parquet"
    row = pair("a", rocksalt()) | {"lengths": [0.0, 1.0, 1.0]}
    write_table(path, [row], schemas.PAIRS, {})
    assert read_table(path, schemas.PAIRS, ["rejections", "status"]).num_rows == 1
    with pytest.raises(FlowllmError, match=r"row 0 \(id 'a'\): lengths"):
        read_table(path, schemas.PAIRS, ["lengths"])


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("schema", "field"),
    [
        (schemas.RELAXED, "final_energy_per_atom"),
        (schemas.RELAXED, "max_force"),
        (schemas.STABILITY, "e_above_hull"),
        (schemas.HULL_ENTRIES, "energy_per_atom"),
        (schemas.CRYSTALS, "band_gap"),
    ],
)
def test_a_number_that_is_not_finite_is_named(tmp_path, schema, field, value):
    values = {"string": "x", "int32": 1, "double": 0.5, "bool": True}
    row = {one.name: values.get(str(one.type)) for one in schema}
    row |= {k: v for k, v in crystal_columns(perovskite()).items() if k in schema.names}
    row |= {"num_atoms": 5} if "num_atoms" in schema.names else {}
    path = tmp_path / "t.parquet"
    write_table(path, [row], schema, {})
    assert read_table(path, schema).num_rows == 1
    write_table(path, [row, row | {field: value}], schema, {})
    with pytest.raises(FlowllmError, match=rf"row 1.*: {field} is not finite"):
        read_table(path, schema)


def test_a_count_that_differs_from_the_atoms_is_named(tmp_path):
    path = tmp_path / "t.parquet"
    row = {"id": "a", **crystal_columns(rocksalt()), "num_atoms": 7}
    write_table(path, [row], schemas.CRYSTALS, {})
    with pytest.raises(FlowllmError, match="num_atoms is not the number of atoms"):
        read_table(path, schemas.CRYSTALS)


def test_a_null_id_of_another_program_is_named(tmp_path):
    path = tmp_path / "t.parquet"
    table = pa.table({"id": pa.array(["a", None])})
    pq.write_table(table, path)
    with pytest.raises(FlowllmError, match=r"row 1 .*id is null"):
        read_table(path, schemas.CRYSTALS, ["id"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_crystal_of_ours_is_refused(data):
    """With null rows between, and in slices that begin anywhere."""
    members = data.draw(st.lists(st.one_of(st.none(), crystals()), max_size=6))
    rows = [
        {"id": str(i), **crystal_columns(one), "status": "ok" if one else "max_attempts"}
        for i, one in enumerate(members)
    ]
    table = pa.Table.from_pylist(rows, schema=schemas.BASE)
    assert find_wrong_value(table, schemas.BASE) is None
    start = data.draw(st.integers(0, len(rows)))
    assert find_wrong_value(table.slice(start), schemas.BASE) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_first_wrong_row_of_a_slice_is_found(data):
    case = data.draw(st.sampled_from(sorted(WRONG)))
    count = data.draw(st.integers(1, 6))
    place = data.draw(st.integers(0, count - 1))
    start = data.draw(st.integers(0, place))
    rows = [pair(str(i), rocksalt()) for i in range(count)]
    WRONG[case][0](rows[place])
    fault = find_wrong_value(
        pa.Table.from_pylist(rows, schema=schemas.PAIRS).slice(start), schemas.PAIRS
    )
    assert fault is not None
    assert fault.row == place - start


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (SCHEMA_VERSION - 1, rf"schema_version {SCHEMA_VERSION - 1}, expected .*delete it"),
        (SCHEMA_VERSION + 1, rf"schema_version {SCHEMA_VERSION + 1}, expected .*update FlowLLM"),
        ("1", "footer is damaged"),
        (None, "footer is damaged"),
    ],
)
def test_another_version_of_the_schemas_is_refused(tmp_path, version, message):
    path = tmp_path / "t.parquet"
    footer = {"schema_version": version, "package_version": "9.9"}
    schema = schemas.CRYSTALS.with_metadata({tables.METADATA_KEY: json.dumps(footer)})
    pq.write_table(pa.Table.from_pylist([{"id": "a"}], schema=schema), path)
    with pytest.raises(FlowllmError, match=message):
        read_table(path, schemas.CRYSTALS)


@pytest.mark.parametrize("footer", [b"{", b"[]", b"\xff", b"null", b"3"])
def test_a_damaged_part_of_the_footer_is_named(tmp_path, footer):
    path = tmp_path / "t.parquet"
    schema = schemas.CRYSTALS.with_metadata({tables.METADATA_KEY: footer})
    pq.write_table(pa.Table.from_pylist([{"id": "a"}], schema=schema), path)
    with pytest.raises(FlowllmError, match=r"t\.parquet: .*footer is damaged"):
        read_table(path, schemas.CRYSTALS)
    with pytest.raises(FlowllmError, match=r"t\.parquet: .*footer is damaged"):
        tables.read_metadata(path)


def test_a_flipped_bit_in_a_page_is_noticed(tmp_path):
    """Pages have checksums: damage that still can be unpacked is no other crystal."""
    path = tmp_path / "t.parquet"
    rows = [{"id": "a", **crystal_columns(perovskite()), "num_atoms": 5}]
    write_table(path, rows, schemas.CRYSTALS, {})
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    found, said = read_table(path, schemas.CRYSTALS), []
    for place in np.random.default_rng(0).integers(4, footer, 60):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        try:  # a flip in a part of a page's header that nobody reads changes nothing
            again = read_table(path, schemas.CRYSTALS)
        except FlowllmError as error:
            said.append(str(error))
        else:
            assert again == found
    assert len(said) > 40
    assert all("not a readable Parquet file" in one for one in said)
