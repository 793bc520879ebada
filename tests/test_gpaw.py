"""The DFT leg on an open code: inputs, a real GPAW calculation, collection, stability.

It runs where a Python with GPAW is found (Debian: apt install gpaw gpaw-data), about a minute.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crystals import rocksalt
from energy_rows import hull_row, relaxed_row, settings
from flowllm import tables
from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.stages import dft_collect, dft_inputs, stability

# Open MPI looks for ssh even for a single process; a machine without it names anything that exists.
ENVIRONMENT = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "OMPI_MCA_plm_rsh_agent": "sh"}
SILICON = Crystal.from_arrays([14, 14], [[0, 0, 0], [0.25] * 3], [3.84] * 3, [60] * 3)


def python_with_gpaw() -> str:
    """An interpreter that can import GPAW; skips where there is none."""
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
        relaxed=[write(tmp_path / "relaxed.parquet", relaxed, tables.RELAXED)],
        stability=write(tmp_path / "stability.parquet", stable, tables.STABILITY),
        out=manifest,
    )
    for folder in (manifest.parent / "folders.txt").read_text().split():
        command = [python, str(manifest.parent / "gpaw_static.py"), folder]
        subprocess.run(command, cwd=manifest.parent, env=ENVIRONMENT, check=True, timeout=600)
    out = tmp_path / "dft.parquet"
    dft_collect.run(settings("dft_collect"), manifest=manifest, out=out)
    rows = {row["id"]: row for row in tables.read_table(out, tables.DFT_RESULTS).to_pylist()}
    for name, crystal in crystals.items():
        row = rows[name]
        assert (row["status"], row["run_type"], row["correction_scheme"]) == ("ok", "GPAW", "GPAW")
        assert row["converged_electronic"]
        assert row["corrected_energy_per_atom"] == row["raw_energy_per_atom"]
        assert tables.crystal_of(row).formula == crystal.formula
    # Both codes count from atoms that are spherical and without spin, so that the Materials
    # Project's VASP energies are near: silicon -5.425 eV/atom; rock salt -3.38, its formation
    # energy of -2.1 without the correction of 0.614 for each Cl, on Na -1.32 and Cl -1.85.
    assert rows["silicon"]["raw_energy_per_atom"] == pytest.approx(-5.425, abs=0.1)
    assert rows["salt"]["raw_energy_per_atom"] == pytest.approx(-3.38, abs=0.1)
    check_hulls(tmp_path, out)


def check_hulls(tmp_path: Path, out: Path) -> None:
    """A hull by GPAW takes them, one by VASP does not."""
    entries = [("Si", -5.0), ("Na", -1.0), ("Cl", -1.5)]
    for source in ("DFT by GPAW", "DFT, correction MP2020"):
        hull = [hull_row(formula, energy, "dft", source) for formula, energy in entries]
        path = write(tmp_path / "hull.parquet", hull, tables.HULL_ENTRIES)
        given = {"energies": [out], "hull": path, "kind": "dft", "out": tmp_path / "s.parquet"}
        if source == "DFT by GPAW":
            stability.run(settings("stability"), **given)
            found = tables.read_table(given["out"], tables.STABILITY).to_pylist()
            assert [row["stable"] for row in found] == [False, True]  # silicon is an element
        else:
            with pytest.raises(FlowllmError, match="energies are of DFT by GPAW"):
                stability.run(settings("stability"), **given)
