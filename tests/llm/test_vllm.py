"""Options given to vLLM on machines with one or several GPUs, which the tests do not need."""

import pytest

from flowllm.llm.engines.base import SamplingOptions
from flowllm.llm.engines.vllm import VllmEngine
from tiny_llm import write_tiny_llm

SAMPLING = SamplingOptions(
    temperature=0.9, top_p=0.99, max_tokens=300, end_token_id=0, allowed_tokens=(0, 5, 7)
)


@pytest.mark.parametrize(("gpus", "shares"), [(0, 1), (1, 1), (4, 4)])
def test_the_model_is_spread_over_the_jobs_gpus(tmp_path, monkeypatch, gpus, shares):
    asked = {}

    class Recorder:
        """Replaces vLLM and records its options."""

        def __init__(self, **options: object) -> None:
            asked.update(options)

    monkeypatch.setattr("vllm.LLM", Recorder)
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: True)
    VllmEngine(write_tiny_llm(tmp_path), gpus=gpus, max_prompt_tokens=100, sampling=SAMPLING)
    assert asked["tensor_parallel_size"] == shares
    assert asked["max_model_len"] == 400
    assert asked["enable_prefix_caching"]
    assert ("kv_cache_memory_bytes" in asked) == (gpus == 0)
