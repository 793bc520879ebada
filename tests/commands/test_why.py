"""Reasons of planned jobs on a finished run whose jobs only made their files."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from flowllm.cli import app
from flowllm.config.stages import STAGES
from flowllm.errors import FlowllmError
from stub_run import make_stub, stub_snakemake
from tiny_llm import write_tiny_llm
from tiny_run import ROOT, TINY, planned, snakemake

FILES = ["config.yaml", str(ROOT / "tests" / "tiny.yaml"), "change.yaml"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Working directory of a finished stub run, laid out as a clone."""
    folder = tmp_path_factory.mktemp("why")
    write_tiny_llm(folder / "tiny-llm")
    stub_snakemake(make_stub(tmp_path_factory.mktemp("stub") / "bin"), "--cores", "2", cwd=folder)
    for name in ("Snakefile", "workflow", "config.yaml"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of the finished run, as the working directory."""
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy, symlinks=True)
    monkeypatch.chdir(copy)
    return copy


def why(capsys, *words: str, **changes) -> str:
    Path("change.yaml").write_text(yaml.safe_dump(changes))
    options = [f"--config={name}" for name in FILES]
    app(["why", *words, *options], exit_on_error=False)
    return capsys.readouterr().out


def reasons(said: str) -> dict[str, list[str]]:
    """The lines below each stage."""
    found: dict[str, list[str]] = {}
    stage = ""
    for line in said.splitlines()[:-1]:
        if line.startswith(" "):
            found[stage].append(line.strip())
        else:
            stage, _, _ = line.partition(":")
            found[stage] = []
    return found


@pytest.mark.usefixtures("run")
def test_nothing_changed(capsys):
    assert why(capsys, seed=42) == "nothing would run\n"


def test_a_changed_key_and_what_depends_on_it(run, capsys):
    said = why(capsys, train_rfm={"learning_rate": 0.01})
    found = reasons(said)
    assert found["train_rfm"] == ["train_rfm.learning_rate: 0.0003 → 0.01"]
    assert found["refine"] == ["inputs that are made again: train_rfm"]
    # The jobs that Snakemake plans, without its target.
    dry = planned(snakemake("-n", *TINY, "change.yaml", cwd=run))
    del dry["all"]
    counts = {
        line.partition(":")[0]: int(line.split()[1])
        for line in said.splitlines()[:-1]
        if not line.startswith(" ")
    }
    assert counts == dry
    assert said.splitlines()[-1] == f"{sum(dry.values())} of 31 jobs would run"


@pytest.mark.usefixtures("run")
def test_a_key_of_a_stage_whose_inputs_change_too(capsys):
    found = reasons(why(capsys, seed=7, train_rfm={"learning_rate": 0.01}))
    assert found["fetch_model"] == ["seed: 42 → 7"]
    assert found["train_rfm"] == [
        "seed: 42 → 7",
        "train_rfm.learning_rate: 0.0003 → 0.01",
        "inputs that are made again: sample_pairs",
    ]


@pytest.mark.usefixtures("run")
def test_a_key_of_a_row(capsys):
    rows = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text())["methods"]
    changed = [rows[0] | {"num_steps": 9}, rows[1]]
    found = reasons(why(capsys, methods=changed))
    assert found["refine"] == ["method.num_steps: 5 → 9"]


@pytest.mark.usefixtures("run")
def test_a_filled_and_a_new_shard(capsys):
    found = reasons(why(capsys, sizes={"num_pairs": 20}))
    assert found["sample_pairs"] == [
        "sizes: draws 8 to 11 → 8 to 15 (1 job)",
        "its output does not exist (1 job)",
    ]
    assert found["train_rfm"] == [
        "it has other input files than before",
        "inputs that are made again: sample_pairs",
    ]


def test_a_missing_output(run, capsys):
    (run / "run" / "pairs" / "train" / "shard-00001.parquet").unlink()
    found = reasons(why(capsys, seed=42))
    assert found["sample_pairs"] == ["its output does not exist"]


def test_a_changed_input_file(run, capsys):
    crystals = run / "run" / "crystals" / "train.parquet"
    crystals.write_text("others")
    later = crystals.stat().st_mtime + 3600
    os.utime(crystals, (later, later))
    found = reasons(why(capsys, seed=42))
    assert found["finetune_llm"] == ["an input file is newer than the output and has other content"]


def test_a_raised_version(run, capsys):
    """The clone has a stage of another version than the one that made the output."""
    (run / "workflow").unlink()
    (run / "Snakefile").unlink()
    shutil.copytree(ROOT / "workflow", run / "workflow")
    shutil.copytree(ROOT / "src", run / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", run / "Snakefile")
    stages = run / "src" / "flowllm" / "config" / "stages.py"
    line = 'STAGES["refine"] = replace(STAGES["refine"], version=99)'
    stages.write_text(f"{stages.read_text()}\nfrom dataclasses import replace\n{line}\n")
    before = STAGES["refine"]
    STAGES["refine"] = replace(before, version=99)
    try:
        found = reasons(why(capsys, seed=42))
    finally:
        STAGES["refine"] = before
    assert found["refine"] == [f"refine's version: {before.version} → 99"]


@pytest.mark.usefixtures("run")
def test_another_target(capsys):
    said = why(capsys, "run/llm/model", merge_adapter={"into": "original"})
    assert reasons(said) == {"merge_adapter": ['merge_adapter.into: "dequantized" → "original"']}


@pytest.mark.usefixtures("run")
def test_an_unknown_target_is_refused(capsys):
    with pytest.raises(FlowllmError, match=r"cannot plan nowhere(.|\n)*nowhere"):
        why(capsys, "nowhere", seed=42)
