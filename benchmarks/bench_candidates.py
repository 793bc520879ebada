"""DFT runs per stable and per S.U.N. crystal, by the selection of dft_inputs.

    python benchmarks/bench_candidates.py --data FOLDER             # FOLDER/train.csv, test.csv
    python benchmarks/bench_candidates.py --per-crystal runs/NAME/metrics/potential/METHOD.parquet
    python benchmarks/bench_candidates.py --samples SAMPLES --above-hull CSV --data FOLDER

With `--data`, a folder in MP-20's format, crystals of the test split stand for generated ones. The
potential's energy above the hull is that of CHGNet without relaxation, on the hull of the training
split; the result of a DFT run is the column `e_above_hull` of the file, stable at 0. With
`--per-crystal` the crystals are those of a run. DFT is not known for them, and the potential stands
for it, so that a selection by the same potential is right for every crystal: an upper limit. With
`--samples` the crystals are another model's (any format of external_samples), and the CSV file has
the potential's energy above the hull of the first ones, in their order; known crystals are those of
FOLDER/train.csv.

The rows `random` have as many runs as the candidates above them, and all random choices are
repeated with `--seeds` seeds, of which the means are printed.
"""

import argparse
import csv
import gzip
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from chgnet.model import CHGNet
from pymatgen.core import Structure

from flowllm.config.load import load_config
from flowllm.config.sections.energies import DftInputs
from flowllm.crystal import Crystal
from flowllm.data.external import read_samples
from flowllm.dft.selection import Relaxed, choose
from flowllm.evaluate.estimates import Observed, interval
from flowllm.evaluate.hull import MissingReference, ReferenceHull
from flowllm.evaluate.matching import Bucket
from flowllm.evaluate.per_crystal import match_buckets
from flowllm.evaluate.validity import reduced_composition
from flowllm.relax.ground_states import ground_states

csv.field_size_limit(1 << 30)
warnings.filterwarnings("ignore")


def read_split(path: Path) -> list[tuple[str, Structure, float]]:
    """Return id, structure and e_above_hull of each row of a split."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            (row["material_id"], Structure.from_str(row["cif"], "cif"), float(row["e_above_hull"]))
            for row in csv.DictReader(file)
        ]


def energies(structures: Sequence[Structure]) -> list[float]:
    """Return CHGNet's energies in eV per atom, without relaxation."""
    model = CHGNet.load(verbose=False, use_device="cpu")
    found = model.predict_structure(list(structures), task="e", batch_size=16)
    return [float(one["e"]) for one in found]


def crystals_of_splits(folder: Path, count: int) -> tuple[list[Relaxed], dict[str, bool]]:
    """Return what the potential says about crystals of the test split, and which DFT finds stable.

    Args:
        folder: folder with train.csv and test.csv.
        count: crystals of the test split, drawn at random.
    """
    test = read_split(folder / "test.csv")
    drawn = np.random.default_rng(0).permutation(len(test))[:count]
    test = [test[index] for index in drawn]
    systems = {frozenset(map(str, one.elements)) for _, one, _ in test}
    train = [
        row
        for row in read_split(folder / "train.csv")
        if any(system >= {*map(str, row[1].elements)} for system in systems)
    ]
    entries = [one for _, one, _ in train]
    entries += [one.crystal.to_structure() for one in ground_states().values()]
    found = energies(entries + [one for _, one, _ in test])
    hull = ReferenceHull(
        (one.composition.get_el_amt_dict(), energy)
        for one, energy in zip(entries, found, strict=False)
    )
    print(f"{len(test)} crystals of the test split, {len(entries)} entries of the hull")
    groups, known = matches(train, test)
    judged = []
    for (name, structure, _), energy in zip(test, found[len(entries) :], strict=True):
        try:
            distance = hull.e_above_hull(structure.composition.get_el_amt_dict(), energy)
        except MissingReference:
            distance = None
        group, formula = groups.get(name), structure.formula.replace(" ", "")
        judged.append(Relaxed(name, formula, distance, group, name not in known, known.get(name)))
    return judged, {name: above <= 0 for name, _, above in test}


def matches(
    train: Sequence[tuple[str, Structure, float]], test: Sequence[tuple[str, Structure, float]]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the class of each test crystal, and the training crystal that it matches."""
    buckets: dict[tuple, tuple[dict[str, Crystal], dict[str, Crystal]]] = {}
    for place, rows in enumerate((test, train)):
        for name, structure, _ in rows:
            crystal = Crystal.from_structure(structure)
            key = reduced_composition(crystal.atomic_numbers)
            buckets.setdefault(key, ({}, {}))[place][name] = crystal
    given = [
        Bucket(samples, frozenset(), {"train": references})
        for samples, references in buckets.values()
        if samples
    ]
    found = match_buckets(given, ["train"], workers=1)
    return found.classes, found.known["train"]


def crystals_of_run(path: Path) -> tuple[list[Relaxed], dict[str, bool]]:
    """Return the relaxed crystals of a run, and which of them the potential finds stable."""
    rows = [row for row in pq.read_table(path).to_pylist() if row["relaxed"]]
    judged = [
        Relaxed(
            row["id"],
            row["formula"],
            row["e_above_hull"],
            row["duplicate_group"],
            row["novel"],
            row["matched_material_id"],
        )
        for row in rows
    ]
    return judged, {row["id"]: row["stable"] for row in rows}


def crystals_of_samples(
    samples: Path, above_hull: Path, folder: Path
) -> tuple[list[Relaxed], dict[str, bool]]:
    """Return what a file of energies says about another model's crystals.

    Args:
        samples: crystals in a format of external_samples.
        above_hull: CSV file with the column corrected_chgnet_ehull, eV per atom.
        folder: folder with train.csv, whose crystals are known.
    """
    with gzip.open(above_hull, "rt") if above_hull.suffix == ".gz" else above_hull.open() as file:
        found = [float(row["corrected_chgnet_ehull"]) for row in csv.DictReader(file)]
    drawn = zip(read_samples(samples), found, strict=False)
    rows = [(f"{number:04d}", one.parse(), energy) for number, (one, energy) in enumerate(drawn)]
    test = [(name, crystal.to_structure(), energy) for name, crystal, energy in rows]
    groups, known = matches(read_split(folder / "train.csv"), test)
    print(f"{len(test)} crystals, {len(known)} known, {len(set(groups.values()))} classes")
    judged = [
        Relaxed(name, crystal.formula, energy, groups.get(name), name not in known, known.get(name))
        for name, crystal, energy in rows
    ]
    stable = {name: energy < 0 and len(one.composition) > 1 for name, one, energy in test}
    return judged, stable


def measure(
    crystals: Sequence[Relaxed], stable: dict[str, bool], section: DftInputs, seeds: int
) -> tuple[int, str]:
    """Return the number of runs of a selection, and its line of the table."""
    counts, estimates = [], []
    everything = section.model_copy(update={"selection": "candidates", "control_share": 0.0})
    leads = {name for name, one in choose(crystals, everything, 0).items() if one.leads_class}
    truth = sum(stable[name] for name in leads) / len(crystals)
    for seed in range(seeds):
        choices = choose(crystals, section, seed)
        taken = [name for name, one in choices.items() if one.taken_as]
        sun = [name for name in taken if stable[name] and name in leads]
        counts.append((len(taken), sum(stable[name] for name in taken), len(sun)))
        sure = {name for name, one in choices.items() if one.probability == 1}
        observed = Observed(
            certain=len(sure & set(sun)),
            sampled=len(set(sun) - sure),
            sample=len(set(taken) - sure),
            population=len(crystals) - len(sure),
            drawn=len(crystals),
        )
        low, high = interval(observed)
        estimates.append((np.nan if observed.value is None else observed.value, low, high))
    runs, found, sun_found = np.mean(counts, axis=0)
    value, low, high = np.mean(estimates, axis=0)
    estimate = f"{low:.3f} to {high:.3f}" + ("" if np.isnan(value) else f", {value:.3f}")
    line = (
        f"{runs:.0f} | {found:.1f} | {sun_found:.1f} | {sun_found / runs:.3f} "
        f"| {runs / sun_found if sun_found else np.inf:.2f} | {estimate} | {truth:.3f} |"
    )
    return int(runs), line


def main() -> None:
    """Print a table for each bound of the candidates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--per-crystal", type=Path)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--above-hull", type=Path)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=200)
    arguments = parser.parse_args()
    config = load_config([Path(__file__).parents[1] / "config.yaml"]).dft_inputs
    if arguments.samples:
        given = arguments.samples, arguments.above_hull, arguments.data
        crystals, stable = crystals_of_samples(*given)
    elif arguments.data:
        crystals, stable = crystals_of_splits(arguments.data, arguments.count)
    else:
        crystals, stable = crystals_of_run(arguments.per_crystal)
    print(
        "| selection | runs | stable | S.U.N. | S.U.N. per run | runs per S.U.N. "
        "| interval and estimate of the rate of S.U.N. | rate of S.U.N. |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    print("| all |", measure(crystals, stable, config, 1)[1])
    for bound, part in ((0.1, 1.0), (0.0, 1.0), (0.1, 0.25), (0.1, 0.1)):
        for share in (0.0, 0.05, 0.2):
            changes = {
                "selection": "candidates",
                "max_e_above_hull": bound,
                "control_share": share,
                "max_crystals": int(part * len(crystals)),
            }
            section = config.model_copy(update=changes)
            runs, line = measure(crystals, stable, section, arguments.seeds)
            most = "" if part == 1 else f", max_crystals {changes['max_crystals']}"
            print(f"| candidates within {bound:g} eV/atom{most}, control_share {share:g} |", line)
            if share == 0.0 and runs:
                changes = {"selection": "random", "max_crystals": runs}
                random = config.model_copy(update=changes)
                print("| random |", measure(crystals, stable, random, arguments.seeds)[1])


if __name__ == "__main__":
    main()
