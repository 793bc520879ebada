"""Base distributions p0, from which the flow starts (paper, sections 4.3 and 5.3).

`LlmBaseDistribution` is the language model's crystal, with or without Gaussian noise (appendix F).
`SimpleBaseDistribution` keeps the atoms of that crystal and draws the rest from FlowMM's base, for
FlowLLM-Types. A trained flow is saved with its base distribution, so that crystals are refined from
the base distribution that the flow was trained with.

A draw of c0 has two steps. `place` is done once per pair, before atoms are matched. `add_noise` is
done every time that a pair is trained on, so that each epoch has its own noise.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from flowllm.config.sections.flow import Flow, LlmFlow
from flowllm.crystal import Crystal
from flowllm.data.cif import niggli_reduced
from flowllm.errors import FlowllmError
from flowllm.io.schemas import PAIRS
from flowllm.io.tables import read_table
from flowllm.rfm.manifold import AngleBounds, lattice_parameters, lattice_vector

Normals = tuple[np.ndarray, np.ndarray]
"""Standard normal numbers of coordinates (..., n, 3) and lattices (..., 6)."""


class RejectedCrystalError(Exception):
    """A crystal that the flow cannot start from or lead to; the message is the short reason."""


@dataclass(frozen=True)
class StartPoint:
    """One draw of c0.

    Attributes:
        coords: f0 (n, 3), float64 in [0, 1).
        lattice: l0 (6,), float32, see `manifold.lattice_vector`.
        reduced: whether the crystal's cell was Niggli-reduced.
    """

    coords: np.ndarray
    lattice: np.ndarray
    reduced: bool


@dataclass(frozen=True)
class LlmBaseDistribution:
    """The language model's crystal plus Gaussian noise of zero mean.

    Noise also separates atoms of one element at the same position: an equivariant field moves such
    atoms alike, so without noise they would have the same position at t = 1.

    Attributes:
        coords_noise: standard deviation, fractions of the cell.
        lengths_noise: standard deviation, angstrom.
        angles_noise: standard deviation, degrees.
    """

    coords_noise: float
    lengths_noise: float
    angles_noise: float

    def place(self, crystal: Crystal, bounds: AngleBounds, rng: np.random.Generator) -> StartPoint:
        """Return the language model's crystal, without noise.

        Raises:
            RejectedCrystalError: its angles cannot be brought within the bounds.
        """
        del rng
        within = bring_angles_within(crystal, bounds)
        coords = within.frac_coords.astype(np.float64)
        return StartPoint(coords, crystal_lattice(within, bounds), within is not crystal)

    @property
    def is_noisy(self) -> bool:
        """Whether `add_noise` changes a draw."""
        return any((self.coords_noise, self.lengths_noise, self.angles_noise))

    def add_noise(
        self, coords: np.ndarray, lattice: np.ndarray, normals: Normals, bounds: AngleBounds
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add noise, made of standard normal numbers, to f0 (..., n, 3) and l0 (..., 6).

        Noise can make a length negative or move an angle out of bounds. Lengths are therefore
        reflected at zero, and angles at the outermost whole degrees within the bounds (60 and 120),
        which are the outermost angles of text.
        """
        noisy = coords + (self.coords_noise * normals[0]).astype(coords.dtype)
        if self.lengths_noise or self.angles_noise:
            parameters = lattice_parameters(torch.from_numpy(lattice).double(), bounds)
            lengths, angles = (x.numpy() for x in parameters)
            lengths = np.abs(lengths + self.lengths_noise * normals[1][..., :3])
            angles = angles + self.angles_noise * normals[1][..., 3:]
            if self.angles_noise:
                angles = _reflect(angles, math.ceil(bounds[0]), math.floor(bounds[1]))
            lattice = _lattice(lengths, angles, bounds)
        return np.mod(noisy, 1.0), lattice


@dataclass(frozen=True)
class SimpleBaseDistribution:
    """FlowMM's base: coordinates and angles uniform, lengths log-normal; atoms as given.

    Attributes:
        log_lengths_mean: means of the logarithms of the three lengths in angstrom.
        log_lengths_std: standard deviations of these logarithms.
    """

    log_lengths_mean: list[float]
    log_lengths_std: list[float]

    is_noisy = False

    def place(self, crystal: Crystal, bounds: AngleBounds, rng: np.random.Generator) -> StartPoint:
        """Draw c0 with the atoms of a crystal.

        The logit of an angle that is uniform between the bounds has the logistic distribution.
        """
        del bounds
        coords = rng.random((crystal.num_atoms, 3))
        lengths = np.exp(rng.normal(self.log_lengths_mean, self.log_lengths_std))
        lattice = np.concatenate([lengths, rng.logistic(size=3)])
        return StartPoint(coords, lattice.astype(np.float32), reduced=False)

    def add_noise(
        self, coords: np.ndarray, lattice: np.ndarray, normals: Normals, bounds: AngleBounds
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the draw unchanged."""
        del normals, bounds
        return coords, lattice


BaseDistribution = LlmBaseDistribution | SimpleBaseDistribution

_CLASSES: dict[str, type[LlmBaseDistribution] | type[SimpleBaseDistribution]] = {
    "llm": LlmBaseDistribution,
    "simple": SimpleBaseDistribution,
}


def base_distribution_of(flow: Flow, shards: Iterable[Path]) -> BaseDistribution:
    """Make the base distribution of a row of `flows`.

    Args:
        flow: the row.
        shards: training pairs; a simple base is fitted to their training crystals.

    Raises:
        FlowllmError: a simple base has no training crystal to be fitted to.
    """
    if isinstance(flow, LlmFlow):
        return LlmBaseDistribution(flow.coords_noise, flow.lengths_noise, flow.angles_noise)
    return fit_simple_base_distribution(shards)


def fit_simple_base_distribution(shards: Iterable[Path]) -> SimpleBaseDistribution:
    """Fit the log-normal lengths to the training crystals of pairs, by moments of the logarithms.

    Raises:
        FlowllmError: no pair has a training crystal.
    """
    count, sums, squares = 0, np.zeros(3), np.zeros(3)
    for shard in shards:
        column = read_table(shard, PAIRS, ["target_lengths"]).column(0)
        lengths = pc.list_flatten(column.drop_null()).to_numpy().reshape(-1, 3)
        logarithms = np.log(lengths.astype(np.float64))
        count += len(logarithms)
        sums += logarithms.sum(axis=0)
        squares += (logarithms**2).sum(axis=0)
    if count == 0:
        raise FlowllmError(
            "train_rfm: no pair can be used to fit the simple base; see the column error of the "
            "shards, and sample_pairs in the configuration"
        )
    mean = sums / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return SimpleBaseDistribution(mean.tolist(), deviation.tolist())


def standard_normals(rng: np.random.Generator, *shape: int) -> Normals:
    """Draw the normal numbers of the noise for crystals of `shape` (..., number of atoms)."""
    return rng.standard_normal((*shape, 3)), rng.standard_normal((*shape[:-1], 6))


def draw_start(
    base_distribution: BaseDistribution,
    crystal: Crystal,
    bounds: AngleBounds,
    rng: np.random.Generator,
) -> StartPoint:
    """Draw c0 for one crystal of the language model.

    Raises:
        RejectedCrystalError: the flow cannot start from the crystal.
    """
    placed = base_distribution.place(crystal, bounds, rng)
    normals = standard_normals(rng, crystal.num_atoms)
    coords, lattice = base_distribution.add_noise(placed.coords, placed.lattice, normals, bounds)
    return StartPoint(coords, lattice, placed.reduced)


def base_distribution_record(base_distribution: BaseDistribution) -> dict[str, Any]:
    """Return the record of a base distribution in `model.json`."""
    kind = next(name for name, cls in _CLASSES.items() if isinstance(base_distribution, cls))
    return {"kind": kind, **vars(base_distribution)}


def base_distribution_from_record(record: Mapping[str, Any]) -> BaseDistribution:
    """Make a base distribution of its record; the inverse of `base_distribution_record`."""
    values = dict(record)
    return _CLASSES[values.pop("kind")](**values)


def angles_within(crystal: Crystal, bounds: AngleBounds) -> bool:
    """Return whether all three angles are in the open interval that the logit maps."""
    return bool(np.all((crystal.angles > bounds[0]) & (crystal.angles < bounds[1])))


def bring_angles_within(crystal: Crystal, bounds: AngleBounds) -> Crystal:
    """Return the crystal itself, or its Niggli-reduced cell if an angle is out of bounds.

    Reduction only chooses another cell of the same crystal: the atoms keep their order and number,
    and their coordinates change with the basis.

    Raises:
        RejectedCrystalError: the reduction fails or does not bring the angles within the bounds.
    """
    if angles_within(crystal, bounds):
        return crystal
    try:
        reduced = Crystal.from_structure(niggli_reduced(crystal.to_structure()))
    except (ValueError, ArithmeticError, FlowllmError, np.linalg.LinAlgError) as error:
        raise RejectedCrystalError("not_reducible") from error
    if not angles_within(reduced, bounds) or reduced.num_atoms != crystal.num_atoms:
        raise RejectedCrystalError("angles_out_of_bounds")
    return reduced


def crystal_lattice(crystal: Crystal, bounds: AngleBounds) -> np.ndarray:
    """Return the lattice vector l of a crystal (6,), float32; the logit is taken in float64."""
    return _lattice(crystal.lengths, crystal.angles, bounds)


def _lattice(lengths: np.ndarray, angles: np.ndarray, bounds: AngleBounds) -> np.ndarray:
    """Return lattice vectors (..., 6), float32, of lengths and angles, each (..., 3)."""
    parts = torch.from_numpy(lengths).double(), torch.from_numpy(angles).double()
    lattice: np.ndarray = lattice_vector(*parts, bounds).float().numpy()
    return lattice


def _reflect(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Reflect numbers at both ends into [low, high]."""
    period = 2 * (high - low)
    phase = np.mod(values - low, period)
    reflected: np.ndarray = low + np.minimum(phase, period - phase)
    return reflected
