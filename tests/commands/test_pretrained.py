"""The small models that come with FlowLLM: size, digests, license, and a request to them."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml

from flowllm.commands.generate_run import PRETRAINED, open_run
from flowllm.io.release import CARD, RELEASE, check_release
from flowllm.io.schemas import ON_REQUEST
from flowllm.io.tables import read_table
from tiny_run import ROOT

FOLDER = ROOT / "data" / "pretrained"

pytestmark = pytest.mark.skipif(
    not (FOLDER / RELEASE).exists(), reason="this clone has no data/pretrained"
)


def test_the_files_are_the_released_ones_and_small():
    check_release(FOLDER)
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 8_000_000


def test_the_package_finds_the_clones_folder():
    assert PRETRAINED.resolve() == FOLDER


def test_the_card_names_license_and_source():
    front = (FOLDER / CARD).read_text().removeprefix("---\n").partition("\n---\n")[0]
    assert yaml.safe_load(front)["license"] == "cc-by-4.0"
    assert "materialsproject.org" in (FOLDER / CARD).read_text()


def test_nothing_refers_to_a_folder_outside_of_the_clone():
    for path in (path for path in FOLDER.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert b"../shared" not in content
        assert b"/work/" not in content


def test_a_wheel_has_them(tmp_path):
    for name in ("src", "data"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, ".", "--wheel-dir", "wheel"], cwd=tmp_path, check=True)
    with zipfile.ZipFile(next((tmp_path / "wheel").glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    check_release(tmp_path / "installed" / "flowllm" / "pretrained")


def test_git_changes_no_byte_of_them():
    """A checkout on another system would otherwise convert line endings."""
    names = [str(path.relative_to(ROOT)) for path in FOLDER.rglob("*") if path.is_file()]
    command = ["git", "-C", str(ROOT), "check-attr", "text", "--", *names]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a clone of git")
    assert {line.rpartition(": ")[2] for line in done.stdout.splitlines()} == {"unset"}


def test_a_request_without_a_run_gives_relaxed_crystals(tmp_path):
    words = ["generate", "--elements", "Na,Cl", "--space-group", "225", "--count", "4"]
    subprocess.run(
        [sys.executable, "-m", "flowllm", *words, "--out", "cubic"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    rows = read_table(tmp_path / "cubic" / "crystals.parquet", ON_REQUEST).to_pylist()
    relaxed = [row for row in rows if row["rank"] is not None]
    assert relaxed
    for row in relaxed:
        assert dict(row["asked"])["space_group_number"] == "225"
        assert row["e_above_hull"] is not None
        assert (tmp_path / "cubic" / row["cif"]).exists()


def test_they_have_all_parts_and_a_flow():
    run = open_run(PRETRAINED, None, None, drafts=True)
    run.check(drafts=True, chain=True)
    assert run.flow is not None
