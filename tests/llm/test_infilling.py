"""`flowllm infill`: an element's chance, against the model's plain probabilities of whole texts."""

import math
from pathlib import Path

import pytest
import torch

from crystals import rocksalt
from flowllm.commands.infill import infill
from flowllm.config.load import load_config
from flowllm.errors import FlowllmError
from flowllm.llm.infilling import element_chances
from flowllm.llm.prompts import PromptTokens
from flowllm.llm.text_parts import element_symbol
from llm_run import CONFIGS, merged_model
from tiny_llm import make_model, make_tokenizer


def test_chances_are_those_of_whole_texts():
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer)).eval()
    prompts = PromptTokens(load_config(CONFIGS).prompts, tokenizer)
    elements = [1, 9, 17, 35]  # symbols of one letter and of two
    asked = prompts.infilling(prompts.crystal_text.describe(rocksalt()), 17)
    slow = []
    for z in elements:
        answer = prompts.answer(element_symbol(z))
        text = torch.tensor([[*asked.tokens[: asked.prompt_length], *answer]])
        logs = model(text).logits[0].log_softmax(-1).detach()
        places = range(asked.prompt_length, text.shape[1])
        slow.append(math.exp(sum(float(logs[i - 1, text[0, i]]) for i in places)))
    chances = element_chances(model, prompts, rocksalt(), 17, elements)
    assert chances == pytest.approx([chance / sum(slow) for chance in slow], rel=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("infilling")
    changes = {"infill_share": 1.0, "formula_share": 0.0}
    merged_model(folder, finetune_llm=changes)
    (folder / "salt.cif").write_text(rocksalt().to_structure().to(fmt="cif"))
    return folder


def test_every_element_of_the_training_crystals_has_its_chance(folder):
    ask = {"model": folder / "model", "cif": folder / "salt.cif"}
    chances = infill(load_config(CONFIGS), **ask, hidden="Cl")
    assert set(chances) == {"O", "Na", "Cl", "Ti", "Cu", "Sr", "Cs"}
    assert sum(chances.values()) == pytest.approx(1)
    assert list(chances.values()) == sorted(chances.values(), reverse=True)
    with pytest.raises(FlowllmError, match="no Ti"):
        infill(load_config(CONFIGS), **ask, hidden="Ti")


def test_a_model_not_trained_on_it_is_refused(tmp_path):
    paths = merged_model(tmp_path)
    with pytest.raises(FlowllmError, match="infill_share"):
        infill(load_config(CONFIGS), model=paths["model"], cif=tmp_path / "x.cif", hidden="Cl")
