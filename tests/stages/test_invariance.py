"""Equation 9 on a tiny model, against transformers' own loss and loops in the paper's words."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flowllm.errors import FlowllmError
from flowllm.io.schemas import INVARIANCE
from flowllm.io.tables import read_table
from flowllm.llm.perplexity import increase_under_transformation
from flowllm.llm.prompts import UNCONDITIONAL, prompt_text
from flowllm.llm.text import encode
from flowllm.llm.transformations import permuted, translated
from flowllm.seeds import generator
from flowllm.stages import invariance
from llm_run import crystal_table, merged_model, settings_for, small_crystals


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("invariance")
    paths = merged_model(folder)
    return paths | {"crystals": crystal_table(folder / "val.parquet", small_crystals())}


def run(trained, out, **changes):
    section = {"num_crystals": 5, "num_transformations": 4, "batch_size": 3, **changes}
    settings = settings_for("invariance", trained["base"], invariance=section)
    invariance.run(settings, model=trained["model"], crystals=trained["crystals"], out=out)
    return read_table(out, INVARIANCE).to_pylist()


def bits(model, tokenizer, prompt: str, text: str) -> tuple[float, int]:
    """Cross entropy in bits of text and end token after the prompt, and their number of tokens."""
    before = tokenizer(prompt)["input_ids"]
    tokens = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([before + tokens])).logits[0].double()
    total = 0.0
    for place, token in enumerate(tokens, start=len(before)):
        total -= torch.log_softmax(logits[place - 1], dim=0)[token].item() / math.log(2)
    return total, len(tokens)


def test_rows_are_equation_9_worked_slowly(trained, tmp_path):
    rows = run(trained, tmp_path / "out.parquet")
    settings = settings_for("invariance", trained["base"])
    model = AutoModelForCausalLM.from_pretrained(trained["model"])
    tokenizer = AutoTokenizer.from_pretrained(trained["model"])
    prompt = prompt_text(settings.prompts, UNCONDITIONAL)
    assert [row["id"] for row in rows] == [f"crystal-{i}" for i in range(5)]
    for row, crystal in zip(rows, small_crystals()[:5], strict=True):

        def perplexity(one) -> float:
            cross_entropy, count = bits(model, tokenizer, prompt, encode(one))
            return 2 ** (cross_entropy / count)

        assert row["num_atoms"] == crystal.num_atoms
        assert row["perplexity"] == pytest.approx(perplexity(crystal), rel=1e-4)
        for kind, transform in (("translation", translated), ("permutation", permuted)):
            rng = generator(settings.seed, "invariance", kind, row["id"])
            values = [perplexity(transform(crystal, rng)) for _ in range(4)]
            best = min(*values, perplexity(crystal))
            expected = sum(value - best for value in values) / 4
            assert row[f"ipt_{kind}"] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_an_atom_alone_has_one_order(trained, tmp_path):
    rows = run(trained, tmp_path / "out.parquet")
    alone = [row for row in rows if row["num_atoms"] == 1]
    assert alone
    assert all(row["ipt_permutation"] == pytest.approx(0, abs=1e-6) for row in alone)
    assert all(row["ipt_translation"] > 0 for row in rows)


def test_a_crystals_row_depends_on_no_other_crystal_or_batch(trained, tmp_path):
    many = run(trained, tmp_path / "many.parquet")
    few = run(trained, tmp_path / "few.parquet", num_crystals=2, batch_size=8)
    assert [row.pop("id") for row in few] == [row.pop("id") for row in many[:2]]
    for one, other in zip(few, many[:2], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_another_models_prompts_are_refused(trained, tmp_path):
    settings = settings_for("invariance", trained["base"], prompts={"introduction": "Other."})
    paths = {"model": trained["model"], "crystals": trained["crystals"]}
    with pytest.raises(FlowllmError, match="other prompts"):
        invariance.run(settings, **paths, out=tmp_path / "out.parquet")


def test_increase_by_hand():
    assert increase_under_transformation(2.0, np.array([3.0, 5.0])) == 2.0  # 4 less 2
    assert increase_under_transformation(4.0, np.array([3.0, 5.0])) == 1.0  # 4 less 3
    assert increase_under_transformation(1.5, np.array([1.5, 1.5])) == 0.0
