"""stability: thresholds, failed rows, and the refusal to mix energies."""

import pytest

from crystals import fcc, rocksalt
from energy_rows import CHGNET, hull_row, relaxed_row, settings
from flowllm.errors import FlowllmError
from flowllm.io import hull_schemas, schemas, tables
from flowllm.runtime.provenance import read_provenance
from flowllm.stages import stability

HULL = [hull_row("Na", -1.0), hull_row("Cl", -2.0), hull_row("NaCl", -3.5)]


def write(path, rows, schema):
    tables.write_table(path, rows, schema, {})
    return path


def run(tmp_path, rows, hull=HULL, kind="potential", tables_of=None, **changes):
    schema = schemas.RELAXED if kind == "potential" else schemas.DFT_RESULTS
    energies = write(tmp_path / "energies.parquet", rows, schema)
    reference = write(tmp_path / "hull.parquet", hull, schemas.HULL_ENTRIES)
    out = tmp_path / "stability.parquet"
    given = settings("stability", stability=changes)
    files = {"energies": [energies], "hull": reference, **(tables_of or {})}
    stability.run(given, **files, kind=kind, out=out)
    return tables.read_table(out, schemas.STABILITY).to_pylist()


@pytest.mark.parametrize(
    ("energy", "distance", "stable", "metastable"),
    [
        (-3.6, -0.1, True, True),
        (-3.45, 0.05, False, True),
        (-3.41, 0.09, False, False),
    ],
)
def test_stable_below_zero_metastable_below_threshold(
    tmp_path, energy, distance, stable, metastable
):
    (row,) = run(tmp_path, [relaxed_row(rocksalt(), "a", energy)])
    assert row["e_above_hull"] == pytest.approx(distance, abs=1e-9)
    assert (row["stable"], row["metastable"]) == (stable, metastable)
    assert row["energy_source"] == row["hull_source"] == CHGNET
    assert (row["num_elements"], row["formula"]) == (2, "Na1Cl1")


@pytest.mark.parametrize("inclusive", [False, True])
def test_on_the_hull_is_stable_only_where_the_bound_is_included(tmp_path, inclusive):
    # -4 and -2 are exact in binary, and so is the hull at NaCl itself.
    hull = [hull_row("Na", -2.0), hull_row("Cl", -2.0), hull_row("NaCl", -4.0)]
    (row,) = run(tmp_path, [relaxed_row(rocksalt(), "a", -4.0)], hull, inclusive=inclusive)
    assert row["e_above_hull"] == 0
    assert row["stable"] is inclusive


def test_an_element_is_never_stable(tmp_path):
    (row,) = run(tmp_path, [relaxed_row(fcc("Na", 5.3), "a", -1.5)])
    assert row["e_above_hull"] == pytest.approx(-0.5)
    assert not row["stable"]
    assert not row["metastable"]
    (row,) = run(tmp_path, [relaxed_row(fcc("Na", 5.3), "a", -1.5)], min_elements=1)
    assert row["stable"]


def test_rows_without_energy_or_reference_stay_with_their_reason(tmp_path):
    rows = [
        relaxed_row(None, "failed", status="isolated_atoms", error="1 of 2 atoms"),
        relaxed_row(rocksalt("K", "Cl"), "no-potassium", -3.0),
        relaxed_row(rocksalt(), "fine", -3.6),
    ]
    found = run(tmp_path, rows)
    assert [row["id"] for row in found] == ["failed", "no-potassium", "fine"]
    assert [row["status"] for row in found] == ["isolated_atoms", "no_reference", "ok"]
    assert found[1]["error"] == "no elemental reference entry for K"
    assert [row["e_above_hull"] is None for row in found] == [True, True, False]
    assert [row["stable"] for row in found] == [False, False, True]
    counts = read_provenance(tmp_path / "stability.parquet")["counts"]
    assert (counts["rows_in"], counts["rows_failed"], counts["stable"]) == (3, 2, 1)


def test_an_implausible_energy_is_not_placed(tmp_path):
    rows = [relaxed_row(rocksalt(), "collapsed", -40.0), relaxed_row(rocksalt(), "fine", -3.6)]
    found = run(tmp_path, rows)
    assert [row["status"] for row in found] == ["implausible_energy", "ok"]
    assert found[0]["error"] == "formation energy -38.500 eV/atom, below -5"
    assert found[0]["energy_per_atom"] == -40.0
    assert found[0]["e_above_hull"] is None
    assert not found[0]["stable"]
    assert not found[0]["metastable"]


def dft_row(scheme: str = "MP2020") -> dict:
    return {
        "id": "a",
        "formula": "Na1Cl1",
        "corrected_energy_per_atom": -3.6,
        "correction_scheme": scheme,
        "status": "ok",
    }


def dft_hull(scheme: str = "MP2020") -> list[dict]:
    label = f"DFT, correction {scheme}"
    return [row | {"kind": "dft", "source": label} for row in HULL]


def test_dft_energies_against_a_dft_hull(tmp_path):
    (row,) = run(tmp_path, [dft_row()], dft_hull(), kind="dft")
    assert row["e_above_hull"] == pytest.approx(-0.1)
    assert row["energy_source"] == row["hull_source"] == "DFT, correction MP2020"


def test_the_public_codes_correction_is_measured_against_the_corrected_hull(tmp_path):
    rows = [dft_row("MP2020_plus_u_only (require_bound)")]
    (row,) = run(tmp_path, rows, dft_hull("MP2020 (require_bound)"), kind="dft")
    assert row["e_above_hull"] == pytest.approx(-0.1)
    assert row["energy_source"] == "DFT, correction MP2020_plus_u_only (require_bound)"


def test_a_hull_whose_relaxation_is_not_recorded_is_named_so(tmp_path):
    """A JSON file of the potential's entries has no criterion: taken, and flagged in its name."""
    label = "CHGNet 0.3.0, relaxation not recorded"
    hull = [row | {"source": label} for row in HULL]
    (row,) = run(tmp_path, [relaxed_row(rocksalt(), "a", -3.6)], hull)
    assert (row["energy_source"], row["hull_source"]) == (CHGNET, label)


def test_unconverged_entries_of_the_hull_are_counted(tmp_path):
    hull = [row | {"converged": done} for row, done in zip(HULL, [True, False, None], strict=True)]
    run(tmp_path, [relaxed_row(rocksalt(), "a", -3.6)], hull)
    metadata = tables.read_metadata(tmp_path / "stability.parquet")
    assert (metadata["hull_compositions"], metadata["hull_not_converged"]) == (3, 1)


def other(label: str, entries: int = 3) -> list[dict]:
    """The hull with another name of the energies of its last entries."""
    return [row | {"source": label} if n >= 3 - entries else row for n, row in enumerate(HULL)]


RELAXED_ROW = relaxed_row(rocksalt(), "a", -3.6)


@pytest.mark.parametrize(
    ("rows", "hull", "kind", "message"),
    [
        *(
            ([RELAXED_ROW], other(label, entries), "potential", "1500 steps; make both with")
            for entries in (1, 3)
            for label in (
                "CHGNet 0.3.0",
                "CHGNet 0.3.0, relaxed to 0.1 eV/Å in at most 40 steps",
                "CHGNet 0.3.0, relaxed to 0.05 eV/Å in at most 1500 steps",
                "MACE-MPA-0 medium, relaxed to 0.1 eV/Å in at most 1500 steps",
                "MACE-MPA-0 medium, relaxation not recorded",
                "Materials Project elemental references 2023-02-07",
            )
        ),
        *(
            ([dft_row(scheme)], dft_hull(hull_scheme), "dft", "the hull is of DFT, correction")
            for scheme, hull_scheme in (
                ("MP2020 (require_bound)", "MP2020 (no_check)"),
                ("MP2020_plus_u_only (require_bound)", "MP2020 (no_check)"),
                ("MP2020 (no_check)", "MP2020"),
            )
        ),
        ([dft_row()], HULL, "dft", "the file of dft_hull"),
        ([relaxed_row(rocksalt(), "a", -3.6)], dft_hull(), "potential", "file of reference_hull"),
        ([dft_row("none")], dft_hull(), "dft", "the hull is of DFT, correction MP2020 and the"),
        (
            [relaxed_row(rocksalt(), "a", -3.6, potential="MACE")],
            HULL,
            "potential",
            "steps and the energies are of MACE",
        ),
        ([relaxed_row(rocksalt(), "a", -3.6)], [], "potential", "contains no energies"),
    ],
)
def test_energies_on_different_scales_are_refused(tmp_path, rows, hull, kind, message):
    with pytest.raises(FlowllmError, match=message):
        run(tmp_path, rows, hull, kind=kind)


def test_the_order_of_rows_and_entries_changes_nothing(tmp_path):
    rows = [relaxed_row(rocksalt(), f"{n}", -3.6 + 0.01 * n) for n in range(5)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    forward = run(tmp_path / "a", rows)
    backward = run(tmp_path / "b", rows[::-1], HULL[::-1])
    assert forward == backward[::-1]


ROWS = [relaxed_row(rocksalt(), name, -3.6) for name in ("both", "first alone")]
OF_HULL = dict(zip((row["entry_id"] for row in HULL), (-1.5, -2.0, -3.75), strict=True))
"""Energies of the hull's entries by the second potential."""


def second(tmp_path, name, energies, potential="CHGNet 0.2.0"):
    """A table of second_energies."""
    rows = [
        {"id": one, "check_potential": potential, "check_energy_per_atom": energy}
        for one, energy in energies.items()
    ]
    return write(tmp_path / f"{name}.parquet", rows, hull_schemas.SECOND_ENERGIES)


def test_the_second_potential_has_its_own_hull(tmp_path):
    """NaCl is 0.1 below the first hull (-3.5), and 0.25 above the second (-3.75)."""
    tables_of = {
        "second": second(tmp_path, "second", {"both": -3.5, "first alone": None}),
        "second_hull": second(tmp_path, "second_hull", OF_HULL),
    }
    both, alone = run(tmp_path, ROWS, tables_of=tables_of)
    assert both["e_above_hull"] == pytest.approx(-0.1)
    assert both["check_e_above_hull"] == pytest.approx(0.25)
    assert both["stable"]  # by the first potential alone
    assert alone["check_e_above_hull"] is None
    assert both["check_energy_source"] == alone["check_energy_source"] == "CHGNet 0.2.0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"second_hull": None}, "give --second and --second-hull together"),
        ({"second": None}, "give --second and --second-hull together"),
        ({"potential": "SevenNet-0"}, "CHGNet 0.2.0 for the crystals and SevenNet-0 for the hull"),
        ({"ids": ("both", "another")}, r"second\.parquet: its ids are not those"),
    ],
)
def test_energies_of_a_second_potential_that_do_not_fit_are_refused(tmp_path, changes, message):
    ids = changes.pop("ids", ("both", "first alone"))
    of_hull = second(tmp_path, "hull2", OF_HULL, changes.pop("potential", "CHGNet 0.2.0"))
    own = second(tmp_path, "second", dict.fromkeys(ids, -3.5))
    with pytest.raises(FlowllmError, match=message):
        run(tmp_path, ROWS, tables_of={"second": own, "second_hull": of_hull} | changes)


def test_compounds_of_the_crystals_elements_are_counted(tmp_path):
    hull = [*HULL, *(hull_row(name, -1.0) for name in ("K", "O", "Na2O", "NaClO", "Na4Cl4"))]
    rows = [
        relaxed_row(rocksalt(), "one", -3.6),  # NaCl; Na4Cl4 is the same composition
        relaxed_row(rocksalt("K", "Cl"), "none", -3.6),
        relaxed_row(fcc("Na", 5.3), "an element", -1.5),
    ]
    assert [row["hull_compounds"] for row in run(tmp_path, rows, hull)] == [1, 0, None]


@pytest.mark.parametrize(
    "suffix", [", symmetry kept", ", symmetry kept, cell fixed (upper bounds)"]
)
def test_constrained_crystals_are_measured_against_free_ones_and_say_so(tmp_path, suffix):
    row = relaxed_row(rocksalt(), "a", -3.6, potential=CHGNET + suffix)
    (found,) = run(tmp_path, [row])
    assert found["e_above_hull"] == pytest.approx(-0.1)
    assert (found["energy_source"], found["hull_source"]) == (CHGNET + suffix, CHGNET)


def test_the_formation_energy_is_from_the_elements_of_the_hull(tmp_path):
    # Of two entries of sodium the lower one counts: -3.6 - (-1.0 - 2.0) / 2.
    hull = [*HULL, hull_row("Na2", -0.5)]
    (row,) = run(tmp_path, [relaxed_row(rocksalt(), "a", -3.6)], hull)
    assert row["formation_energy_per_atom"] == pytest.approx(-2.1, abs=1e-9)
