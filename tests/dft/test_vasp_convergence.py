"""A relaxation is converged by OUTCAR or by EDIFFG, for dft_collect and for job_array.sh."""

import gzip
import os
import subprocess
from pathlib import Path

import pytest

from flowllm.dft import results
from flowllm.dft.results import read_run
from flowllm.dft.vasp_output import read_vasp

from vasp_runs import Step, made_run  # isort: skip

SCRIPT = Path(results.__file__).with_name("job_array.sh")
STOPPED = Path(__file__).parents[3] / "shared/data/cases/vasp/feo-U5.3-stopped-after-3"

CONVERGED_LINE = " reached required accuracy - stopping structural energy minimisation\n"
FAR = [Step(-17.0), Step(-17.5, force=2.7)]
NEAR = [Step(-17.0), Step(-17.0005, force=0.3)]


def outcar(energy: float, line: str = "") -> str:
    """Return the two lines of an OUTCAR that are read."""
    return f"  free  energy   TOTEN  =       {energy:.8f} eV\n\n{line}  General timing\n"


CASES = {
    "stopped by STOPCAR": (FAR, {}, None),
    "energy change below EDIFFG": (NEAR, {}, True),
    "energy change above EDIFFG": ([Step(-17.0), Step(-17.002)], {}, None),
    "energy rises by more": ([Step(-17.5), Step(-17.0)], {}, None),
    "a single step": ([Step(-17.0)], {}, None),
    "EDIFFG is 10 EDIFF": (NEAR, {"EDIFFG": None}, True),
    "EDIFFG is 10 EDIFF, tight": (NEAR, {"EDIFFG": None, "EDIFF": 1e-5}, None),
    "forces below EDIFFG": ([Step(-17.0), Step(-18.0, force=0.019)], {"EDIFFG": -0.02}, True),
    "forces above EDIFFG": ([Step(-17.0), Step(-17.0, force=0.021)], {"EDIFFG": -0.02}, None),
    # 19.88 cubic angstrom for two atoms: 1 kbar is 0.0062 eV per atom.
    "stress below EDIFFG": ([Step(-17.0, stress=3.0)], {"EDIFFG": -0.02}, True),
    "stress above EDIFFG": ([Step(-17.0, stress=-4.0)], {"EDIFFG": -0.02}, None),
    "stress of a fixed cell": ([Step(-17.0, stress=9.0)], {"EDIFFG": -0.02, "ISIF": 2}, True),
    "only the cell moves": ([Step(-17.0, force=1.0)], {"EDIFFG": -0.02, "ISIF": 6}, True),
    "fixed atoms": (FAR, {"EDIFFG": -0.02, "fixed": ["F F F", "F F F"]}, True),
    "one atom moves": (FAR, {"EDIFFG": -0.02, "fixed": ["F F F", "T F F"]}, None),
    "NSW reached": (FAR, {"NSW": 2}, None),
    "NSW reached, met": (NEAR, {"NSW": 2}, True),
    "static": (FAR[1:], {"NSW": 0, "IBRION": -1}, True),
    "static, IBRION = -1 alone": (FAR[1:], {"IBRION": -1}, True),
    "one step of a relaxation": (FAR[1:], {"NSW": 1}, None),
    "one step of dynamics": (FAR[1:], {"NSW": 1, "IBRION": 0}, True),
    "dynamics": (NEAR, {"IBRION": 0}, None),
    "EDIFFG = 0": (NEAR, {"EDIFFG": 0.0}, None),
    "last electronic loop at NELM": ([NEAR[0], Step(-17.0005, loops=100)], {}, None),
    "static at NELM": ([Step(-17.0, loops=100)], {"NSW": 0, "IBRION": -1}, None),
    "overflow": ([Step(-17.0), Step("**************")], {}, None),
}


def task_ran(root: Path, folder: Path) -> bool:
    """Run the array's task for a folder, and return whether it called VASP."""
    (root / "folders.txt").write_text(f"{folder.relative_to(root)}\n")
    (folder / "POTCAR").write_text("made by the user")
    environment = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": "1"}
    command = ["bash", str(SCRIPT)]
    subprocess.run(command, cwd=root, env=environment | {"VASP_COMMAND": "echo ran"}, check=True)
    return (folder / "vasp.out").exists()


@pytest.mark.parametrize("name", CASES)
def test_converged_is_the_same_for_the_collection_and_the_array(tmp_path, name):
    steps, settings, converged = CASES[name]
    text = made_run(steps, **settings)
    folder = tmp_path / "00000"
    folder.mkdir()
    (folder / "POSCAR").write_text("at first")
    (folder / "CONTCAR").write_text("further")
    (folder / "vasprun.xml").write_text(text)
    if name not in ("static at NELM",):
        run = read_run(folder)
        assert run.converged_ionic == bool(converged), run.shortfall
        assert (run.shortfall is None) == bool(converged)
    assert task_ran(tmp_path, folder) == (not converged)
    if not converged:
        assert (folder / "vasprun.xml.cut1").read_text() == text
        assert (folder / "POSCAR").read_text() == "further"
        assert (folder / "POSCAR.orig").read_text() == "at first"


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("leg", ["", ".relax2"])
@pytest.mark.parametrize("line", [CONVERGED_LINE, ""])
@pytest.mark.parametrize("steps", [FAR, NEAR])
def test_outcar_decides(tmp_path, steps, line, leg, packed):
    """With conjugate gradients, VASP compares with the last minimum, not with the last step."""
    folder = tmp_path / "00000"
    folder.mkdir()
    (folder / "POSCAR").write_text("x")
    for name, text in (
        (f"vasprun.xml{leg}", made_run(steps)),
        (f"OUTCAR{leg}", outcar(-17.0) + outcar(float(steps[-1].energy), line)),
    ):
        content = gzip.compress(text.encode()) if packed else text.encode()
        (folder / f"{name}{packed}").write_bytes(content)
    run = read_run(folder)
    assert run.converged_ionic == bool(line)
    assert bool(line) or "OUTCAR" in run.shortfall
    assert task_ran(tmp_path, folder) == (not line)


def test_another_runs_outcar_does_not_decide(tmp_path):
    (tmp_path / "vasprun.xml").write_text(made_run(FAR))
    (tmp_path / "OUTCAR").write_text(outcar(-99.0, CONVERGED_LINE))
    run = read_run(tmp_path)
    assert run.shortfall.endswith("the last step changed the energy by -0.5 eV (EDIFFG = 0.001)")
    (tmp_path / "OUTCAR").unlink()
    (tmp_path / "OUTCAR").mkdir()
    assert not read_run(tmp_path).converged_ionic


def test_both_legs_are_kept_where_the_second_did_not_converge(tmp_path):
    folder = tmp_path / "00000"
    folder.mkdir()
    (folder / "POSCAR").write_text("at first")
    (folder / "CONTCAR.relax2").write_text("further")
    texts = [made_run([Step(energy), Step(energy - 0.5)]) for energy in (-16.0, -17.0)]
    for leg, text in enumerate(texts, start=1):
        (folder / f"vasprun.xml.relax{leg}.gz").write_bytes(gzip.compress(text.encode()))
    assert task_ran(tmp_path, folder)
    kept = [gzip.decompress((folder / f"vasprun.xml.cut{n}.gz").read_bytes()) for n in (1, 2)]
    assert [text.decode() for text in kept] == texts
    assert (folder / "POSCAR").read_text() == "further"
    assert read_run(folder).energy == -17.5  # the newer of the two


def test_a_real_run_that_stopcar_ended():
    if not STOPPED.exists():
        pytest.skip(f"{STOPPED} is not on this machine")
    run = read_vasp([STOPPED / "vasprun.xml"])
    assert not run.converged_ionic
    assert "changed the energy by -1.12 eV (EDIFFG = 0.002)" in run.shortfall
