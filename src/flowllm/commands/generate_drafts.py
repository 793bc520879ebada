"""The drafts of `flowllm generate`: sampled for wishes, or given as files."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flowllm.config.sections.llm import SampleBase
from flowllm.data.cif import Cell
from flowllm.data.external import read_samples
from flowllm.data.wishes import Words
from flowllm.errors import FlowllmError
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.prompts import prompt_text
from flowllm.llm.sampling import base_row
from flowllm.llm.wishes import choose_elements, request_of, target_of
from flowllm.runtime.log import Progress
from flowllm.seeds import derive
from flowllm.stages.import_samples import in_cell_of_flow, sample_row
from flowllm.stages.sample_base import Settings

Row = dict[str, Any]


def draft_rows(
    settings: Settings, *, model: Path, asked: Sequence[Words], count: int, gpus: int
) -> list[Row]:
    """Sample crystals for wishes.

    Args:
        settings: settings of `sample_base`.
        model: folder of the merged model.
        asked: wishes as the user writes them.
        count: crystals per wish.
        gpus: GPUs to use, 0 for the CPU.

    Returns:
        Rows of `schemas.REQUESTED_BASE`; ids are `sample-{number of the wish}-{number}`.

    Raises:
        FlowllmError: a wish is invalid, or the model was not trained on such prompts.
    """
    section: SampleBase = settings.sample_base
    opened = ModelFolder(model, settings.prompts)
    prompts, record = settings.prompts, opened.record
    numbers = [(i, j) for i in range(len(asked)) for j in range(count)]
    seeds = partial(derive, settings.seed, "sample", settings.base.name)
    wishes = [target_of(prompts, record, words) for words in asked]
    targets = {
        (i, j): choose_elements(wishes[i], record, np.random.default_rng(seeds(i, j, "elements")))
        for i, j in numbers
    }
    sampler = opened.sampler(
        {target.conditions for target in targets.values()},
        section,
        temperature=settings.base.temperature,
        top_p=settings.base.top_p,
        gpus=gpus,
    )
    request = partial(request_of, prompts=prompts, record=record, structured=section.structured)
    progress = Progress("drafts", len(numbers))
    rows: list[Row] = []
    with sampler:
        for start in range(0, len(numbers), section.chunk_size):
            chunk = numbers[start : start + section.chunk_size]
            tasks = [request(targets[pair], seed=partial(seeds, *pair)) for pair in chunk]
            outcomes = sampler.draw(tasks, progress.advance)
            for (i, j), outcome in zip(chunk, outcomes, strict=True):
                prompt = prompt_text(prompts, targets[i, j].conditions)
                row = base_row(f"sample-{i:04d}-{j:06d}", outcome, prompt)
                rows.append(row | {"asked": list(asked[i].items())})
    return rows


def given_rows(path: Path, cell: Cell) -> list[Row]:
    """Read given crystals in place of drafts, as a row of `external_samples` is read.

    Args:
        path: folder or file of crystals, see `data.external.read_samples`.
        cell: the cell of the flow's training crystals (prepare.cell).

    Returns:
        Rows of `schemas.BASE` with `source_name`; ids are `given-{number}`.

    Raises:
        FlowllmError: the path cannot be read, or none of its crystals can.
    """
    rows = [
        sample_row(f"given-{number:06d}", sample)
        for number, sample in enumerate(read_samples(path))
    ]
    drafts = [in_cell_of_flow(row, cell) for row in rows]
    if all(draft["status"] != "ok" for draft in drafts):
        said = f" ({drafts[0]['source_name']}: {drafts[0]['error']})" if drafts else ""
        raise FlowllmError(f"{path}: contains no crystal that can be used{said}")
    return drafts
