"""reference_hull: the training crystals' energies by the potential, or a file's."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from pymatgen.core import Composition, Structure
from pymatgen.entries.computed_entries import ComputedEntry

from crystals import MP_20_SAMPLE, fcc, rattled, rocksalt
from energy_rows import crystal_row, settings
from flowllm import tables
from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.relax.models import load_potential
from flowllm.relax.relaxer import relax, single_points
from flowllm.runlog import read_provenance
from flowllm.stages import reference_hull
from flowllm.stages.reference_hull import missing_elements

ELEMENTAL = (
    Path(__file__).parents[2] / "shared/data/mp/2023-02-07-mp-elemental-reference-entries.json.gz"
)
LONELY = Crystal.from_arrays([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], [8, 8, 8], [90, 90, 90])
CRYSTALS = {
    "row-1": rattled(rocksalt(), 0.05, 1),
    "row-2": fcc(),
    "row-3": LONELY,
    "row-4": rocksalt("K", "Cl", 6.3),
}


def run(tmp_path, crystals=CRYSTALS, **changes):
    path = tmp_path / "train.parquet"
    rows = [crystal_row(crystal, name) for name, crystal in crystals.items()]
    tables.write_table(path, rows, tables.CRYSTALS, {})
    out = tmp_path / "hull" / "potential.parquet"
    given = settings("reference_hull", reference_hull=changes)
    reference_hull.run(given, crystals=path, out=out)
    return tables.read_table(out, tables.HULL_ENTRIES).to_pylist()


def test_entries_are_the_potentials_energies(tmp_path):
    rows = run(tmp_path, relax_steps=0, chunk_size=2)
    potential = load_potential("chgnet", torch.device("cpu"))
    expected = single_points(potential, list(CRYSTALS.values()))
    energies = {row["entry_id"]: row["energy_per_atom"] for row in rows}
    for name, result in zip(CRYSTALS, expected, strict=True):
        if result.fault is None:
            assert energies[name] == pytest.approx(result.final_energy_per_atom, abs=1e-6)
    # The crystal the potential cannot evaluate is counted.
    assert "row-3" not in energies
    counts = read_provenance(tmp_path / "hull" / "potential.parquet")["counts"]
    assert (counts["rows_in"], counts["rows_failed"]) == (4, 1)
    assert {row["kind"] for row in rows} == {"potential"}


def test_elements_without_a_crystal_take_the_materials_projects_energies(tmp_path):
    rows = run(tmp_path, relax_steps=0)
    by_source = {}
    for row in rows:
        by_source.setdefault(row["source"], []).append(row)
    ours, theirs = by_source.values()
    assert [row["entry_id"] for row in ours] == ["row-1", "row-2", "row-4"]
    assert {row["source"] for row in ours} == {"CHGNet 0.3.0"}
    symbols = [row["formula"] for row in theirs]
    # All of the 89 elements but copper, which is among the crystals.
    assert len(symbols) == len(set(symbols)) == 88
    assert "Cu1" not in symbols
    counts = read_provenance(tmp_path / "hull" / "potential.parquet")["counts"]
    assert counts["elemental_references"] == 88


def test_the_elemental_energies_are_those_of_the_shared_file():
    if not ELEMENTAL.exists():
        pytest.skip("the elemental reference entries are not on this machine")
    rows = {row["entry_id"]: row["energy_per_atom"] for row in missing_elements([])}
    entries = json.loads(gzip.decompress(ELEMENTAL.read_bytes()))
    assert len(rows) == len(entries)
    for entry in map(ComputedEntry.from_dict, entries.values()):
        ours = rows[entry.data["material_id"]]
        assert ours == pytest.approx(entry.energy_per_atom, abs=1e-6)


def test_the_potential_and_the_elemental_energies_are_on_one_scale():
    """Metals in their ground states with textbook lattice constants; the mean and the worst."""
    metals = {"Cu": 3.61, "Ag": 4.09, "Au": 4.08, "Al": 4.05, "Ni": 3.52, "Pd": 3.89, "Pt": 3.92}
    potential = load_potential("chgnet", torch.device("cpu"))
    crystals = [fcc(symbol, a) for symbol, a in metals.items()]
    results = relax(potential, crystals, max_force=0.05, max_steps=100, max_seconds=1e9)
    theirs = {row["formula"]: row["energy_per_atom"] for row in missing_elements([])}
    differences = [
        result.final_energy_per_atom - theirs[f"{symbol}1"]
        for symbol, result in zip(metals, results, strict=True)
    ]
    assert abs(sum(differences)) / len(differences) < 0.03
    assert max(map(abs, differences)) < 0.1


def test_mp_20s_elements_are_on_the_same_scale():
    """The numbers that docs/energies.md gives: CHGNet less the Materials Project, same crystal.

    The latter is the element's reference plus the crystal's energy above the hull, its own data.
    """
    if not MP_20_SAMPLE.exists():
        pytest.skip("the MP-20 sample is not on this machine")
    splits = [pd.read_csv(MP_20_SAMPLE / f"{split}.csv") for split in ("train", "val", "test")]
    rows = pd.concat(splits)
    rows = rows[[len(Composition(formula)) == 1 for formula in rows["pretty_formula"]]]
    symbols = [next(iter(Composition(formula))).symbol for formula in rows["pretty_formula"]]
    reference = {row["formula"]: row["energy_per_atom"] for row in missing_elements([])}
    theirs = [reference[f"{symbol}1"] for symbol in symbols] + rows["e_above_hull"].to_numpy()
    crystals = [Crystal.from_structure(Structure.from_str(cif, fmt="cif")) for cif in rows["cif"]]
    potential = load_potential("chgnet", torch.device("cpu"))
    relaxed = relax(potential, crystals, max_force=0.1, max_steps=500, max_seconds=1e9)
    differences = [result.final_energy_per_atom for result in relaxed] - theirs
    assert len(differences) == 16
    assert differences.mean() == pytest.approx(0.018, abs=0.002)
    assert differences.std() == pytest.approx(0.033, abs=0.002)
    worst = abs(differences).argmax()
    assert symbols[worst] == "Cr"
    assert differences[worst] == pytest.approx(0.112, abs=0.003)


def test_entries_may_be_relaxed_first(tmp_path):
    crystals = {"row-1": CRYSTALS["row-1"]}
    potential = load_potential("chgnet", torch.device("cpu"))
    (expected,) = relax(
        potential, list(crystals.values()), max_force=0.1, max_steps=50, max_seconds=1e9
    )
    rows = run(tmp_path, crystals, relax_steps=50)
    found = {row["entry_id"]: row["energy_per_atom"] for row in rows}
    assert found["row-1"] == pytest.approx(expected.final_energy_per_atom, abs=1e-6)


def test_nothing_to_make_a_hull_of(tmp_path):
    with pytest.raises(FlowllmError, match="the potential could evaluate none of 1 crystals"):
        run(tmp_path, {"row-3": LONELY}, relax_steps=0)


def test_a_file_of_the_potentials_entries(tmp_path):
    source = tmp_path / "entries.json"
    entry = {"composition": {"Na": 2, "Cl": 2}, "energy": -14.0, "correction": 0.0}
    source.write_text(json.dumps({"mp-22862": entry | {"entry_id": "mp-22862"}}))
    (row,) = run(tmp_path, source=str(source))
    assert row["energy_per_atom"] == -3.5
    assert (row["entry_id"], row["formula"], row["num_atoms"]) == ("mp-22862", "Na2Cl2", 4)
    assert (row["kind"], row["source"]) == ("potential", "CHGNet 0.3.0")
