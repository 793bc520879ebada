"""What the report reads is what Snakemake knows it by: nothing of it is lost unnoticed."""

import shutil
from pathlib import Path

import pytest

from stub_run import make_stub, stub_snakemake
from tiny_run import ROOT, dry_runs, planned
from tiny_run import TINY as TINY_FILES


@pytest.fixture(scope="module")
def stub(tmp_path_factory) -> tuple[Path, Path]:
    """A finished run of empty files, and the folder of the `python` that made it."""
    folder = tmp_path_factory.mktemp("stub")
    bin_folder = make_stub(folder / "bin")
    run = folder / "work"
    run.mkdir()
    stub_snakemake(bin_folder, "--cores", "2", cwd=run)
    return run, bin_folder


@pytest.fixture
def finished(stub, tmp_path) -> tuple[Path, Path]:
    """A copy of it."""
    shutil.copytree(stub[0], tmp_path / "work")
    return tmp_path / "work", stub[1]


GONE = {
    "relaxed/FlowLLM-tau0.7-p0.9/shard-00000.parquet": "prerelax",
    "relaxed/CrystalLLM-tau0.7-p0.9/shard-00001.parquet": "prerelax",
    "pairs/train/shard-00001.parquet": "sample_pairs",
    "pairs/val/shard-00000.parquet": "sample_pairs",
    "base/tau0.7-p0.9/shard-00000.parquet": "sample_base",
    "llm/invariance.parquet": "invariance",
    "llm/adapter": "finetune_llm",
    "rfm/llm": "train_rfm",
    "metrics/potential/FlowLLM-tau0.7-p0.9.parquet": "metrics",
}


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def plan(folder: Path) -> dict[str, int]:
    words = ["--snakefile", str(ROOT / "Snakefile"), *TINY_FILES]
    return planned(dry_runs([(str(folder), words)])[0])


def test_nothing_is_to_be_done_after_a_run(stub):
    assert plan(stub[0]) == {}


@pytest.mark.parametrize("path", GONE)
def test_what_a_finished_report_has_read_is_made_again_when_it_is_gone(finished, path):
    remove(finished[0] / "run" / path)
    jobs = plan(finished[0])
    assert jobs[GONE[path]] == 1
    assert jobs["report"] == 1


def test_a_table_of_rejected_rows_is_made_again_without_the_report(finished):
    remove(finished[0] / "run/crystals/rejected.parquet")
    assert plan(finished[0]) == {"prepare": 1, "all": 1}


@pytest.mark.parametrize("path", ["generated/FlowLLM-tau0.7-p0.9/shard-00000.parquet"])
def test_what_no_finished_output_reads_may_be_absent(finished, path):
    remove(finished[0] / "run" / path)
    assert plan(finished[0]) == {}


def test_the_advice_for_a_damaged_shard_makes_that_shard_alone(finished):
    """Without its report, as after its failure: the shard by its name, then the report alone."""
    folder, bin_folder = finished
    path = "run/pairs/train/shard-00000.parquet"
    whole = (folder / path).read_bytes()
    remove(folder / "run" / "report")
    remove(folder / path)
    said = stub_snakemake(bin_folder, "--cores", "1", path, cwd=folder)
    assert "1 of 1 steps" in said
    assert (folder / path).read_bytes() == whole
    assert plan(folder) == {"report": 1, "all": 1}
