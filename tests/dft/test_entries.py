"""Reference entries from JSON: layouts, streaming, and rejected files."""

import contextlib
import gzip
import json
import pickle
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from pymatgen.entries.computed_entries import (
    CompositionEnergyAdjustment,
    ComputedEntry,
    ComputedStructureEntry,
    ConstantEnergyAdjustment,
    ManualEnergyAdjustment,
    TemperatureEnergyAdjustment,
)

from flowllm.dft import json_stream
from flowllm.dft.entries import read_entries
from flowllm.errors import FlowllmError

ELEMENTAL = (
    Path(__file__).parents[3] / "shared/data/mp/2023-02-07-mp-elemental-reference-entries.json.gz"
)


def test_an_entry_behind_another_key_is_not_lost(tmp_path):
    first, second, third = [entry.as_dict() for entry in computed_entries()]
    named = {"name": "hematite", **first}
    (tmp_path / "entries.json").write_text(json.dumps([second, named, third]))
    with pytest.raises(FlowllmError, match=r"energy and composition begins with the key 'name'"):
        list(read_entries(tmp_path / "entries.json"))
    (tmp_path / "entries.json").write_text(json.dumps(first))
    with pytest.raises(FlowllmError, match=r"key '@module'.*give a list of entries"):
        list(read_entries(tmp_path / "entries.json"))
    nested = {"material_id": "mp-1", "energy": 1.0, "composition": {"Fe": 1}, "entry": first}
    (tmp_path / "entries.json").write_text(json.dumps([nested, {**nested, "entry": second}]))
    assert len(list(read_entries(tmp_path / "entries.json"))) == 2


def computed_entries() -> list[ComputedEntry]:
    structure = Structure(Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    return [
        ComputedEntry("Fe2O3", -33.0, correction=-1.5, entry_id="mp-1"),
        ComputedEntry(
            "Na4Cl4",
            -27.0,
            energy_adjustments=[
                CompositionEnergyAdjustment(-0.614, 4, name="Cl"),
                ConstantEnergyAdjustment(0.25),
            ],
            entry_id="mp-2",
            data={"oxide_type": "None"},
        ),
        ComputedStructureEntry(structure, -6.7, entry_id="mp-3"),
    ]


def layouts() -> dict[str, str]:
    entries = [entry.as_dict() for entry in computed_entries()]
    ids = [entry["entry_id"] for entry in entries]
    frame = pd.DataFrame({"material_id": ids, "entry": entries})
    return {
        "list": json.dumps(entries),
        "list, indented": json.dumps(entries, indent=2),
        "by id": json.dumps(dict(zip(ids, entries, strict=True))),
        "data frame": frame.to_json(),
        "data frame by rows": frame.set_index("material_id").to_json(orient="index"),
        "records": frame.to_json(orient="records"),
    }


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("chunk", [7, 1 << 22])
def test_every_layout_gives_pymatgens_corrected_energies(
    tmp_path, monkeypatch, layout, zipped, chunk
):
    monkeypatch.setattr(json_stream, "_CHUNK_CHARACTERS", chunk)
    text = layouts()[layout]
    path = tmp_path / ("entries.json.gz" if zipped else "entries.json")
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    found = list(read_entries(path))
    expected = computed_entries()
    assert [entry.entry_id for entry in found] == [entry.entry_id for entry in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.energy_per_atom == pytest.approx(theirs.energy_per_atom, abs=1e-9)
        assert ours.amounts == theirs.composition.get_el_amt_dict()


def test_the_materials_projects_elemental_entries():
    if not ELEMENTAL.exists():
        pytest.skip("the elemental reference entries are not on this machine")
    with gzip.open(ELEMENTAL, "rt") as handle:
        expected = {k: ComputedEntry.from_dict(v) for k, v in json.load(handle).items()}
    found = {next(iter(entry.amounts)): entry for entry in read_entries(ELEMENTAL)}
    assert len(found) == 89
    for symbol, entry in expected.items():
        assert found[symbol].energy_per_atom == pytest.approx(entry.energy_per_atom, abs=1e-9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON with entries"),
        (b"12", "not JSON with entries"),
        (b'[{"energy": 1, "compo', "not JSON"),
        (b'[{"composition": {"Na": 1}, "energy": 1.0, "correction": 0}', "ends in the middle"),
        (b'[{"composition": {"Na": 1}, "energy": 1.0}]', "entry 0: .*correction"),
        (b'[{"composition": {}, "energy": 1.0, "correction": 0}]', "entry 0: 0 atoms"),
        (b'[{"composition": {"Na": "x"}, "energy": 1.0, "correction": 0}]', "entry 0: .*'x'"),
        (b'[{"composition": {"Na": 1}, "energy": NaN, "correction": 0}]', "energy nan"),
        (b"[] []", "more text after the end"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"energy":' * 100_000, "nested too deeply"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
        (b"\x1f\x8b\x08\x00\x00", "entries.json"),
        (pickle.dumps([1]), "a pickle is not read"),
    ],
)
def test_a_file_without_entries_is_rejected(tmp_path, content, message):
    path = tmp_path / "entries.json"
    path.write_bytes(content)
    with pytest.raises(FlowllmError, match=message) as caught:
        list(read_entries(path))
    assert str(path) in str(caught.value)


def read_one(tmp_path, **raw):
    path = tmp_path / "entries.json"
    known = {"entry_id": "e", "composition": {"Na": 2, "Cl": 2}, "energy": -14.0}
    path.write_text(json.dumps([known | raw]))
    (entry,) = read_entries(path)
    return entry


@pytest.mark.parametrize(
    ("composition", "amounts"),
    [
        ({"Fe3+": 2, "O2-": 3}, {"Fe": 2, "O": 3}),
        ({"Fe2+": 1, "Fe3+": 2, "O2-": 4}, {"Fe": 3, "O": 4}),
        ({"Na+": 1, "Cl-": 1}, {"Na": 1, "Cl": 1}),
        ({"Fe0+": 1, "Fe": 2}, {"Fe": 3}),
        ({"Mn2.5+": 2, "O2-": 2.5}, {"Mn": 2, "O": 2.5}),
        ({"Fe2+,spin=5": 1, "S2-": 1}, {"Fe": 1, "S": 1}),
        ({"D": 2, "O": 1}, {"H": 2, "O": 1}),
        ({"D+": 1, "H+": 1, "O2-": 1}, {"H": 2, "O": 1}),
        ({"Na": 1, "Cl": 1, "K": 0}, {"Na": 1, "Cl": 1}),
        ("Fe2O3", {"Fe": 2, "O": 3}),
    ],
)
def test_species_are_read_as_their_elements(tmp_path, composition, amounts):
    entry = read_one(tmp_path, composition=composition, correction=0.0)
    assert entry.amounts == amounts
    assert entry.energy_per_atom == pytest.approx(-14.0 / sum(amounts.values()))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"composition": {"Xx": 1, "O": 1}}, "e: .*'Xx' is not an element"),
        ({"composition": {"Vac": 1, "O": 1}}, "e: .*Vac"),
        ({"composition": {"Q3+": 1}}, "e: .*'Q3\\+' is not an element"),
        ({"composition": {"Na": -1, "Cl": 2}}, "e: .*-1.0 atoms of Na"),
        ({"composition": {"Na": "nan"}}, "e: .*nan atoms of Na"),
        ({"composition": ["Na", 1]}, "e: composition, energy"),
        (
            {"correction": -1.0, "energy_adjustments": [{"value": -2.0}]},
            "e: .*correction -1.0, but energy_adjustments sum to -2.0",
        ),
        ({"energy_adjustments": [{"name": "of no class"}]}, "e: .*value"),
    ],
)
def test_an_entry_that_cannot_be_read_is_named(tmp_path, raw, message):
    with pytest.raises(FlowllmError, match=message):
        read_one(tmp_path, **{"correction": raw.get("correction", 0.0), **raw})


@pytest.mark.parametrize("with_correction", [True, False])
def test_every_form_of_a_correction_is_pymatgens(tmp_path, with_correction):
    """A list of adjustments of each class, with or without its sum, an empty list, or a number."""
    adjustments = [
        CompositionEnergyAdjustment(-0.614, 2, name="Cl"),
        ConstantEnergyAdjustment(0.25),
        ManualEnergyAdjustment(-0.5),
        TemperatureEnergyAdjustment(-0.001, 300, 4, name="entropy"),
    ]
    for given_adjustments in (adjustments, adjustments[:1], []):
        given_entry = ComputedEntry("Na2Cl2", -14.0, energy_adjustments=given_adjustments)
        raw = json.loads(json.dumps(given_entry.as_dict()))
        if not with_correction:
            del raw["correction"]
        entry = read_one(tmp_path, **{k: v for k, v in raw.items() if k != "entry_id"})
        assert entry.energy_per_atom == pytest.approx(given_entry.energy_per_atom, abs=1e-9)
    # Entries made before 2020 have no list.
    del raw["energy_adjustments"]
    assert read_one(tmp_path, **raw | {"correction": -1.0}).energy_per_atom == -15.0 / 4


def test_the_calculation_is_read_where_the_entry_tells_it(tmp_path):
    entry = read_one(
        tmp_path,
        correction=0.0,
        parameters={"run_type": "GGA+U", "hubbards": {"Fe": 5.3}, "is_hubbard": True},
        data={"oxide_type": "oxide", "material_id": "mp-1"},
    )
    assert (entry.run.run_type, entry.run.hubbards) == ("GGA+U", {"Fe": 5.3})
    assert entry.run.data == {"oxide_type": "oxide", "sulfide_type": None}
    assert read_one(tmp_path, correction=0.0, data={"run_type": "GGA"}).run.run_type == "GGA"
    assert read_one(tmp_path, correction=0.0, parameters=None, data=None).run.run_type is None


@pytest.mark.parametrize("name", ["2023-02-07-ppd-mp.pkl", "ppd.pkl.gz", "ppd.pickle"])
def test_a_pickle_is_rejected_by_its_name(tmp_path, name):
    with pytest.raises(FlowllmError, match="runs any code that it contains"):
        list(read_entries(tmp_path / name))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FlowllmError, match=r"none\.json.*No such file"):
        list(read_entries(tmp_path / "none.json"))


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=60) | st.text('[]{}",:ae0- ', max_size=60).map(str.encode))
def test_any_bytes_are_entries_or_an_error_for_the_user(tmp_path, content):
    path = tmp_path / "entries.json"
    path.write_bytes(content)
    with contextlib.suppress(FlowllmError):
        list(read_entries(path))
