"""A merged model's folder: its record, tokenizer, weights and sampler."""

import time
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from flowllm.config.sections.llm import Prompts, SampleBase, SamplePairs
from flowllm.llm.base_checks import check_sampling_context
from flowllm.llm.base_model import load_base_model, load_config, load_tokenizer
from flowllm.llm.engines.base import Engine, SamplingOptions
from flowllm.llm.engines.transformers import TransformersEngine
from flowllm.llm.engines.vllm import VllmEngine
from flowllm.llm.masks import MaskOptions
from flowllm.llm.model_files import MERGE_AGAIN, check_model_folder
from flowllm.llm.model_record import ModelRecord, read_record
from flowllm.llm.prompts import Conditions, PromptTokens
from flowllm.llm.redraws import Apart
from flowllm.llm.sampling import Sampler
from flowllm.runtime.device import pick_dtype
from flowllm.runtime.log import log


class ModelFolder:
    """A merged model.

    Attributes:
        record: record of its fine-tuning.
        prompts: the prompts and the tokenizer.
    """

    def __init__(self, folder: Path, prompts: Prompts) -> None:
        """Read the record and the tokenizer.

        Args:
            folder: folder written by `merge_adapter`.
            prompts: configured prompts.

        Raises:
            FlowllmError: the folder has no record or is damaged, or its model was trained on other
                prompts.
        """
        self._folder = folder
        self.record: ModelRecord = read_record(folder)
        self.record.check_prompts(prompts, folder)
        check_model_folder(folder, MERGE_AGAIN)
        self.prompts = PromptTokens(prompts, load_tokenizer(str(folder)))

    def language_model(self, device: torch.device | str) -> PreTrainedModel:
        """Load the model in evaluation mode.

        Args:
            device: device of the weights; auto distributes them over all GPUs of this process.
        """
        model = load_base_model(
            str(self._folder),
            dtype=pick_dtype(self.record.precision),
            quantization="none",
            device=device,
            cure=MERGE_AGAIN,
        )
        model.eval()
        return model

    def sampler(
        self,
        asked: Iterable[Conditions],
        section: SamplePairs | SampleBase,
        *,
        temperature: float,
        top_p: float,
        gpus: int,
    ) -> Sampler:
        """Return a sampler of crystals; its engine starts when the first crystal is sampled.

        Args:
            asked: conditions of all prompts.
            section: settings of sampling.
            temperature: temperature of the softmax.
            top_p: cumulative probability of the nucleus.
            gpus: GPUs of the job, 0 for the CPU.

        Raises:
            FlowllmError: the model was not trained on such prompts, or its context is too short.
        """
        record, prompts = self.record, self.prompts
        max_prompt_tokens = self._max_prompt_tokens(set(asked))
        max_tokens = prompts.most_answer_tokens(record.elements, record.max_atoms)
        check_sampling_context(
            load_config(str(self._folder)),
            str(self._folder),
            prompt=max_prompt_tokens,
            answer=max_tokens,
            max_atoms=record.max_atoms,
        )
        sampling = SamplingOptions(
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            end_token_id=prompts.end_token_id,
            allowed_tokens=prompts.answer_tokens() if section.restrict_tokens else None,
            masks=self._masks(section.min_distance),
        )
        apart = section.min_distance
        return Sampler(
            partial(start_engine, self._folder, section.backend, gpus, max_prompt_tokens, sampling),
            prompts,
            max_atoms=record.max_atoms,
            max_attempts=section.max_attempts,
            reject_close_atoms=section.reject_close_atoms,
            apart=None if apart is None else Apart(apart, section.max_redraws),
        )

    def _masks(self, min_distance: float | None) -> MaskOptions | None:
        """Return the options of the masks for a minimum distance in angstrom, None for none."""
        if min_distance is None:
            return None
        text = self.prompts.prompts.crystal_text
        return MaskOptions(text, min_distance, self.prompts.answer_texts())

    def _max_prompt_tokens(self, asked: Collection[Conditions]) -> int:
        """Return the number of tokens of the longest prompt; check the conditions of all prompts.

        Raises:
            FlowllmError: the model was not trained on such prompts.
        """
        for conditions in asked:
            self.record.check_conditions(conditions.given(), self._folder)
        return max((len(self.prompts.prompt(conditions)) for conditions in asked), default=0)


def start_engine(
    model: Path, backend: str, gpus: int, max_prompt_tokens: int, sampling: SamplingOptions
) -> Engine:
    """Load a merged model into a sampling engine.

    Args:
        model: folder of the model.
        backend: vllm or transformers.
        gpus: GPUs of the job, 0 for the CPU.
        max_prompt_tokens: length of the longest prompt.
        sampling: options of the token sampling.
    """
    started = time.perf_counter()
    engine: Engine
    if backend == "transformers":
        engine = TransformersEngine(model, sampling=sampling)
    else:
        engine = VllmEngine(
            model, gpus=gpus, max_prompt_tokens=max_prompt_tokens, sampling=sampling
        )
    log.info("%s started in %.1f s", backend, time.perf_counter() - started)
    return engine
