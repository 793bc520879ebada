"""Two engines, one model: transformers' generate and vLLM write the same texts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from flowllm.errors import FlowllmError
from flowllm.llm.engines.base import DraftRequest, SamplingOptions
from flowllm.llm.engines.transformers import TransformersEngine
from flowllm.llm.engines.vllm import CPU_BATCH, VllmEngine
from flowllm.llm.engines.vllm_hooks import SEED
from flowllm.llm.masks import MaskOptions
from llm_run import drafts_of
from tiny_llm import END, make_tokenizer, write_tiny_llm

PROMPTS = ["A crystal.\n", "Formula Na4Cl4.\n", "Formula Cs1Cl1, and a much longer prompt.\n"]
GREEDY = SamplingOptions(
    temperature=0.0, top_p=1.0, max_tokens=24, end_token_id=0, allowed_tokens=None
)
FREE = replace(GREEDY, temperature=1.0, top_p=0.9)
DIGITS = tuple(sorted(make_tokenizer().convert_tokens_to_ids([*"0123456789", END])))
NARROW = replace(FREE, allowed_tokens=DIGITS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llm(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def requests():
    tokenizer = make_tokenizer()
    return [
        DraftRequest(tuple(tokenizer(text)["input_ids"]), seed) for seed, text in enumerate(PROMPTS)
    ]


@pytest.fixture(scope="module")
def vllm_outputs(folder, requests):
    """Greedy drafts of vLLM, and the log-probabilities of their tokens."""
    from vllm import SamplingParams

    longest = max(len(request.prompt) for request in requests)
    engine = VllmEngine(folder, gpus=0, max_prompt_tokens=longest, sampling=GREEDY)
    drafts = drafts_of(engine, requests)
    outputs = engine._llm.generate(
        [{"prompt_token_ids": list(request.prompt)} for request in requests],
        SamplingParams(
            temperature=0.0, max_tokens=24, logprobs=0, detokenize=False, extra_args={SEED: 0}
        ),
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
    together = drafts_of(TransformersEngine(folder, sampling=GREEDY), requests)
    assert together == drafts
    one_by_one = drafts_of(TransformersEngine(folder, sampling=GREEDY, batch_size=1), requests)
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
    many = [DraftRequest(requests[0].prompt, seed) for seed in range(8)]
    together = drafts_of(TransformersEngine(folder, sampling=FREE), many)
    in_threes = drafts_of(TransformersEngine(folder, sampling=FREE, batch_size=3), many)
    assert together == in_threes
    assert len(set(together)) == len(many)


@pytest.mark.parametrize("sampling", [FREE, NARROW], ids=["all tokens", "allowed tokens"])
def test_both_engines_draw_the_same_texts(folder, requests, sampling):
    """Random numbers do not depend on the position of a request in the queue or the batch."""
    many = [
        DraftRequest(requests[i % 3].prompt, seed) for i, seed in enumerate(range(CPU_BATCH + 5))
    ]
    longest = max(len(request.prompt) for request in requests)
    engine = VllmEngine(folder, gpus=0, max_prompt_tokens=longest, sampling=sampling)
    drafts, again = drafts_of(engine, many), drafts_of(engine, many[-2:])
    engine.close()
    assert again == drafts[-2:]
    others = drafts_of(TransformersEngine(folder, sampling=sampling), many)
    same = [ours == theirs for ours, theirs in zip(drafts, others, strict=True)]
    # The last bits of the logits differ, which occasionally changes a sampled token.
    assert sum(same) >= 0.97 * len(same)
    written = {token for draft in drafts for token in draft.tokens}
    assert written == set(DIGITS) if sampling.allowed_tokens else len(written) > 50


APART = "4.0 4.0 4.0\n90 90 90\nNa\n0.00 0.00 0.00\nNa\n0.00 0.00 0."
"""After this, the digits 0 and 9 only lead to points less than 0.5 angstrom from the first atom."""


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_mask_excludes_near_points_and_a_request_ends_its_text(folder, requests, engine):
    tokenizer = make_tokenizer()
    texts = {token: tokenizer.decode([token]) for token in DIGITS} | {DIGITS[0]: "\n"}
    every = {t: tokenizer.decode([t]) for t in tokenizer(APART)["input_ids"]}
    sampling = replace(NARROW, max_tokens=100, masks=MaskOptions("coordinates", 0.5, texts | every))
    kept = tuple(tokenizer(APART)["input_ids"])
    start = DraftRequest(requests[0].prompt, 0, kept=kept, stops=lambda tokens: len(tokens) > 0)
    if engine == "vllm":
        made = VllmEngine(folder, gpus=0, max_prompt_tokens=100, sampling=sampling)
    else:
        made = TransformersEngine(folder, sampling=sampling)
    plain = drafts_of(made, [replace(start, seed=seed) for seed in range(60)])
    masked = drafts_of(made, [replace(start, seed=seed, masked="line") for seed in range(60)])
    made.close()
    assert {len(draft.tokens) for draft in [*plain, *masked]} == {1}
    written = [
        {tokenizer.decode(draft.tokens[0]) for draft in drafts} for drafts in (plain, masked)
    ]
    assert {"0", "9"} <= written[0]
    assert written[1] <= set("12345678")
    assert len(written[1]) > 3


def test_kept_tokens_count_towards_the_maximum(folder, requests):
    request = replace(requests[0], kept=requests[1].prompt[:10])
    [whole] = drafts_of(TransformersEngine(folder, sampling=GREEDY), [requests[0]])
    [rest, other] = drafts_of(TransformersEngine(folder, sampling=GREEDY), [request, requests[0]])
    assert len(rest.tokens) == GREEDY.max_tokens - 10
    assert rest.truncated
    assert other == whole


def test_a_form_needs_vllm(folder, requests):
    request = DraftRequest(requests[0].prompt, 0, regex="[0-9]+")
    with pytest.raises(FlowllmError, match="vllm"):
        drafts_of(TransformersEngine(folder, sampling=FREE), [request])
