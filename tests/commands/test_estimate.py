"""Estimates of a run against numbers computed by hand; job counts also in
tests/workflow/test_workflow.py.
"""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from crystals import perovskite
from flow_pairs import OPTIONS, write_pairs
from flowllm.cli import app
from flowllm.commands.costs import ItemCost, costs_of_run, read_costs
from flowllm.commands.estimate import describe, estimate
from flowllm.commands.items import split_sizes
from flowllm.commands.jobs import count_jobs
from flowllm.commands.model_sizes import prepared_bytes
from flowllm.config.load import load_config
from flowllm.errors import FlowllmError
from flowllm.rfm.network import NetworkSize, VelocityNetwork
from flowllm.rfm.pairs import prepare_shard
from flowllm.runtime.archive import move_away

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "workflow" / "costs" / "paper.yaml"


def configured(tmp_path, **changes):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(changes))
    return load_config([ROOT / "config.yaml", overlay])


BASES = [{"name": f"b{i}", "temperature": 1.0, "top_p": 0.9} for i in range(3)]
FLOWS = [{"name": "types", "start": "simple"}, {"name": "unused", "start": "simple"}]
PAPERS = {"data": {"source": "mp_20"}, "bases": BASES, "flows": FLOWS}
PAPERS["methods"] = [
    {"name": "s0", "base": "b0", "flow": "types", "num_steps": 250},
    {"name": "s1", "base": "b1", "flow": "types", "num_steps": 250},
    {"name": "s2", "base": "b2", "flow": "types", "num_steps": 250},
    {"name": "s3", "base": "b0", "flow": None, "num_steps": 0},
]
NO_LLM = {"name": "no-llm", "base": "train_compositions", "flow": "types", "num_steps": 750}


def lines_of(config, costs, target="all"):
    return {line.stage: line for line in estimate(config, costs, target, split_sizes(config))}


def test_the_full_configuration_by_hand(tmp_path):
    lines = lines_of(configured(tmp_path, **PAPERS), {}, "all_dft")
    assert {stage: line.jobs for stage, line in lines.items()} == {
        "download": 1,
        "prepare": 1,
        "fetch_model": 1,
        "finetune_llm": 1,
        "merge_adapter": 1,
        "invariance": 1,
        "sample_pairs": 303,  # 3,300,000 and 33,000 by 11,000
        "train_rfm": 1,
        "sample_base": 60,  # 3 bases, 10,000 by 500
        "refine": 80,  # 4 settings
        "prerelax": 80,
        "reference_hull": 1,
        "stability": 8,
        "dft_inputs": 4,
        "dft_collect": 4,
        "dft_hull": 1,
        "fingerprints": 5,
        "metrics": 8,
        "report": 1,
        "DFT runs": 0,
    }
    assert lines["prepare"].items == 27_136 + 9_047 + 9_046
    assert lines["finetune_llm"].items == 10 * 27_136
    assert lines["train_rfm"].items == 20 * 3_300_000
    assert lines["fingerprints"].items == 4 * 10_000 + 9_046
    # Each pair shard: itself, record, log, benchmark; each DFT folder four files.
    assert lines["sample_pairs"].files == 303 * 4
    assert lines["dft_inputs"].files == 4 * (4 + 3) + 40_000 * 4
    assert lines["dft_inputs"].folders == 40_000 + 40


def test_ten_settings_and_another_models_samples(tmp_path):
    row = {"base": "b1", "flow": "types", "num_steps": 1}
    changes = {"methods": [{"name": f"s{i}", **row} for i in range(10)]}
    changes["external_samples"] = [{"name": "other", "file": "x.pt", "shards": 7}]
    jobs = count_jobs(configured(tmp_path, **PAPERS | changes), "all")
    assert jobs["train_rfm"] == 1
    assert jobs["sample_base"] == 20  # of the three bases one is used
    assert jobs["refine"] == 200
    assert jobs["import_samples"] == 7
    assert jobs["prerelax"] == 207
    assert jobs["metrics"] == jobs["stability"] == jobs["dft_inputs"] == 11
    assert jobs["fingerprints"] == 12


def test_a_setting_without_the_language_model_draws_its_own_base(tmp_path):
    changes = {"methods": [PAPERS["methods"][0], NO_LLM]}
    lines = lines_of(configured(tmp_path, **PAPERS | changes), {})
    for stage in ("sample_base", "sample_compositions"):
        assert (lines[stage].jobs, lines[stage].items) == (20, 10_000)
    assert lines["refine"].items == 20_000


def test_without_a_flow_there_are_no_pairs(tmp_path):
    lines = lines_of(configured(tmp_path, **PAPERS | {"methods": [PAPERS["methods"][3]]}), {})
    assert "sample_pairs" not in lines
    assert "train_rfm" not in lines


def test_trajectories_are_files_and_bytes_of_refine(tmp_path):
    changes = {"methods": [*PAPERS["methods"][2:], NO_LLM], "sizes": {"num_samples": 1000}}
    costs = {"refine": ItemCost(bytes=100)}
    plain = lines_of(configured(tmp_path, **PAPERS | changes), costs)["refine"]
    assert (plain.files, plain.bytes) == (6 * 4, 3 * 1000 * 100)
    changes["refine"] = {"trajectory_every": 100}
    # After 0, 100, 200 and 250 steps, and after 0, 100, ... 700, 750; nothing without a flow.
    frames = 1000 * (4 + 9)
    saved = lines_of(configured(tmp_path, **PAPERS | changes), costs)["refine"]
    assert saved.files == 6 * 5
    assert saved.bytes == pytest.approx(100 * (3 * 1000 + frames))


def test_what_a_training_keeps_while_it_runs(tmp_path):
    """Against a prepared shard, and a checkpoint's weights, of real size."""
    shard, prepared = tmp_path / "pairs.parquet", tmp_path / "prepared.arrow"
    write_pairs(shard, [perovskite()], seed=0, draws_each=400)
    prepare_shard(shard, prepared, OPTIONS)
    pairs = 400 * prepared_bytes(perovskite().num_atoms)
    assert prepared.stat().st_size == pytest.approx(pairs, rel=0.03)
    size = NetworkSize(hidden_dim=64, num_layers=2, time_dim=8, num_frequencies=4)
    weights = VelocityNetwork(size).state_dict()
    checkpoint = 5 * sum(value.nbytes for value in weights.values())
    changes = {
        "prepare": {"max_atoms": perovskite().num_atoms},
        "sizes": {"num_pairs": 390, "num_val_pairs": 10},
        "train_rfm": asdict(size),
    }
    line = lines_of(configured(tmp_path, **PAPERS | changes), {})["train_rfm"]
    assert line.scratch == pytest.approx(pairs + 2 * checkpoint, rel=0.01)
    text = "\n".join(describe([line]))
    assert f"train_rfm: up to {line.scratch / 1e6:.3g} MB of temporary files" in text


def test_hours_and_bytes_by_hand(tmp_path):
    resources = {
        "sample_pairs": {"gpus": 4, "cpus": 16, "mem_mb": 1, "runtime": 60},
        "metrics": {"gpus": 0, "cpus": 8, "mem_mb": 1, "runtime": 60},
    }
    sizes = {"num_pairs": 3600, "num_val_pairs": 400, "pairs_per_shard": 1000, "num_samples": 900}
    config = configured(tmp_path, **PAPERS, resources=resources, sizes=sizes)
    costs = {
        "sample_pairs": ItemCost(seconds=9, gpus=2, bytes=100),
        "metrics": ItemCost(seconds=2, cpus=4),
        "refine": ItemCost(seconds=1, cpus=2),
        "DFT runs": ItemCost(seconds=3600, cpus=26),
    }
    lines = lines_of(config, costs, "all_dft")
    pairs = lines["sample_pairs"]
    assert pairs.bytes == 400_000
    assert pairs.gpu_hours == pytest.approx(4000 * 9 * 2 / 3600)  # 20
    assert pairs.cpu_hours == pytest.approx(20 / 4 * 16)
    assert pairs.job_hours == pytest.approx(5 / 5)  # 20 GPU-hours by 4 GPUs and 5 shards
    metrics = lines["metrics"]  # 4 settings, both kinds of energy
    assert metrics.gpu_hours == 0
    assert metrics.cpu_hours == pytest.approx(7200 * 2 * 4 / 3600)
    assert metrics.job_hours == pytest.approx(16 / 8 / 8)
    # Measured on a CPU, configured for a GPU: the hours on CPUs are known alone.
    refine = lines["refine"]
    assert refine.gpu_hours is None
    assert refine.job_hours is None
    assert refine.cpu_hours == pytest.approx(3600 * 2 / 3600)
    assert lines["DFT runs"].cpu_hours == 3600 * 26


def test_the_estimate_of_the_papers_run(tmp_path):
    lines = lines_of(configured(tmp_path, **PAPERS), read_costs(PAPER), "all_dft")
    # 250 A100-days for the 3.3 million pairs, and a hundredth more for the validation pairs.
    assert lines["sample_pairs"].gpu_hours / 24 == pytest.approx(250 * 1.01, rel=1e-3)
    assert lines["train_rfm"].gpu_hours == pytest.approx(48, rel=0.01)
    assert lines["finetune_llm"].gpu_hours == pytest.approx(8 * 24, rel=0.01)
    generated = (lines["sample_base"].gpu_hours / 3 + lines["refine"].gpu_hours / 4) * 60
    assert generated == pytest.approx(89.6, rel=0.01)
    assert lines["DFT runs"].cpu_hours == 40_000 * 26


def test_a_job_over_its_limit_is_said(tmp_path):
    limits = {"sample_pairs": {"gpus": 1, "cpus": 1, "mem_mb": 1, "runtime": 600}}
    config = configured(tmp_path, resources=limits)
    lines = estimate(config, {"sample_pairs": ItemCost(seconds=6.545, gpus=1)}, "all", {})
    text = "\n".join(describe(lines))
    assert "sample_pairs: about 20.0 h per job, over its limit of 10.0 h" in text


def a_record(folder, name, stage, **more):
    folder.mkdir(parents=True, exist_ok=True)
    record = {"stage": stage, "settings": {}, "hardware": {"cpus": 2}, "seed": 42, **more}
    record |= {"started": "2026-11-28T20:00:00+00:00", "peak_memory_mb": 1}
    (folder / f"_{name}.provenance.json").write_text(json.dumps(record))
    (folder / name).write_bytes(b"x" * 500)


def test_costs_from_the_records_of_a_run(tmp_path):
    gpu = {"cpus": 16, "gpus": ["A100", "A100"]}
    pairs = tmp_path / "pairs" / "train"
    a_record(pairs, "a.parquet", "sample_pairs", counts={"rows_in": 10}, seconds=30, hardware=gpu)
    a_record(pairs, "b.parquet", "sample_pairs", counts={"rows_in": 30}, seconds=50, hardware=gpu)
    settings = {"train_rfm": {"batch_size": 8}}
    a_record(tmp_path, "model", "train_rfm", counts={"steps": 5}, seconds=80, settings=settings)
    counts = {"rows_in": 90, "train": 60, "val": 20, "test": 9}
    a_record(tmp_path, "crystals", "prepare", counts=counts, seconds=9)
    costs, crystals = costs_of_run(tmp_path)
    source = f"records of {tmp_path}"
    assert costs["sample_pairs"] == ItemCost(seconds=2, gpus=2, cpus=16, bytes=25, source=source)
    assert costs["train_rfm"] == ItemCost(seconds=2, gpus=0, cpus=2, bytes=12.5, source=source)
    assert crystals == {"train": 60, "val": 20, "test": 9, "rows": 90}


def test_archived_outputs_have_their_bytes_and_deleted_ones_none(tmp_path):
    for number in range(2):
        name = f"shard-0000{number}.parquet"
        a_record(tmp_path / "pairs", name, "sample_pairs", counts={"rows_in": 10}, seconds=30)
        a_record(tmp_path / "base", name, "sample_base", counts={"rows_in": 10}, seconds=30)
    a_record(tmp_path / "crystals", "train.parquet", "prepare", counts={"rows_in": 5}, seconds=9)
    for path in [*sorted((tmp_path / "pairs").glob("s*")), tmp_path / "crystals/train.parquet"]:
        move_away(tmp_path, path, tmp_path.with_name("archive"))
    (tmp_path / "base" / "shard-00001.parquet").unlink()
    costs, _ = costs_of_run(tmp_path)
    assert (costs["sample_pairs"].bytes, costs["prepare"].bytes) == (50, 100)
    assert (costs["sample_base"].bytes, costs["sample_base"].seconds) == (None, 3)


def test_invalid_costs_are_rejected(tmp_path):
    with pytest.raises(FlowllmError, match="no records"):
        costs_of_run(tmp_path)
    path = tmp_path / "f.yaml"
    for text in ("sample_pears: {seconds: 1}", "report: {secs: 1}", "report: {seconds: -1}", "- ["):
        path.write_text(text)
        with pytest.raises(FlowllmError, match=r"f\.yaml"):
            read_costs(path)


def test_the_command_prints_totals(tmp_path, capsys):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(PAPERS))
    files = ["--config", str(ROOT / "config.yaml"), "--config", str(overlay)]
    arguments = ["estimate", *files, "--costs", str(PAPER)]
    app(arguments, exit_on_error=False)
    printed = capsys.readouterr().out
    total = next(line for line in printed.splitlines() if line.startswith("total"))
    assert total.split()[1] == "549"
    assert "unknown (?)" in total
    assert "hours of invariance, reference_hull" in total
    assert "Failure budget" in printed


def number(text: str) -> float:
    return float(text.replace(",", ""))


def test_the_printed_table_adds_up():
    """The columns of the full configuration, summed from the printed lines."""
    units = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
    config = load_config([ROOT / "config.yaml"])
    lines = estimate(config, read_costs(PAPER), "all", split_sizes(config))
    table = [line.split() for line in list(describe(lines))[1 : len(lines) + 2]]
    *rows, total = table
    for column in (1, 3, 4):
        start = 0 if column < 3 else -1
        assert sum(number(row[column]) for row in rows) == number(total[column + start])
    disk = sum(number(row[5]) * units[row[6]] for row in rows)
    assert disk == pytest.approx(number(total[4]) * units[total[5]], rel=0.01)
    assert disk > 2 * 137e9  # the base model and the merged model
    for column in (7, 8):
        hours = sum(number(row[column]) for row in rows if row[column] != "?")
        assert hours == pytest.approx(number(total[column - 1]), rel=0.01)
    unknown = [row[0] for row in rows if row[7] == "?"]
    assert unknown == ["invariance", "reference_hull"]
    said = list(describe(lines))[len(lines) + 1]
    assert f"unknown (?): GPU-hours of {', '.join(unknown)}" in said


def test_steps_are_capped_by_the_epochs(tmp_path):
    changes = {
        "finetune_llm": {"epochs": 1, "max_steps": 10**6, "batch_size": 16},
        "train_rfm": {"epochs": 2, "max_steps": 10**6, "batch_size": 128},
        "sizes": {"num_pairs": 1000},
    }
    lines = lines_of(configured(tmp_path, **PAPERS | changes), {})
    assert lines["finetune_llm"].items == 27_136
    assert lines["train_rfm"].items == 2000
    changes["train_rfm"]["max_steps"] = 3
    lines = lines_of(configured(tmp_path, **PAPERS | changes), {})
    assert lines["train_rfm"].items == 3 * 128


def test_another_models_samples_get_dft_inputs_too(tmp_path):
    changes = {
        "dft_inputs": {"selection": "random", "max_crystals": 50},
        "external_samples": [{"name": "other", "file": "x.pt", "shards": 1}],
    }
    lines = lines_of(configured(tmp_path, **PAPERS | changes), {})
    assert lines["dft_inputs"].items == (4 + 1) * 50


def test_dft_costs_are_per_selected_crystal(tmp_path):
    """Of 1,000 rows 10 were selected, so that 20 more crystals cost twice as much."""
    counts = {"rows_in": 1000, "rows_out": 10}
    a_record(tmp_path / "dft_inputs", "manifest.parquet", "dft_inputs", counts=counts, seconds=30)
    counts = {"rows_in": 1000, "statuses": {"not_selected": 990, "ok": 10}}
    a_record(tmp_path / "dft", "m.parquet", "dft_collect", counts=counts, seconds=20)
    costs, _ = costs_of_run(tmp_path)
    assert costs["dft_inputs"].seconds == 3
    assert costs["dft_collect"].seconds == 2


def test_the_page_shows_what_the_command_prints(capsys):
    arguments = ["estimate", "--config", str(ROOT / "config.yaml"), "--costs", str(PAPER)]
    app(arguments, exit_on_error=False)
    page = (ROOT / "docs" / "scale.md").read_text()
    for line in capsys.readouterr().out.strip().splitlines():
        assert line in page


def test_the_page_says_what_more_failures_cost(capsys):
    costs = ["--config", str(ROOT / "config.yaml"), "--costs", str(PAPER)]
    app(["estimate", *costs, "--node-failures", "0.021"], exit_on_error=False)
    printed = capsys.readouterr().out
    share = re.search(r"job-hours are lost, ([\d.]+)%", printed)[1]
    assert f"with it, {share} % of the job-hours are lost" in (ROOT / "docs/scale.md").read_text()
