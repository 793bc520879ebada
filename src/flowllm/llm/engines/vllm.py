"""The sampling engine: vLLM in offline batch mode, the CPU and the CUDA build with the same code.

What repeats: every text has its own random numbers, from its seed. The logits depend on what else
is in the batch, in their last bits: how sums are ordered follows from the batch's composition, and
once in many tokens that decides between two. So the same requests in the same order give the same
texts on the same machine and build where the engine runs within the process (CPU); elsewhere a
few texts differ, and their distribution does not.
"""

import logging
import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PretrainedConfig

from flowllm.llm.base_model import load_config
from flowllm.llm.engines.base import Draft, Request, Sampling
from flowllm.llm.model_files import MERGE_AGAIN, check_model_folder
from flowllm.runtime.log import log

if TYPE_CHECKING:
    from vllm import CompletionOutput, RequestOutput, SamplingParams


CPU_BATCH = 128
"""Texts at once on a CPU; more do not raise the throughput of its few cores."""

CPU_BLOCK = 32
"""Tokens of a cache block on the CPU; vLLM's 128 is longer than a prompt and would share none."""


class VllmEngine:
    """vLLM holding one model.

    Attributes:
        cached_prompt_tokens: tokens of prompts that were not computed again, in all texts so far.
    """

    def __init__(
        self, model: Path, *, gpus: int, max_prompt_tokens: int, sampling: Sampling
    ) -> None:
        """Load the model.

        Args:
            model: a plain Hugging Face folder.
            gpus: GPUs to spread it over; 0 for the CPU.
            max_prompt_tokens: the longest prompt.
            sampling: how all texts are drawn.
        """
        max_model_len = max_prompt_tokens + sampling.max_tokens
        check_model_folder(model, MERGE_AGAIN)
        if gpus and not torch.backends.cuda.is_built():
            log.warning("this is vLLM's build for the CPU: the job's %d GPUs stay idle", gpus)
            gpus = 0
        _set_environment(gpus)
        # Imported after the environment is set: vLLM reads it while it is imported.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            from vllm import LLM

            from flowllm.llm.engines.vllm_hooks import CONFIG, DrawProcessor

            config = load_config(str(model))
            self._llm = LLM(
                model=str(model),
                # Left to itself vLLM makes float32 weights bfloat16, which a CPU without
                # instructions for it multiplies many times slower.
                dtype=config.dtype,
                trust_remote_code=False,
                tensor_parallel_size=max(1, gpus),
                max_model_len=max_model_len,
                enable_prefix_caching=True,
                logits_processors=[DrawProcessor],
                additional_config={CONFIG: asdict(sampling)},
                disable_log_stats=True,
                use_tqdm_on_load=False,
                seed=0,
                **({} if gpus else _cpu_options(config, max_model_len)),
            )
        self._sampling = sampling
        self.cached_prompt_tokens = 0

    def submit(self, key: int, request: Request) -> None:
        """Take on a text; the key tells it from the others being written."""
        from vllm.inputs import TokensPrompt

        prompt = TokensPrompt(prompt_token_ids=list(request.prompt))
        self._llm.llm_engine.add_request(str(key), prompt, self._params(request))

    def finished(self) -> list[tuple[int, Draft]]:
        """Write on until a text is finished; the finished ones with their keys."""
        outputs: list[RequestOutput] = []
        while not outputs:
            outputs = self._llm.llm_engine.step()
        self.cached_prompt_tokens += sum(output.num_cached_tokens or 0 for output in outputs)
        if not self._llm.llm_engine.has_unfinished_requests():
            # What was cached differs in its last bits from what a resumed job would compute.
            self._llm.reset_prefix_cache()
        return [(int(output.request_id), _draft(output.outputs[0])) for output in outputs]

    def close(self) -> None:
        """Give back memory and process groups; a process holds one engine at a time."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm

    def _params(self, request: Request) -> "SamplingParams":
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        from flowllm.llm.engines.vllm_hooks import SEED

        structured = request.regex and StructuredOutputsParams(regex=request.regex)
        return SamplingParams(
            temperature=0.0,  # the likeliest token: the only one that DrawProcessor leaves
            extra_args={SEED: request.seed},
            max_tokens=self._sampling.max_tokens,
            stop_token_ids=[self._sampling.end_token_id],
            structured_outputs=structured or None,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def _draft(completion: "CompletionOutput") -> Draft:
    return Draft(tuple(completion.token_ids), completion.finish_reason == "length")


def _set_environment(gpus: int) -> None:
    """Set what vLLM reads from the environment, where the user has not."""
    defaults = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not gpus:
        defaults |= {
            # One process: the engine's own would have to load everything again.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # Else vLLM goes on with one thread, whatever there are.
            "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])


def cached_numbers(config: PretrainedConfig) -> int:
    """Return the numbers that the cache holds of each token: keys and values of all layers.

    Configurations from before grouped-query attention (GPT-2, OPT, GPT-NeoX) have no
    `num_key_value_heads`: each attention head has keys and values of its own.
    """
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    key_value_heads = getattr(text, "num_key_value_heads", None) or heads
    return int(2 * text.num_hidden_layers * key_value_heads * head_dim)


def _cpu_options(config: PretrainedConfig, max_model_len: int) -> dict[str, object]:
    """Options for the CPU: no compilation (it takes minutes), and a cache of just the batch's size.

    vLLM would otherwise take a share of all memory, and refuse to start where others use it.
    """
    value_bytes = torch.finfo(config.dtype).bits // 8
    token_bytes = value_bytes * cached_numbers(config)
    blocks = CPU_BATCH * -(-max_model_len // CPU_BLOCK) + 1
    return {
        "enforce_eager": True,
        "max_num_seqs": CPU_BATCH,
        "block_size": CPU_BLOCK,
        "kv_cache_memory_bytes": blocks * CPU_BLOCK * token_bytes,
    }
