"""Outputs that were made with other settings than those of the configuration."""

import json
from pathlib import Path

import pytest

from flowllm.config.load import load_config
from flowllm.config.model import Config
from flowllm.config.stage_settings import StageSettings
from flowllm.io.archive_index import Archived, write_index
from flowllm.runtime.outdated import outdated_outputs
from flowllm.runtime.provenance import provenance_path, stage_run
from tiny_run import ROOT

FILES = [ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml"]


def configured(tmp_path: Path, **changes) -> Config:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(json.dumps(changes))
    return load_config([*FILES, overlay])


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """Two shards of pairs, a flow and a base, with the records of the tiny configuration."""
    run_dir = tmp_path / "run"
    make(run_dir / "pairs/train/shard-00000.parquet", "sample_pairs", None)
    make(run_dir / "pairs/train/shard-00001.parquet", "sample_pairs", None)
    make(run_dir / "rfm/llm", "train_rfm", "llm")
    make(run_dir / "base/tau0.7-p0.9/shard-00000.parquet", "sample_base", "tau0.7-p0.9")
    return run_dir


def make(output: Path, stage: str, row: str | None) -> None:
    settings = StageSettings.from_config(stage, load_config(FILES), row)
    with stage_run(settings, inputs={}, output=output):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.touch()


def lines(config: Config, run_dir: Path, **more) -> list[str]:
    found = outdated_outputs(config, run_dir, **more)
    return [one.line().replace(f"{run_dir}/", "") for one in found]


def test_a_run_of_the_same_configuration_has_none(tmp_path, run_dir):
    assert lines(configured(tmp_path), run_dir) == []


def test_a_changed_key_is_named_with_both_values(tmp_path, run_dir):
    config = configured(tmp_path, train_rfm={"learning_rate": 0.01})
    (line,) = lines(config, run_dir)
    said = "train_rfm: rfm/llm: made with other settings: "
    assert line == f"{said}train_rfm.learning_rate: 0.0003 → 0.01"


def test_shards_with_the_same_change_are_one_line(tmp_path, run_dir):
    config = configured(tmp_path, sample_pairs={"temperature": 0.8})
    (line,) = lines(config, run_dir)
    assert line.startswith("sample_pairs: 2 outputs, the first pairs/train/shard-00000.parquet: ")


def test_the_seed_concerns_all(tmp_path, run_dir):
    assert len(lines(configured(tmp_path, seed=43), run_dir)) == 3


def test_a_row_is_compared_by_its_name(tmp_path, run_dir):
    bases = [{"name": "tau0.7-p0.9", "temperature": 0.9, "top_p": 0.9}]
    (line,) = lines(configured(tmp_path, bases=bases), run_dir)
    assert line.endswith("base.temperature: 0.7 → 0.9")


def test_a_row_that_the_configuration_lost_is_left_out(tmp_path, run_dir):
    changes = {
        "bases": [{"name": "hot", "temperature": 0.9, "top_p": 0.9}],
        "methods": [{"name": "a", "base": "hot", "flow": None, "num_steps": 0}],
    }
    assert lines(configured(tmp_path, **changes), run_dir) == []


def test_stages_that_are_about_to_run_are_left_out(tmp_path, run_dir):
    config = configured(tmp_path, seed=43)
    assert lines(config, run_dir, skip=["train_rfm", "sample_base", "sample_pairs"]) == []


def test_a_deleted_output_is_left_out_and_an_archived_one_is_not(tmp_path, run_dir):
    config = configured(tmp_path, train_rfm={"learning_rate": 0.01})
    (run_dir / "rfm/llm").unlink()
    assert lines(config, run_dir) == []
    write_index(run_dir, {"rfm/llm": Archived("/archive/rfm/llm", 0.0, 0)})
    assert len(lines(config, run_dir)) == 1


def test_another_version_of_the_stage_is_named(tmp_path, run_dir):
    path = provenance_path(run_dir / "rfm/llm")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "stage_version": 1}))
    (line,) = lines(configured(tmp_path), run_dir)
    assert "version: 1 → " in line
