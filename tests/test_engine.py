"""What vLLM is asked for on machines that the tests do not have: one GPU and several."""

import pytest

from flowllm.llm.engine import Sampling, VllmEngine
from tiny_llm import write_tiny_llm

SAMPLING = Sampling(
    temperature=0.9, top_p=0.99, max_tokens=300, end_token_id=0, allowed_tokens=(0, 5, 7)
)


@pytest.mark.parametrize(
    ("gpus", "shares", "small_head"), [(0, 1, True), (1, 1, True), (4, 4, False)]
)
def test_the_model_is_spread_over_the_jobs_gpus(tmp_path, monkeypatch, gpus, shares, small_head):
    asked, calls = {}, []

    class Recorder:
        """Takes vLLM's place: the options are what is looked at."""

        def __init__(self, **options: object) -> None:
            asked.update(options)

        def collective_rpc(self, name: str, args: tuple) -> None:
            calls.append((name, args))

    monkeypatch.setattr("vllm.LLM", Recorder)
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: True)
    VllmEngine(write_tiny_llm(tmp_path), gpus=gpus, max_prompt_tokens=100, sampling=SAMPLING)
    assert asked["tensor_parallel_size"] == shares
    assert asked["max_model_len"] == 400
    assert asked["enable_prefix_caching"]
    assert ("kv_cache_memory_bytes" in asked) == (gpus == 0)
    assert calls == ([("use_small_head", ((0, 5, 7),))] if small_head else [])
