"""Random numbers of a batch on its device: the same as text by text, in few transfers."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from flowllm.llm.engines.base import DraftRequest, SamplingOptions
from flowllm.llm.engines.random_numbers import RandomNumbers, on_device
from flowllm.llm.engines.top_p import draw_tokens, uniforms_of

TOKENS, VOCABULARY = 12, 300
CPU = torch.device("cpu")
SAMPLING = SamplingOptions(
    temperature=0.8, top_p=0.9, max_tokens=TOKENS, end_token_id=0, allowed_tokens=None
)
ALLOWED = tuple(range(40, 260))


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "remove", "take"]), st.integers(0, 10**6)), max_size=40
    )
)
def test_every_text_has_its_own_numbers_whatever_joins_and_leaves(events):
    numbers = RandomNumbers(TOKENS, CPU)
    texts: list[tuple[int, int]] = []
    for what, number in events:
        if what == "add":
            texts.append((number, numbers.add(number)))
        elif what == "remove" and texts:
            texts.pop(number % len(texts))
            numbers.keep([row for _, row in texts])
        elif what == "take" and texts:
            positions = [(number + i) % TOKENS for i in range(len(texts))]
            rows = on_device([row for _, row in texts], CPU)
            expected = [
                uniforms_of(seed, TOKENS)[position]
                for (seed, _), position in zip(texts, positions, strict=True)
            ]
            assert torch.equal(numbers.take(rows, positions), torch.stack(expected))


def test_more_texts_than_rows_keep_their_numbers():
    numbers = RandomNumbers(TOKENS, CPU)
    rows = []
    for seed in range(200):
        rows.append(numbers.add(seed))
        if seed % 50 == 0:
            numbers.take(on_device(rows, CPU), [0] * len(rows))
    expected = torch.stack([uniforms_of(seed, TOKENS)[3] for seed in range(200)])
    assert torch.equal(numbers.take(on_device(rows, CPU), [3] * 200), expected)


def processor_of(sampling: SamplingOptions):
    """Return the logits processor that vLLM runs, without vLLM's engine."""
    hooks = pytest.importorskip("flowllm.llm.engines.vllm_hooks", exc_type=ImportError)
    options = {hooks.CONFIG: asdict(sampling), hooks.MASKS: None}
    return hooks.DrawProcessor(SimpleNamespace(additional_config=options), CPU, False)


def update_of(added=(), removed=(), moved=()):
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    from flowllm.llm.engines.vllm_hooks import SEED

    entries = [
        (row, SamplingParams(extra_args={SEED: seed}), None, written)
        for row, seed, written in added
    ]
    return BatchUpdate(0, removed=removed, added=entries, moved=moved)


def drawn_one_by_one(logits, texts, sampling):
    """Return each text's token, drawn alone with its own generator."""
    allowed = range(VOCABULARY) if sampling.allowed_tokens is None else sampling.allowed_tokens
    allowed = torch.tensor(list(allowed))
    return [
        allowed[
            draw_tokens(
                row[allowed][None],
                uniforms_of(seed, TOKENS)[len(written)][None],
                temperature=sampling.temperature,
                top_p=sampling.top_p,
            )
        ].item()
        for row, (seed, written) in zip(logits, texts, strict=True)
    ]


@pytest.mark.parametrize("allowed", [None, ALLOWED], ids=["all tokens", "allowed tokens"])
def test_vllms_draws_are_those_of_each_text_alone(allowed):
    sampling = replace(SAMPLING, allowed_tokens=allowed)
    processor = processor_of(sampling)
    from vllm.v1.sample.logits_processor.interface import MoveDirectionality

    torch.manual_seed(0)
    texts = [(seed, []) for seed in range(5)]

    def step():
        logits = torch.randn(len(texts), VOCABULARY)
        expected = drawn_one_by_one(logits, texts, sampling)
        left = processor.apply(logits.clone())
        assert torch.isfinite(left).sum(dim=1).tolist() == [1] * len(texts)
        assert left.argmax(dim=1).tolist() == expected
        for (_, written), token in zip(texts, expected, strict=True):
            written.append(token)

    processor.update_state(update_of([(i, *text) for i, text in enumerate(texts)]))
    step()
    processor.update_state(None)
    step()
    # Text 1 ends, and the last text takes its place; then two others change places.
    texts[1] = texts.pop()
    processor.update_state(
        update_of(removed=[1], moved=[(4, 1, MoveDirectionality.UNIDIRECTIONAL)])
    )
    step()
    texts[0], texts[2] = texts[2], texts[0]
    processor.update_state(update_of(moved=[(0, 2, MoveDirectionality.SWAP)]))
    step()
    # A new text replaces text 3 at once, and another joins.
    texts[3] = (77, [])
    texts.append((78, []))
    processor.update_state(update_of([(3, *texts[3]), (4, *texts[4])]))
    step()
    step()


def transfers(step) -> int:
    """Return how many scalars were read and how many tensors were copied in a step."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    names = ("aten::_local_scalar_dense", "aten::copy_", "aten::_to_copy")
    return sum(one.count for one in profiler.key_averages() if one.key in names)


def test_the_transfers_of_a_step_of_vllm_do_not_depend_on_the_number_of_texts():
    found = []
    for count in (8, 64):
        processor = processor_of(SAMPLING)
        processor.update_state(update_of([(row, row, []) for row in range(count)]))
        processor.apply(torch.randn(count, VOCABULARY))
        logits = torch.zeros(count, VOCABULARY)
        logits[:, 5] = 50.0  # no row has a nucleus that is sorted completely
        found.append(transfers(lambda p=processor, x=logits: p.apply(x)))
    assert found[0] == found[1]


def test_the_transfers_of_a_step_of_transformers_do_not_depend_on_the_number_of_texts():
    from flowllm.llm.engines.transformers import EndedByRequest, SampledToken

    found = []
    for count in (8, 64):
        requests = [DraftRequest((1, 2), seed) for seed in range(count)]
        sampled = SampledToken(requests, SAMPLING, 2, CPU)
        ended = EndedByRequest(requests, SAMPLING, 2, CPU)
        input_ids = torch.ones(count, 5, dtype=torch.int64)
        logits = torch.zeros(count, VOCABULARY)
        logits[:, 5] = 50.0
        sampled(input_ids, logits)

        def step(sampled=sampled, ended=ended, input_ids=input_ids, logits=logits):
            sampled(input_ids, logits)
            ended(input_ids, logits)

        found.append(transfers(step))
    assert found[0] == found[1]


def test_rows_end_at_their_end_token_at_their_maximum_and_where_a_request_says_so():
    from flowllm.llm.engines.transformers import EndedByRequest

    given_tokens = []
    requests = [
        DraftRequest((1,), 0),
        DraftRequest((1,), 1, kept=(3,) * (TOKENS - 2)),
        DraftRequest((1,), 2, stops=lambda tokens: given_tokens.extend(tokens) or tokens == [9]),
        DraftRequest((1,), 3),
    ]
    ended = EndedByRequest(requests, SAMPLING, 1, CPU)
    texts = torch.tensor([[1, 5, 0, 0], [1, 5, 6, 7], [1, 8, 9, 4], [1, 5, 5, 5]])
    steps = [ended(texts[:, : 2 + step], torch.empty(0)).tolist() for step in range(3)]
    assert steps == [
        [False, False, False, False],
        [True, True, True, False],
        [True, True, True, False],
    ]
    assert given_tokens == [8, 9]
    assert ended.lengths == [TOKENS, 2, 2, TOKENS]
