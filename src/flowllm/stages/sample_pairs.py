"""Sample one shard of pairs (c0, c1): a training crystal c1, and a draft c0 with its formula.

The flow learns the transport of the language model's distribution to that of the data (paper,
section 4.3). A draft is accepted if it has exactly the atoms of c1's cell, so that the atoms of a
pair correspond.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cyclopts.types import NonNegativeInt, PositiveInt

from flowllm.config.sections.llm import Prompts, SamplePairs
from flowllm.config.stage_settings import StageSettings
from flowllm.crystal import Crystal
from flowllm.data.symmetry_operations import operation_columns
from flowllm.errors import FlowllmError
from flowllm.io.schemas import CRYSTALS, PAIRS
from flowllm.io.tables import crystal_columns, read_table, required_crystal
from flowllm.llm.crystal_text import composition_of
from flowllm.llm.crystal_texts import crystal_text
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.model_record import ModelRecord
from flowllm.llm.pairing import by_species
from flowllm.llm.prompts import Conditions, prompt_formula, prompt_text
from flowllm.llm.sampling import DrawRequest, Outcome, Sampler, sample_columns, write_samples
from flowllm.runtime.log import Progress
from flowllm.runtime.provenance import stage_run
from flowllm.seeds import derive, generator

Target = tuple[int, str, Crystal]
"""Number of the draw, material_id and crystal of c1."""


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    sample_pairs: SamplePairs
    prompts: Prompts


def run(
    settings: Settings,
    *,
    model: Path,
    crystals: Path,
    split: str,
    first_draw: NonNegativeInt,
    count: PositiveInt,
    out: Path,
    gpus: NonNegativeInt = 0,
) -> None:
    """Sample one shard of pairs (c0, c1) with the prompt that has the formula of c1.

    A draw's training crystal, its seeds and so its row depend on the seed, the split and the number
    of the draw, not on the division into shards; for vLLM's exceptions see `llm.engines.vllm`.

    Args:
        settings: sections `sample_pairs` and `prompts`.
        model: Folder of the merged model.
        crystals: Training or validation crystals (crystals/{split}.parquet).
        split: Name of the split, train or val; part of the seed and id of each draw.
        first_draw: Number of the shard's first draw.
        count: Number of draws in the shard.
        out: Shard to write, one row per draw.
        gpus: Number of GPUs of the job, 0 for the CPU.

    Raises:
        FlowllmError: the model was trained on other prompts, or there are no crystals.
    """
    section: SamplePairs = settings.sample_pairs
    with stage_run(
        settings,
        inputs={"model": model, "crystals": crystals},
        output=out,
        work={"split": split, "start": first_draw, "count": count},
    ) as run:
        draws = range(first_draw, first_draw + count)
        targets = draw_targets(settings.seed, crystals, split, draws, section.draws_per_prompt)
        opened = ModelFolder(model, settings.prompts)
        asked = [
            Conditions(formula=prompt_formula(settings.prompts, c1.atomic_numbers))
            for _, _, c1 in targets
        ]
        sampler = _sampler(opened, section, targets, asked, gpus)
        tasks = [
            _task(settings, split, target, conditions, opened.record)
            for target, conditions in zip(targets, asked, strict=True)
        ]
        progress = Progress(f"sample_pairs: {split} pairs", count)

        def make_rows(items: range) -> list[dict[str, Any]]:
            outcomes = sampler.draw([tasks[i] for i in items])
            progress.advance(len(items))
            return [
                _row(settings, split, targets[i], asked[i], outcome)
                for i, outcome in zip(items, outcomes, strict=True)
            ]

        write_samples(sampler, out, run, PAIRS, count, section.chunk_size, make_rows)


def _sampler(
    opened: ModelFolder,
    section: SamplePairs,
    targets: Sequence[Target],
    asked: Sequence[Conditions],
    gpus: int,
) -> Sampler:
    """Start the sampler with room for the prompts of the targets that the model can sample.

    Targets with more atoms than the model was trained on become rows with that reason.
    """
    return opened.sampler(
        [
            conditions
            for (_, _, c1), conditions in zip(targets, asked, strict=True)
            if opened.record.refusal(c1.num_atoms) is None
        ],
        section,
        temperature=section.temperature,
        top_p=section.top_p,
        gpus=gpus,
    )


def draw_targets(
    seed: int, path: Path, split: str, draws: range, draws_per_prompt: int
) -> list[Target]:
    """Draw the training crystal of each pair, with replacement.

    Args:
        seed: seed of the configuration.
        path: table of the crystals.
        split: name of their split.
        draws: numbers of the draws.
        draws_per_prompt: number of consecutive draws, counted from 0, that share a crystal.

    Raises:
        FlowllmError: there are no crystals.
    """
    columns = ["id", "atomic_numbers", "frac_coords", "lengths", "angles"]
    table = read_table(path, CRYSTALS, columns)
    if table.num_rows == 0:
        raise FlowllmError(
            f"{path}: contains no crystals to sample pairs for; run the stage prepare"
        )
    rows_of = (generator(seed, "sample_pairs", split, draw // draws_per_prompt) for draw in draws)
    chosen = [int(random.integers(table.num_rows)) for random in rows_of]
    rows: Sequence[Mapping[str, Any]] = table.take(chosen).to_pylist()
    return [
        (draw, row["id"], required_crystal(row, path))
        for draw, row in zip(draws, rows, strict=True)
    ]


def _task(
    settings: Settings, split: str, target: Target, conditions: Conditions, record: ModelRecord
) -> DrawRequest:
    draw, _, c1 = target
    # The atoms are in the order of the training text of c1.
    numbers = c1.atomic_numbers.tolist()
    text = crystal_text(settings.prompts.crystal_text)
    form = partial(text.cell_grammar, numbers, record.max_length)
    return DrawRequest(
        conditions=conditions,
        composition=composition_of(c1.atomic_numbers),
        form=form if settings.sample_pairs.structured else None,
        seed=partial(derive, settings.seed, "sample_pairs", split, draw),
        refusal=record.refusal(c1.num_atoms),
    )


def _row(
    settings: Settings, split: str, target: Target, conditions: Conditions, outcome: Outcome
) -> dict[str, Any]:
    draw, material_id, c1 = target
    c0 = outcome.crystal
    return {
        "id": f"{split}-{draw:08d}",
        **crystal_columns(None if c0 is None else by_species(c0)),
        **operation_columns(outcome.operations),
        **crystal_columns(None if c0 is None else by_species(c1), prefix="target_"),
        "material_id": material_id,
        "draw": draw,
        "formula": c1.formula,
        **sample_columns(outcome, prompt_text(settings.prompts, conditions)),
    }
