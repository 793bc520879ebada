"""A model with random weights: its tokenizer, its size, and the way from training to texts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from flowllm.commands.generate_drafts import draft_rows
from flowllm.config.sections.scratch import Scratch
from flowllm.crystal import MAX_ATOMIC_NUMBER
from flowllm.errors import FlowllmError
from flowllm.io.tables import crystal_of
from flowllm.llm.base_checks import check_tokenizer
from flowllm.llm.prompts import Conditions, PromptTokens, prompt_text
from flowllm.llm.scratch import END, make_tokenizer, scratch_config, write_scratch
from flowllm.llm.text_parts import element_symbol
from flowllm.stages import finetune_llm, merge_adapter
from llm_run import crystal_table, settings_for, small_crystals

TINY = {
    **{"base_model": "scratch", "method": "full"},
    "scratch": {"width": 64, "layers": 2, "heads": 2},
}
ALL = Conditions("Na Na Cl Cl", ("Na", "Cl"), -2.125, 0.5, 0.0, 225)


@pytest.fixture(scope="module")
def prompts():
    return settings_for("finetune_llm", "scratch", finetune_llm=TINY).prompts


@pytest.fixture(scope="module")
def tokenizer(prompts):
    return make_tokenizer(prompts)


@given(text=st.text().filter(lambda text: END not in text))
def test_any_text_is_written_and_read(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_an_element_is_one_token_and_so_is_a_digit(tokenizer):
    for z in range(1, MAX_ATOMIC_NUMBER + 1):
        assert len(tokenizer(element_symbol(z))["input_ids"]) == 1
    # Symbol, space, multiplicity, letter; then coordinates: the lines of a symmetric text's site.
    text = "Na 96g\n0.12 0.50 0.00\n"
    assert len(tokenizer(text)["input_ids"]) == len(text) - 1


def test_constant_parts_of_prompts_are_one_token_each(prompts, tokenizer):
    for conditions, values in ((Conditions(), ""), (ALL, "NaNaClClNaCl-2.1250.5000.000225")):
        text = prompt_text(prompts, conditions)
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        words = [piece for piece in pieces if len(piece) > 2]
        assert words == [piece for piece in words if piece in tokenizer.get_added_vocab()]
        assert len(words) == 2 + len(conditions.given())
        assert len(pieces) < len(words) + len(values) + 3 * len(words)


def test_the_checks_of_a_base_models_tokenizer_pass(prompts, tokenizer):
    check_tokenizer(PromptTokens(prompts, tokenizer), len(tokenizer), [], [ALL])


@pytest.mark.parametrize(("width", "layers", "heads"), [(64, 2, 2), (256, 6, 4), (320, 8, 5)])
def test_the_number_of_weights_is_that_of_the_formula(tokenizer, width, layers, heads):
    config = scratch_config(Scratch(width=width, layers=layers, heads=heads), tokenizer)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    hidden = config.intermediate_size
    assert hidden % 16 == 0
    assert abs(hidden - 8 * width / 3) < 16
    layer = 4 * width**2 + 3 * width * hidden + 2 * width
    assert model.num_parameters() == len(tokenizer) * width + layers * layer + width


def test_weights_follow_from_the_seed_alone(prompts, tmp_path):
    size = Scratch(width=64, layers=2, heads=2)
    before = torch.get_rng_state()
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        write_scratch(tmp_path / name, size, prompts, seed)
    assert torch.equal(torch.get_rng_state(), before)
    one, again, two = (tmp_path / name for name in ("one", "again", "two"))
    for path in one.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
    weights, others = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert not torch.equal(
        weights["model.embed_tokens.weight"], others["model.embed_tokens.weight"]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that has learned eight crystals by heart."""
    folder = tmp_path_factory.mktemp("scratch")
    train = crystal_table(folder / "train.parquet", small_crystals())
    learning = {"max_steps": 250, "learning_rate": 5e-3, "warmup_steps": 10, "batch_size": 8}
    given = {**TINY, **learning, "micro_batch_size": 8, "formula_share": 0.5}
    settings = settings_for("finetune_llm", "scratch", finetune_llm=given)
    finetune_llm.run(settings, train=train, val=train, out=folder / "adapter")
    settings = settings_for("merge_adapter", "scratch", finetune_llm=TINY)
    merge_adapter.run(settings, adapter=folder / "adapter", out=folder / "model")
    return folder


def sampled(trained, backend: str, *, structured: bool) -> list[dict]:
    changes = {"backend": backend, "structured": structured, "max_attempts": 4}
    settings = settings_for(
        "sample_base", "scratch", row="tau0.7-p0.9", sample_base=changes, finetune_llm=TINY
    )
    asked = [{}, {"formula": "NaCl"}]
    return draft_rows(settings, model=trained / "model", asked=asked, count=3, gpus=0)


def check_texts(rows: list[dict]) -> None:
    """The texts are crystals, and the last three have the atoms of the prompt's formula."""
    assert [row["status"] for row in rows] == ["ok"] * 6
    for row in rows[3:]:
        assert np.unique(crystal_of(row).atomic_numbers).tolist() == [11, 17]


def test_transformers_samples_the_trained_model(trained):
    check_texts(sampled(trained, "transformers", structured=False))


@pytest.mark.parametrize("structured", [False, True])
def test_vllm_samples_the_trained_model(trained, structured):
    check_texts(sampled(trained, "vllm", structured=structured))


def test_the_folder_is_that_of_any_other_model(trained):
    loaded = AutoModelForCausalLM.from_pretrained(trained / "model")
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    assert loaded.config.model_type == "llama"
    assert loaded.config.vocab_size == len(tokenizer)
    assert loaded.config.eos_token_id == tokenizer.eos_token_id == 0


def test_a_network_that_vllm_cannot_compute_is_refused():
    with pytest.raises(FlowllmError, match=r"width 256 with 6 heads gives 42\.6667 features"):
        settings_for(
            "finetune_llm",
            "scratch",
            finetune_llm={**TINY, "scratch": {"width": 256, "layers": 6, "heads": 6}},
        )
