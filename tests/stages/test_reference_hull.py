"""reference_hull: energies of the training crystals by the potential, or of a file."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core import Composition, Element, Lattice, Structure
from pymatgen.entries.computed_entries import ComputedEntry

from crystals import MP_20_SAMPLE, fcc, rattled, rocksalt
from energy_rows import CHGNET, crystal_row, generated_row, hull_row, settings
from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.evaluate.hull import read_hull
from flowllm.io import hull_schemas, schemas, tables
from flowllm.relax.ground_states import GroundState, ground_states
from flowllm.relax.models import load_potential
from flowllm.relax.relaxer import relax
from flowllm.runtime.provenance import read_provenance
from flowllm.runtime.signals import Stopped
from flowllm.stages import prerelax, reference_hull, stability

ELEMENTAL = (
    Path(__file__).parents[3] / "shared/data/mp/2023-02-07-mp-elemental-reference-entries.json.gz"
)
LONELY = Crystal.from_arrays([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], [8, 8, 8], [90, 90, 90])
CRYSTALS = {
    "row-1": rattled(rocksalt(), 0.05, 1),
    "row-2": fcc(),
    "row-3": LONELY,
    "row-4": rocksalt("K", "Cl", 6.3),
}


def run(tmp_path, crystals=CRYSTALS, limits=None, **changes):
    path = tmp_path / "train.parquet"
    rows = [crystal_row(crystal, name) for name, crystal in crystals.items()]
    tables.write_table(path, rows, schemas.CRYSTALS, {})
    out = tmp_path / "hull" / "potential.parquet"
    given = settings("reference_hull", reference_hull=changes, prerelax=limits or {})
    reference_hull.run(given, crystals=path, out=out)
    return tables.read_table(out, hull_schemas.POTENTIAL_ENTRIES).to_pylist()


@pytest.fixture(scope="module")
def potential():
    return load_potential("chgnet", torch.device("cpu"))


def test_training_crystals_are_relaxed_as_the_generated_ones_are(tmp_path, potential):
    """The limits are those of prerelax, so are the energies, and the source names the limits."""
    for changed, name in (
        ({}, CHGNET),
        (
            {"max_force": 0.5, "max_steps": 2},
            "CHGNet 0.3.0, relaxed to 0.5 eV/Å in at most 2 steps",
        ),
    ):
        limits = {"max_force": 0.1, "max_steps": 1500} | changed
        expected = relax(potential, list(CRYSTALS.values()), **limits, max_seconds=1e9)
        rows = {row["entry_id"]: row for row in run(tmp_path, limits=changed, chunk_size=2)}
        for crystal_id, result in zip(CRYSTALS, expected, strict=True):
            if result.failure is None:
                row = rows[crystal_id]
                energy = pytest.approx(result.final_energy_per_atom, abs=1e-5)
                assert (row["energy_per_atom"], row["converged"]) == (energy, result.converged)
        assert {row["source"] for row in rows.values()} == {name}
        assert {row["kind"] for row in rows.values()} == {"potential"}
        # The crystal that the potential cannot evaluate is counted.
        assert "row-3" not in rows
        counts = read_provenance(tmp_path / "hull" / "potential.parquet")["counts"]
        assert (counts["rows_in"], counts["rows_failed"]) == (4, 1)
        assert counts["not_converged"] == sum(not row["converged"] for row in rows.values())
        shutil.rmtree(tmp_path / "hull")
    assert counts["not_converged"] > 0


def test_a_relaxed_training_crystal_is_on_its_own_hull(tmp_path):
    """prerelax and reference_hull of the same crystals: each distance to the hull is zero."""
    crystals = [rattled(rocksalt(), 0.1, 1), rattled(rocksalt("K", "Cl", 6.3), 0.1, 2)]
    run(tmp_path, {"a": crystals[0], "b": crystals[1]})
    rows = [generated_row(crystal, f"{n}") for n, crystal in enumerate(crystals)]
    paths = {name: tmp_path / f"{name}.parquet" for name in ("generated", "relaxed", "stability")}
    tables.write_table(paths["generated"], rows, schemas.GENERATED, {})
    prerelax.run(settings("prerelax"), generated=paths["generated"], out=paths["relaxed"])
    hull = tmp_path / "hull" / "potential.parquet"
    measured = {"energies": [paths["relaxed"]], "hull": hull, "kind": "potential"}
    stability.run(settings("stability"), **measured, out=paths["stability"])
    found = tables.read_table(paths["stability"], schemas.STABILITY).to_pylist()
    assert [row["e_above_hull"] for row in found] == pytest.approx([0, 0], abs=2e-5)
    # Crystals that were relaxed with other limits are rejected.
    for limits in ({"max_force": 0.05}, {"max_steps": 40}):
        given = settings("prerelax", prerelax=limits)
        prerelax.run(given, generated=paths["generated"], out=paths["relaxed"])
        with pytest.raises(FlowllmError, match=r"the hull is of .* eV/Å in at most 1500 steps and"):
            stability.run(settings("stability"), **measured, out=paths["stability"])


@pytest.mark.parametrize("key", ["relax_steps", "max_force"])
def test_the_old_keys_say_what_replaced_them(key):
    with pytest.raises(FlowllmError, match=rf"remove {key}: .*prerelax\.max_steps"):
        settings("reference_hull", reference_hull={key: 0})


def test_elements_have_their_ground_states_by_the_potential(tmp_path):
    rows = run(tmp_path)
    theirs = [row for row in rows if row["entry_id"] not in CRYSTALS]
    assert [row["entry_id"] for row in rows if row not in theirs] == ["row-1", "row-2", "row-4"]
    elements = [next(iter(Composition(row["formula"]))).symbol for row in theirs]
    assert elements == [Element.from_Z(z).symbol for z in [*range(1, 84), *range(89, 95)]]
    counts = read_provenance(tmp_path / "hull" / "potential.parquet")["counts"]
    assert counts["elemental_references"] == 89


def diamond(symbol: str, a: float) -> Crystal:
    lattice = Lattice([[0, a / 2, a / 2], [a / 2, 0, a / 2], [a / 2, a / 2, 0]])
    return Crystal.from_structure(
        Structure(lattice, [symbol, symbol], [[0, 0, 0], [0.25, 0.25, 0.25]])
    )


ALLOTROPES = {
    "bcc copper": Crystal.from_structure(
        Structure(Lattice.cubic(2.87), ["Cu"] * 2, [[0] * 3, [0.5] * 3])
    ),
    "simple cubic copper": Crystal.from_structure(Structure(Lattice.cubic(2.4), ["Cu"], [[0] * 3])),
    "diamond": diamond("C", 3.57),
    "fcc iron": fcc("Fe", 3.5),
}


@pytest.mark.parametrize("name", ALLOTROPES)
def test_an_allotrope_does_not_displace_the_ground_state(tmp_path, name):
    """Otherwise the corner of the hull would rise and make compounds of the element stable."""
    crystal = ALLOTROPES[name]
    run(tmp_path, {"train": crystal})
    found = read_hull(tmp_path / "hull" / "potential.parquet", "potential")
    symbol = next(iter(crystal.to_structure().composition)).symbol
    rows = tables.read_table(tmp_path / "hull" / "potential.parquet", schemas.HULL_ENTRIES)
    energies = {row["entry_id"]: row["energy_per_atom"] for row in rows.to_pylist()}
    ground = ground_states()[symbol]
    assert energies["train"] > energies[f"{symbol}, {ground.entry_id}"] + 0.005
    assert found.hull.hull_energy({symbol: 1}) == energies[f"{symbol}, {ground.entry_id}"]


def test_a_lower_training_crystal_is_the_reference(tmp_path, monkeypatch):
    given = {"Cu": GroundState("worse", ALLOTROPES["simple cubic copper"])}
    monkeypatch.setattr(reference_hull, "ground_states", lambda: given)
    run(tmp_path, {"train": fcc()})
    rows = tables.read_table(tmp_path / "hull" / "potential.parquet", schemas.HULL_ENTRIES)
    energies = {row["entry_id"]: row["energy_per_atom"] for row in rows.to_pylist()}
    found = read_hull(tmp_path / "hull" / "potential.parquet", "potential")
    assert found.hull.hull_energy({"Cu": 1}) == energies["train"] < energies["Cu, worse"]


def test_radioactive_elements_have_no_entry(tmp_path):
    """CHGNet's weights of polonium and its neighbors have their initial values."""
    crystals = {"PbPo": rocksalt("Pb", "Po", 6.6), "NaCl": rocksalt()}
    rows = run(tmp_path, crystals)
    assert "PbPo" not in {row["entry_id"] for row in rows}
    assert not any("Po" in row["formula"] for row in rows)


MP_METALS = {
    "Cu": -4.0992,
    "Ag": -2.8325,
    "Au": -3.2739,
    "Al": -3.7456,
    "Ni": -5.7801,
    "Pd": -5.1799,
}
"""The Materials Project's energies of the ground states, eV/atom, uncorrected (2023-02-07)."""


def test_ground_states_are_on_the_materials_projects_scale(potential):
    """CHGNet was fitted to these energies; the mean difference of elements is 0.03 eV/atom."""
    crystals = [ground_states()[symbol].crystal for symbol in MP_METALS]
    results = relax(potential, crystals, max_force=0.1, max_steps=100, max_seconds=1e9)
    for result, energy in zip(results, MP_METALS.values(), strict=True):
        assert result.final_energy_per_atom == pytest.approx(energy, abs=0.1)


def test_ground_states_against_the_shared_elemental_energies(potential):
    """The numbers of docs/energies.md: ground states, CHGNet minus Materials Project."""
    if not ELEMENTAL.exists():
        pytest.skip("the elemental reference entries are not on this machine")
    entries = json.loads(gzip.decompress(ELEMENTAL.read_bytes()))
    given = ground_states()
    assert set(given) == set(entries)
    results = relax(
        potential,
        [one.crystal for one in given.values()],
        max_force=0.1,
        max_steps=1500,
        max_seconds=1e9,
    )
    assert all(result.converged for result in results)
    theirs = [ComputedEntry.from_dict(entries[symbol]).energy_per_atom for symbol in given]
    differences = np.array([result.final_energy_per_atom for result in results]) - theirs
    worst = sorted(zip(np.abs(differences), given, strict=True))[-3:]
    assert [symbol for _, symbol in worst] == ["Ge", "Sn", "W"]
    assert differences.mean() == pytest.approx(0.035, abs=0.002)
    assert differences.std() == pytest.approx(0.052, abs=0.002)
    assert differences.min() == pytest.approx(-0.115, abs=0.003)
    assert differences.max() == pytest.approx(0.196, abs=0.003)


def test_mp_20s_elements_are_on_the_same_scale(potential):
    """The numbers of docs/energies.md: CHGNet minus Materials Project, for the same crystals.

    The energy of the Materials Project is the element's reference plus the energy above the hull.
    """
    if not (MP_20_SAMPLE.exists() and ELEMENTAL.exists()):
        pytest.skip("the MP-20 sample and the elemental entries are not on this machine")
    splits = [pd.read_csv(MP_20_SAMPLE / f"{split}.csv") for split in ("train", "val", "test")]
    rows = pd.concat(splits)
    rows = rows[[len(Composition(formula)) == 1 for formula in rows["pretty_formula"]]]
    symbols = [next(iter(Composition(formula))).symbol for formula in rows["pretty_formula"]]
    entries = json.loads(gzip.decompress(ELEMENTAL.read_bytes()))
    reference = {
        symbol: ComputedEntry.from_dict(entry).energy_per_atom for symbol, entry in entries.items()
    }
    theirs = [reference[symbol] for symbol in symbols] + rows["e_above_hull"].to_numpy()
    crystals = [Crystal.from_structure(Structure.from_str(cif, fmt="cif")) for cif in rows["cif"]]
    relaxed = relax(potential, crystals, max_force=0.1, max_steps=500, max_seconds=1e9)
    differences = [result.final_energy_per_atom for result in relaxed] - theirs
    assert len(differences) == 16
    assert differences.mean() == pytest.approx(0.018, abs=0.002)
    assert differences.std() == pytest.approx(0.033, abs=0.002)
    worst = abs(differences).argmax()
    assert symbols[worst] == "Cr"
    assert differences[worst] == pytest.approx(0.112, abs=0.003)


def test_no_crystal_with_an_energy_is_an_error(tmp_path):
    with pytest.raises(FlowllmError, match="the potential could evaluate none of 1 crystals"):
        run(tmp_path, {"row-3": LONELY})


def test_a_file_of_the_potentials_entries(tmp_path):
    source = tmp_path / "entries.json"
    entry = {"composition": {"Na": 2, "Cl": 2}, "energy": -14.0, "correction": 0.0}
    source.write_text(json.dumps({"mp-22862": entry | {"entry_id": "mp-22862"}}))
    (row,) = run(tmp_path, source=str(source))
    assert row["energy_per_atom"] == -3.5
    assert (row["entry_id"], row["formula"], row["num_atoms"]) == ("mp-22862", "Na2Cl2", 4)
    assert (row["kind"], row["source"]) == ("potential", "CHGNet 0.3.0, relaxation not recorded")
    assert row["converged"] is None
    assert row["lengths"] is None


FEW = {"Na": ground_states()["Na"], "Cl": ground_states()["Cl"]}


def test_the_hull_of_another_run_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_hull, "ground_states", lambda: FEW)
    made = run(tmp_path / "first", {"row-1": CRYSTALS["row-1"]}, limits={"max_steps": 5})
    source = tmp_path / "first" / "hull" / "potential.parquet"
    taken = run(tmp_path / "second", limits={"max_steps": 5}, source=str(source))
    assert taken == made
    assert len(taken) == 3
    counts = read_provenance(tmp_path / "second" / "hull" / "potential.parquet")["counts"]
    assert counts["rows_out"] == 3
    assert counts["not_converged"] == sum(not row["converged"] for row in made)


def test_the_hull_of_a_release_has_energies_without_crystals(tmp_path):
    label = "CHGNet 0.3.0, relaxed to 0.1 eV/Å in at most 5 steps"
    source = tmp_path / "potential.parquet"
    released = hull_row("NaCl", -3.0, source=label)
    tables.write_table(source, [released], schemas.HULL_ENTRIES, {})
    (row,) = run(tmp_path, limits={"max_steps": 5}, source=str(source))
    assert (row["entry_id"], row["energy_per_atom"]) == (released["entry_id"], -3.0)
    assert row["lengths"] is None


def test_a_hull_of_other_limits_is_refused_and_says_which(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_hull, "ground_states", lambda: FEW)
    run(tmp_path / "first", {"row-1": CRYSTALS["row-1"]}, limits={"max_steps": 5})
    source = tmp_path / "first" / "hull" / "potential.parquet"
    said = r"potential\.parquet: its entries are of CHGNet .* 5 steps, but .* needs .* 6 steps; set"
    with pytest.raises(FlowllmError, match=said):
        run(tmp_path / "second", limits={"max_steps": 6}, source=str(source))


def test_a_stopped_hull_is_resumed_after_its_last_part(tmp_path, monkeypatch):
    """The crystals of finished parts are not relaxed again, and the entries are the same."""
    monkeypatch.setattr(reference_hull, "ground_states", lambda: FEW)
    whole = run(tmp_path / "whole", limits={"max_steps": 5}, chunk_size=2)
    relaxed = []

    def until(count):
        def relax_some(potential, crystals, **limits):
            if len(relaxed) == count:
                raise Stopped("stopped by SIGTERM")
            relaxed.append(len(crystals))
            return relax(potential, crystals, **limits)

        monkeypatch.setattr(reference_hull, "relax", relax_some)

    until(2)
    with pytest.raises(Stopped):
        run(tmp_path / "parts", limits={"max_steps": 5}, chunk_size=2)
    until(-1)
    assert run(tmp_path / "parts", limits={"max_steps": 5}, chunk_size=2) == whole
    assert relaxed == [2, 2, 2]


def test_a_file_that_looks_like_dft_causes_a_warning(tmp_path, caplog):
    source = tmp_path / "entries.json"
    entry = {"composition": {"Na+": 2, "Cl-": 2}, "energy": -14.0, "correction": 0.0}
    source.write_text(json.dumps([entry | {"entry_id": "a", "parameters": {"run_type": "GGA"}}]))
    (row,) = run(tmp_path, source=str(source))
    assert row["formula"] == "Na2Cl2"
    assert "1 of 1 entries (first: a) have a run_type" in caplog.text


def test_the_hull_is_relaxed_freely_and_has_its_crystals(tmp_path, potential):
    """The stage is not given the constraints of the generated crystals."""
    limits = {"max_force": 0.1, "max_steps": 1500, "max_seconds": float("inf")}
    expected = relax(potential, [CRYSTALS["row-1"]], **limits)[0]
    with pytest.raises(FlowllmError, match="keep_symmetry"):
        run(tmp_path, {"row-1": CRYSTALS["row-1"]}, limits={"keep_symmetry": True})
    rows = run(tmp_path, {"row-1": CRYSTALS["row-1"]})
    row = next(one for one in rows if one["entry_id"] == "row-1")
    assert row["source"] == CHGNET
    assert row["energy_per_atom"] == pytest.approx(expected.final_energy_per_atom, abs=1e-5)
    assert tables.crystal_of(row).lengths == pytest.approx(expected.crystal.lengths, abs=1e-4)
    assert all(one["lengths"] is not None for one in rows)  # the ground states, too
