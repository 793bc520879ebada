"""Sampling engine based on vLLM in offline batch mode, for its CPU build and its CUDA build.

Reproducibility: every text has its own random numbers, which follow from its seed. The last bits of
the logits, however, depend on the other texts of the batch, because the batch determines the order
of summation. Occasionally this changes a sampled token, and the text diverges from there. The same
requests in the same order therefore give the same texts only on the same machine and build, and
only where the engine runs within the process (CPU). Elsewhere a few texts differ, but their
distribution is the same.
"""

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from transformers import PretrainedConfig

from flowllm.llm.base_model import dtype_of, load_config
from flowllm.llm.engines.base import Draft, DraftRequest, SamplingOptions
from flowllm.llm.model_files import MERGE_AGAIN, check_model_folder
from flowllm.runtime.log import log
from flowllm.runtime.threads import usable_cores

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

CPU_BATCH = 128
"""Maximum number of texts per batch on a CPU. Larger batches do not increase the throughput."""

CPU_BLOCK = 32
"""Tokens per cache block on a CPU. vLLM's default of 128 exceeds the length of a prompt, so that no
block of it could be shared."""


class _CpuOptions(TypedDict, total=False):
    """Options of `vllm.LLM` that are set on a CPU only.

    Attributes:
        enforce_eager: whether compilation is skipped.
        max_num_seqs: maximum number of texts per batch.
        block_size: tokens per cache block.
        kv_cache_memory_bytes: size of the cache.
    """

    enforce_eager: bool
    max_num_seqs: int
    block_size: int
    kv_cache_memory_bytes: int


@dataclass
class _Watched:
    """A text that its request may end.

    Attributes:
        stops: function of the request, see `DraftRequest`.
        tokens: tokens sampled so far.
    """

    stops: Callable[[Sequence[int]], bool]
    tokens: list[int] = field(default_factory=list)


class VllmEngine:
    """An `Engine` that runs one model with vLLM.

    Attributes:
        cached_prompt_tokens: prompt tokens that were read from a cache instead of being computed,
            summed over all texts so far.
    """

    def __init__(
        self, model: Path, *, gpus: int, max_prompt_tokens: int, sampling: SamplingOptions
    ) -> None:
        """Load the model.

        Args:
            model: Hugging Face folder of a model without adapter or quantization.
            gpus: number of GPUs over which the model is distributed; 0 for the CPU.
            max_prompt_tokens: length of the longest prompt.
            sampling: options of the token sampling.

        Raises:
            FlowllmError: the folder is rejected by `check_model_folder`.
        """
        max_model_len = max_prompt_tokens + sampling.max_tokens
        check_model_folder(model, MERGE_AGAIN)
        if gpus and not torch.backends.cuda.is_built():
            log.warning(
                "The installed vLLM is its CPU build, so the %d GPUs of this job are not used. "
                "Install flowllm[gpu] to use them.",
                gpus,
            )
            gpus = 0
        _set_environment(gpus)
        # vLLM reads the environment when it is imported, so it is imported only now.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            from vllm import LLM

            from flowllm.llm.engines.vllm_hooks import CONFIG, MASKS, DrawProcessor

            config = load_config(str(model))
            masks = sampling.masks
            options = {
                CONFIG: asdict(replace(sampling, masks=None)),
                MASKS: masks and {f.name: getattr(masks, f.name) for f in fields(masks) if f.init},
            }
            cpu_options: _CpuOptions = {} if gpus else _cpu_options(config, max_model_len)
            self._llm = LLM(
                model=str(model),
                # By default vLLM converts float32 weights to bfloat16, which a CPU without
                # bfloat16 instructions multiplies many times slower.
                dtype=dtype_of(config),  # type: ignore[arg-type]  # declared as names only
                trust_remote_code=False,
                tensor_parallel_size=max(1, gpus),
                max_model_len=max_model_len,
                enable_prefix_caching=True,
                logits_processors=[DrawProcessor],
                additional_config=options,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                seed=0,
                **cpu_options,
            )
        self._sampling = sampling
        self.cached_prompt_tokens = 0
        self._watched: dict[str, _Watched] = {}

    def submit(self, key: int, request: DraftRequest) -> None:
        """Queue a text; see `Engine.submit`."""
        from vllm.inputs import TokensPrompt

        prompt = TokensPrompt(prompt_token_ids=list(request.start))
        if request.stops is not None:
            self._watched[str(key)] = _Watched(request.stops)
        self._llm.llm_engine.add_request(str(key), prompt, self._params(request))

    def finished(self) -> list[tuple[int, Draft]]:
        """Generate until at least one text is finished; see `Engine.finished`."""
        from vllm import RequestOutput

        found: list[tuple[int, Draft]] = []
        while not found:
            outputs = [one for one in self._llm.llm_engine.step() if isinstance(one, RequestOutput)]
            ended = [(one, draft) for one in outputs if (draft := self._ended(one)) is not None]
            found = [(int(output.request_id), draft) for output, draft in ended]
        self.cached_prompt_tokens += sum(output.num_cached_tokens or 0 for output, _ in ended)
        if not self._llm.llm_engine.has_unfinished_requests():
            # Cached values differ in their last bits from those that a resumed job would compute.
            self._llm.reset_prefix_cache()
        return found

    def _ended(self, output: "RequestOutput") -> Draft | None:
        """Return the draft of a text that is finished or ended by its request, else None."""
        completion = output.outputs[0]
        watched = self._watched.get(output.request_id)
        if watched is None:
            return Draft(tuple(completion.token_ids), completion.finish_reason == "length")
        watched.tokens.extend(completion.token_ids)
        stopped = watched.stops(completion.token_ids)
        if not output.finished:
            if not stopped:
                return None
            self._llm.llm_engine.abort_request([output.request_id])
        del self._watched[output.request_id]
        return Draft(tuple(watched.tokens), completion.finish_reason != "stop")

    def close(self) -> None:
        """Release memory and process groups. A process can have one engine at a time."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm

    def _params(self, request: DraftRequest) -> "SamplingParams":
        """Convert a request to vLLM's parameters."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        from flowllm.llm.engines.vllm_hooks import KEPT, SCOPE, SEED

        structured = None
        if request.regex and request.regex.startswith("root ::="):
            structured = StructuredOutputsParams(grammar=request.regex)
        elif request.regex:
            structured = StructuredOutputsParams(regex=request.regex)
        extra: dict[str, Any] = {SEED: request.seed}
        if request.masked != "none":
            extra |= {KEPT: list(request.kept), SCOPE: request.masked}
        return SamplingParams(
            temperature=0.0,  # selects the only token that DrawProcessor leaves
            extra_args=extra,
            max_tokens=self._sampling.max_tokens - len(request.kept),
            stop_token_ids=[self._sampling.end_token_id],
            structured_outputs=structured,
            detokenize=False,
            # A request that may end its text is given each token.
            output_kind=RequestOutputKind.DELTA if request.stops else RequestOutputKind.FINAL_ONLY,
        )


def _set_environment(gpus: int) -> None:
    """Set the environment variables that vLLM reads, except those that the user has set."""
    defaults = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not gpus:
        defaults |= {
            # Run within this process: a separate engine process would import everything again.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # By default vLLM uses one thread, regardless of the number of cores.
            "OMP_NUM_THREADS": str(usable_cores()),
        }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])


def cached_numbers(config: PretrainedConfig) -> int:
    """Return how many numbers the cache stores per token: keys and values of all layers.

    Configurations that predate grouped-query attention (GPT-2, OPT, GPT-NeoX) have no
    `num_key_value_heads`: each of their attention heads has its own keys and values.
    """
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    key_value_heads = getattr(text, "num_key_value_heads", None) or heads
    return int(2 * text.num_hidden_layers * key_value_heads * head_dim)


def _cpu_options(config: PretrainedConfig, max_model_len: int) -> _CpuOptions:
    """Return the options for a CPU: no compilation, and a cache of the size of one batch.

    Compilation takes minutes. Without a given cache size, vLLM would reserve a fixed share of the
    memory and refuse to start where other programs use it.

    Args:
        config: configuration of the model.
        max_model_len: maximum number of tokens of prompt and text together.
    """
    value_bytes = torch.finfo(dtype_of(config)).bits // 8
    token_bytes = value_bytes * cached_numbers(config)
    blocks = CPU_BATCH * -(-max_model_len // CPU_BLOCK) + 1
    return {
        "enforce_eager": True,
        "max_num_seqs": CPU_BATCH,
        "block_size": CPU_BLOCK,
        "kv_cache_memory_bytes": blocks * CPU_BLOCK * token_bytes,
    }
