"""`flowllm check`: what can be known before the first expensive job, and the workflow that asks."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from crystals import rocksalt
from energy_rows import hull_row
from flowllm.cli import app
from flowllm.commands import check as checks
from flowllm.config.load import load_config
from flowllm.config.model import Config
from flowllm.config.stage_settings import StageSettings
from flowllm.errors import FlowllmError
from flowllm.io import hull_schemas, schemas, tables
from flowllm.io.tables import crystal_columns
from flowllm.llm import model_files
from flowllm.runtime.provenance import stage_run
from other_llms import write_llm
from tiny_llm import write_tiny_llm
from tiny_run import ROOT, TINY, snakemake

CONFIGS = [ROOT / "config.yaml", ROOT / "workflow" / "config" / "smollm2.yaml"]


def configured(tmp_path: Path, **changes) -> Config:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(changes))
    return load_config([*CONFIGS, overlay])


def outcomes(tmp_path: Path, *, target="all", packages=False, stages=checks.ALL_STAGES, **changes):
    config = configured(tmp_path, **changes)
    found = checks.check(config, target=target, stages=stages, packages=packages)
    return {one.subject: one for one in found}


def problem(tmp_path: Path, subject: str, **changes) -> str:
    """What is wrong with one subject; all others pass."""
    found = outcomes(tmp_path, **changes)
    assert [one.subject for one in checks.failures(list(found.values()))] == [subject]
    return found[subject].said


CSV = "material_id,cif\nmp-1,x\n"


def write_csvs(folder: Path, **texts: str) -> Path:
    folder.mkdir()
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def test_smollm2_yaml_with_a_local_model_passes(tmp_path):
    write_tiny_llm(tmp_path / "base")
    data = write_csvs(tmp_path / "data", train=CSV, val=CSV, test=CSV)
    found = outcomes(
        tmp_path,
        data={"source": str(data)},
        finetune_llm={"base_model": str(tmp_path / "base")},
    )
    assert {one.state for one in found.values()} == {"ok"}
    assert "context of 2048 tokens" in found["finetune_llm.base_model"].said


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"train": CSV, "val": CSV}, "test.csv missing"),
        ({"train": "id,cif\n1,x\n", "val": CSV, "test": CSV}, "column 'material_id' is missing"),
        ({"train": CSV, "val": CSV, "test": "material_id,cif\n"}, "no row after the header"),
        ({"train": CSV, "val": CSV, "test": ""}, "empty"),
        ({"all": "material_id\n1\n"}, "column 'cif' is missing"),
        ({"all": "material_id,cif\n1\n"}, "row 0: 1 cells under 2 columns"),
        ({}, "neither train.csv"),
    ],
)
def test_a_folder_of_another_form_is_said(tmp_path, texts, message):
    data = write_csvs(tmp_path / "data", **texts)
    assert message in problem(tmp_path, "data.source", data={"source": str(data)})


def test_a_folder_that_is_not_there_is_said(tmp_path):
    said = problem(tmp_path, "data.source", data={"source": str(tmp_path / "gone")})
    assert "no such folder" in said


def test_more_test_crystals_than_the_split_has_are_refused(tmp_path):
    csp = yaml.safe_load((ROOT / "workflow" / "config" / "csp.yaml").read_text())
    csp["csp_methods"] = [{**row, "flow": None, "num_steps": 0} for row in csp["csp_methods"]]
    given = {**csp, "data": {"source": "mp_20"}, "sizes": {"num_csp_crystals": 9047}}
    assert "at most 9046" in problem(tmp_path, "sizes.num_csp_crystals", **given)
    given |= {"sizes": {"num_csp_crystals": 9}, "prepare": {"max_rows": 8}}
    assert "at most 8" in problem(tmp_path, "sizes.num_csp_crystals", **given)


def test_prompts_that_no_training_text_has_are_refused(tmp_path):
    never = {"formula_share": 0.0, "properties_share": 0.0}
    assert "with the formula" in problem(tmp_path, "prompts", finetune_llm=never)
    always = {"formula_share": 1.0, "properties_share": 0.0}
    assert "without a condition" in problem(tmp_path, "prompts", finetune_llm=always)


def test_base_models_are_looked_into(tmp_path):
    base = write_llm("opt", tmp_path / "base")
    given = {"finetune_llm": {"base_model": str(base)}}
    assert outcomes(tmp_path, **given)["finetune_llm.base_model"].state == "ok"
    gpus = {"sample_pairs": {"gpus": 3, "cpus": 1, "mem_mb": 1, "runtime": 1}}
    said = problem(tmp_path, "finetune_llm.base_model", **given, resources=gpus)
    assert "4 attention heads" in said
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "a.B"}}))
    assert "auto_map" in problem(tmp_path, "finetune_llm.base_model", **given)
    said = problem(tmp_path, "finetune_llm.base_model", finetune_llm={"base_model": "/no/folder"})
    assert "no such folder" in said


def test_the_gpus_of_the_bundled_and_of_a_finished_model_are_checked(tmp_path):
    gpus = {"sample_base": {"gpus": 4, "cpus": 1, "mem_mb": 1, "runtime": 1}}
    given = {"finetune_llm": {"base_model": "smollm2-135m"}, "resources": gpus}
    assert "9 attention heads" in problem(tmp_path, "finetune_llm.base_model", **given)
    given = {"run_dir": str(tmp_path / "run"), "resources": gpus}
    given["stages"] = {"sample_base"}
    model = tmp_path / "run" / "llm" / "model"
    assert str(model) not in outcomes(tmp_path, **given)
    write_llm("opt", model)
    assert outcomes(tmp_path, **given)[str(model)].state == "ok"
    gpus["sample_base"]["gpus"] = 3
    assert "4 attention heads" in problem(tmp_path, str(model), **given)
    given["stages"] = {"sample_base", "merge_adapter"}  # which makes another model
    assert str(model) not in outcomes(tmp_path, **given)


def test_a_model_that_is_not_fetched_yet_is_checked_later(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    found = outcomes(tmp_path, finetune_llm={"base_model": "someone/model"})
    assert found["finetune_llm.base_model"].state == "later"


def test_external_samples_and_entries_are_looked_for(tmp_path):
    row = {"name": "Other", "file": str(tmp_path / "gone.csv"), "shards": 1}
    assert "gone.csv" in problem(tmp_path, "external_samples", external_samples=[row])
    (tmp_path / "notes.docx").touch()
    row["file"] = str(tmp_path / "notes.docx")
    assert "notes.docx" in problem(tmp_path, "external_samples", external_samples=[row])
    (tmp_path / "some.csv").write_text("id,cif,above\na,x,0\n")
    row |= {"file": str(tmp_path / "some.csv"), "column": "structure"}
    assert "no column 'structure'" in problem(tmp_path, "external_samples", external_samples=[row])
    row |= {"column": "cif", "known_e_above_hull": "below"}
    assert "named 'below'" in problem(tmp_path, "external_samples", external_samples=[row])
    row |= {"known_e_above_hull": "above"}
    assert outcomes(tmp_path, external_samples=[row])["external_samples"].state == "ok"
    gone = {"source": str(tmp_path / "gone.json")}
    assert "gone.json" in problem(tmp_path, "reference_hull.source", reference_hull=gone)
    (tmp_path / "none.json").write_text("[]")
    empty = {"source": str(tmp_path / "none.json")}
    assert "no entry" in problem(tmp_path, "dft_hull.source", dft_hull=empty)


def test_a_second_potential_needs_a_hull_with_crystals(tmp_path):
    """The hull of a release has energies alone."""
    row = hull_row("NaCl", -3.0)
    given = {"reference_hull": {"source": str(tmp_path / "hull.parquet")}}
    tables.write_table(tmp_path / "hull.parquet", [row], schemas.HULL_ENTRIES, {})
    assert outcomes(tmp_path, **given)["reference_hull.source"].state == "ok"
    given |= {"potential": {"check": "chgnet-0.2.0"}}
    assert "has no crystals" in problem(tmp_path, "reference_hull.source", **given)
    row |= crystal_columns(rocksalt())
    tables.write_table(tmp_path / "hull.parquet", [row], hull_schemas.POTENTIAL_ENTRIES, {})
    assert outcomes(tmp_path, **given)["reference_hull.source"].state == "ok"


def test_dft_energies_need_a_source_and_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("MP_API_KEY", raising=False)
    assert outcomes(tmp_path)["dft_hull.source"].state == "ok"
    assert "null" in problem(tmp_path, "dft_hull.source", target="all_dft")
    api = {"dft_hull": {"source": "mp_api"}}
    assert outcomes(tmp_path, **api)["dft_hull.source"].state == "later"
    assert "MP_API_KEY" in problem(tmp_path, "dft_hull.source", target="all_dft", **api)
    assert "MP_API_KEY" in problem(tmp_path, "dft_hull.source", stages={"dft_hull"}, **api)
    monkeypatch.setenv("MP_API_KEY", "x")
    assert outcomes(tmp_path, target="all_dft", **api)["dft_hull.source"].state == "ok"


def test_packages_that_the_configuration_needs_are_looked_for(tmp_path, monkeypatch):
    present = checks.importlib.util.find_spec
    monkeypatch.setattr(
        "flowllm.commands.check.importlib.util.find_spec",
        lambda name: None if name in ("mace", "vllm", "bitsandbytes") else present(name),
    )
    given = {"potential": {"name": "mace"}, "finetune_llm": {"quantization": "nf4"}}
    said = problem(tmp_path, "packages", packages=True, **given)
    assert "mace (for potential.name mace)" in said
    assert "vllm (for sample_pairs.backend vllm)" in said or "sample_base.backend" in said
    assert "bitsandbytes" in said
    assert "packages" not in outcomes(tmp_path, packages=False, **given)


def test_only_what_the_stages_to_run_need_is_checked(tmp_path):
    given = {"finetune_llm": {"base_model": "/no/folder"}, "data": {"source": "/nowhere"}}
    assert outcomes(tmp_path, stages={"refine", "report"}, packages=True, **given) == {}
    assert list(outcomes(tmp_path, stages={"download"}, **given)) == ["data.source"]


def test_the_command_prints_a_line_per_check_and_lists_all_problems(tmp_path, capsys):
    overlay = tmp_path / "overlay.yaml"
    changes = {"data": {"source": "/nowhere"}, "finetune_llm": {"base_model": "/no/folder"}}
    changes["run_dir"] = str(tmp_path / "run")  # a finished runs/demo would add lines
    overlay.write_text(yaml.safe_dump(changes))
    words = [f"--config={path}" for path in [*CONFIGS, overlay]]
    with pytest.raises(FlowllmError, match="2 of 11 checks failed") as caught:
        app(["check", "--no-packages", *words], exit_on_error=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert [line.split(":")[0] for line in lines if line.startswith("failed")] == [
        "failed data.source",
        "failed finetune_llm.base_model",
    ]
    assert "/nowhere" in str(caught.value)
    assert "/no/folder" in str(caught.value)
    with pytest.raises(FlowllmError, match="no stage bake"):
        app(["check", "--stage=bake", *words], exit_on_error=False)


def test_a_missing_table_of_known_crystals_fails(tmp_path):
    missing = "/no/crystals.parquet"
    said = problem(tmp_path, "metrics.known_crystals", metrics={"known_crystals": missing})
    assert missing in said


def test_two_known_crystals_with_one_id_fail_before_any_job(tmp_path):
    """As where the training crystals of two runs are put together."""
    path = tmp_path / "known.parquet"
    rows = [{"id": name, **crystal_columns(rocksalt())} for name in ("a", "b", "a")]
    tables.write_table(path, rows, schemas.KNOWN_CRYSTALS, {})
    said = problem(tmp_path, "metrics.known_crystals", metrics={"known_crystals": str(path)})
    assert said.startswith(f"{path}, rows 0 and 2: both crystals have the id a")
    tables.write_table(path, [{"id": "a"}], pa.schema([schemas.KNOWN_CRYSTALS.field("id")]), {})
    assert str(path) in problem(
        tmp_path, "metrics.known_crystals", metrics={"known_crystals": str(path)}
    )
    tables.write_table(path, rows[:2], schemas.KNOWN_CRYSTALS, {})
    found = outcomes(tmp_path, metrics={"known_crystals": str(path)})["metrics.known_crystals"]
    assert (found.state, found.said) == ("ok", "2 crystals")


def test_the_workflow_checks_before_its_first_job(tmp_path):
    """A base model that would fail after preparing and fetching stops the run at its start."""
    write_tiny_llm(tmp_path / "tiny-llm")
    path = tmp_path / "tiny-llm" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"attn_implementation": "someone/kernels"}))
    output = snakemake("--cores", "1", *TINY, cwd=tmp_path, check=False)
    assert "failed finetune_llm.base_model: tiny-llm/config.json: attn_implementation" in output
    assert "no job was started" in output
    assert not (tmp_path / "run").exists()
    path.write_text(json.dumps(config))
    output = snakemake("--cores", "1", "--until", "download", *TINY, cwd=tmp_path)
    assert "ok     data.source" in output
    assert "base_model" not in output.split("Building DAG")[-1].split("1 of 1")[0]
    assert (tmp_path / "run" / "download" / "manifest.json").exists()


@pytest.mark.parametrize(
    "target",
    ["all_dft", "run/report_dft/index.html", "run/metrics/dft/CrystalLLM-tau0.7-p0.9.json"],
)
def test_dft_targets_without_a_hull_stop_before_the_dag(tmp_path, target):
    output = snakemake("-n", target, *TINY, cwd=tmp_path, check=False)
    assert "dft_hull.source is null" in output
    assert "Job stats" not in output
    espresso = ["--config", "dft_hull={source: mp_api}", "dft={code: espresso}"]
    output = snakemake("-n", target, *TINY, *espresso, cwd=tmp_path, check=False)
    assert "of which only inputs are written" in output
    assert "Job stats" not in output


def test_the_bundled_models_name_needs_no_transformers():
    assert model_files.BUNDLED == "smollm2-135m"


@pytest.fixture
def trained_at_another_rate(tmp_path, monkeypatch) -> list[str]:
    """Words of a check in a folder whose flow was trained at another learning rate."""
    monkeypatch.chdir(tmp_path)
    config = configured(tmp_path, run_dir="run", train_rfm={"learning_rate": 0.01})
    settings = StageSettings.from_config("train_rfm", config, config.flows[0].name)
    flow = tmp_path / "run" / "rfm" / config.flows[0].name
    with stage_run(settings, inputs={}, output=flow):
        flow.parent.mkdir(parents=True)
        flow.touch()
    changed = configured(tmp_path, run_dir="run")
    return ["check", "--no-packages", "--whole", changed.model_dump_json()]


def test_an_output_of_other_settings_is_listed(trained_at_another_rate, capsys):
    app(trained_at_another_rate)
    assert "train_rfm.learning_rate: 0.01 → " in capsys.readouterr().out


def test_strict_has_its_own_exit_code_for_an_output_of_other_settings(trained_at_another_rate):
    with pytest.raises(SystemExit) as ended:
        app([*trained_at_another_rate, "--strict"])
    assert ended.value.code == checks.OUTDATED


def test_before_a_start_the_outputs_that_are_made_again_are_not_listed(
    trained_at_another_rate, capsys
):
    app([*trained_at_another_rate, "--strict", "--stage=train_rfm"])
    assert "differs" not in capsys.readouterr().out


def asking(**conditions) -> dict:
    row = {"name": "tau0.7-p0.9", "temperature": 0.7, "top_p": 0.9, "conditions": conditions}
    return {"bases": [row]}


def test_conditions_that_no_training_text_gives_are_refused(tmp_path):
    untrained = {"finetune_llm": {"properties_share": 0.0}}
    said = problem(tmp_path, "bases", **asking(e_above_hull=0.05), **untrained)
    assert "tau0.7-p0.9: asks for e_above_hull" in said
    assert "properties_share is 0" in said
    # Enforced, and in no prompt.
    found = outcomes(tmp_path, **asking(num_atoms=4), **untrained)
    assert found["bases"].state == "ok"
    trained = {"finetune_llm": {"properties_share": 0.1, "formula_share": 0.1}}
    assert outcomes(tmp_path, **asking(e_above_hull=0.05), **trained)["bases"].said.endswith(": 1")
    data = write_csvs(tmp_path / "data", train=CSV, val=CSV, test=CSV)
    said = problem(
        tmp_path, "bases", **asking(e_above_hull=0.05), **trained, data={"source": str(data)}
    )
    assert "has no column 'e_above_hull'" in said


def test_files_of_wishes_are_read_before_a_run(tmp_path):
    path = tmp_path / "wishes.csv"
    path.write_text("formula\nNaCl\nXx\n")
    assert "line 3: formula Xx" in problem(tmp_path, "bases", **asking(file=str(path)))
    assert "No such file" in problem(tmp_path, "bases", **asking(file=str(tmp_path / "no.csv")))
