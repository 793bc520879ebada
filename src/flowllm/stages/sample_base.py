"""Sample one shard of crystals without conditions: the first step of generation (section 4.3)."""

from functools import partial
from pathlib import Path
from typing import Any

from cyclopts.types import NonNegativeInt, PositiveInt

from flowllm.config.sections.llm import Base, Prompts, SampleBase
from flowllm.config.stage_settings import StageSettings
from flowllm.io.schemas import BASE
from flowllm.llm.crystal_texts import crystal_text
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.prompts import UNCONDITIONAL, prompt_text
from flowllm.llm.redraws import Form
from flowllm.llm.sampling import DrawRequest, base_row, write_samples
from flowllm.runtime.log import Progress
from flowllm.runtime.provenance import stage_run
from flowllm.seeds import derive


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    sample_base: SampleBase
    prompts: Prompts
    base: Base


def run(
    settings: Settings,
    *,
    model: Path,
    first_draw: NonNegativeInt,
    count: PositiveInt,
    out: Path,
    gpus: NonNegativeInt = 0,
) -> None:
    """Sample one shard of crystals of one base, without conditions.

    Args:
        settings: sections `sample_base` and `prompts`, and the row `base`.
        model: Folder of the merged model.
        first_draw: Number of the shard's first draw.
        count: Number of draws in the shard.
        out: Shard to write, one row per crystal.
        gpus: Number of GPUs of the job, 0 for the CPU.

    Raises:
        FlowllmError: the model was trained on other prompts.
    """
    section: SampleBase = settings.sample_base
    base: Base = settings.base
    with stage_run(
        settings, inputs={"model": model}, output=out, work={"start": first_draw, "count": count}
    ) as run:
        opened = ModelFolder(model, settings.prompts)
        sampler = opened.sampler(
            [UNCONDITIONAL],
            temperature=base.temperature,
            top_p=base.top_p,
            max_attempts=section.max_attempts,
            restrict_tokens=section.restrict_tokens,
            reject_close_atoms=section.reject_close_atoms,
            min_distance=section.min_distance,
            max_redraws=section.max_redraws,
            backend=section.backend,
            gpus=gpus,
        )
        record = opened.record
        bounds = (record.elements, record.max_atoms, record.max_length)
        text = crystal_text(settings.prompts.crystal_text)
        form = partial(text.grammar, *bounds) if section.structured else None
        prompt = prompt_text(settings.prompts, UNCONDITIONAL)
        progress = Progress(f"sample_base: {base.name}", count)

        def make_rows(items: range) -> list[dict[str, Any]]:
            numbers = [first_draw + i for i in items]
            outcomes = sampler.draw([_task(settings, form, number) for number in numbers])
            progress.advance(len(items))
            return [
                base_row(f"{base.name}-{number:06d}", outcome, prompt)
                for number, outcome in zip(numbers, outcomes, strict=True)
            ]

        write_samples(sampler, out, run, BASE, count, section.chunk_size, make_rows)


def _task(settings: Settings, form: Form | None, number: int) -> DrawRequest:
    return DrawRequest(
        conditions=UNCONDITIONAL,
        composition=None,
        form=form,
        seed=partial(derive, settings.seed, "sample_base", settings.base.name, number),
    )
