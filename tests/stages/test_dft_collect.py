"""dft_collect: a real vasprun.xml, damaged ones, and known values of the correction."""

import gzip

import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp.outputs import Vasprun

from flowllm.dft.results import corrected_energy
from flowllm.dft.runs import DftRun, RunProblem
from flowllm.io import schemas, tables
from flowllm.runtime.provenance import read_provenance
from flowllm.stages import dft_collect, stability

from energy_rows import hull_row, settings  # isort: skip
from vasp_runs import STEP_END, VASPRUN, Step, made_run, relaxation, vasprun_text  # isort: skip


def finished_run(structure: Structure, energy: float, run_type: str, **parameters) -> DftRun:
    symbols = [f"PAW_PBE {element} 01Jan2000" for element in structure.composition]
    known = {"run_type": run_type, "is_hubbard": False, "hubbards": {}, "potcar_symbols": symbols}
    return DftRun(structure, energy, run_type, known | parameters, True, True, 1)


def rocksalt_cell(cation: str, anion: str, a: float) -> Structure:
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


@pytest.mark.parametrize(
    ("structure", "correction"),
    [
        (rocksalt_cell("Na", "Cl", 5.64), -2.456),  # 4 Cl
        (rocksalt_cell("Mg", "O", 4.21), -2.748),  # 4 O
        (rocksalt_cell("Mg", "S", 5.2), 4 * -0.503),
        (rocksalt_cell("Ti", "N", 4.24), 4 * -0.361),
        (Structure(Lattice.cubic(3.6), ["Cu"], [[0, 0, 0]]), 0.0),
    ],
)
def test_corrections_of_plain_gga_runs(structure, correction):
    """Values of Wang et al. 2021; without a run type, pymatgen would not correct the entry."""
    run = finished_run(structure, -10.0, "GGA")
    corrected = corrected_energy(run, "MP2020", "require_bound")
    assert corrected == pytest.approx(-10.0 + correction, abs=1e-3)
    assert corrected_energy(run, "none", "require_bound") == -10.0
    # The public codes do not correct GGA runs without U.
    assert corrected_energy(run, "MP2020_plus_u_only", "require_bound") == -10.0


def test_correction_of_a_plus_u_run():
    structure = rocksalt_cell("Fe", "O", 4.3)
    run = finished_run(structure, -10.0, "GGA+U", is_hubbard=True, hubbards={"Fe": 5.3, "O": 0.0})
    # Corrections of 4 O, and of 4 Fe in an oxide.
    expected = -10.0 + 4 * -0.687 + 4 * -2.256
    for scheme in ("MP2020", "MP2020_plus_u_only"):
        corrected = corrected_energy(run, scheme, "require_bound")
        assert corrected == pytest.approx(expected, abs=1e-3)


def test_strict_anions_decides_on_fractional_anions():
    """Nitrogen at -1/3 in lithium azide: an anion by its sign, but not one of the fit."""
    coords = [[0, 0, 0], [0.5, 0.5, 0.2], [0.5, 0.5, 0.5], [0.5, 0.5, 0.8]]
    run = finished_run(Structure(Lattice.cubic(5.0), ["Li", "N", "N", "N"], coords), -10.0, "GGA")
    assert corrected_energy(run, "MP2020", "require_bound") == pytest.approx(-10.0)
    loose = corrected_energy(run, "MP2020", "no_check")
    assert loose == pytest.approx(-10.0 + 3 * -0.361, abs=1e-3)


def test_a_run_with_another_u_than_the_sets_is_not_corrected():
    run = finished_run(
        rocksalt_cell("Fe", "O", 4.3), -10.0, "GGA+U", is_hubbard=True, hubbards={"Fe": 4.0}
    )
    with pytest.raises(RunProblem, match="does not cover") as caught:
        corrected_energy(run, "MP2020", "require_bound")
    assert caught.value.status == "no_correction"


def collect(tmp_path, contents: dict[str, bytes | None], formula="Li20Cl20", **changes):
    """Run the stage on one folder per content, and return its rows by id."""
    root = tmp_path / "dft_inputs"
    rows = []
    for name, content in contents.items():
        folder = root / "00000" / name.split(".")[0]
        folder.mkdir(parents=True)
        (folder / "POSCAR").write_text("inputs")
        if content is not None:
            (folder / ("vasprun.xml.gz" if name.endswith("gz") else "vasprun.xml")).write_bytes(
                content
            )
        rows.append(
            {"id": name, "path": f"00000/{folder.name}", "formula": formula, "status": "ok"}
        )
    rows.append({"id": "unselected", "formula": "Na1", "status": "not_selected", "error": "first"})
    manifest, out = root / "manifest.parquet", tmp_path / "dft.parquet"
    tables.write_table(manifest, rows, schemas.DFT_MANIFEST, {})
    dft_collect.run(settings("dft_collect", dft_collect=changes), manifest=manifest, out=out)
    return {row["id"]: row for row in tables.read_table(out, schemas.DFT_RESULTS).to_pylist()}


def test_a_real_run_and_its_correction(tmp_path):
    text = vasprun_text()
    rows = collect(tmp_path, {"plain": text.encode(), "zipped.gz": gzip.compress(text.encode())})
    theirs = Vasprun(str(VASPRUN), parse_dos=False, parse_eigen=False, parse_potcar_file=False)
    for name in ("plain", "zipped.gz"):
        row = rows[name]
        assert (row["status"], row["error"], row["run_type"]) == ("ok", None, "GGA")
        assert row["raw_energy_per_atom"] == pytest.approx(-153.0123588 / 40, abs=1e-9)
        # The correction is -0.614 eV per Cl.
        corrected = (-153.0123588 - 20 * 0.614) / 40
        assert row["corrected_energy_per_atom"] == pytest.approx(corrected, abs=1e-6)
        assert row["correction_scheme"] == "MP2020 (require_bound)"
        assert row["converged_electronic"]
        assert row["converged_ionic"]
        lengths = tables.crystal_of(row).lengths
        assert lengths.tolist() == pytest.approx(theirs.final_structure.lattice.abc, abs=1e-4)


def test_no_correction_by_choice(tmp_path):
    rows = collect(tmp_path, {"plain": vasprun_text().encode()}, correction_scheme="none")
    assert rows["plain"]["corrected_energy_per_atom"] == rows["plain"]["raw_energy_per_atom"]
    assert rows["plain"]["correction_scheme"] == "none"


def test_each_row_says_what_became_of_its_run(tmp_path):
    text = vasprun_text()
    zipped = gzip.compress(text.encode())
    rows = collect(
        tmp_path,
        {
            "missing": None,
            "empty": b"",
            "unfinished": text[: len(text) // 2].encode(),
            "unfinished2.gz": zipped[: len(zipped) // 2],
            "garbage": b"<modeling>\n<x></x></modeling>",
            "notzip.gz": b"not a gzip file",
            "unconverged": relaxation([-150.0], bad=[1]).encode(),
            "vdw.gz": VASPRUN.read_bytes(),
        },
    )
    found = {name.split(".")[0]: row["status"] for name, row in rows.items()}
    assert found == {
        "missing": "missing",
        "empty": "unfinished",
        "unfinished": "unfinished",
        "unfinished2": "unfinished",
        "garbage": "unreadable",
        "notzip": "unreadable",
        "unconverged": "unconverged_electronic",
        "vdw": "wrong_functional",
        "unselected": "not_selected",
    }
    for row in rows.values():
        assert row["error"]
        assert row["lengths"] is None
        assert row["corrected_energy_per_atom"] is None
    assert "GGA+vdW-DFT-D3" in rows["vdw.gz"]["error"]
    counts = read_provenance(tmp_path / "dft.parquet")["counts"]
    assert counts["rows_failed"] == 9
    assert counts["statuses"]["unfinished"] == 3


def test_a_relaxation_under_way_has_an_upper_bound(tmp_path):
    """The energy is that of the last converged step; the hull distance keeps the status."""
    text = relaxation([-150.0, -151.0])
    cut = text[: text.index(STEP_END) + 100]
    rows = collect(tmp_path, {"cut": cut.encode(), "whole": text.encode()})
    assert (rows["cut"]["status"], rows["whole"]["status"]) == ("unconverged_ionic", "ok")
    assert rows["cut"]["error"] == "vasprun.xml: step 1 of 1, the file is truncated"
    assert (rows["cut"]["converged_electronic"], rows["cut"]["converged_ionic"]) == (True, False)
    for name, energy in (("cut", -150.0), ("whole", -151.0)):
        corrected = (energy - 20 * 0.614) / 40
        assert rows[name]["raw_energy_per_atom"] == pytest.approx(energy / 40)
        assert rows[name]["corrected_energy_per_atom"] == pytest.approx(corrected)
        assert tables.crystal_of(rows[name]).num_atoms == 40
    check_stability_of_an_upper_bound(tmp_path)


def check_stability_of_an_upper_bound(tmp_path):
    """Check a hull above the upper bound, where the crystal is certainly stable, and one below."""
    hull, out = tmp_path / "hull.parquet", tmp_path / "stability.parquet"
    for element_energy, stable in ((-4.0, [True, True]), (-4.07, [False, True])):
        entries = [
            hull_row(element, element_energy, "dft", "DFT, correction MP2020 (require_bound)")
            for element in ("Li", "Cl")
        ]
        tables.write_table(hull, entries, schemas.HULL_ENTRIES, {})
        given = {"energies": [tmp_path / "dft.parquet"], "hull": hull, "kind": "dft", "out": out}
        stability.run(settings("stability"), **given)
        cut, whole, unselected = tables.read_table(out, schemas.STABILITY).to_pylist()
        assert cut["e_above_hull"] == pytest.approx(-150 / 40 - 0.307 - element_energy)
        assert cut["e_above_hull"] - whole["e_above_hull"] == pytest.approx(1 / 40)
        assert (cut["status"], whole["status"]) == ("unconverged_ionic", "ok")
        assert [cut["stable"], whole["stable"]] == stable
        assert unselected["e_above_hull"] is None


def test_the_last_leg_of_a_run_counts(tmp_path):
    collect(tmp_path, {"legs": None})
    folder = tmp_path / "dft_inputs" / "00000" / "legs"
    for leg, energy in ((1, -100.0), (2, -150.0)):
        text = relaxation([energy + 0.5, energy]).encode()
        (folder / f"vasprun.xml.relax{leg}.gz").write_bytes(gzip.compress(text))
    manifest, out = tmp_path / "dft_inputs" / "manifest.parquet", tmp_path / "again.parquet"
    dft_collect.run(settings("dft_collect"), manifest=manifest, out=out)
    rows = {row["id"]: row for row in tables.read_table(out, schemas.DFT_RESULTS).to_pylist()}
    assert rows["legs"]["status"] == "ok"
    assert rows["legs"]["raw_energy_per_atom"] == pytest.approx(-150.0 / 40, abs=1e-9)


def test_a_run_of_another_composition_is_not_taken(tmp_path):
    rows = collect(tmp_path, {"swapped": vasprun_text().encode()}, formula="Na20Cl20")
    assert rows["swapped"]["status"] == "wrong_composition"
    assert "Li20 Cl20" in rows["swapped"]["error"]


def test_the_manifests_inputs_are_compared(tmp_path):
    """Runs with the POTCAR Fe instead of Fe_pv, with another cutoff, and with equal inputs."""
    steps = [Step(-17.0), Step(-17.0005)]
    fe = ("PAW_PBE Fe 06Sep2000", "PAW_PBE O 08Apr2002")
    runs = {"alike": made_run(steps), "fe": made_run(steps, potcars=fe)}
    runs["coarse"] = made_run(steps, ENCUT=400.0)
    root = tmp_path / "dft_inputs"
    asked = {"input_set": "MPRelaxSet", "potcar_symbols": ["Fe_pv", "O"], "status": "ok"}
    rows = []
    for name, text in runs.items():
        (root / name).mkdir(parents=True)
        (root / name / "vasprun.xml").write_text(text)
        rows.append({"id": name, "path": name, "formula": "Fe1 O1", **asked})
    manifest, out = root / "manifest.parquet", tmp_path / "dft.parquet"
    tables.write_table(manifest, rows, schemas.DFT_MANIFEST, {})
    dft_collect.run(settings("dft_collect"), manifest=manifest, out=out)
    alike, other, coarse = tables.read_table(out, schemas.DFT_RESULTS).to_pylist()
    assert (alike["status"], alike["raw_energy_per_atom"]) == ("ok", -17.0005 / 2)
    for row in (other, coarse):
        assert (row["status"], row["corrected_energy_per_atom"]) == ("other_settings", None)
    assert other["error"] == "vasprun.xml: POTCAR = Fe, O, expected Fe_pv, O (manifest)"
    assert coarse["error"] == "vasprun.xml: ENCUT = 400 eV, expected 520 (MPRelaxSet)"


def test_folders_that_do_not_belong_are_counted(tmp_path):
    stray = tmp_path / "dft_inputs" / "00000" / "stray"
    stray.mkdir(parents=True)
    (stray / "vasprun.xml").write_text("<modeling/>")
    rows = collect(tmp_path, {"missing": None})
    assert set(rows) == {"missing", "unselected"}
    assert read_provenance(tmp_path / "dft.parquet")["counts"]["foreign_folders"] == 1
