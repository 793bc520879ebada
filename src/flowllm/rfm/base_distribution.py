"""Base distributions p0: from where the flow sets out to a crystal (paper, sections 4.3 and 5.3).

`LlmBaseDistribution` is the language model's crystal, with or without Gaussian noise (appendix F).
`SimpleBaseDistribution` keeps its atoms only and draws all else from FlowMM's base, for
FlowLLM-Types. Pairs are prepared and crystals are refined with the same one: it is saved with the
trained flow.

A draw of c0 has two steps. `place` is done once a pair, when atoms are matched; `shake` adds the
noise, and is drawn anew whenever a pair is trained on, so that each epoch has noise of its own.
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
"""Standard normal numbers for the coordinates (..., n, 3) and the lattice (..., 6)."""


class RejectedCrystalError(Exception):
    """A crystal that the flow cannot start from or lead to; holds the short reason."""


@dataclass(frozen=True)
class StartPoint:
    """One draw of c0.

    Attributes:
        coords: f0 (n, 3), float64 in [0, 1).
        lattice: l0 (6,), float32, see `manifold.lattice_vector`.
        reduced: whether the crystal's cell had to be reduced.
    """

    coords: np.ndarray
    lattice: np.ndarray
    reduced: bool


@dataclass(frozen=True)
class LlmBaseDistribution:
    """The language model's crystal plus zero-mean Gaussian noise.

    Noise also parts atoms of one element that the text puts in one place: an equivariant field
    moves such atoms alike, so that without it they would stay together to the end.

    Attributes:
        coords_noise: standard deviation, fractions of the cell.
        lengths_noise: standard deviation, angstrom.
        angles_noise: standard deviation, degrees.
    """

    coords_noise: float
    lengths_noise: float
    angles_noise: float

    def place(self, crystal: Crystal, bounds: AngleBounds, rng: np.random.Generator) -> StartPoint:
        """Return the crystal of the language model itself.

        Raises:
            RejectedCrystalError: its angles cannot be brought within the bounds.
        """
        del rng
        within = bring_angles_within(crystal, bounds)
        coords = within.frac_coords.astype(np.float64)
        return StartPoint(coords, crystal_lattice(within, bounds), within is not crystal)

    @property
    def is_noisy(self) -> bool:
        """Whether shaking changes anything."""
        return any((self.coords_noise, self.lengths_noise, self.angles_noise))

    def shake(
        self, coords: np.ndarray, lattice: np.ndarray, normals: Normals, bounds: AngleBounds
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add noise to f0 (..., n, 3) and l0 (..., 6), from standard normal numbers.

        Noise would carry a length below zero or an angle out of bounds now and then; it is
        reflected at zero, and at the outermost whole degrees (60 and 120), which text can hold.
        """
        shaken = coords + (self.coords_noise * normals[0]).astype(coords.dtype)
        if self.lengths_noise or self.angles_noise:
            parameters = lattice_parameters(torch.from_numpy(lattice).double(), bounds)
            lengths, angles = (x.numpy() for x in parameters)
            lengths = np.abs(lengths + self.lengths_noise * normals[1][..., :3])
            angles = angles + self.angles_noise * normals[1][..., 3:]
            if self.angles_noise:
                angles = _reflect(angles, math.ceil(bounds[0]), math.floor(bounds[1]))
            lattice = _lattice(lengths, angles, bounds)
        return np.mod(shaken, 1.0), lattice


@dataclass(frozen=True)
class SimpleBaseDistribution:
    """FlowMM's base: coordinates and angles uniform, lengths log-normal; atoms as given.

    Attributes:
        log_lengths_mean: means of the logarithms of the three lengths in angstrom.
        log_lengths_std: their standard deviations.
    """

    log_lengths_mean: list[float]
    log_lengths_std: list[float]

    is_noisy = False

    def place(self, crystal: Crystal, bounds: AngleBounds, rng: np.random.Generator) -> StartPoint:
        """Draw c0 with the atoms of a crystal.

        An angle that is uniform on the bounds is a logistic number on the line, whatever they are.
        """
        del bounds
        coords = rng.random((crystal.num_atoms, 3))
        lengths = np.exp(rng.normal(self.log_lengths_mean, self.log_lengths_std))
        lattice = np.concatenate([lengths, rng.logistic(size=3)])
        return StartPoint(coords, lattice.astype(np.float32), reduced=False)

    def shake(
        self, coords: np.ndarray, lattice: np.ndarray, normals: Normals, bounds: AngleBounds
    ) -> tuple[np.ndarray, np.ndarray]:
        """Leave the draw as it is."""
        del normals, bounds
        return coords, lattice


BaseDistribution = LlmBaseDistribution | SimpleBaseDistribution

_KINDS: dict[str, type[LlmBaseDistribution] | type[SimpleBaseDistribution]] = {
    "llm": LlmBaseDistribution,
    "simple": SimpleBaseDistribution,
}


def base_distribution_of(flow: Flow, shards: Iterable[Path]) -> BaseDistribution:
    """The base distribution that a row of `flows` names.

    Args:
        flow: the row.
        shards: training pairs, whose training crystals a simple base is fitted on.
    """
    if isinstance(flow, LlmFlow):
        return LlmBaseDistribution(flow.coords_noise, flow.lengths_noise, flow.angles_noise)
    return fit_simple_base_distribution(shards)


def fit_simple_base_distribution(shards: Iterable[Path]) -> SimpleBaseDistribution:
    """Fit the log-normal lengths on the training crystals of pairs: moments of the logarithms.

    Raises:
        FlowllmError: no pair holds a crystal.
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
        raise FlowllmError("train_rfm: no pair can be used to fit the simple base on (not_ok)")
    mean = sums / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return SimpleBaseDistribution(mean.tolist(), deviation.tolist())


def standard_normals(rng: np.random.Generator, *shape: int) -> Normals:
    """Draw the numbers that crystals of `shape` (..., number of atoms) are shaken with."""
    return rng.standard_normal((*shape, 3)), rng.standard_normal((*shape[:-1], 6))


def draw_start(
    start: BaseDistribution, crystal: Crystal, bounds: AngleBounds, rng: np.random.Generator
) -> StartPoint:
    """Draw c0 for one crystal of the language model.

    Raises:
        RejectedCrystalError: the flow cannot start from it.
    """
    placed = start.place(crystal, bounds, rng)
    normals = standard_normals(rng, crystal.num_atoms)
    return StartPoint(*start.shake(placed.coords, placed.lattice, normals, bounds), placed.reduced)


def base_distribution_record(start: BaseDistribution) -> dict[str, Any]:
    """What the model's description tells of its base distribution."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(start, cls))
    return {"kind": kind, **vars(start)}


def base_distribution_from_record(record: Mapping[str, Any]) -> BaseDistribution:
    """The inverse of `base_distribution_record`."""
    values = dict(record)
    return _KINDS[values.pop("kind")](**values)


def angles_within(crystal: Crystal, bounds: AngleBounds) -> bool:
    """Whether all three angles lie in the open interval that the logit maps."""
    return bool(np.all((crystal.angles > bounds[0]) & (crystal.angles < bounds[1])))


def bring_angles_within(crystal: Crystal, bounds: AngleBounds) -> Crystal:
    """Return the crystal itself, or its Niggli-reduced cell where an angle is out of bounds.

    Reduction is another choice of cell for the same crystal: atoms keep their order and number,
    coordinates change with the basis.

    Raises:
        RejectedCrystalError: reduction fails or does not bring the angles within the bounds.
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
    """The lattice vector l of a crystal (6,), float32; the logit is taken in float64."""
    return _lattice(crystal.lengths, crystal.angles, bounds)


def _lattice(lengths: np.ndarray, angles: np.ndarray, bounds: AngleBounds) -> np.ndarray:
    parts = (torch.from_numpy(x).double() for x in (lengths, angles))
    return lattice_vector(*parts, bounds).float().numpy()


def _reflect(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Fold numbers into [low, high] as mirrors at both ends would."""
    period = np.mod(values - low, 2 * (high - low))
    return low + np.minimum(period, 2 * (high - low) - period)
