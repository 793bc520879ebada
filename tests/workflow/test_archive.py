"""Disk is freed, and a run extended afterwards: only the extension's own jobs run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stub_run import make_stub, stub_snakemake
from tiny_run import ROOT, dry_runs, environment, planned
from tiny_run import TINY as TINY_FILES

TINY = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text())
ROW = {**TINY["methods"][0], "name": "new"}
NEW_ROW = {"methods": [*TINY["methods"], ROW]}
NEW_BASE = {
    "bases": [*TINY["bases"], {"name": "hot", "temperature": 1.2, "top_p": 0.9}],
    "methods": [*TINY["methods"], {**ROW, "base": "hot"}],
}
ROW_JOBS = {
    **{"refine": 2, "prerelax": 2, "fingerprints": 1, "stability": 1, "dft_inputs": 1},
    **{"metrics": 1, "report": 1, "all": 1},
}
BASE_JOBS = {"sample_base": 2, **ROW_JOBS}
PARTS = ("crystals", "llm/adapter", "llm/model", "pairs", "rfm", "base", "generated", "relaxed")


@pytest.fixture(scope="module")
def stub(tmp_path_factory) -> tuple[Path, Path]:
    """A finished run of stub files, and the folder of the `python` that made it."""
    folder = tmp_path_factory.mktemp("stub")
    bin_folder = make_stub(folder / "bin")
    (folder / "work").mkdir()
    stub_snakemake(bin_folder, "--cores", "2", cwd=folder / "work")
    return folder / "work", bin_folder


@pytest.fixture
def finished(stub, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(stub[0], tmp_path / "work")


def extended(folder: Path, change: dict) -> list[str]:
    """The configuration files of a run with a change."""
    overlay = folder / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(change))
    return [*TINY_FILES, str(overlay)]


def printed(folder: Path, change: dict) -> str:
    """What a dry run prints."""
    words = ["--snakefile", str(ROOT / "Snakefile"), *extended(folder, change)]
    return dry_runs([(str(folder), words)])[0]


def plan(folder: Path, change: dict | None = None) -> dict[str, int]:
    return planned(printed(folder, change or {}))


def start(folder: Path, bin_folder: Path, change: dict) -> str:
    """Run snakemake with a change, in which `flowllm check` succeeds like every stub."""
    words = ["--cores", "2", *extended(folder, change)]
    search = {"PATH": f"{bin_folder}{os.pathsep}{environment()['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), *words],
        cwd=folder,
        env=environment() | search,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout


def flowllm(folder: Path, *words: str, refused: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "flowllm", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == int(refused), done.stdout
    return done.stdout


def archive(folder: Path, *names: str) -> None:
    flowllm(folder, "archive", "run", *names, "--to", "../archive")


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of each file of a run."""
    files = [path for path in (folder / "run").rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_removed_model_is_made_again_without_what_was_made_from_it(finished):
    shutil.rmtree(finished / "run/llm/model")
    assert plan(finished) == {}
    assert plan(finished, NEW_BASE) == {"merge_adapter": 1, **BASE_JOBS}


def test_removed_crystals_are_made_again_without_what_was_made_from_them(finished):
    shutil.rmtree(finished / "run/crystals")
    assert plan(finished, NEW_ROW) == {"prepare": 1, **ROW_JOBS}


def test_removed_crystals_with_other_settings_rerun_what_was_made_from_them(finished):
    changed = {"prepare": {"max_rows": 20}}
    expected = plan(finished, changed)
    shutil.rmtree(finished / "run/crystals")
    assert plan(finished, changed) == expected
    assert expected["finetune_llm"] == 1


def test_a_removed_model_with_another_adapter_reruns_what_was_made_from_it(finished):
    changed = {"finetune_llm": {"learning_rate": 0.01}}
    expected = plan(finished, changed)
    shutil.rmtree(finished / "run/llm/model")
    assert plan(finished, changed) == expected
    assert expected["sample_pairs"] == 3


def test_an_extension_after_the_removal_of_model_and_crystals_leaves_a_finished_run(finished, stub):
    shutil.rmtree(finished / "run/llm/model")
    shutil.rmtree(finished / "run/crystals")
    said = start(finished, stub[1], NEW_BASE)
    assert f"{2 + sum(BASE_JOBS.values())} steps (100%) done" in said
    assert plan(finished, NEW_BASE) == {}


def test_a_model_that_is_made_again_from_another_adapter_is_noticed(finished, stub):
    (finished / "run/llm/adapter/weights").write_text("retrained")
    shutil.rmtree(finished / "run/llm/model")
    stub_snakemake(stub[1], "--cores", "1", "run/llm/model", cwd=finished)
    assert plan(finished)["sample_pairs"] == 3


def test_a_finished_run_stays_finished_with_all_parts_archived(finished):
    archive(finished, *PARTS)
    assert not any((finished / "run/pairs").rglob("shard-*.parquet"))
    assert plan(finished) == {}


def test_a_dry_run_of_an_extension_names_the_archived_parts_that_it_reads(finished):
    archive(finished, "llm/model", "generated")
    assert "flowllm restore run llm/model\n" in printed(finished, NEW_BASE)


def test_a_start_of_an_extension_without_its_archived_parts_runs_no_job(finished, stub):
    archive(finished, "llm/model", "pairs")
    said = start(finished, stub[1], NEW_BASE)
    assert "flowllm restore run llm/model pairs\n" in said
    assert not (finished / "run/base/hot").exists()


def test_a_change_that_reads_nothing_archived_runs(finished, stub):
    archive(finished, "llm/model", "pairs", "generated")
    assert "(100%) done" in start(finished, stub[1], {"dft_inputs": {"selection": "first"}})


def test_restored_parts_have_their_bytes_and_times(finished):
    before = contents(finished)
    archive(finished, *PARTS)
    flowllm(finished, "restore", "run")
    assert contents(finished) == before
    assert not any(path.is_file() for path in (finished.parent / "archive").rglob("*"))


def test_an_extension_after_the_restoration_has_its_own_jobs_alone(finished):
    archive(finished, *PARTS)
    flowllm(finished, "restore", "run")
    assert plan(finished, NEW_BASE) == BASE_JOBS


def test_a_forgotten_model_is_made_again(finished):
    archive(finished, "llm/model")
    flowllm(finished, "restore", "run", "llm/model", "--forget")
    assert plan(finished, NEW_BASE) == {"merge_adapter": 1, **BASE_JOBS}


def test_deleted_parts_are_made_again_for_an_extension(finished):
    flowllm(finished, "archive", "run", "crystals", "llm/model", "--delete")
    assert plan(finished) == {}
    assert plan(finished, NEW_BASE) == {"merge_adapter": 1, "prepare": 1, **BASE_JOBS}


def test_an_archive_is_refused_while_snakemake_runs(finished):
    locks = finished / ".snakemake/locks"
    locks.mkdir()
    (locks / "0.input.lock").touch()
    assert "snakemake --unlock" in flowllm(
        finished, "archive", "run", "pairs", "--to", "../archive", refused=True
    )
