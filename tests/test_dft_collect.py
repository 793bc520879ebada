"""dft_collect: a real vasprun.xml, damaged ones, and the MP2020 correction's golden values."""

import gzip
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp.outputs import Vasprun

from flowllm import tables
from flowllm.dft.results import DftRun, RunProblem, corrected_energy
from flowllm.runlog import read_provenance
from flowllm.stages import dft_collect

from energy_rows import settings  # isort: skip

VASPRUN = Path(__file__).parents[2] / "shared" / "data" / "vasp" / "vasprun.xml.gz"


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
    """Wang et al. 2021; the entry without a run type would get none of them."""
    run = finished_run(structure, -10.0, "GGA")
    corrected = corrected_energy(run, "MP2020", "require_bound")
    assert corrected == pytest.approx(-10.0 + correction, abs=1e-3)
    assert corrected_energy(run, "none", "require_bound") == -10.0
    # The public codes leave plain GGA runs as they are.
    assert corrected_energy(run, "MP2020_plus_u_only", "require_bound") == -10.0


def test_correction_of_a_plus_u_run():
    structure = rocksalt_cell("Fe", "O", 4.3)
    run = finished_run(structure, -10.0, "GGA+U", is_hubbard=True, hubbards={"Fe": 5.3, "O": 0.0})
    # 4 O and 4 Fe of an oxide.
    expected = -10.0 + 4 * -0.687 + 4 * -2.256
    for scheme in ("MP2020", "MP2020_plus_u_only"):
        corrected = corrected_energy(run, scheme, "require_bound")
        assert corrected == pytest.approx(expected, abs=1e-3)


def test_strict_anions_decides_on_fractional_anions():
    """Nitrogen at -1/3 in lithium azide: an anion by its sign, but none of the fit's."""
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


def vasprun_text() -> str:
    """A real run of Li20Cl20, with the van der Waals term taken out of its list of settings."""
    if not VASPRUN.exists():
        pytest.skip(f"{VASPRUN} is not on this machine")
    text = gzip.decompress(VASPRUN.read_bytes()).decode("ISO-8859-1")
    lines = [line for line in text.splitlines(keepends=True) if 'name="IVDW"' not in line]
    assert len(lines) < len(text.splitlines())
    return "".join(lines)


def collect(tmp_path, contents: dict[str, bytes | None], formula="Li20Cl20", **changes):
    """Run the stage over one folder a content, and return its rows by id."""
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
    tables.write_table(manifest, rows, tables.DFT_MANIFEST, {})
    dft_collect.run(settings("dft_collect", dft_collect=changes), manifest=manifest, out=out)
    return {row["id"]: row for row in tables.read_table(out, tables.DFT_RESULTS).to_pylist()}


def test_a_real_run_and_its_correction(tmp_path):
    text = vasprun_text()
    rows = collect(tmp_path, {"plain": text.encode(), "zipped.gz": gzip.compress(text.encode())})
    theirs = Vasprun(str(VASPRUN), parse_dos=False, parse_eigen=False, parse_potcar_file=False)
    for name in ("plain", "zipped.gz"):
        row = rows[name]
        assert (row["status"], row["error"], row["run_type"]) == ("ok", None, "GGA")
        assert row["raw_energy_per_atom"] == pytest.approx(-153.0123588 / 40, abs=1e-9)
        # 20 Cl with -0.614 eV each.
        corrected = (-153.0123588 - 20 * 0.614) / 40
        assert row["corrected_energy_per_atom"] == pytest.approx(corrected, abs=1e-6)
        assert row["correction_scheme"] == "MP2020"
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
    # The electronic loop is taken for unconverged when it used all of its NELM steps.
    steps = text.count("<scstep>")
    unconverged = text.replace('name="NELM">   400', f'name="NELM">   {steps}')
    assert unconverged != text
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
            "unconverged": unconverged.encode(),
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
        "unconverged": "not_converged",
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


def test_the_last_leg_of_a_run_counts(tmp_path):
    text = vasprun_text()
    earlier = text.replace("-153.0123588", "-100.0000000").encode()
    assert earlier != text.encode()
    rows = collect(tmp_path, {"legs": None})
    folder = tmp_path / "dft_inputs" / "00000" / "legs"
    (folder / "vasprun.xml.relax1.gz").write_bytes(gzip.compress(earlier))
    (folder / "vasprun.xml.relax2.gz").write_bytes(gzip.compress(text.encode()))
    manifest, out = tmp_path / "dft_inputs" / "manifest.parquet", tmp_path / "again.parquet"
    dft_collect.run(settings("dft_collect"), manifest=manifest, out=out)
    rows = {row["id"]: row for row in tables.read_table(out, tables.DFT_RESULTS).to_pylist()}
    assert rows["legs"]["status"] == "ok"
    assert rows["legs"]["raw_energy_per_atom"] == pytest.approx(-153.0123588 / 40, abs=1e-9)


def test_a_run_of_another_composition_is_not_taken(tmp_path):
    rows = collect(tmp_path, {"swapped": vasprun_text().encode()}, formula="Na20Cl20")
    assert rows["swapped"]["status"] == "wrong_composition"
    assert "Li20 Cl20" in rows["swapped"]["error"]


def test_folders_that_do_not_belong_are_counted(tmp_path):
    stray = tmp_path / "dft_inputs" / "00000" / "stray"
    stray.mkdir(parents=True)
    (stray / "vasprun.xml").write_text("<modeling/>")
    rows = collect(tmp_path, {"missing": None})
    assert set(rows) == {"missing", "unselected"}
    assert read_provenance(tmp_path / "dft.parquet")["counts"]["foreign_folders"] == 1
