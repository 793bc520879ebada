"""Fine-tuning on a tiny model: the loop, its loss against transformers' own, kill and resume."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from pymatgen.analysis.structure_matcher import StructureMatcher
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.llm.finetuning import learning_rate
from flowllm.llm.model_record import read_record
from flowllm.llm.prompts import UNCONDITIONAL, Example, PromptTokens
from flowllm.llm.text import decode
from flowllm.llm.text_parts import element_symbol
from flowllm.llm.token_loss import summed_loss
from flowllm.llm.training_texts import (
    IGNORED,
    TrainingTexts,
    collate,
    order_of_epoch,
    padding_share,
    texts_of,
)
from flowllm.runtime.provenance import read_provenance
from flowllm.runtime.resume import partial_path
from flowllm.runtime.tensorboard import events_path
from flowllm.stages import finetune_llm
from llm_run import crystal_table, settings_for, small_crystals
from tiny_llm import make_model, make_tokenizer, write_tiny_llm


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_llm(folder / "base")
    return {
        "base": folder / "base",
        "train": crystal_table(folder / "train.parquet", small_crystals()),
        "val": crystal_table(folder / "val.parquet", small_crystals()[:3]),
    }


def run(inputs, out: Path, **changes) -> Path:
    settings = settings_for("finetune_llm", inputs["base"], finetune_llm=changes)
    finetune_llm.run(settings, train=inputs["train"], val=inputs["val"], out=out)
    return out


def curve(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "training_curve.csv").open()))


def test_training_lowers_both_losses(inputs, tmp_path):
    out = run(inputs, tmp_path / "adapter", max_steps=40, learning_rate=0.02, eval_steps=20)
    rows = curve(out)
    assert [int(row["step"]) for row in rows] == list(range(1, 41))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"]) - 1
    validated = {int(row["step"]): float(row["val_loss"]) for row in rows if row["val_loss"]}
    assert set(validated) == {20, 40}
    assert validated[40] < validated[20]


def test_the_folder_loads_and_tells_how_it_was_made(inputs, tmp_path):
    out = run(inputs, tmp_path / "adapter", max_steps=3)
    base = AutoModelForCausalLM.from_pretrained(inputs["base"])
    model = PeftModel.from_pretrained(base, out)
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 32)
    assert len(config["target_modules"]) == 2 * 7  # every linear layer of the two blocks
    changed = [value for name, value in model.named_parameters() if "lora_B" in name]
    assert len(changed) == 14
    assert all(value.abs().max() > 0 for value in changed)
    record = read_record(out)
    assert record.elements == (8, 11, 17, 22, 29, 38, 55)
    assert record.max_atoms == 5
    counts = read_provenance(out)["counts"]
    assert counts["rows_in"] == counts["rows_out"] == 8
    assert 0 <= counts["padding_share"] <= counts["padding_share_without_grouping"] < 1
    assert not list(out.glob("*.bin"))


def test_micro_batches_do_not_change_the_step(inputs, tmp_path):
    losses = [
        [
            float(row["train_loss"])
            for row in curve(run(inputs, tmp_path / str(size), max_steps=4, micro_batch_size=size))
        ]
        for size in (1, 3, 4)
    ]
    np.testing.assert_allclose(losses[0], losses[2], rtol=1e-4)
    np.testing.assert_allclose(losses[1], losses[2], rtol=1e-4)


def test_gradient_checkpointing_changes_nothing_but_memory(inputs, tmp_path):
    plain = run(inputs, tmp_path / "plain", max_steps=3)
    saving = run(inputs, tmp_path / "saving", max_steps=3, gradient_checkpointing=True)
    np.testing.assert_allclose(
        [float(row["train_loss"]) for row in curve(plain)],
        [float(row["train_loss"]) for row in curve(saving)],
        rtol=1e-4,
    )


def test_too_long_texts_are_left_out_and_counted(inputs, tmp_path):
    out = run(inputs, tmp_path / "adapter", max_steps=1, max_tokens=120)
    counts = read_provenance(out)["counts"]
    assert counts["rows_out"] + counts["rows_failed"] == counts["rows_in"] == 8
    assert counts["rows_failed"] == 2  # the perovskites
    with pytest.raises(FlowllmError, match="max_tokens"):
        run(inputs, tmp_path / "none", max_tokens=20)


def test_a_diverging_run_says_so(inputs, tmp_path):
    with pytest.raises(FlowllmError, match="learning_rate"):
        run(inputs, tmp_path / "adapter", max_steps=20, learning_rate=1e30, max_grad_norm=1e30)


def test_a_missing_base_model_says_so(inputs, tmp_path):
    with pytest.raises(FlowllmError, match="base_model"):
        run({**inputs, "base": tmp_path / "nowhere"}, tmp_path / "adapter")


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_training_runs_on_the_cpu(inputs, tmp_path, quantization):
    changes = {"quantization": quantization, "learning_rate": 5e-3}
    changes |= {"max_steps": 12, "eval_steps": 4}
    rows = curve(run(inputs, tmp_path / "adapter", **changes))
    first, _, last = (float(row["val_loss"]) for row in rows if row["val_loss"])
    assert last < first
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(weights[name].abs().max() > 0 for name in weights)  # B begins at zero: all learn


@pytest.mark.parametrize(
    ("sent", "code", "method"),
    [
        (signal.SIGKILL, -signal.SIGKILL, "lora"),
        (signal.SIGTERM, 128 + signal.SIGTERM, "lora"),
        (signal.SIGKILL, -signal.SIGKILL, "full"),
    ],
)
def test_a_stopped_run_ends_with_the_bytes_of_an_undisturbed_one(
    inputs, tmp_path, sent, code, method
):
    """SIGKILL comes after a checkpoint; SIGTERM comes before the first one and writes it."""
    save_steps = 3 if sent == signal.SIGKILL else 1000
    changes = {"max_steps": 40, "save_steps": save_steps, "eval_steps": 2, "lora_dropout": 0.1}
    changes |= {"augment_translation": True, "augment_permutation": True, "method": method}
    settings = settings_for("finetune_llm", inputs["base"], finetune_llm=changes)
    values = {"seed": settings.seed, "version": settings.version, **settings.values}
    stopped = tmp_path / "stopped" / "adapter"
    command = [sys.executable, "-m", "flowllm", "finetune_llm", "--settings", json.dumps(values)]
    command += ["--train", str(inputs["train"]), "--val", str(inputs["val"]), "--out", str(stopped)]
    checkpoints = stopped.with_name(f".{stopped.name}.partial")
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
        try:
            if sent == signal.SIGKILL:
                kept = checkpoints / "seconds.json"  # written after the checkpoint
                wait_for(lambda: kept.exists() or process.poll() is not None)
            else:
                wait_for(lambda: "step 2," in log.read_text() or process.poll() is not None)
        finally:
            process.send_signal(sent)
            assert process.wait() == code, log.read_text()
    assert not stopped.exists()
    trained = _longer_by(1000, max(checkpoints.glob("checkpoint-*")) / "state.json")
    spent = _longer_by(2000, checkpoints / "seconds.json")
    assert 0 < trained < spent
    finetune_llm.run(settings, train=inputs["train"], val=inputs["val"], out=stopped)
    whole = tmp_path / "whole" / "adapter"
    finetune_llm.run(settings, train=inputs["train"], val=inputs["val"], out=whole)
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in stopped.iterdir())
    for name in names:
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name
    assert not checkpoints.exists()
    record, undisturbed = read_provenance(stopped), read_provenance(whole)
    assert 1000 + trained < record["counts"]["training_seconds"] + 0.05 < 2000
    assert 2000 + spent < record["seconds"] < 3000
    assert record.keys() == undisturbed.keys()
    for folder in (stopped, whole):
        losses = [float(row["train_loss"]) for row in curve(folder)]
        events = EventAccumulator(str(events_path(folder))).Reload().Scalars("train_loss")
        assert [event.step for event in events] == list(range(1, 41))
        np.testing.assert_allclose([event.value for event in events], losses, rtol=1e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_killed_run_starts_again_on_other_weights_of_its_base_model(
    inputs, tmp_path, monkeypatch, method
):
    base = shutil.copytree(inputs["base"], tmp_path / "base")
    given = {**inputs, "base": base}
    changes = {"max_steps": 4, "save_steps": 3, "method": method}

    def kill(*_given) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "killed" / "adapter"
    with monkeypatch.context() as killing:
        killing.setattr(finetune_llm, "keep_seconds", kill)
        with pytest.raises(KeyboardInterrupt):
            run(given, out, **changes)
    assert any(partial_path(out).glob("checkpoint-*"))
    path = base / "model.safetensors"
    weights = {name: value * 0.9 for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    run(given, out, **changes)
    undisturbed = run(given, tmp_path / "undisturbed" / "adapter", **changes)
    for name in (path.name for path in undisturbed.iterdir()):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name


def _longer_by(seconds: float, path: Path) -> float:
    """Add to the wall time that a killed run has saved; return what it was."""
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"seconds": values["seconds"] + seconds}))
    return values["seconds"]


def test_early_stopping_keeps_the_adapter_of_the_best_validation(inputs, tmp_path):
    """The validation crystals differ from the training crystals, so the model soon overfits."""
    changes = {"max_steps": 400, "learning_rate": 0.02, "eval_steps": 2, "patience": 3}
    crystals = small_crystals()
    paths = {
        "base": inputs["base"],
        "train": crystal_table(tmp_path / "train.parquet", crystals[:4]),
        "val": crystal_table(tmp_path / "val.parquet", crystals[4:]),
    }
    out = run(paths, tmp_path / "adapter", **changes)
    validated = {int(row["step"]): float(row["val_loss"]) for row in curve(out) if row["val_loss"]}
    best = min(validated, key=validated.get)
    assert max(validated) == best + 2 * 3 < 400
    counts = read_provenance(out)["counts"]
    assert (counts["stopped_early"], counts["best_step"], counts["steps"]) == (True, best, best + 6)

    settings = settings_for("finetune_llm", inputs["base"], finetune_llm=changes)
    texts = TrainingTexts(
        crystal_rows()[4:],
        paths["val"],
        PromptTokens(settings.prompts, make_tokenizer()),
        max_tokens=settings.finetune_llm.max_tokens,
        infill_share=settings.finetune_llm.infill_share,
        formula_share=settings.finetune_llm.formula_share,
        properties_share=settings.finetune_llm.properties_share,
        translate=False,
        permute=False,
        seed=settings.seed,
        split="val",
    )
    batch = collate(texts.epoch(0), settings.finetune_llm.loss_on == "text", 0)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(inputs["base"]), out)
    with torch.no_grad():
        loss = summed_loss(model.eval(), batch, torch.device("cpu")).item() / batch.num_targets
    assert loss == pytest.approx(validated[best], abs=1e-4)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"sharding": "fsdp", "quantization": "nf4", "gradient_checkpointing": True},
        {"method": "full"},
    ],
)
def test_two_processes_train_what_one_does(inputs, tmp_path, more):
    """Two processes share the micro-batches; results differ only by the rounding of sums.

    With 5 texts in micro-batches of 2, the two processes have work of different sizes.
    """
    changes = {"max_steps": 5, "batch_size": 5, "micro_batch_size": 2, "lora_dropout": 0.1}
    changes |= {"eval_steps": 2, "save_steps": 3, "patience": 9, **more}
    settings = settings_for("finetune_llm", inputs["base"], finetune_llm=changes)
    values = {"seed": settings.seed, "version": settings.version, **settings.values}
    paths = [inputs["train"], inputs["val"], tmp_path / "two"]
    script = Path(__file__).parents[1] / "helpers" / "two_processes_llm.py"
    command = [sys.executable, str(script), json.dumps(values), *map(str, paths)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, env=environment, stderr=subprocess.PIPE, text=True)
    assert ("in each of 2 processes" in done.stderr) == ("sharding" in more)
    finetune_llm.run(settings, train=paths[0], val=paths[1], out=tmp_path / "one")
    name = "model.safetensors" if "method" in more else "adapter_model.safetensors"
    one, two = (load_file(tmp_path / n / name) for n in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)
    for left, right in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        for column in ("train_loss", "val_loss"):
            assert bool(left[column]) == bool(right[column])
            if left[column]:
                assert float(right[column]) == pytest.approx(float(left[column]), abs=1e-5)


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def test_another_seed_trains_another_adapter(inputs, tmp_path):
    first = run(inputs, tmp_path / "first", max_steps=2)
    settings = settings_for("finetune_llm", inputs["base"], seed=1, finetune_llm={"max_steps": 2})
    second = tmp_path / "second"
    finetune_llm.run(settings, train=inputs["train"], val=inputs["val"], out=second)
    name = "adapter_model.safetensors"
    assert (first / name).read_bytes() != (second / name).read_bytes()


def test_the_loss_is_transformers_own():
    model = make_model(len(make_tokenizer()))
    examples = [Example(tuple(range(1, 30)), 12), Example(tuple(range(40, 60)), 5)]
    for on_prompt in (False, True):
        batch = collate(examples, on_prompt, pad_token_id=0)
        lengths = torch.tensor([[len(example.tokens)] for example in examples])
        mask = (torch.arange(batch.input_ids.shape[1]) < lengths).long()
        theirs = model(input_ids=batch.input_ids, attention_mask=mask, labels=batch.labels).loss
        ours = summed_loss(model, batch, torch.device("cpu")) / batch.num_targets
        torch.testing.assert_close(ours, theirs)


def test_padding_counts_nowhere_and_the_end_token_counts():
    end = 7
    examples = [Example((1, 2, 3, 4, end), 2), Example((1, 2, end), 2)]
    batch = collate(examples, loss_on_prompt=False, pad_token_id=end)
    assert batch.labels.tolist() == [
        [IGNORED, IGNORED, 3, 4, end],
        [IGNORED, IGNORED, end, IGNORED, IGNORED],
    ]
    assert batch.num_targets == 4


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=300), st.integers(1, 16), st.integers(0, 99)
)
def test_an_epoch_sees_every_text_once_at_most(lengths, batch_size, seed):
    batch_size = min(batch_size, len(lengths))
    order = order_of_epoch(lengths, batch_size, np.random.default_rng(seed))
    assert order.shape == (len(lengths) // batch_size, batch_size)
    assert np.unique(order).size == order.size


def test_grouping_by_length_saves_padding():
    rng = np.random.default_rng(0)
    lengths = rng.integers(60, 420, 4000)
    grouped = order_of_epoch(lengths, 8, np.random.default_rng(1))
    mixed = rng.permutation(4000).reshape(-1, 8)
    assert padding_share(mixed, lengths, 8) > 0.25
    assert padding_share(grouped, lengths, 8) < 0.02
    # The share by hand: (4 + 2) of 8 tokens are text.
    assert padding_share(np.array([[0, 1]]), [4, 2], 2) == pytest.approx(1 - 6 / 8)
    assert padding_share(np.array([[0, 1]]), [4, 2], 1) == 0


def test_the_share_of_prompts_with_the_formula():
    prompts = PromptTokens(settings_for("finetune_llm", Path("x")).prompts, make_tokenizer())
    rows = crystal_rows() * 60
    for share, low, high in ((0.0, 0, 0), (1.0, 1, 1), (0.5, 0.4, 0.6)):
        texts = training_texts(rows, prompts, formula_share=share, properties_share=0.0)
        plain = len(prompts.prompt(UNCONDITIONAL))
        given_formula = [example.prompt_length > plain for example in texts.epoch(0)]
        assert low <= np.mean(given_formula) <= high
        assert texts.epoch(3) == texts.epoch(3)
        assert share != 0.5 or texts.epoch(0) != texts.epoch(1)


def decoded(texts: TrainingTexts, epoch: int) -> list[tuple[str, Crystal]]:
    """Each text's prompt, and its answer read as a crystal."""
    prompts = PromptTokens(settings_for("finetune_llm", Path("x")).prompts, make_tokenizer())
    return [
        (
            prompts.decode(example.tokens[: example.prompt_length]),
            decode(prompts.decode(example.tokens[example.prompt_length :]), max_atoms=20),
        )
        for example in texts.epoch(epoch)
    ]


@pytest.mark.parametrize(
    "changes", [{"translate": True}, {"permute": True}, {"translate": True, "permute": True}]
)
def test_augmented_texts_describe_the_same_crystals_anew_every_epoch(changes):
    prompts = PromptTokens(settings_for("finetune_llm", Path("x")).prompts, make_tokenizer())
    plain = training_texts(crystal_rows(), prompts)
    texts = training_texts(crystal_rows(), prompts, **changes)
    assert texts.epoch(1) == training_texts(crystal_rows(), prompts, **changes).epoch(1)
    assert texts.epoch(0) != texts.epoch(1)
    moved, shuffled = [], []
    for (asked, crystal), (prompt, other) in zip(decoded(plain, 0), decoded(texts, 0), strict=True):
        assert sorted(asked) == sorted(prompt)  # a formula's atoms change places with the text's
        shuffled.append(other.atomic_numbers.tolist() != crystal.atomic_numbers.tolist())
        moved.append(not np.isin(other.frac_coords, crystal.frac_coords).all())
        # Two decimal places move an atom by a hundredth of the cell at most.
        matcher = StructureMatcher(ltol=0.01, stol=0.1, primitive_cell=False, scale=False)
        assert matcher.fit(crystal.to_structure(), other.to_structure())
    assert any(shuffled) == ("permute" in changes)
    assert any(moved) == ("translate" in changes)


@pytest.mark.parametrize("translate", [False, True])
@pytest.mark.parametrize("permute", [False, True])
def test_the_configured_augmentations_are_those_of_training_texts_alone(translate, permute):
    section = settings_for(
        "finetune_llm",
        Path("x"),
        finetune_llm={
            **{"infill_share": 0.0, "formula_share": 1.0, "properties_share": 0.0},
            **{"augment_translation": translate, "augment_permutation": permute},
        },
    ).finetune_llm
    prompts = PromptTokens(settings_for("finetune_llm", Path("x")).prompts, make_tokenizer())
    rows = crystal_rows()
    train, val = (
        texts_of(split, rows, Path("x"), prompts, section, 0).epoch(0) for split in ("train", "val")
    )
    expected = training_texts(rows, prompts, translate=translate, permute=permute)
    assert train == expected.epoch(0)
    assert val == training_texts(rows, prompts).epoch(0)
    assert (train == val) == (not translate and not permute)


def test_an_augmentation_depends_on_row_and_epoch_alone():
    """Rows that are left out for their length do not change the augmentation of others."""
    prompts = PromptTokens(settings_for("finetune_llm", Path("x")).prompts, make_tokenizer())
    both = {"translate": True, "permute": True}
    few = training_texts(crystal_rows()[:2], prompts, **both)
    many = training_texts(crystal_rows(), prompts, **both)
    assert few.epoch(4) == many.epoch(4)[:2]


def test_property_prompts_give_any_choice_of_what_is_known():
    prompts = PromptTokens(settings_for("finetune_llm", Path("x")).prompts, make_tokenizer())
    rows = [{**row, "band_gap": 1.5, "e_above_hull": None} for row in crystal_rows()] * 60
    texts = training_texts(rows, prompts, formula_share=0.25, properties_share=0.5)
    seen = Counter(
        prompts.decode(example.tokens[: example.prompt_length]) for example in texts.epoch(0)
    )
    asked = Counter()
    for prompt, count in seen.items():
        words = ("Formula", "Elements", "Band gap", "above")
        asked[tuple(word for word in words if word in prompt)] += count / len(rows)
    # One, two or three of three conditions with a third of the chance each.
    chance = {1: 0.5 / 9, 2: 0.5 / 9, 3: 0.5 / 3}
    expected = {
        names: 0.25 * (names in ((), ("Formula",))) + (chance[len(names)] if names else 0)
        for names in powerset(["Formula", "Elements", "Band gap"])
    }
    assert asked.keys() == expected.keys()
    for names, share in expected.items():
        assert asked[names] == pytest.approx(share, abs=0.07), names


def powerset(names: list[str]) -> list[tuple[str, ...]]:
    return [chosen for count in range(len(names) + 1) for chosen in combinations(names, count)]


def test_infilling_hides_one_element_whose_symbol_is_the_answer():
    prompts = PromptTokens(settings_for("finetune_llm", Path("x")).prompts, make_tokenizer())
    rows = crystal_rows() * 40
    texts = training_texts(rows, prompts, infill_share=0.4, formula_share=0.3)
    hidden, plain = Counter(), Counter()
    for row, example in zip(rows, texts.epoch(0), strict=True):
        prompt = prompts.decode(example.tokens[: example.prompt_length])
        answer = prompts.decode(example.tokens[example.prompt_length :])
        if "What is ?" not in prompt:
            plain["Formula" in prompt] += 1
            continue
        shown = prompt.strip().split("\n")[3::2]
        symbols = [element_symbol(z) for z in row["atomic_numbers"]]
        assert shown == ["?" if symbol == answer else symbol for symbol in symbols]
        hidden[answer] += 1
    assert sum(hidden.values()) / len(rows) == pytest.approx(0.4, abs=0.08)
    assert plain[True] / len(rows) == pytest.approx(0.3, abs=0.08)
    assert set(hidden) == {element_symbol(z) for row in rows for z in row["atomic_numbers"]}


def test_a_permuted_crystal_has_its_formula_in_the_same_order():
    settings = settings_for("finetune_llm", Path("x"), prompts={"formula_style": "atoms"})
    prompts = PromptTokens(settings.prompts, make_tokenizer())
    for prompt, crystal in decoded(training_texts(crystal_rows(), prompts, permute=True), 0):
        symbols = " ".join(element_symbol(z) for z in crystal.atomic_numbers)
        assert f"Formula {symbols}." in prompt


def training_texts(rows, prompts, **changes) -> TrainingTexts:
    shares = {"infill_share": 0.0, "formula_share": 1.0, "properties_share": 0.0}
    given = {**shares, "translate": False, "permute": False}
    return TrainingTexts(
        rows,
        Path("train.parquet"),
        prompts,
        max_tokens=999,
        seed=0,
        split="train",
        **{**given, **changes},
    )


def crystal_rows() -> list[dict]:
    from flowllm.io.tables import crystal_columns

    return [crystal_columns(crystal) for crystal in small_crystals()]


def test_the_learning_rate_warms_up_and_falls_to_zero():
    section = settings_for(
        "finetune_llm", Path("x"), finetune_llm={"learning_rate": 2.0, "warmup_steps": 4}
    ).finetune_llm
    rates = [learning_rate(step, 24, section) for step in range(24)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[14] == pytest.approx(1.0)  # half way through the cosine
    assert rates[-1] == pytest.approx(1 + math.cos(math.pi * 19 / 20))
    assert rates[4:] == sorted(rates[4:], reverse=True)
