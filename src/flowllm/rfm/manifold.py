"""The manifolds of crystals: flat torus and lattice space (paper, section 4.2).

Pure functions of torch tensors with any leading dimensions and any float type. Fractional
coordinates f (..., n, 3) are points of the torus [0, 1)^(n x 3). A lattice is a vector l (..., 6)
of three lengths in angstrom and three angles mapped to the real line. Its space is Euclidean, so
the exponential map is addition and the logarithm map is subtraction.
"""

import math

import torch
from torch import Tensor

AngleBounds = tuple[float, float]
"""Open interval in degrees that the logit maps onto the real line."""


def torus_exp(frac_coords: Tensor, tangent: Tensor) -> Tensor:
    """Apply the exponential map of the torus, equation 5: f + v - floor(f + v), in [0, 1)."""
    moved = frac_coords + tangent
    wrapped = moved - moved.floor()
    # For a tiny negative number the difference rounds to 1, which is the point 0.
    return torch.where(wrapped >= 1, torch.zeros_like(wrapped), wrapped)


def torus_log(start: Tensor, end: Tensor) -> Tensor:
    """Apply the logarithm map of the torus, equation 5: the shortest way from `start` to `end`.

    atan2(sin w, cos w) / (2 pi) with w = 2 pi (end - start); in [-1/2, 1/2].
    """
    angle = 2 * math.pi * (end - start)
    return torch.atan2(angle.sin(), angle.cos()) / (2 * math.pi)


def remove_mean(tangent: Tensor) -> Tensor:
    """Subtract the mean over the atoms (second last dimension) from a tangent, equation 6.

    The result contains no translation of the crystal as a whole.
    """
    return tangent - tangent.mean(dim=-2, keepdim=True)


def angles_to_line(angles: Tensor, bounds: AngleBounds) -> Tensor:
    """Map angles in degrees to the real line, equation 7: logit((a - low) / (high - low)).

    The paper prints logit((a - 60) / 120), which does not cover the line and maps the common
    angle of 60 degrees to minus infinity; `bounds` are slightly wider than [60, 120], as in the
    public code.
    """
    low, high = bounds
    return torch.logit((angles - low) / (high - low))


def line_to_angles(values: Tensor, bounds: AngleBounds) -> Tensor:
    """Map the real line to angles in degrees; the inverse of `angles_to_line`."""
    low, high = bounds
    return low + (high - low) * torch.sigmoid(values)


def lattice_vector(lengths: Tensor, angles: Tensor, bounds: AngleBounds) -> Tensor:
    """Join lengths (..., 3) and angles (..., 3, degrees) to l (..., 6)."""
    return torch.cat([lengths, angles_to_line(angles, bounds)], dim=-1)


def lattice_parameters(lattice: Tensor, bounds: AngleBounds) -> tuple[Tensor, Tensor]:
    """Split l (..., 6) into lengths (..., 3) in angstrom and angles (..., 3) in degrees."""
    return lattice[..., :3], line_to_angles(lattice[..., 3:], bounds)


def gram_matrix(lengths: Tensor, angles: Tensor) -> Tensor:
    """Return the scalar products G of the lattice vectors, (..., 3, 3) in square angstrom.

    They contain all of a lattice but its orientation: x . y = f_x G f_y for fractional vectors f.

    Args:
        lengths: angstrom (..., 3).
        angles: degrees (..., 3).
    """
    cosines = torch.deg2rad(angles).cos()
    alpha, beta, gamma = cosines.unbind(-1)
    one = torch.ones_like(alpha)
    rows = [one, gamma, beta, gamma, one, alpha, beta, alpha, one]
    unit = torch.stack(rows, dim=-1).reshape(*one.shape, 3, 3)
    return unit * lengths.unsqueeze(-1) * lengths.unsqueeze(-2)


def gram_parameters(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return lengths in angstrom and angles in degrees, each (..., 3); inverse of `gram_matrix`."""
    lengths = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    a, b, c = lengths.unbind(-1)
    products = torch.stack([gram[..., 1, 2], gram[..., 0, 2], gram[..., 0, 1]], dim=-1)
    cosines = products / torch.stack([b * c, a * c, a * b], dim=-1)
    return lengths, cosines.acos().rad2deg()


def target_velocity(
    start_coords: Tensor, end_coords: Tensor, start_lattice: Tensor, end_lattice: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the velocity of the geodesic from c0 to c1: equation 6, and l1 - l0 for lattices.

    Equation 8 writes it as -(log_f1(f0) - mean), which is the same since log is odd.

    Args:
        start_coords: f0 (..., n, 3).
        end_coords: f1 (..., n, 3).
        start_lattice: l0 (..., 6).
        end_lattice: l1 (..., 6).

    Returns:
        Tangents (..., n, 3) with zero mean over the atoms, and (..., 6).
    """
    return remove_mean(torus_log(start_coords, end_coords)), end_lattice - start_lattice


def geodesic(
    coords: Tensor, lattice: Tensor, tangents: tuple[Tensor, Tensor], time: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the point at `time` on the geodesic from (f0, l0) with given tangents, equation 3.

    With the tangents of `target_velocity` the path's time derivative is exactly the target, and its
    end is c1 up to a translation of all atoms, to which the network is invariant.

    Args:
        coords: f0 (..., n, 3).
        lattice: l0 (..., 6).
        tangents: of the coordinates (..., n, 3) and of the lattice (..., 6).
        time: t (...,), 0 to 1.

    Returns:
        f_t (..., n, 3) and l_t (..., 6).
    """
    moved = torus_exp(coords, time[..., None, None] * tangents[0])
    return moved, lattice + time[..., None] * tangents[1]
