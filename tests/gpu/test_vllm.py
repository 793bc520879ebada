"""vLLM on a device: greedy texts are those of transformers, forms are kept, GPUs share a model."""

import re

import pytest

pytest.importorskip("vllm")
pytest.importorskip("transformers")

import torch

from flowllm.llm.engines import transformers as engine
from flowllm.llm.engines.base import DraftRequest, SamplingOptions
from flowllm.llm.engines.transformers import TransformersEngine
from flowllm.llm.engines.vllm import VllmEngine
from llm_run import drafts_of
from tiny_llm import make_tokenizer, write_tiny_llm

GREEDY = SamplingOptions(
    temperature=0.0, top_p=1.0, max_tokens=24, end_token_id=0, allowed_tokens=None
)


def check_engine(folder, gpus, monkeypatch):
    """Compare greedy texts with those of transformers on the CPU, and sample texts of a form."""
    tokenizer = make_tokenizer()
    prompts = ["A crystal.\n", "Formula Na4Cl4.\n", "Formula Cs1Cl1, and a longer prompt.\n"]
    requests = [DraftRequest(tuple(tokenizer(text)["input_ids"]), 0) for text in prompts]
    form = [DraftRequest(requests[0].prompt, seed, regex="[0-9]{3}\n") for seed in range(8)]
    made = VllmEngine(folder, gpus=gpus, max_prompt_tokens=60, sampling=GREEDY)
    found, formed = drafts_of(made, requests), drafts_of(made, form)
    made.close()
    monkeypatch.setattr(engine, "pick_device", lambda: torch.device("cpu"))
    expected = drafts_of(TransformersEngine(folder, sampling=GREEDY), requests)
    same = [
        sum(one == other for one, other in zip(a.tokens, b.tokens, strict=False))
        for a, b in zip(found, expected, strict=True)
    ]
    # A token that is nearly as likely as another may change, and the text diverges from there.
    assert sum(same) >= 0.8 * sum(len(draft.tokens) for draft in expected)
    for draft in formed:
        assert re.fullmatch("[0-9]{3}\n", tokenizer.decode(draft.tokens, skip_special_tokens=True))


def test_texts_are_those_of_transformers_and_forms_are_kept(device, tmp_path, monkeypatch):
    if device.type == "cpu" and torch.backends.cuda.is_built():
        pytest.skip("vLLM is its CUDA build, which does not run on the CPU")
    check_engine(write_tiny_llm(tmp_path), int(device.type == "cuda"), monkeypatch)


@pytest.mark.gpu
def test_two_gpus_share_a_model(tmp_path, monkeypatch):
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs 2 CUDA GPUs, {torch.cuda.device_count()} are visible")
    check_engine(write_tiny_llm(tmp_path), 2, monkeypatch)
