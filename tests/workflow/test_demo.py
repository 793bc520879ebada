"""The demonstration: what it starts from, that both of its models plan, and what its records show.

The records are those of `runs/demo`, where `make demo` has finished, and of a smaller run.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowllm.commands.check import check, failures
from flowllm.config.load import load_config
from flowllm.io.schemas import DFT_MANIFEST
from flowllm.io.tables import read_table
from flowllm.llm.model_record import read_record
from flowllm.runtime.provenance import read_provenance
from tiny_run import ROOT, dry_runs, planned, snakemake

CONFIGS = ROOT / "workflow" / "config"
DEMO = load_config([ROOT / "config.yaml", CONFIGS / "demo.yaml"])
FLOW_ROW, DRAFT_ROW = (method.name for method in DEMO.methods)

SMALLER = {
    "prepare": {"max_atoms": 6},
    "finetune_llm": {"epochs": 2, "warmup_steps": 1},
    "sizes": {"num_pairs": 32, "num_val_pairs": 8, "num_samples": 40},
    "train_rfm": {"max_steps": 50},
}
"""Changes of the demonstration for a run of about two minutes."""


@pytest.fixture(scope="module")
def smaller_run(tmp_path_factory) -> Path:
    """The run folder of a smaller demonstration, with all that the records below are of."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "data").symlink_to(ROOT / "data")
    overlay = folder / "smaller.yaml"
    overlay.write_text(yaml.safe_dump(SMALLER))
    configs = [ROOT / "config.yaml", CONFIGS / "demo.yaml", overlay]
    run = Path(DEMO.run_dir)
    wanted = [run / "dft_inputs" / row / "manifest.parquet" for row in (FLOW_ROW, DRAFT_ROW)]
    words = ["--cores", "2", "--configfile", *configs, "--", *wanted]
    snakemake(*map(str, words), cwd=folder)
    return folder / run


@pytest.fixture(params=["runs/demo", "smaller"])
def run(request) -> Path:
    """The folder of a finished demonstration."""
    if request.param == "smaller":
        return request.getfixturevalue("smaller_run")
    folder = ROOT / DEMO.run_dir
    if not (folder / "report" / "index.html").exists():
        pytest.skip(f"{folder} is not there or not finished: make demo writes it in ten minutes")
    return folder


def numbers(run: Path, row: str) -> dict[str, Any]:
    return json.loads((run / "metrics" / "potential" / f"{row}.json").read_text())


def test_the_small_models_are_continued_as_they_were_trained():
    assert read_record(ROOT / DEMO.finetune_llm.base_model).differing_prompts(DEMO.prompts) == []
    trained = load_config([ROOT / "data" / "pretrained" / "config.yaml"])
    assert DEMO.prepare.cell == trained.prepare.cell
    assert DEMO.prepare.max_atoms <= trained.prepare.max_atoms
    assert DEMO.sample_base.min_distance == trained.sample_base.min_distance
    assert DEMO.refine.keep_symmetry == trained.refine.keep_symmetry


@pytest.mark.parametrize("name", ["demo", "smollm2"])
def test_both_models_pass_the_check(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config([ROOT / "config.yaml", CONFIGS / f"{name}.yaml"])
    assert failures(check(config)) == []


def test_both_models_plan_every_stage_up_to_the_report(tmp_path):
    configs = (ROOT / "config.yaml", CONFIGS / "demo.yaml", CONFIGS / "smollm2.yaml")
    paper, *overlays = map(str, configs)
    snakefile = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", paper]
    (tmp_path / "data").symlink_to(ROOT / "data")
    demo, smollm2 = dry_runs([(str(tmp_path), [*snakefile, overlay]) for overlay in overlays])
    jobs = planned(demo)
    assert jobs == planned(smollm2)
    assert {"finetune_llm", "train_rfm", "reference_hull", "dft_inputs", "report"} <= set(jobs)


def test_nearly_all_drafts_are_accepted(run):
    shards = [run / "pairs" / "train", *(run / "base").iterdir()]
    for shard in [path for folder in shards for path in sorted(folder.glob("*.parquet"))]:
        assert read_provenance(shard)["counts"]["acceptance"] >= 0.95


def test_at_least_half_of_the_crystals_have_several_elements(run):
    for row in (FLOW_ROW, DRAFT_ROW):
        counts = numbers(run, row)["histograms"]["num_elements"]["generated"]
        assert sum(counts.values()) > 0
        assert sum(counts[key] for key in counts if int(key) > 1) >= sum(counts.values()) / 2


def test_the_flow_is_not_behind_the_language_model(run):
    """In the match rate not beyond its 95 % interval, since few crystals differ."""
    flow, drafts = numbers(run, FLOW_ROW), numbers(run, DRAFT_ROW)
    assert flow["rates"]["match_rate"]["high"] >= drafts["rates"]["match_rate"]["value"]
    for name in ("delta_energy_per_atom", "num_steps"):
        assert flow["means"][name]["mean"] <= drafts["means"][name]["mean"]


def test_there_are_new_stable_crystals_with_inputs_for_vasp(run):
    assert numbers(run, FLOW_ROW)["rates"]["sun_rate"]["numerator"] > 0
    folder = run / "dft_inputs" / FLOW_ROW
    rows = read_table(folder / "manifest.parquet", DFT_MANIFEST).to_pylist()
    candidates = [row for row in rows if row["taken_as"] == "candidate"]
    assert candidates
    for row in candidates:
        written = {path.name for path in (folder / row["path"]).iterdir()}
        assert {"INCAR", "KPOINTS", "POSCAR"} <= written
