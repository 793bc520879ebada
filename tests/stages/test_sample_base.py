"""Sampling of unconditional crystals with real vLLM on a tiny model, killed and resumed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from crystals import rocksalt
from flowllm.io.schemas import BASE
from flowllm.io.tables import crystal_of, read_metadata, read_table
from flowllm.llm import model_folder
from flowllm.llm.engines.base import Draft
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.text import encode
from flowllm.stages import sample_base
from llm_run import merged_model, options_of_engine, settings_for

BASE_NAME = "tau0.7-p0.9"
COUNT = 6


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    return merged_model(tmp_path_factory.mktemp("base"))


def settings(paths, **changes):
    changes = {"structured": True, "chunk_size": 2, **changes}
    return settings_for("sample_base", paths["base"], row=BASE_NAME, sample_base=changes)


def run(paths, out: Path, first_draw: int = 0, count: int = COUNT, **changes) -> Path:
    given = settings(paths, **changes)
    sample_base.run(
        given, model=paths["model"], first_draw=first_draw, count=count, out=out, gpus=0
    )
    return out


def test_every_crystal_is_within_what_was_trained(paths, tmp_path):
    out = run(paths, tmp_path / "shard.parquet", first_draw=10)
    rows = read_table(out, BASE).to_pylist()
    assert [row["id"] for row in rows] == [f"{BASE_NAME}-{i:06d}" for i in range(10, 10 + COUNT)]
    for row in rows:
        crystal = crystal_of(row)
        assert row["status"] == "ok"
        assert row["formula"] == crystal.formula
        assert 1 <= crystal.num_atoms <= 5
        assert set(crystal.atomic_numbers.tolist()) <= {8, 11, 17, 22, 29, 38, 55}
        assert ((crystal.angles >= 60) & (crystal.angles <= 120)).all()
        assert "Formula" not in row["prompt"]
    assert len({row["text"] for row in rows}) == COUNT


class Repeating:
    """Engine that returns rock salt, but with both atoms at one point in each first draft."""

    cached_prompt_tokens = 0

    def __init__(self, prompts):
        good = encode(rocksalt())
        texts = [good.replace("0.50 0.50 0.50", "0.00 0.00 0.00"), good]
        self.first, self.later = (Draft(prompts.answer(text), truncated=False) for text in texts)
        self.seen, self.waiting = set(), []

    def submit(self, key, request):
        assert request.regex is not None
        self.waiting.append((key, self.later if key in self.seen else self.first))
        self.seen.add(key)

    def finished(self):
        found, self.waiting = self.waiting, []
        return found

    def close(self):
        pass


def test_the_engine_gets_the_configured_temperature_and_top_p(paths, tmp_path, monkeypatch):
    found = options_of_engine(monkeypatch, lambda: run(paths, tmp_path / "shard.parquet"))
    assert (found.temperature, found.top_p) == (0.7, 0.9)


@pytest.mark.parametrize("reject", [True, False])
def test_close_atoms_are_rejected_only_where_asked(paths, tmp_path, monkeypatch, reject):
    prompts = ModelFolder(paths["model"], settings(paths).prompts).prompts
    monkeypatch.setattr(model_folder, "VllmEngine", lambda *_, **__: Repeating(prompts))
    changes = {"chunk_size": 2, "reject_close_atoms": reject, "min_distance": None}
    out = run(paths, tmp_path / "shard.parquet", count=2, **changes)
    for row in read_table(out, BASE).to_pylist():
        assert (row["status"], row["formula"]) == ("ok", "Na1Cl1")
        assert row["rejections"] == ["coinciding_atoms"] * reject
        assert len(np.unique(crystal_of(row).frac_coords, axis=0)) == 1 + reject
    assert read_metadata(out)["settings"]["sample_base"]["reject_close_atoms"] == reject


def test_a_killed_shard_ends_as_an_undisturbed_one(paths, tmp_path):
    given = settings(paths)
    values = {"seed": given.seed, "version": given.version, **given.values}
    killed = tmp_path / "killed" / "shard.parquet"
    command = [sys.executable, "-m", "flowllm", "sample_base", "--settings", json.dumps(values)]
    command += ["--model", str(paths["model"]), "--out", str(killed)]
    command += ["--first-draw", "0", "--count", str(COUNT)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    partial = killed.with_name(f".{killed.name}.partial")
    try:
        end = time.monotonic() + 300
        while not any(partial.glob("part-*.parquet")) and process.poll() is None:
            assert time.monotonic() < end, "no part was written"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not killed.exists()
    assert any(partial.glob("part-*.parquet"))
    run(paths, killed)
    whole = run(paths, tmp_path / "whole" / "shard.parquet")
    assert killed.read_bytes() == whole.read_bytes()
