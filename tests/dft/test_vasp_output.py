"""vasprun.xml complete, truncated anywhere, and restarted: no energy of an unfinished step."""

import gzip
import io
import tarfile
import zlib
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flowllm.dft.runs import DftRun, RunProblem
from flowllm.dft.vasp_output import find_vasp_outputs, read_vasp

from vasp_runs import ENERGY, STEP_END, relaxation, vasprun_text  # isort: skip

ENERGIES = (-150.0, -151.0, -151.5)


def read(tmp_path: Path, content: str | bytes, name: str = "vasprun.xml") -> DftRun:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("ISO-8859-1"))
    return read_vasp([path])


def after_step(text: str, number: int) -> int:
    """Return the position after the closing tag of a step."""
    place = 0
    for _ in range(number):
        place = text.index(STEP_END, place) + len(STEP_END)
    return place


def test_a_finished_relaxation(tmp_path):
    run = read(tmp_path, relaxation(ENERGIES))
    assert (run.energy, run.num_steps, run.shortfall) == (ENERGIES[-1], 3, None)
    assert run.converged_electronic
    assert run.converged_ionic


@pytest.mark.parametrize(
    ("bad", "max_steps", "energy", "shortfall"),
    [
        ([3], 99, -151.0, "step 2 of 3, the electronic loop of a later step reached its limit"),
        ([2, 3], 99, -150.0, "step 1 of 3, the electronic loop of a later step reached its limit"),
        ([1, 2], 99, -151.5, None),
        # The relaxation converged in the last allowed step.
        ([], 3, -151.5, None),
    ],
)
def test_the_last_electronically_converged_step_counts(tmp_path, bad, max_steps, energy, shortfall):
    run = read(tmp_path, relaxation(ENERGIES, bad, max_steps))
    assert run.energy == energy
    assert run.shortfall == (shortfall and f"vasprun.xml: {shortfall}")
    assert run.converged_ionic == (shortfall is None)
    assert run.converged_electronic == (3 not in bad)


def test_no_electronically_converged_step(tmp_path):
    with pytest.raises(RunProblem, match="converged in none of 3 ionic steps") as caught:
        read(tmp_path, relaxation(ENERGIES, bad=[1, 2, 3]))
    assert caught.value.status == "unconverged_electronic"


@pytest.mark.parametrize("overflow", ["**************", "NaN"])
def test_an_energy_that_is_no_number_is_passed_over(tmp_path, overflow):
    text = relaxation(ENERGIES).replace("-151.50000000", overflow)
    assert read(tmp_path, text).energy == -151.0


@cache
def cut_cases() -> tuple[str, bytes]:
    """Return a relaxation whose third step did not converge electronically, plain and gzipped."""
    text = relaxation(ENERGIES, bad=[3])
    return text, gzip.compress(text.encode("ISO-8859-1"))


def check_cut(path: Path, complete_steps: int) -> None:
    """Check the result of a relaxation of which `complete_steps` steps are left."""
    path.parent.mkdir(exist_ok=True)
    if complete_steps == 0:
        with pytest.raises(RunProblem, match="before its first ionic step") as caught:
            read_vasp([path])
        assert caught.value.status == "unfinished"
        return
    run = read_vasp([path])
    assert run.energy == ENERGIES[min(complete_steps, 2) - 1]
    assert run.num_steps == complete_steps
    assert not run.converged_ionic
    assert run.shortfall


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.floats(0, 1, exclude_max=True))
@example(0.0)
def test_truncated_text_gives_the_complete_steps_before_it(tmp_path, share):
    """Plain text is truncated at any byte; the closing tags give the number of steps."""
    text, _ = cut_cases()
    # VASP's last line is the closing tag of the file: without it the run is not finished.
    kept = text[: int(share * text.rindex("</modeling>"))]
    path = tmp_path / "vasprun.xml"
    path.write_bytes(kept.encode("ISO-8859-1"))
    check_cut(path, kept.count(STEP_END))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.floats(0, 1, exclude_max=True) | st.floats(0.9, 1, exclude_max=True))
def test_any_place_to_cut_a_gzip_file(tmp_path, share):
    """The bytes that can still be unpacked determine the number of steps."""
    _, zipped = cut_cases()
    kept = zipped[: 2 + int(share * (len(zipped) - 2))]
    unzipped = zlib_text(kept)
    path = tmp_path / "vasprun.xml.gz"
    path.write_bytes(kept)
    if unzipped.rstrip().endswith("</modeling>"):
        assert read_vasp([path]).energy == ENERGIES[1]
    else:
        check_cut(path, unzipped.count(STEP_END))


def zlib_text(zipped: bytes) -> str:
    """Unpack the beginning of a gzip file with zlib."""
    return zlib.decompressobj(wbits=31).decompress(zipped).decode("ISO-8859-1")


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_cut_at_the_very_end_of_a_step(tmp_path, step, offset):
    text = relaxation(ENERGIES)
    kept = text[: after_step(text, step) + offset]
    path = tmp_path / "vasprun.xml"
    path.write_text(kept)
    check_cut(path, step - (offset < 0))


def test_the_real_file_cut_in_its_middle_and_after_its_step(tmp_path):
    """15 MB with bands and densities; a static run is finished when its one step is complete."""
    text = vasprun_text()
    with pytest.raises(RunProblem, match="before its first ionic step"):
        read(tmp_path, text[: len(text) // 2])
    run = read(tmp_path, text[: after_step(text, 1) + 40])
    assert run.energy == pytest.approx(ENERGY, abs=1e-9)
    assert run.converged_ionic


def test_another_functional_is_not_taken_from_an_unfinished_run(tmp_path):
    text = relaxation(ENERGIES).replace('name="GGA">--', 'name="GGA">PS')
    with pytest.raises(RunProblem, match="the functional is PBEsol") as caught:
        read(tmp_path, text[: after_step(text, 2) + 40])
    assert caught.value.status == "wrong_functional"


def archive(path: Path, text: str) -> None:
    """Write what custodian keeps before it changes inputs: error.1/vasprun.xml and others."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in (("INCAR", b"ALGO = Fast"), ("vasprun.xml", text.encode())):
            member = tarfile.TarInfo(f"{path.name.removesuffix('.tar.gz')}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_the_newest_result_comes_first(tmp_path):
    text = relaxation(ENERGIES)
    names = [
        "vasprun.xml",
        "vasprun.xml.relax2.gz",
        "vasprun.xml.relax1",
        "vasprun.xml.cut10",
        "vasprun.xml.cut9",
        "error.2.tar.gz",
        "error.1.tar.gz",
    ]
    for name in [*reversed(names), "OUTCAR", "vasprun.xml.bak", "error.txt", "CONTCAR.relax1"]:
        (tmp_path / name).write_text(text)
    assert [path.name for path in find_vasp_outputs(tmp_path)] == names


@pytest.mark.parametrize("earlier", ["vasprun.xml.relax1.gz", "vasprun.xml.cut1", "error.1.tar.gz"])
def test_a_restart_without_a_step_leaves_the_earlier_runs_energy(tmp_path, earlier):
    """The second attempt was killed in its first step; the first has two steps, or is finished."""
    text = relaxation(ENERGIES)
    before = text if "relax" in earlier else text[: after_step(text, 2) + 9]
    if earlier.endswith(".tar.gz"):
        archive(tmp_path / earlier, before)
    else:
        zipped = earlier.endswith(".gz")
        (tmp_path / earlier).write_bytes(
            gzip.compress(before.encode()) if zipped else before.encode()
        )
    (tmp_path / "vasprun.xml").write_text(text[: after_step(text, 1) - 500])
    run = read_vasp(find_vasp_outputs(tmp_path))
    assert run.energy == ENERGIES[2 if "relax" in earlier else 1]
    assert not run.converged_ionic
    assert "vasprun.xml was truncated" in run.shortfall
    assert f"; used instead: {earlier}" in run.shortfall


def test_an_earlier_run_is_not_asked_where_the_newest_has_a_step(tmp_path):
    (tmp_path / "vasprun.xml.relax1").write_text(relaxation([-999.0]))
    text = relaxation(ENERGIES)
    (tmp_path / "vasprun.xml").write_text(text[: after_step(text, 1) + 9])
    assert read_vasp(find_vasp_outputs(tmp_path)).energy == ENERGIES[0]


def test_archives_that_are_none_or_cut_short_leave_the_newest_problem(tmp_path):
    (tmp_path / "vasprun.xml").write_text("")
    archive(tmp_path / "error.3.tar.gz", relaxation(ENERGIES))
    cut = (tmp_path / "error.3.tar.gz").read_bytes()
    (tmp_path / "error.3.tar.gz").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "error.2.tar.gz").write_text("no archive")
    with tarfile.open(tmp_path / "error.1.tar.gz", "w:gz"):
        pass  # nothing in it
    with pytest.raises(RunProblem, match=r"vasprun\.xml was truncated") as caught:
        read_vasp(find_vasp_outputs(tmp_path))
    assert caught.value.status == "unfinished"
