"""Rates of the dense velocity network and the plain edge list, in training and in sampling.

Both versions run in turns on the same crystals with the same weights in one process:

    python benchmarks/bench_network.py data/mp_20_sample/train.csv

The network has the size of the paper (14.2 million parameters, float32, batch 64). Training uses
the loader's batches; sampling joins all crystals with the same number of atoms, as refine does.
FLOPs are those of matrix products, counted by torch. The peak is the measured rate of a large
float32 matrix product.
"""

import argparse
import csv
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from pymatgen.core import Structure
from torch.utils.flop_counter import FlopCounterMode

from flowllm.crystal import Crystal
from flowllm.rfm.base_distribution import angles_within, crystal_lattice
from flowllm.rfm.loader import PairBatch, plan_epoch
from flowllm.rfm.loss import squared_errors
from flowllm.rfm.manifold import (
    geodesic,
    gram_matrix,
    lattice_parameters,
    target_velocity,
    torus_exp,
)
from flowllm.rfm.model import build_field
from flowllm.rfm.network import NetworkSize, Standardization, VelocityField
from flowllm.rfm.train import average_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from reference_network import ReferenceNetwork

BOUNDS = (59.9, 120.1)
BATCH_SIZE = 64
FULL_SIZE = NetworkSize(hidden_dim=512, num_layers=6, time_dim=256, num_frequencies=128)


def read_crystals(path: Path) -> list[Crystal]:
    """Read the crystals of a CSV file in MP-20's format whose angles are within the bounds."""
    crystals = []
    with path.open() as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the CIF parser warns of rounding
        for row in csv.DictReader(handle):
            structure = Structure.from_str(row["cif"], fmt="cif").get_reduced_structure()
            crystal = Crystal.from_structure(structure)
            if angles_within(crystal, BOUNDS):
                crystals.append(crystal)
    return crystals


def make_batches(crystals: Sequence[Crystal], max_batches: int) -> list[list[PairBatch]]:
    """Make batches as training does: most of them have one number of atoms.

    Args:
        crystals: the targets; the start of a pair is its target with noise.
        max_batches: number of batches, drawn from all.
    """
    rng = np.random.default_rng(0)
    plan = list(plan_epoch([np.array([c.num_atoms for c in crystals])], BATCH_SIZE, rng))
    chosen = rng.permutation(len(plan))[:max_batches]
    return [
        [_pair_batch([crystals[row] for _, row in group], rng) for group in plan[index]]
        for index in chosen
    ]


def _pair_batch(crystals: Sequence[Crystal], rng: np.random.Generator) -> PairBatch:
    """Make pairs of crystals with the same number of atoms."""
    end = torch.tensor(np.stack([c.frac_coords for c in crystals]))
    coords_noise = torch.tensor(rng.normal(0, 0.03, end.shape), dtype=torch.float32)
    lattice = torch.tensor(np.stack([crystal_lattice(c, BOUNDS) for c in crystals]))
    noise = torch.tensor(rng.normal(0, 0.1, lattice.shape), dtype=torch.float32)
    elements = torch.tensor(np.stack([c.atomic_numbers for c in crystals])).long()
    return PairBatch(elements, torus_exp(end, coords_noise), end, lattice + noise, lattice)


def by_size(batches: list[list[PairBatch]]) -> list[list[PairBatch]]:
    """Join the same crystals as refine does: one batch per number of atoms."""
    groups = [group for batch in batches for group in batch]
    sizes = sorted({group.elements.shape[1] for group in groups})
    found = []
    for size in sizes:
        parts = [vars(group).values() for group in groups if group.elements.shape[1] == size]
        found.append([PairBatch(*map(torch.cat, zip(*parts, strict=True)))])
    return found


class PlainField(torch.nn.Module):
    """The reference network with the same scalings, on a batch joined to one graph."""

    def __init__(self, field: VelocityField) -> None:
        super().__init__()
        self.network = ReferenceNetwork(field.network)
        self.scales = field

    def forward(self, elements, coords, num_atoms, lattice, time):
        """Return velocities of joined crystals: elements (N,), coords (N, 3), others (B, ...)."""
        gram = gram_matrix(*lattice_parameters(lattice, BOUNDS))
        scaled = (lattice - self.scales.lattice_mean) / self.scales.lattice_std
        out = self.network(elements, coords, num_atoms, scaled, gram, time)
        lattice_velocity = self.scales.lattice_velocity_mean
        lattice_velocity = lattice_velocity + self.scales.lattice_velocity_std * out[1]
        return self.scales.coords_velocity_std * out[0], lattice_velocity


class Steps:
    """A training step and a sampling step of one version."""

    def __init__(self, model: torch.nn.Module, errors: Callable, velocity: Callable) -> None:
        self.model, self.errors, self.velocity = model, errors, velocity
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-6)

    def train(self, batch: list[PairBatch]) -> None:
        """Take a training step: forward, loss, backward, clipping, AdamW and EMA."""
        coords, lattice = self.errors(batch)
        loss = 200 * coords.mean() + lattice.mean()
        loss.backward()
        torch.nn.utils.clip_grad_value_(self.parameters, 0.5)
        self.optimizer.step()
        average_weights(self.average, self.parameters, 1000, 0.999)
        self.optimizer.zero_grad()

    def sample(self, batch: list[PairBatch]) -> None:
        """Take one Euler step of every crystal."""
        with torch.inference_mode():
            self.velocity(batch)


def dense_steps(field: VelocityField, compiled: bool = False) -> Steps:
    """Return the steps of the package's network; sampling uses a frozen copy, as refine does."""
    frozen = deepcopy(field)
    frozen.requires_grad_(False).eval()
    if compiled:
        field.network.compile_layers()
        frozen.network.compile_layers()

    def errors(batch):
        parts = [squared_errors(field, group, torch.rand(len(group))) for group in batch]
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def velocity(batch):
        for group in batch:
            time = torch.full((len(group),), 0.5)
            v = frozen(group.elements, group.start_coords, group.start_lattice, time)
            torus_exp(group.start_coords, 0.01 * v[0])

    return Steps(field, errors, velocity)


def plain_steps(field: VelocityField) -> Steps:
    """Return the steps of the edge list, with all crystals of a batch in one graph."""
    plain = PlainField(field)

    def joined(batch, coords, lattices, time):
        num_atoms = torch.cat([torch.full((len(g),), g.elements.shape[1]) for g in batch])
        elements = torch.cat([g.elements.flatten() for g in batch])
        flat = torch.cat([f.flatten(0, 1) for f in coords])
        return plain(elements, flat, num_atoms, torch.cat(lattices), time), num_atoms

    def errors(batch):
        coords, lattices, targets, times = [], [], [], []
        for group in batch:
            start = group.start_coords, group.start_lattice
            target = target_velocity(start[0], group.end_coords, start[1], group.end_lattice)
            times.append(torch.rand(len(group)))
            at = geodesic(*start, target, times[-1])
            coords.append(at[0])
            lattices.append(at[1])
            targets.append(target)
        found, num_atoms = joined(batch, coords, lattices, torch.cat(times))
        wanted = torch.cat([t[0].flatten(0, 1) for t in targets])
        square = (found[0] - wanted).square().mean(1)
        owner = torch.repeat_interleave(torch.arange(len(num_atoms)), num_atoms)
        per_crystal = torch.zeros(len(num_atoms)).index_add(0, owner, square) / num_atoms
        return per_crystal, (found[1] - torch.cat([t[1] for t in targets])).square().mean(1)

    def velocity(batch):
        coords = [g.start_coords for g in batch]
        time = torch.full((sum(map(len, batch)),), 0.5)
        found, _ = joined(batch, coords, [g.start_lattice for g in batch], time)
        torus_exp(torch.cat([f.flatten(0, 1) for f in coords]), 0.01 * found[0])

    return Steps(plain, errors, velocity)


def peak_flops(clock: Callable[[], float], rounds: int = 30) -> float:
    """Measure the rate of a large float32 matrix product of the network's width, FLOP/s."""
    a, b = torch.rand(8192, 512), torch.rand(512, 512)
    times = []
    for _ in range(rounds):
        start = clock()
        a @ b
        times.append(clock() - start)
    return 2 * 8192 * 512 * 512 / float(np.median(times))


def flops_per_crystal(step: Callable, batches: list[list[PairBatch]]) -> float:
    """Count the FLOPs per crystal of matrix products in one pass over the batches."""
    with FlopCounterMode(display=False) as counter:
        for batch in batches:
            step(batch)
    return counter.get_total_flops() / sum(len(group) for batch in batches for group in batch)


def compare(
    batches: list[list[PairBatch]],
    versions: dict[str, Steps],
    kind: str,
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, dict[str, float]]:
    """Time the steps of all versions in turns; take the median of each batch over the rounds."""
    times = {name: np.zeros((rounds, len(batches))) for name in versions}
    for turn in range(rounds):
        for index, batch in enumerate(batches):
            for name, steps in versions.items():
                start = clock()
                getattr(steps, kind)(batch)
                times[name][turn, index] = clock() - start
    count = sum(len(group) for batch in batches for group in batch)
    peak = peak_flops(clock)
    result = {}
    for name, steps in versions.items():
        flops = flops_per_crystal(getattr(steps, kind), batches)
        rate = count / np.median(times[name], axis=0).sum()
        result[name] = {
            "crystals_per_s": rate,
            "gflop_per_crystal": flops / 1e9,
            "share_of_peak": flops * rate / peak,
        }
    return result


def main() -> None:
    """Print a table, and write the numbers as JSON if --json is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("crystals", type=Path, help="CSV file in MP-20's format")
    parser.add_argument("--batches", type=int, default=8, help=f"batches of {BATCH_SIZE}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--by-atoms", action="store_true", help="also per number of atoms")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument(
        "--cpu-clock",
        action="store_true",
        help="measure processor time; for one thread on a busy machine",
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    clock = time.process_time if given.cpu_clock else time.perf_counter
    crystals = read_crystals(given.crystals)
    scales = Standardization([6.0] * 3 + [0.0] * 3, [2.0] * 6, 0.05, [0.0] * 6, [0.1] * 6)
    field = build_field(FULL_SIZE, BOUNDS, scales)
    versions = {"edge list": plain_steps(field), "dense": dense_steps(field)}
    if given.compile:
        versions["compiled"] = dense_steps(build_field(FULL_SIZE, BOUNDS, scales), compiled=True)
        for size in (4, 8):  # the graph for one number of atoms, then the one for any
            warm_up = make_batches([c for c in crystals if c.num_atoms == size], 1)[0]
            versions["compiled"].train(warm_up)
            versions["compiled"].sample(warm_up)
    selections = {"all": make_batches(crystals, given.batches)}
    if given.by_atoms:
        for size in sorted({c.num_atoms for c in crystals}):
            members = [c for c in crystals if c.num_atoms == size]
            selections[f"{size} atoms"] = make_batches(members, 1)
    results = {}
    for what, chosen in selections.items():
        atoms = np.concatenate([np.full(len(g), g.elements.shape[1]) for b in chosen for g in b])
        edges = (atoms * (atoms - 1)).mean()
        print(f"{what}: {len(atoms)} crystals, {atoms.mean():.1f} atoms, {edges:.0f} edges each")
        for kind, arranged in (("train", chosen), ("sample", by_size(chosen))):
            found = compare(arranged, versions, kind, given.rounds, clock)
            results[f"{what}, {kind}"] = dict(found)
            for name, numbers in found.items():
                print(
                    f"  {kind:>6} {name:>9}: {numbers['crystals_per_s']:8.1f} crystals/s, "
                    f"{numbers['gflop_per_crystal']:6.3f} GFLOP per crystal, "
                    f"{numbers['share_of_peak']:.0%} of peak"
                )
            plain = found.pop("edge list")["crystals_per_s"]
            for name, numbers in found.items():
                gain = numbers["crystals_per_s"] / plain
                print(f"  {kind:>6} {name:>9}: gain {gain:.2f}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
