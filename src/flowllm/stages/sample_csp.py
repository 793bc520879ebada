"""Sample one shard of crystals with the test split's formulas: crystal structure prediction."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cyclopts.types import NonNegativeInt, PositiveInt

from flowllm.config.sections.llm import CspBase, Prompts, SampleBase
from flowllm.config.stage_settings import StageSettings
from flowllm.errors import FlowllmError
from flowllm.io.schemas import CRYSTALS, CSP_BASE
from flowllm.io.tables import read_table
from flowllm.llm.crystal_text import composition_of
from flowllm.llm.crystal_texts import crystal_text
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.model_record import ModelRecord
from flowllm.llm.prompts import Conditions, prompt_formula, prompt_text
from flowllm.llm.sampling import DrawRequest, Outcome, Sampler, base_row, write_samples
from flowllm.runtime.log import Progress
from flowllm.runtime.provenance import stage_run
from flowllm.seeds import derive

Record = dict[str, Any]


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    sample_base: SampleBase
    prompts: Prompts
    csp_base: CspBase


def run(
    settings: Settings,
    *,
    model: Path,
    crystals: Path,
    first_draw: NonNegativeInt,
    count: PositiveInt,
    out: Path,
    gpus: NonNegativeInt = 0,
) -> None:
    """Sample one shard of crystals with the formulas of test crystals (structure prediction).

    Each test crystal gets `csp_base.attempts` samples.

    Args:
        settings: sections `sample_base` and `prompts`, and the row `csp_base`.
        model: Folder of the merged model.
        crystals: The test split (crystals/test.parquet).
        first_draw: Number of the shard's first test crystal.
        count: Number of test crystals in the shard.
        out: Shard to write, one row per sample. The status is too_many_atoms where the test crystal
            has more atoms than any crystal of the model's training.
        gpus: Number of GPUs of the job, 0 for the CPU.

    Raises:
        FlowllmError: the model was trained on other prompts, or the split has fewer crystals.
    """
    section: SampleBase = settings.sample_base
    base: CspBase = settings.csp_base
    with stage_run(
        settings,
        inputs={"model": model, "crystals": crystals},
        output=out,
        work={"start": first_draw, "count": count},
    ) as run:
        targets = _targets(crystals, first_draw, count)
        opened = ModelFolder(model, settings.prompts)
        asked = [
            Conditions(formula=prompt_formula(settings.prompts, _numbers(target)))
            for target in targets
        ]
        sampler = _sampler(opened, settings, targets, asked, gpus)
        progress = Progress(f"sample_csp: {base.name}", count * base.attempts)

        def make_rows(items: range) -> list[Record]:
            # Row i of the shard is attempt i mod k for test crystal i div k of the shard.
            draws = [divmod(item, base.attempts) for item in items]
            tasks = [
                _task(settings, first_draw + at, attempt, targets[at], asked[at], opened.record)
                for at, attempt in draws
            ]
            outcomes = sampler.draw(tasks)
            progress.advance(len(items))
            return [
                _row(settings, first_draw + at, attempt, targets[at], asked[at], outcome)
                for (at, attempt), outcome in zip(draws, outcomes, strict=True)
            ]

        num_rows = count * base.attempts
        write_samples(sampler, out, run, CSP_BASE, num_rows, section.chunk_size, make_rows)


def _sampler(
    opened: ModelFolder,
    settings: Settings,
    targets: Sequence[Mapping[str, Any]],
    asked: Sequence[Conditions],
    gpus: int,
) -> Sampler:
    """Start the sampler with room for the prompts of the targets that the model can sample.

    Targets with more atoms than the model was trained on become rows with that reason.
    """
    section, base = settings.sample_base, settings.csp_base
    return opened.sampler(
        [
            conditions
            for target, conditions in zip(targets, asked, strict=True)
            if opened.record.refusal(len(target["atomic_numbers"])) is None
        ],
        section,
        temperature=base.temperature,
        top_p=base.top_p,
        gpus=gpus,
    )


def _targets(path: Path, first_draw: int, count: int) -> Sequence[Mapping[str, Any]]:
    table = read_table(path, CRYSTALS, ["id", "atomic_numbers"])
    if table.num_rows < first_draw + count:
        raise FlowllmError(
            f"{path}: contains {table.num_rows} crystals, but {first_draw + count} are required; "
            "lower sizes.num_csp_crystals"
        )
    rows: list[Record] = table.slice(first_draw, count).to_pylist()
    return rows


def _numbers(target: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(target["atomic_numbers"], dtype=np.uint8)


def _task(
    settings: Settings,
    number: int,
    attempt: int,
    target: Mapping[str, Any],
    conditions: Conditions,
    record: ModelRecord,
) -> DrawRequest:
    numbers, structured = target["atomic_numbers"], settings.sample_base.structured
    text = crystal_text(settings.prompts.crystal_text)
    return DrawRequest(
        conditions=conditions,
        composition=composition_of(_numbers(target)),
        form=partial(text.cell_grammar, numbers, record.max_length) if structured else None,
        seed=partial(
            derive, settings.seed, "sample_csp", settings.csp_base.name, number, "attempt", attempt
        ),
        refusal=record.refusal(len(numbers)),
    )


def _row(
    settings: Settings,
    number: int,
    attempt: int,
    target: Mapping[str, Any],
    conditions: Conditions,
    outcome: Outcome,
) -> Record:
    row_id = f"{settings.csp_base.name}-{number:06d}-{attempt:03d}"
    row = base_row(row_id, outcome, prompt_text(settings.prompts, conditions))
    return {**row, "material_id": target["id"]}
