"""What is measured of one model and text of the ablation, from the files of its run folder.

Shares are given as counts, and medians and divergences with the 2.5th and 97.5th percentiles of
1,000 bootstrap samples. A draft is accepted if it is a crystal, has just the requested atoms if it
was asked for a formula, and its atoms and their own images are at least 0.5 angstrom apart.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Composition
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from flowllm.crystal import Crystal
from flowllm.evaluate.hull import MissingReference, ReferenceHull
from flowllm.evaluate.matching import DEFAULT, rms_distance_or_error
from flowllm.evaluate.per_crystal import first_of_each_class, match_samples, novel_names
from flowllm.evaluate.samples import Sample
from flowllm.evaluate.validity import is_compositionally_valid, reduced_composition
from flowllm.io import schemas
from flowllm.io.tables import crystal_of, read_table, read_tables
from flowllm.runtime.provenance import read_provenance
from flowllm.seeds import generator

LARGE = {
    **{"base_model": "scratch", "method": "full"},
    **{"batch_size": 32, "micro_batch_size": 32, "learning_rate": 2e-3, "warmup_steps": 50},
}

MODELS: dict[str, dict[str, Any]] = {
    "smollm2-lora": {"learning_rate": 1e-3, "warmup_steps": 10},
    "smollm2-full": {"method": "full", "learning_rate": 1e-4, "warmup_steps": 10},
    "scratch-3m": {**LARGE, "scratch": {"width": 192, "layers": 7, "heads": 3}},
    "scratch-10m": {**LARGE, "scratch": {"width": 320, "layers": 8, "heads": 5}},
}
"""Changes of `finetune_llm` by the name of the model."""

TEXTS: dict[str, dict[str, Any]] = {
    "coordinates": {},
    "symmetric": {"prompts": {"crystal_text": "symmetric"}, "prepare": {"cell": "standard"}},
}
"""Changes of the configuration by the name of the text."""

MALFORMED = {
    *("truncated", "wrong_count", "bad_number", "unknown_element"),
    *("unknown_group", "cell_mismatch", "unknown_site", "wrong_multiplicity"),
}
"""Reasons for which a text is no crystal text at all; those of the second line are of symmetric
text, whose names and numbers must fit together."""

NEAR = {"coinciding_atoms", "close_atoms"}
"""Reasons for which a crystal with the requested atoms is rejected."""

MIN_DISTANCE = 0.5
FIRST = "shard-00000.parquet"

Share = list[int]
"""Number of those that have a property, and of all."""

Row = dict[str, Any]


def measure(run_dir: Path, model: str, text: str, hull: Path | None) -> dict[str, Any]:
    """Return what a cell is made of, and what was measured, as JSON values.

    Args:
        run_dir: run folder of the cell.
        model: name of the model.
        text: name of the text.
        hull: entries of a reference hull by the potential of the relaxation, None for none.
    """
    shards = sorted((run_dir / "base" / "free").glob("shard-*.parquet"))
    free = read_tables(shards, schemas.BASE).to_pylist()
    asked = read_table(run_dir / "base" / "formula" / FIRST, schemas.CSP_BASE).to_pylist()
    relaxed = read_table(run_dir / "relaxed" / "free" / FIRST, schemas.RELAXED).to_pylist()
    crystals = {row["id"]: crystal for row in free if (crystal := apart(row)) is not None}
    record = read_provenance(run_dir / "llm" / "adapter")
    return {
        **{"model": model, "text": text, "seed": record["seed"]},
        **{"commit": record["commit"], "versions": record["versions"]},
        "training": training(run_dir, record),
        "shares": {
            "parsed": share(is_parsed(row) for row in free),
            "accepted": share(row["id"] in crystals for row in free),
            "apart": share(row["id"] in crystals for row in free if is_parsed(row)),
            "parsed_formula": share(is_parsed(row) for row in asked),
            "exact_formula": share(has_atoms(row) for row in asked),
            "accepted_formula": share(apart(row) is not None for row in asked),
            "smact_valid": share(smact_valid(crystal) for crystal in crystals.values()),
            **unique_and_novel(run_dir, crystals),
            **relaxation(crystals, relaxed),
        },
        "statistics": {
            "space_group_divergence": space_groups(run_dir, list(crystals.values())),
            "energy_released": energy_released(crystals, relaxed),
            "e_above_hull": e_above_hull(crystals, relaxed, hull),
        },
    }


def training(run_dir: Path, record: Row) -> dict[str, Any]:
    """Return length, speed and losses of the training."""
    counts = record["counts"]
    timed = run_dir.with_name(f"{run_dir.name}-step.json")
    seconds = json.loads(timed.read_text())["cpu_seconds_per_step"]
    return {
        "crystals": counts["rows_out"],
        "steps": counts["steps"],
        "tokens": counts["tokens"],
        "cpu_seconds_per_step": seconds,
        "tokens_per_cpu_second": counts["tokens"] / (counts["steps"] * seconds),
        "validation_loss_per_token": counts["val_loss"],
    }


def is_parsed(row: Row) -> bool:
    """Return whether a text is crystal text, of whatever crystal."""
    return row["status"] == "ok" or not MALFORMED & set(row["rejections"])


def has_atoms(row: Row) -> bool:
    """Return whether a text has just the requested atoms."""
    return row["status"] == "ok" or bool(NEAR & set(row["rejections"]))


def apart(row: Row) -> Crystal | None:
    """Return the crystal of an accepted draft, None of another one."""
    crystal = crystal_of(row)
    return crystal if crystal is not None and min_distance(crystal) >= MIN_DISTANCE else None


def min_distance(crystal: Crystal) -> float:
    """Return the smallest distance of two atoms, or of an atom and its own image, in angstrom."""
    structure = crystal.to_structure()
    between = structure.distance_matrix[np.triu_indices(len(structure), 1)]
    own = structure.lattice.get_lll_reduced_lattice().abc
    return float(min([*between, *own]))


def smact_valid(crystal: Crystal) -> bool:
    """Return whether the charges of a composition can balance."""
    return is_compositionally_valid(reduced_composition(crystal.atomic_numbers), "smact14")


def unique_and_novel(run_dir: Path, crystals: dict[str, Crystal]) -> dict[str, Share]:
    """Compare the drafts themselves with each other and with the training crystals."""
    samples = [as_sample(name, crystal) for name, crystal in crystals.items()]
    train = {"train": run_dir / "crystals" / "train.parquet"}
    matches = match_samples(samples, train, ["train"], 1)
    unique = first_of_each_class(matches.classes, matches.classes)
    novel = novel_names(matches, ["train"])
    return {
        "unique": share(name in unique for name in crystals),
        "novel": share(name in novel for name in crystals),
    }


def as_sample(name: str, crystal: Crystal) -> Sample:
    """Return a draft in the place of a relaxed crystal, which `match_samples` compares."""
    return Sample(
        name=name,
        source_name=None,
        base_status="ok",
        attempts=1,
        rejections=(),
        generated_status="ok",
        generated=crystal,
        relaxed_status="ok",
        relaxed=crystal,
        converged=True,
        initial_energy=None,
        final_energy=None,
        num_steps=None,
        num_elements=None,
        e_above_hull=None,
        stable=False,
        metastable=False,
    )


def space_groups(run_dir: Path, crystals: Sequence[Crystal]) -> dict[str, Any] | None:
    """Return the Jensen-Shannon divergence (bits) of space groups from those of the test split."""
    test = read_table(run_dir / "crystals" / "test.parquet", schemas.CRYSTALS).to_pylist()
    known = [crystal for row in test if (crystal := crystal_of(row)) is not None]
    reference = np.bincount([group_of(crystal) for crystal in known], minlength=231)
    found = np.array([group_of(crystal) for crystal in crystals])
    return bootstrapped(found, lambda part: divergence(np.bincount(part, minlength=231), reference))


def group_of(crystal: Crystal) -> int:
    """Return the number of the space group with a tolerance of 0.1 angstrom; 0 if none is found."""
    try:
        return int(SpacegroupAnalyzer(crystal.to_structure(), 0.1).get_space_group_number())
    except (TypeError, ValueError):  # spglib finds none in a few cells
        return 0


def divergence(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence of two counts, in bits, 0 to 1."""
    p, q = one / one.sum(), other / other.sum()
    middle = (p + q) / 2
    parts = [(x[x > 0] * np.log2(x[x > 0] / middle[x > 0])).sum() for x in (p, q)]
    return float(sum(parts) / 2)


def states_of(crystals: dict[str, Crystal], rows: Sequence[Row]) -> dict[str, Row]:
    """Return the rows of accepted drafts that were relaxed, by their names."""
    return {row["id"]: row for row in rows if row["id"] in crystals and row["status"] == "ok"}


def relaxation(crystals: dict[str, Crystal], rows: Sequence[Row]) -> dict[str, Share]:
    """Return how many drafts can be relaxed, converge, and match their relaxed states."""
    states = states_of(crystals, rows)
    return {
        "relaxed": share(row["id"] in states for row in rows if row["id"] in crystals),
        "converged": share(bool(row["converged"]) for row in states.values()),
        "match": share(matches(crystals[name], row) for name, row in states.items()),
    }


def matches(crystal: Crystal, row: Row) -> bool:
    """Return whether a crystal matches its relaxed state."""
    state = crystal_of(row)
    assert state is not None
    return rms_distance_or_error(crystal, state, DEFAULT)[0] is not None


def energy_released(crystals: dict[str, Crystal], rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return the median energy that the relaxation releases, eV per atom."""
    states = states_of(crystals, rows).values()
    return bootstrapped(np.array([row["delta_energy_per_atom"] for row in states]), np.median)


def e_above_hull(
    crystals: dict[str, Crystal], rows: Sequence[Row], path: Path | None
) -> dict[str, Any] | None:
    """Return the median energy of the relaxed states above a hull, eV per atom."""
    if path is None:
        return None
    entries = read_table(path, schemas.HULL_ENTRIES).to_pylist()
    hull = ReferenceHull(
        (Composition(entry["formula"]).get_el_amt_dict(), entry["energy_per_atom"])
        for entry in entries
    )
    above = []
    for row in states_of(crystals, rows).values():
        state = crystal_of(row)
        assert state is not None
        amounts = state.to_structure().composition.get_el_amt_dict()
        try:
            above.append(hull.e_above_hull(amounts, row["final_energy_per_atom"]))
        except MissingReference:
            continue
    return bootstrapped(np.array(above), np.median)


def share(flags: Iterable[bool]) -> Share:
    """Return how many of how many flags are set."""
    found = list(flags)
    return [sum(found), len(found)]


def bootstrapped(
    values: np.ndarray, statistic: Callable[[np.ndarray], Any]
) -> dict[str, Any] | None:
    """Return a statistic, the percentiles of its bootstrap samples, and the number of values."""
    if values.size == 0:
        return None
    rng = generator(0, "ablation", "bootstrap")
    drawn = [statistic(rng.choice(values, values.size)) for _ in range(1000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    value = float(statistic(values))
    return {"value": value, "low": float(low), "high": float(high), "count": int(values.size)}
