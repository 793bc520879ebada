r"""Processor seconds per crystal of `reference_hull` and `invariance`, for `flowllm estimate`.

    python benchmarks/bench_costs.py --csv data/mp_20_sample/train.csv \
        --model runs/smollm2/llm/model

The full configuration gives both stages GPUs; these are their costs on a CPU. Random training
crystals of MP-20 are relaxed as `reference_hull` does. Texts of random crystals are evaluated as
`invariance` does by the merged model of smollm2.yaml, and the time is scaled by the number of texts
per crystal and of weights. One thread computes, so that no waiting threads are counted.
"""

import argparse
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pymatgen.core import Structure

from flowllm.commands.model_sizes import KNOWN
from flowllm.config.load import load_config
from flowllm.crystal import Crystal

ROOT = Path(__file__).parents[1]
FULL = load_config([ROOT / "config.yaml"])
SMALL = load_config([ROOT / "config.yaml", ROOT / "workflow" / "config" / "smollm2.yaml"])


def random_crystals(path: Path, count: int) -> list[Crystal]:
    """Return random crystals of a CSV file in MP-20's format."""
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    chosen = np.random.default_rng(0).permutation(len(rows))[:count]
    structures = [Structure.from_str(rows[index]["cif"], fmt="cif") for index in chosen]
    return [Crystal.from_structure(structure) for structure in structures]


def reference_hull(crystals: Sequence[Crystal]) -> dict[str, float]:
    """Return the cost of a relaxation."""
    from flowllm.relax.models import load_potential
    from flowllm.relax.relaxer import relax

    section = FULL.prerelax
    potential = load_potential(FULL.potential.name, torch.device("cpu"))
    start = time.process_time()
    found = relax(
        potential,
        crystals,
        max_force=section.max_force,
        max_steps=section.max_steps,
        max_seconds=float("inf"),
    )
    seconds = (time.process_time() - start) / len(crystals)
    steps = [one.num_steps for one in found if one.num_steps is not None]
    return {"seconds per crystal": seconds, "mean steps": float(np.mean(steps))}


def invariance(crystals: Sequence[Crystal], model: Path) -> dict[str, float]:
    """Return the cost of a crystal and its transformations."""
    from flowllm.llm.crystal_texts import crystal_text
    from flowllm.llm.model_folder import ModelFolder
    from flowllm.llm.perplexity import perplexities

    opened = ModelFolder(model, SMALL.prompts)
    network = opened.language_model(torch.device("cpu"))
    describe = crystal_text(FULL.prompts.crystal_text).describe
    texts = [describe(crystal).text for crystal in crystals]
    perplexities(network, opened.prompts, texts[:1], 1)
    start = time.process_time()
    perplexities(network, opened.prompts, texts, FULL.invariance.batch_size)
    seconds = (time.process_time() - start) / len(texts)
    weights = sum(one.numel() for one in network.parameters())
    asked = KNOWN[FULL.finetune_llm.base_model].parameters
    per_crystal = 1 + 2 * FULL.invariance.num_transformations
    return {
        "seconds per text": seconds,
        "weights": weights,
        "seconds per crystal": seconds * per_crystal,
        "seconds per crystal, full model": seconds * per_crystal * asked / weights,
    }


def main() -> None:
    """Print the costs, and write them as JSON if --json is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="merged model of smollm2.yaml")
    parser.add_argument("--crystals", type=int, default=48)
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    crystals = random_crystals(given.csv, max(given.crystals, given.texts))
    atoms = float(np.mean([crystal.num_atoms for crystal in crystals]))
    found = {"reference_hull": reference_hull(crystals[: given.crystals]) | {"atoms": atoms}}
    if given.model:
        found["invariance"] = invariance(crystals[: given.texts], given.model)
    for stage, numbers in found.items():
        shown = ", ".join(f"{what} {number:.6g}" for what, number in numbers.items())
        print(f"{stage}: {shown}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
