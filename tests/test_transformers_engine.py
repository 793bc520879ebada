"""Two engines, one model: transformers' generate and vLLM write the same texts."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from flowllm.errors import FlowllmError
from flowllm.llm.engine import Request, Sampling, VllmEngine
from flowllm.llm.transformers_engine import GumbelNoise, TransformersEngine
from tiny_llm import make_tokenizer, write_tiny_llm

PROMPTS = ["A crystal.\n", "Formula Na4Cl4.\n", "Formula Cs1Cl1, and a much longer prompt.\n"]
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=24, end_token_id=0)
FREE = Sampling(temperature=1.0, top_p=0.9, max_tokens=24, end_token_id=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llm(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def requests():
    tokenizer = make_tokenizer()
    return [Request(tuple(tokenizer(text)["input_ids"]), seed) for seed, text in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def vllm_outputs(folder, requests):
    """Greedy drafts of vLLM, and the log-probabilities of their tokens."""
    from vllm import SamplingParams

    longest = max(len(request.prompt) for request in requests)
    engine = VllmEngine(folder, gpus=0, max_prompt_tokens=longest, sampling=GREEDY)
    drafts = engine.generate(requests)
    outputs = engine._llm.generate(
        [{"prompt_token_ids": list(request.prompt)} for request in requests],
        SamplingParams(temperature=0.0, max_tokens=24, logprobs=0, detokenize=False),
        use_tqdm=False,
    )
    engine.close()
    completions = [output.outputs[0] for output in outputs]
    logprobs = [
        [step[token].logprob for step, token in zip(c.logprobs, c.token_ids, strict=True)]
        for c in completions
    ]
    return drafts, [tuple(c.token_ids) for c in completions], logprobs


def test_greedy_texts_agree_with_vllm(folder, requests, vllm_outputs):
    drafts, _, _ = vllm_outputs
    together = TransformersEngine(folder, sampling=GREEDY).generate(requests)
    assert together == drafts
    one_by_one = TransformersEngine(folder, sampling=GREEDY, batch_size=1).generate(requests)
    assert one_by_one == drafts


def test_log_probabilities_agree_with_vllm(folder, requests, vllm_outputs):
    _, tokens, logprobs = vllm_outputs
    model = AutoModelForCausalLM.from_pretrained(folder)
    for request, written, given in zip(requests, tokens, logprobs, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([request.prompt + written])).logits[0]
        predicted = logits[len(request.prompt) - 1 : -1].log_softmax(-1)
        expected = predicted.gather(-1, torch.tensor(written)[:, None])[:, 0]
        np.testing.assert_allclose(given, expected, atol=1e-4)


def test_a_text_depends_on_its_seed_and_not_on_its_batch(folder, requests):
    many = [Request(requests[0].prompt, seed) for seed in range(8)]
    together = TransformersEngine(folder, sampling=FREE).generate(many)
    in_threes = TransformersEngine(folder, sampling=FREE, batch_size=3).generate(many)
    assert together == in_threes
    assert len(set(together)) == len(many)


def test_noisy_maxima_are_draws_from_the_softmax():
    probabilities = torch.tensor([0.5, 0.3, 0.2, 0.0])
    scores = probabilities.log().expand(20000, 4)
    noisy = GumbelNoise(range(20000), torch.device("cpu"))(None, scores)
    shares = torch.bincount(noisy.argmax(-1), minlength=4) / 20000
    assert shares[3] == 0
    # Five standard deviations of a share of 20,000 draws.
    np.testing.assert_allclose(shares, probabilities, atol=5 * 0.5 / 20000**0.5)


def test_a_form_needs_vllm(folder, requests):
    request = Request(requests[0].prompt, 0, regex="[0-9]+")
    with pytest.raises(FlowllmError, match="vllm"):
        TransformersEngine(folder, sampling=FREE).generate([request])
