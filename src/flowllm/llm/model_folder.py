"""Opening a merged model's folder."""

import time
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from flowllm.config.sections.llm import Prompts
from flowllm.llm.base_checks import check_sampling_context
from flowllm.llm.base_model import load_base_model, load_config, load_tokenizer
from flowllm.llm.engines.base import Engine, Sampling
from flowllm.llm.engines.transformers import TransformersEngine
from flowllm.llm.engines.vllm import VllmEngine
from flowllm.llm.model_files import MERGE_AGAIN, check_model_folder
from flowllm.llm.model_record import ModelRecord, read_record
from flowllm.llm.prompts import Conditions, PromptTokens
from flowllm.llm.sampling import Sampler
from flowllm.runtime.device import pick_dtype
from flowllm.runtime.log import log


class ModelFolder:
    """A merged model: its record, and its prompts as tokens.

    Attributes:
        record: how it was fine-tuned.
        prompts: prompts as tokens.
    """

    def __init__(self, folder: Path, prompts: Prompts) -> None:
        """Read the record and the tokenizer.

        Raises:
            FlowllmError: the folder is not one of merge_adapter's, is damaged, or its model was
                trained on other prompts.
        """
        self._folder = folder
        self.record: ModelRecord = read_record(folder)
        self.record.check_prompts(prompts, folder)
        check_model_folder(folder, MERGE_AGAIN)
        self.prompts = PromptTokens(prompts, load_tokenizer(str(folder)))

    def language_model(self, device: torch.device | str) -> PreTrainedModel:
        """Load the weights, for evaluation.

        Args:
            device: where they go; auto: laid over all GPUs of this process.
        """
        return load_base_model(
            str(self._folder),
            dtype=pick_dtype(self.record.precision),
            quantization="none",
            device=device,
            cure=MERGE_AGAIN,
        ).eval()

    def sampler(
        self,
        asked: Iterable[Conditions],
        *,
        temperature: float,
        top_p: float,
        max_attempts: int,
        restrict_tokens: bool,
        reject_close_atoms: bool,
        backend: str,
        gpus: int,
    ) -> Sampler:
        """Return what draws crystals with this model.

        Args:
            asked: conditions of all prompts.
            temperature: of the softmax.
            top_p: nucleus probability.
            max_attempts: drafts a crystal before it is given up.
            restrict_tokens: draw only tokens that crystal text consists of.
            reject_close_atoms: draw again what has two atoms at one point.
            backend: vllm or transformers.
            gpus: GPUs of the job, 0 for the CPU.

        Raises:
            FlowllmError: the model was not trained on such prompts, or its context is too short.
        """
        record = self.record
        distinct = set(asked)
        for conditions in distinct:
            record.check_conditions(conditions.given(), self._folder)
        longest_prompt = max(
            (len(self.prompts.prompt(conditions)) for conditions in distinct), default=0
        )
        longest_answer = self.prompts.most_answer_tokens(record.elements, record.max_atoms)
        self._check_context(longest_prompt, longest_answer)
        sampling = Sampling(
            temperature=temperature,
            top_p=top_p,
            max_tokens=longest_answer,
            end_token_id=self.prompts.end_token_id,
            allowed_tokens=self.prompts.answer_tokens() if restrict_tokens else None,
        )

        def start_engine() -> Engine:
            started = time.perf_counter()
            if backend == "transformers":
                engine: Engine = TransformersEngine(self._folder, sampling=sampling)
            else:
                engine = VllmEngine(
                    self._folder, gpus=gpus, max_prompt_tokens=longest_prompt, sampling=sampling
                )
            log.info("%s started in %.1f s", backend, time.perf_counter() - started)
            return engine

        return Sampler(
            start_engine,
            self.prompts,
            max_atoms=record.max_atoms,
            max_attempts=max_attempts,
            reject_close_atoms=reject_close_atoms,
        )

    def _check_context(self, prompt: int, answer: int) -> None:
        check_sampling_context(
            load_config(str(self._folder)),
            str(self._folder),
            prompt=prompt,
            answer=answer,
            max_atoms=self.record.max_atoms,
        )
