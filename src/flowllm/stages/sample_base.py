"""Sample one shard of crystals of a base: the first step of generation (section 4.3).

A base without conditions has one empty wish, which every crystal meets.
"""

from functools import partial
from pathlib import Path
from typing import Any

from cyclopts.types import NonNegativeInt, PositiveInt

from flowllm.config.sections.llm import Base, Prompts, SampleBase
from flowllm.config.stage_settings import StageSettings
from flowllm.data.wishes import Words, read_wishes, wish_of_draw
from flowllm.io.schemas import BASE, REQUESTED_BASE
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.model_record import ModelRecord
from flowllm.llm.prompts import prompt_text
from flowllm.llm.sampling import DrawRequest, base_row, write_samples
from flowllm.llm.wishes import Target, choose_elements, request_of, target_of
from flowllm.runtime.log import Progress
from flowllm.runtime.provenance import stage_run
from flowllm.seeds import derive, generator


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
    """Sample one shard of crystals of one base, with its conditions if it has any.

    The draws of a base with several wishes are asked for them in turn, by the number of the draw.

    Args:
        settings: sections `sample_base` and `prompts`, and the row `base`.
        model: Folder of the merged model.
        first_draw: Number of the shard's first draw.
        count: Number of draws in the shard.
        out: Shard to write, one row per crystal.
        gpus: Number of GPUs of the job, 0 for the CPU.

    Raises:
        FlowllmError: the model was trained on other prompts, or cannot be asked for a wish.
    """
    section: SampleBase = settings.sample_base
    base: Base = settings.base
    conditions = base.conditions
    inputs = {"model": model}
    if conditions is not None and conditions.file is not None:
        inputs["wishes"] = Path(conditions.file)
    with stage_run(
        settings, inputs=inputs, output=out, work={"start": first_draw, "count": count}
    ) as run:
        opened = ModelFolder(model, settings.prompts)
        targets = _targets(settings, opened.record, first_draw, count)
        sampler = opened.sampler(
            {target.conditions for target in targets.values()},
            section,
            temperature=base.temperature,
            top_p=base.top_p,
            gpus=gpus,
        )
        progress = Progress(f"sample_base: {base.name}", count)

        def make_rows(items: range) -> list[dict[str, Any]]:
            numbers = [first_draw + i for i in items]
            tasks = [_task(settings, opened.record, targets[number], number) for number in numbers]
            outcomes = sampler.draw(tasks)
            progress.advance(len(items))
            rows = []
            for number, outcome in zip(numbers, outcomes, strict=True):
                target = targets[number]
                prompt = prompt_text(settings.prompts, target.conditions)
                row = base_row(f"{base.name}-{number:06d}", outcome, prompt)
                rows.append(row | {"asked": list(target.words.items())} if conditions else row)
            return rows

        schema = REQUESTED_BASE if conditions else BASE
        write_samples(sampler, out, run, schema, count, section.chunk_size, make_rows)


def _targets(
    settings: Settings, record: ModelRecord, first_draw: int, count: int
) -> dict[int, Target]:
    """Return the wish of each draw, by the number of the draw."""
    wishes, name = _wishes(settings, record), settings.base.name
    made: dict[int, Target] = {}
    for place in range(min(count, len(wishes))):
        target = target_of(settings.prompts, record, wish_of_draw(wishes, first_draw + place))
        for number in range(first_draw + place, first_draw + count, len(wishes)):
            rng = generator(settings.seed, "sample_base", name, number, "elements")
            made[number] = choose_elements(target, record, rng)
    return made


def _wishes(settings: Settings, record: ModelRecord) -> list[Words]:
    """Return the wishes of the base in their order; one empty one without conditions."""
    conditions = settings.base.conditions
    if conditions is None:
        return [{}]
    if conditions.file is not None:
        return read_wishes(Path(conditions.file), record.own(settings.prompts))
    return [conditions.words()]


def _task(settings: Settings, record: ModelRecord, target: Target, number: int) -> DrawRequest:
    seed = partial(derive, settings.seed, "sample_base", settings.base.name, number)
    structured = settings.sample_base.structured
    return request_of(target, settings.prompts, record, structured=structured, seed=seed)
