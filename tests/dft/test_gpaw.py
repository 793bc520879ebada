"""The DFT stages with GPAW: inputs, a real calculation, collection, stability.

The calculation runs where a Python with GPAW is found (Debian: apt install gpaw gpaw-data), about a
minute.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crystals import rocksalt
from energy_rows import hull_row, relaxed_row, settings
from flowllm.crystal import Crystal
from flowllm.dft import results
from flowllm.dft.results import read_run
from flowllm.dft.runs import RequestedRun, RunProblem
from flowllm.errors import FlowllmError
from flowllm.io import schemas, tables
from flowllm.stages import dft_collect, dft_inputs, stability

# Open MPI needs a launcher even for one process; `sh` replaces ssh, which may be missing.
ENVIRONMENT = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "OMPI_MCA_plm_rsh_agent": "sh"}
SILICON = Crystal.from_arrays([14, 14], [[0, 0, 0], [0.25] * 3], [3.84] * 3, [60] * 3)


def python_with_gpaw() -> str:
    """Return an interpreter that can import GPAW, or skip the test."""
    for candidate in (sys.executable, shutil.which("python3", path="/usr/bin")):
        command = [candidate, "-c", "import gpaw"] if candidate else ["false"]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return candidate
    pytest.skip("no Python with GPAW on this machine")


def write(path: Path, rows, schema) -> Path:
    tables.write_table(path, rows, schema, {})
    return path


def test_the_dft_leg_from_inputs_to_stability(tmp_path):
    python = python_with_gpaw()
    crystals = {"silicon": SILICON, "salt": rocksalt()}
    relaxed = [relaxed_row(crystal, name, -4.0) for name, crystal in crystals.items()]
    stable = [{"id": name, "e_above_hull": 0.0, "status": "ok"} for name in crystals]
    manifest = tmp_path / "dft_inputs" / "manifest.parquet"
    coarse = {"plane_wave_cutoff": 300.0, "kpoint_density": 32.0}
    dft_inputs.run(
        settings("dft_inputs", dft={"code": "gpaw"}, dft_inputs=coarse),
        relaxed=[write(tmp_path / "relaxed.parquet", relaxed, schemas.RELAXED)],
        stability=write(tmp_path / "stability.parquet", stable, schemas.STABILITY),
        out=manifest,
    )
    for folder in (manifest.parent / "folders.txt").read_text().split():
        command = [python, str(manifest.parent / "gpaw_static.py"), folder]
        subprocess.run(command, cwd=manifest.parent, env=ENVIRONMENT, check=True, timeout=600)
    out = tmp_path / "dft.parquet"
    dft_collect.run(settings("dft_collect"), manifest=manifest, out=out)
    rows = {row["id"]: row for row in tables.read_table(out, schemas.DFT_RESULTS).to_pylist()}
    for name, crystal in crystals.items():
        row = rows[name]
        assert (row["status"], row["run_type"], row["correction_scheme"]) == ("ok", "GPAW", "GPAW")
        assert row["converged_electronic"]
        assert row["corrected_energy_per_atom"] == row["raw_energy_per_atom"]
        assert tables.crystal_of(row).formula == crystal.formula
    # Energies of both codes are relative to spherical atoms without spin, so that the Materials
    # Project's VASP energies are close: silicon -5.425 eV/atom; rock salt -3.38, which is its
    # formation energy of -2.1 without the correction of 0.614 per Cl, with Na -1.32, Cl -1.85.
    assert rows["silicon"]["raw_energy_per_atom"] == pytest.approx(-5.425, abs=0.1)
    assert rows["salt"]["raw_energy_per_atom"] == pytest.approx(-3.38, abs=0.1)
    check_hulls(tmp_path, out)


def check_hulls(tmp_path: Path, out: Path) -> None:
    """Check that a hull of GPAW accepts the energies, and a hull of VASP rejects them."""
    entries = [("Si", -5.0), ("Na", -1.0), ("Cl", -1.5)]
    for source in ("DFT by GPAW", "DFT, correction MP2020"):
        hull = [hull_row(formula, energy, "dft", source) for formula, energy in entries]
        path = write(tmp_path / "hull.parquet", hull, schemas.HULL_ENTRIES)
        given = {"energies": [out], "hull": path, "kind": "dft", "out": tmp_path / "s.parquet"}
        if source == "DFT by GPAW":
            stability.run(settings("stability"), **given)
            found = tables.read_table(given["out"], schemas.STABILITY).to_pylist()
            assert [row["stable"] for row in found] == [False, True]  # silicon is an element
        else:
            with pytest.raises(FlowllmError, match="energies are of DFT by GPAW"):
                stability.run(settings("stability"), **given)


RESULT = {
    "atomic_numbers": [14],
    "cell": [[2.5, 0.0, 0.0], [0.0, 2.5, 0.0], [0.0, 0.0, 2.5]],
    "frac_coords": [[0.0, 0.0, 0.0]],
    "magnetic_moments": [0.6],
    "xc": "PBE",
    "cutoff_ev": 520.0,
    "kpoints": [8, 8, 8],
    "energy": -5.0,
    "converged": True,
}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, None),
        ({"cell": [[2.5 + 1e-9, 0, 0], [0, 2.5, 0], [0, 0, 2.5]]}, None),
        ({"version": "25.1.0"}, None),
        ({"cutoff_ev": 300.0}, "other_settings"),
        ({"kpoints": [1, 1, 1]}, "other_settings"),
        ({"cell": [[2.6, 0, 0], [0, 2.5, 0], [0, 0, 2.5]]}, "other_settings"),
        ({"magnetic_moments": [5.0]}, "other_settings"),
        ({"xc": "LDA"}, "wrong_functional"),
        ({"atomic_numbers": [32]}, "wrong_composition"),
        ({"converged": False}, "unconverged_electronic"),
    ],
)
def test_a_result_is_compared_with_the_inputs_beside_it(tmp_path, changes, status):
    (tmp_path / "gpaw.json").write_text(json.dumps(RESULT))
    (tmp_path / "gpaw_result.json").write_text(json.dumps(RESULT | changes))
    asked = RequestedRun("GPAWStatic", ["Si.PBE"])
    if status is None:
        assert read_run(tmp_path, asked).energy == -5.0
    else:
        with pytest.raises(RunProblem) as caught:
            read_run(tmp_path, asked)
        assert caught.value.status == status


def test_gpaws_result_in_a_folder_of_vasps(tmp_path):
    (tmp_path / "gpaw_result.json").write_text(json.dumps(RESULT))
    with pytest.raises(RunProblem, match="is from GPAW, expected a run with MPRelaxSet") as caught:
        read_run(tmp_path, RequestedRun("MPRelaxSet", ["Si"]))
    assert caught.value.status == "other_settings"


@pytest.mark.parametrize("converged", [True, False])
def test_the_array_runs_again_what_did_not_converge(tmp_path, converged):
    script = Path(results.__file__).with_name("job_array.sh")
    folder = tmp_path / "00000"
    folder.mkdir()
    (tmp_path / "folders.txt").write_text("00000\n")
    (folder / "gpaw.json").write_text("{}")
    text = json.dumps(RESULT | {"converged": converged}, indent=1)
    (folder / "gpaw_result.json").write_text(text)
    environment = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": "1"}
    environment["GPAW_COMMAND"] = "touch ran"
    subprocess.run(["bash", str(script)], cwd=tmp_path, env=environment, check=True)
    assert (folder / "ran").exists() != converged
