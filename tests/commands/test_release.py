"""`flowllm release`: the folder, its models in half precision, its tables, and what continues."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from flow_pairs import LLM_FLOW
from flowllm.commands import generate, generate_run, release
from flowllm.commands.generate_run import open_run
from flowllm.commands.release_parts import halve, without_paths
from flowllm.config.recorded import RECORDED_CONFIG, load_recorded
from flowllm.errors import FlowllmError
from flowllm.evaluate.hull import read_hull
from flowllm.evaluate.matching import DEFAULT, ReducedCrystal
from flowllm.evaluate.per_crystal import crystals_by_composition
from flowllm.evaluate.validity import reduced_composition
from flowllm.io.release import CARD, RELEASE, check_release
from flowllm.io.schemas import CRYSTALS, HULL_ENTRIES, KNOWN_CRYSTALS, REQUESTED_BASE
from flowllm.io.tables import crystal_of, read_metadata, read_table, write_table
from flowllm.llm.model_folder import ModelFolder
from flowllm.rfm.model import load_model
from flowllm.runtime.archive import bring_back, move_away
from flowllm.runtime.provenance import read_provenance
from flowllm.stages import finetune_llm, merge_adapter, train_rfm
from small_run import HULL, small_config, stage_settings, write_small_run

ABOUT = {
    "title": "Tiny models",
    "license": "cc-by-4.0",
    "data": "Eight cells.",
    "attribution": ["Someone, 2026"],
    "limits": ["For tests alone."],
    "commands": "snakemake --cores 2",
}
STILL = {"max_steps": 1, "learning_rate": 1e-12}
"""A training that changes nothing."""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_small_run(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def about(run) -> Path:
    path = run.parent / "about.yaml"
    path.write_text(yaml.safe_dump(ABOUT))
    return path


@pytest.fixture(scope="module")
def released(run, about) -> Path:
    folder = run.parent / "released"
    release.run(run=run, out=folder, about=about)
    return folder


@pytest.fixture
def copy(released, tmp_path) -> Path:
    """A release that a test may damage."""
    shutil.copytree(released, tmp_path / "copy")
    return tmp_path / "copy"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_the_folder_opens_as_a_run(released):
    check_release(released)
    opened = open_run(released, None, None, drafts=True)
    opened.check(drafts=True, chain=True)
    assert opened.method.name == "FlowLLM-tau0.7-p0.9"
    assert [method.name for method in opened.config.methods] == [opened.method.name]
    assert not list(released.rglob("training_curve.csv"))


def test_the_same_run_gives_the_same_bytes(run, about, released, tmp_path):
    release.run(run=run, out=tmp_path / "again", about=about)
    for path in (path for path in released.rglob("*") if path.is_file()):
        assert (tmp_path / "again" / path.relative_to(released)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["llm/model/model.safetensors", "rfm/llm/weights.safetensors"])
def test_matrices_are_the_nearest_half_precision_numbers(run, released, name):
    before, after = load_file(run / name), load_file(released / name)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert after[key].dtype is (torch.float16 if value.ndim > 1 else torch.float32)
        # Float16 has 11 significant bits, and below 2**-14 steps of 2**-24.
        bound = torch.maximum(value.abs() * 2.0**-11, torch.tensor(2.0**-25))
        assert ((after[key].float() - value).abs() <= bound).all()


def test_readers_compute_in_float32_with_these_numbers(released):
    config = load_recorded(released)
    folder = released / "llm" / "model"
    model = ModelFolder(folder, config.prompts).language_model("cpu")
    stored = load_file(folder / "model.safetensors")
    for name, value in model.state_dict().items():
        assert value.dtype is torch.float32
        if name in stored:
            assert torch.equal(value, stored[name].float())
    field, _ = load_model(released / "rfm" / "llm", torch.device("cpu"))
    for name, value in load_file(released / "rfm" / "llm" / "weights.safetensors").items():
        assert field.state_dict()[name].dtype is torch.float32
        assert torch.equal(field.state_dict()[name], value.float())


def test_energies_above_the_hull_are_those_of_all_entries(run, released):
    whole, small = (
        read_hull(folder / "hull" / "potential.parquet", "potential") for folder in (run, released)
    )
    rows = read_table(released / "hull" / "potential.parquet", HULL_ENTRIES).to_pylist()
    # Of Na1Cl1, Na2Cl2 and Na4Cl4 the lowest is left.
    assert {row["formula"] for row in rows} == set(HULL) - {"Na2Cl2", "Na4Cl4"}
    assert small.sources == whole.sources
    rng = np.random.default_rng(0)
    for _ in range(20):
        symbols = rng.choice(sorted(whole.hull.elements), 3, replace=False)
        amounts = dict(zip(symbols.tolist(), rng.integers(1, 6, 3).tolist(), strict=True))
        assert small.hull.hull_energy(amounts) == whole.hull.hull_energy(amounts)
        assert small.hull.num_compounds(amounts) == whole.hull.num_compounds(amounts)


def test_known_crystals_match_those_of_the_run(run, released):
    rows = read_table(run / "crystals" / "train.parquet", CRYSTALS).to_pylist()
    path = released / "crystals" / "train.parquet"
    assert read_table(path, KNOWN_CRYSTALS).column_names == KNOWN_CRYSTALS.names
    for row in rows:
        crystal = crystal_of(row)
        composition = reduced_composition(crystal.atomic_numbers)
        known = crystals_by_composition(path, [composition])[composition][row["id"]]
        np.testing.assert_allclose(known.lengths, crystal.lengths, atol=5.1e-5)
        np.testing.assert_allclose(known.angles, crystal.angles, atol=5.1e-4)
        matcher = DEFAULT.matcher()
        assert ReducedCrystal("a", crystal).matches(ReducedCrystal("b", known), matcher)


def test_further_known_crystals_are_in_the_folder_and_read_from_there(
    run, about, tmp_path, monkeypatch
):
    shutil.copytree(run, tmp_path / "run")
    known = tmp_path / "elsewhere" / "train.parquet"
    known.parent.mkdir()
    shutil.copyfile(run / "crystals" / "val.parquet", known)
    values = yaml.safe_load((run / RECORDED_CONFIG).read_text())
    values["metrics"]["known_crystals"] = str(known)
    (tmp_path / "run" / RECORDED_CONFIG).write_text(yaml.safe_dump(values))
    release.run(run=tmp_path / "run", out=tmp_path / "out", about=about)
    shutil.rmtree(known.parent)
    monkeypatch.chdir(tmp_path / "out")  # where another train.parquet could be
    given = [tmp_path / "out" / RECORDED_CONFIG]
    for config in (given, None):
        opened = open_run(tmp_path / "out", config, None, drafts=True)
        opened.check(drafts=True, chain=True)
    found = Path(opened.config.metrics.known_crystals)
    assert found == tmp_path / "out" / "crystals" / "known.parquet"
    ids = [
        read_table(path, KNOWN_CRYSTALS).column("id")
        for path in (found, run / "crystals" / "val.parquet")
    ]
    assert ids[0] == ids[1]


def test_an_archived_model_is_to_be_brought_back(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    move_away(folder, folder / "llm" / "model", tmp_path / "archive")
    opened = open_run(folder, None, None, drafts=True)
    with pytest.raises(FlowllmError, match=rf"flowllm restore {folder} llm/model$"):
        opened.check(drafts=True, chain=True)
    bring_back(folder, "llm/model")
    opened.check(drafts=True, chain=True)


def test_the_hull_of_a_release_has_no_implausible_entry(run, about, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    path = folder / "hull" / "potential.parquet"
    rows = read_table(path, HULL_ENTRIES).to_pylist()
    compound = next(row for row in rows if row["formula"] == "Na1Cl1")
    rows.append({**compound, "entry_id": "fallen", "energy_per_atom": -90.0})
    write_table(path, rows, HULL_ENTRIES, read_metadata(path))
    release.run(run=folder, out=tmp_path / "out", about=about)
    released = read_table(tmp_path / "out" / "hull" / "potential.parquet", HULL_ENTRIES)
    assert "fallen" not in released.column("entry_id").to_pylist()
    assert "Na1Cl1" in released.column("formula").to_pylist()


def test_the_record_has_the_numbers_of_the_run(run, released):
    record = json.loads((released / RELEASE).read_text())
    assert {name: record[name] for name in ABOUT} == ABOUT
    assert record["crystals"] == {"train": 8, "val": 1}
    model, flow = record["language_model"], record["flow"]
    stored = load_file(run / "llm" / "model" / "model.safetensors")
    assert model["parameters"] == sum(value.numel() for value in stored.values())
    assert (model["steps"], model["max_atoms"], model["conditions"]) == (4, 5, ["formula"])
    assert (flow["steps"], flow["pairs"], flow["start"]) == (12, 8, None)
    assert record["hull"]["compositions"] == len(HULL) - 2
    assert record["results"] == []


def test_the_card_is_read_by_the_hub_and_lists_every_file(released):
    front, text = (released / CARD).read_text().removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["license"] == "cc-by-4.0"
    for part in ("# Tiny models", "Eight cells.", "- Someone, 2026", "- For tests alone."):
        assert part in text
    files = [path for path in released.rglob("*") if path.is_file() and path.name != CARD]
    for path in files:
        if path.name != RELEASE:
            assert f"| `{path.relative_to(released)}` | {path.stat().st_size:,} |" in text
    assert "The run has not measured generated crystals." in text


def test_no_path_of_the_machine_is_in_the_folder(run, released):
    for path in (path for path in released.rglob("*") if path.is_file()):
        for folder in (str(run.parent), "flowllm-scratch-"):  # and the one of the random weights
            assert folder.encode() not in path.read_bytes(), path


def fine_tuned(run: Path, out: Path, **changes) -> Path:
    """Fine-tune on the crystals of the small run."""
    train = run / "crystals" / "train.parquet"
    settings = stage_settings("finetune_llm", finetune_llm=changes)
    finetune_llm.run(settings, train=train, val=train, out=out)
    return out


def flow_trained(run: Path, out: Path, flow: str = "llm", **changes) -> Path:
    """Train a flow on the pairs of the small run."""
    pairs = [run.parent / "pairs.parquet"]
    flows = [{**LLM_FLOW, "name": flow}]
    methods = [{"name": "m", "base": "tau0.7-p0.9", "flow": flow, "num_steps": 5}]
    settings = stage_settings("train_rfm", flow, train_rfm=changes, flows=flows, methods=methods)
    train_rfm.run(settings, pairs=pairs, val_pairs=pairs, out=out)
    return out


def test_a_changed_file_stops_everything_that_loads_it(run, copy, tmp_path):
    model, message = copy / "llm" / "model", r"model\.safetensors: is not the released file"
    flip(model / "model.safetensors")
    with pytest.raises(FlowllmError, match=message):
        open_run(copy, None, None, drafts=True)
    with pytest.raises(FlowllmError, match=message):
        ModelFolder(model, small_config().prompts)
    with pytest.raises(FlowllmError, match=message):
        fine_tuned(run, tmp_path / "llm", start=str(model))
    with pytest.raises(FlowllmError, match=message):
        fine_tuned(run, tmp_path / "llm", base_model=str(model), method="lora")
    flip(copy / "rfm" / "llm" / "weights.safetensors")
    with pytest.raises(FlowllmError, match=r"weights\.safetensors: is not the released file"):
        flow_trained(run, tmp_path / "flow", start=str(copy / "rfm"))
    assert not any(tmp_path.glob("llm"))
    assert not any(tmp_path.glob("flow"))


def test_all_weights_continue_from_the_release(run, released, tmp_path):
    model = released / "llm" / "model"
    out = fine_tuned(run, tmp_path / "adapter", start=str(model), **STILL)
    before, after = (load_file(folder / "model.safetensors") for folder in (model, out))
    for name, value in after.items():
        assert value.dtype is torch.float32
        torch.testing.assert_close(value, before[name].float(), atol=1e-9, rtol=1e-6)


def test_an_adapter_on_the_release_is_merged_and_released_again(run, released, about, tmp_path):
    model = str(released / "llm" / "model")
    lora = {"base_model": model, "method": "lora", "max_steps": 2}
    again = tmp_path / "run"
    shutil.copytree(run, again)
    adapter = fine_tuned(run, tmp_path / "adapter", **lora)
    shutil.rmtree(again / "llm")
    settings = stage_settings("merge_adapter", finetune_llm=lora)
    merge_adapter.run(settings, adapter=adapter, out=again / "llm" / "model")
    merged = load_file(again / "llm" / "model" / "model.safetensors")
    start = load_file(Path(model) / "model.safetensors")
    changed = [
        name for name, value in start.items() if not torch.equal(merged[name], value.float())
    ]
    assert all(value.dtype is torch.float32 for value in merged.values())
    assert any("q_proj" in name for name in changed)
    release.run(run=again, out=tmp_path / "released", about=about)
    record = json.loads((tmp_path / "released" / RELEASE).read_text())
    assert record["language_model"]["base_model"] == "model"  # no path of this machine


@pytest.mark.parametrize(("start", "flow"), [("rfm", "llm"), ("rfm/llm", "mine")])
def test_a_flow_continues_from_the_release(run, released, tmp_path, start, flow):
    settings = {**STILL, "min_learning_rate": 0.0}
    out = flow_trained(run, tmp_path / flow, flow, start=str(released / start), **settings)
    before, after = (
        load_file(folder / "weights.safetensors") for folder in (released / "rfm" / "llm", out)
    )
    for name, value in after.items():
        assert value.dtype is torch.float32
        torch.testing.assert_close(value, before[name].float(), atol=1e-7, rtol=1e-6)


def test_generate_uses_the_small_models_unless_a_run_is_named(released, tmp_path, monkeypatch):
    monkeypatch.setattr(generate_run, "PRETRAINED", released)
    generate.run(out=tmp_path / "out", formula="NaCl", count=2, drafts_only=True)
    rows = read_table(tmp_path / "out" / "drafts.parquet", REQUESTED_BASE).to_pylist()
    assert [dict(row["asked"]) for row in rows] == [{"formula": "NaCl"}] * 2
    record = read_provenance(tmp_path / "out" / "drafts.parquet")
    assert record["input_paths"]["model"] == str(released / "llm" / "model")


def test_an_installation_without_the_small_models_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(generate_run, "PRETRAINED", tmp_path)
    with pytest.raises(FlowllmError, match=r"has no small models\. Name the folder .* with --run"):
        generate.run(out=tmp_path / "out", formula="NaCl")


def test_a_folder_beyond_the_limit_is_not_written(run, about, copy):
    before = (copy / RELEASE).read_bytes()
    with pytest.raises(FlowllmError, match=r"would exceed --max-megabytes 0\.1 \(largest: llm/"):
        release.run(run=run, out=copy, about=about, max_megabytes=0.1)
    assert (copy / RELEASE).read_bytes() == before


def test_an_earlier_release_is_replaced_and_nothing_else(run, about, copy, tmp_path):
    flip(copy / "config.yaml")
    release.run(run=run, out=copy, about=about)
    check_release(copy)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(FlowllmError, match="is no earlier release"):
        release.run(run=run, out=tmp_path / "mine", about=about)
    with pytest.raises(FlowllmError, match="in the folder of the run"):
        release.run(run=run, out=run / "released", about=about)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (yaml.safe_dump({**ABOUT, "license": "CC BY 4.0"}), "about.license"),
        (yaml.safe_dump({key: ABOUT[key] for key in ABOUT if key != "data"}), "about.data"),
        (yaml.safe_dump({**ABOUT, "licence": "cc0-1.0"}), "about.licence"),
        ("title: [", "not YAML"),
        ("", "about"),
    ],
)
def test_an_incomplete_text_is_refused_first(text, message, tmp_path):
    (tmp_path / "about.yaml").write_text(text)
    with pytest.raises(FlowllmError, match=message):
        release.run(run=tmp_path, out=tmp_path / "out", about=tmp_path / "about.yaml")


def test_a_damaged_flow_is_refused(run, about, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "rfm" / "llm" / "model.json").write_text("{")
    with pytest.raises(FlowllmError, match="not a model of train_rfm"):
        release.run(run=tmp_path / "run", out=tmp_path / "out", about=about)


def test_weights_beyond_half_precision_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    for value in (7e4, float("nan"), float("inf")):
        save_file({"a": torch.tensor([[1.0, value]])}, path)
        with pytest.raises(FlowllmError, match="a has weights that are not finite or beyond 65504"):
            halve(path, tmp_path / "half.safetensors")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/home/a/data", "data"),
        ("../shared/data", "data"),
        ("runs/mine", "runs/mine"),
        (["a", {"b": "/c/d"}, 1, None], ["a", {"b": "d"}, 1, None]),
    ],
)
def test_paths_that_leave_the_working_directory_lose_their_folders(given, expected):
    assert without_paths(given) == expected
