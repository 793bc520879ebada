"""Whether drafts of a run's language model reach the targets of decoding that keeps atoms apart.

python benchmarks/check_targets.py runs/mp_20_large --max-redraws 0 4

The model of the run folder writes structured texts, one draft each, without a formula and with
formulas of the test split: without a minimum distance, and with 0.5 angstrom and each number of
redraws. Rates are per CPU second of this process, so that other work beside it hardly matters. Each
target is printed with the numbers of both and `holds` or `does not hold`; the exit status is 1 if
one does not hold. The targets are:

- symmetric text: 98 % accepted, all structurally valid, all with the group of their text or a
  supergroup of it; text of coordinates: 95 % accepted;
- accepted crystals per second at least twice those without a minimum distance (where a draft is
  accepted unless two atoms are at one point);
- no rejected draft in the run's own samples.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import spglib

from flowllm.config.load import load_config
from flowllm.config.model import Config
from flowllm.crystal import Crystal
from flowllm.data.symmetry_operations import Operations
from flowllm.evaluate.statistics import wilson_interval
from flowllm.evaluate.validity import is_structurally_valid
from flowllm.io.schemas import CRYSTALS
from flowllm.io.tables import read_table
from flowllm.llm.crystal_text import composition_of
from flowllm.llm.engines.base import Engine, SamplingOptions
from flowllm.llm.engines.vllm import VllmEngine
from flowllm.llm.masks import MaskOptions
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.prompts import UNCONDITIONAL, Conditions, prompt_formula
from flowllm.llm.redraws import Apart
from flowllm.llm.sampling import DrawRequest, Outcome, Sampler
from flowllm.runtime.provenance import find_records, read_record
from flowllm.seeds import derive, generator

MIN_DISTANCE = 0.5
"""Angstrom."""

SAME_ATOM = 0.01
"""Angstrom within which an operation must move an atom onto another one."""

ACCEPTED = {"coordinates": 0.95, "symmetric": 0.98}
"""Share of accepted drafts by text."""

FASTER = 2.0
"""Ratio of accepted crystals per second."""


@dataclass(frozen=True)
class Drafts:
    """Drafts of one way of sampling.

    Attributes:
        name: the way.
        outcomes: one per text.
        cpu_seconds: CPU time of all.
    """

    name: str
    outcomes: Sequence[Outcome]
    cpu_seconds: float

    @property
    def accepted(self) -> list[Outcome]:
        """The accepted drafts."""
        return [outcome for outcome in self.outcomes if outcome.crystal is not None]

    @property
    def rate(self) -> float:
        """Accepted crystals per CPU second."""
        return len(self.accepted) / self.cpu_seconds


class Targets:
    """Prints whether targets hold.

    Attributes:
        all_hold: whether all of those so far do.
    """

    def __init__(self) -> None:
        self.all_hold = True

    def check(self, name: str, found: str, *, holds: bool) -> None:
        """Print a target with what was found."""
        self.all_hold = self.all_hold and holds
        print(f"  {name}: {found}: {'holds' if holds else 'does not hold'}", flush=True)


def main() -> None:
    """Print the rates and the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run with a merged model")
    parser.add_argument("--texts", type=int, default=300, help="texts of each way")
    parser.add_argument("--max-redraws", type=int, nargs="+", default=[4])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    config = load_config([given.run / "config.yaml"])
    opened = ModelFolder(given.run / "llm" / "model", config.prompts)
    ways = requests(config, opened, given.run / "crystals" / "test.parquet", given.texts)
    engine = start_engine(config, opened, given.run / "llm" / "model", ways)
    targets = Targets()
    for name, tasks in ways.items():
        draw("warm-up", engine, opened, tasks[:4], None)
        before = draw(f"{name}, no minimum distance", engine, opened, tasks, None)
        for redraws in given.max_redraws:
            way = f"{name}, {MIN_DISTANCE} angstrom, {redraws} redraws"
            found = draw(way, engine, opened, tasks, Apart(MIN_DISTANCE, redraws))
            check(targets, config.prompts.crystal_text, found, before)
    engine.close()
    check_samples(targets, given.run)
    sys.exit(0 if targets.all_hold else 1)


def requests(
    config: Config, opened: ModelFolder, crystals: Path, count: int
) -> dict[str, list[DrawRequest]]:
    """Return the texts to be drawn, without and with formulas of crystals that the model can write.

    Args:
        config: configuration of the run.
        opened: its model.
        crystals: its test split.
        count: number of texts of each.
    """
    record, text = opened.record, opened.prompts.crystal_text
    cells = [
        np.asarray(row["atomic_numbers"])
        for row in read_table(crystals, CRYSTALS, ["atomic_numbers", "num_atoms"]).to_pylist()
        if row["num_atoms"] <= record.max_atoms and set(row["atomic_numbers"]) <= {*record.elements}
    ]
    chosen = generator(0, "check_targets").choice(len(cells), count)
    free = partial(text.grammar, record.elements, record.max_atoms, record.max_length)
    ways: dict[str, list[DrawRequest]] = {"without formula": [], "with formula": []}
    for number, index in enumerate(chosen):
        cell = cells[index]
        asked = Conditions(prompt_formula(config.prompts, cell))
        form = partial(text.cell_grammar, cell.tolist(), record.max_length)
        seed = partial(derive, 0, "check_targets", number)
        ways["without formula"].append(DrawRequest(UNCONDITIONAL, None, free, seed))
        ways["with formula"].append(DrawRequest(asked, composition_of(cell), form, seed))
    return ways


def start_engine(
    config: Config, opened: ModelFolder, model: Path, ways: dict[str, list[DrawRequest]]
) -> Engine:
    """Start vLLM with the temperature and nucleus of the run's first base."""
    prompts, record, base = opened.prompts, opened.record, config.bases[0]
    print(f"{model}: temperature {base.temperature}, top-p {base.top_p}", flush=True)
    return VllmEngine(
        model,
        gpus=0,
        max_prompt_tokens=max(
            len(prompts.prompt(task.conditions)) for tasks in ways.values() for task in tasks
        ),
        sampling=SamplingOptions(
            temperature=base.temperature,
            top_p=base.top_p,
            max_tokens=prompts.most_answer_tokens(record.elements, record.max_atoms),
            end_token_id=prompts.end_token_id,
            allowed_tokens=prompts.answer_tokens(),
            masks=MaskOptions(config.prompts.crystal_text, MIN_DISTANCE, prompts.answer_texts()),
        ),
    )


def draw(
    name: str,
    engine: Engine,
    opened: ModelFolder,
    tasks: Sequence[DrawRequest],
    apart: Apart | None,
) -> Drafts:
    """Draw one draft of each text."""
    sampler = Sampler(
        lambda: engine,
        opened.prompts,
        max_atoms=opened.record.max_atoms,
        max_attempts=1,
        reject_close_atoms=True,
        apart=apart,
    )
    clock = time.process_time()
    outcomes = sampler.draw(tasks)
    return Drafts(name, outcomes, time.process_time() - clock)


def check(targets: Targets, text: str, found: Drafts, before: Drafts) -> None:
    """Print the rates of drafts with and without a minimum distance, and check their targets."""
    for drafts in (before, found):
        redraws = sum(outcome.redraws for outcome in drafts.outcomes) / len(drafts.outcomes)
        tokens = sum(outcome.num_tokens for outcome in drafts.outcomes)
        print(
            f"{drafts.name}: {shown(len(drafts.accepted), len(drafts.outcomes))} accepted, "
            f"{redraws:.2f} redraws per text, {tokens / drafts.cpu_seconds:.0f} tokens and "
            f"{drafts.rate:.2f} accepted crystals per CPU second"
        )
    total, accepted = len(found.outcomes), found.accepted
    least = ACCEPTED[text]
    targets.check(
        f"at least {least:.0%} accepted",
        shown(len(accepted), total),
        holds=len(accepted) >= least * total,
    )
    ratio = found.rate / before.rate if before.rate else float("inf")
    targets.check(f"at least {FASTER:g} times the rate", f"{ratio:.2f}", holds=ratio >= FASTER)
    if text == "symmetric":
        valid = sum(is_structurally_valid(one.crystal) for one in accepted)
        kept = sum(keeps_group(one) for one in accepted)
        for name, count in (("structurally valid", valid), ("group or supergroup", kept)):
            holds = count == len(accepted)
            targets.check(f"all {name}", shown(count, len(accepted)), holds=holds)


def shown(count: int, total: int) -> str:
    """Return a count with its share and Wilson's interval."""
    low, high = wilson_interval(count, total)
    return f"{count} of {total} ({low:.1%} to {high:.1%})"


def keeps_group(outcome: Outcome) -> bool:
    """Return whether a crystal has all operations of the group that its text names."""
    crystal, operations = outcome.crystal, outcome.operations
    assert crystal is not None
    assert operations is not None
    kind = spglib.get_spacegroup_type_from_symmetry(
        operations.rotations, operations.translations, crystal.to_structure().lattice.matrix
    )
    is_same = kind is not None and kind.number == int(outcome.text.split("\n")[0])
    return is_same and has_operations(crystal, operations)


def has_operations(crystal: Crystal, operations: Operations) -> bool:
    """Return whether operations move each atom onto one of the same element."""
    matrix, coords = crystal.to_structure().lattice.matrix, crystal.frac_coords.astype(float)
    same = crystal.atomic_numbers[:, None] == crystal.atomic_numbers
    for rotation, translation in zip(operations.rotations, operations.translations, strict=True):
        apart = (coords @ rotation.T + translation)[:, None] - coords
        distances = np.linalg.norm((apart - apart.round()) @ matrix, axis=-1)
        if np.where(same, distances, np.inf).min(axis=1).max() > SAME_ATOM:
            return False
    return True


def check_samples(targets: Targets, run: Path) -> None:
    """Check that no draft of the run's own samples was rejected."""
    records = [read_record(path) for path in find_records(run)]
    stages = ("sample_pairs", "sample_base")
    for stage in stages:
        counts = [record["counts"] for record in records if record["stage"] == stage]
        drafts = sum(one["drafts"] for one in counts)
        rejected = sum(sum(one["rejections"].values()) for one in counts)
        if counts:
            found = f"{rejected} of {drafts} drafts rejected"
            targets.check(f"{stage} of the run", found, holds=rejected == 0)


if __name__ == "__main__":
    main()
