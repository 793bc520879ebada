"""Sums of many sines and cosines by a table: what the CPU does instead of a matrix product.

The displacement's part of an edge network's first map is, in each of the three directions, a
trigonometric polynomial of degree K of one number x with H outputs,

    g(x) = sum over k = 1 ... K of  A_k cos(2 pi k x) + B_k sin(2 pi k x).

Instead of 2 K products an output, g is tabulated on a grid of M = 4 K points and read off w points
around x with a Kaiser-Bessel window, the table being divided by the window's Fourier transform
first (the type 2 non-uniform FFT: Greengard and Lee, SIAM Review 46, 443 (2004)). With twice the
necessary grid points the error falls by ten with each further point: 8 reach float32's rounding and
14 float64's.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

_WIDTHS = {torch.float32: 8, torch.float64: 14}
_OVERSAMPLING = 2


@dataclass(frozen=True)
class Window:
    """Where and how strongly a table is read: for E edges, R rows each.

    Attributes:
        rows: numbers of the table's rows, int32 (E, R); direction d's table begins at row d M.
        weights: their weights (E, R).
    """

    rows: Tensor
    weights: Tensor

    def join(self, rows: Tensor, weights: Tensor) -> "Window":
        """Read further rows (E, any) too."""
        rows = torch.cat([self.rows, rows.int()], dim=1)
        return Window(rows, torch.cat([self.weights, weights], dim=1))

    def split(self, num_edges: int) -> list["Window"]:
        """The same readings in parts of so many edges."""
        parts = zip(self.rows.split(num_edges), self.weights.split(num_edges), strict=True)
        return [Window(rows, weights) for rows, weights in parts]

    @cached_property
    def by_row(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same readings in order of the rows: their rows, edges and weights, each (E R,)."""
        rows, order = self.rows.flatten().sort()
        edges = torch.div(order, self.rows.shape[1], rounding_mode="floor").int()
        return rows, edges, self.weights.flatten()[order]


def supports(dtype: torch.dtype) -> bool:
    """Whether there is a window for this type of numbers."""
    return dtype in _WIDTHS


def grid_size(num_frequencies: int) -> int:
    """Number of grid points M of one direction's table; at least two windows' worth."""
    return max(2 * _OVERSAMPLING * num_frequencies, 2 * max(_WIDTHS.values()))


def window(displacement: Tensor, num_frequencies: int) -> Window:
    """Return the window around each displacement (E, 3)."""
    size, width = grid_size(num_frequencies), _WIDTHS[displacement.dtype]
    # To [-1/2, 1/2], which is exact; x - floor(x) would round away a small negative x's digits.
    x = (displacement - displacement.round()) * size
    first = torch.ceil(x - width / 2)
    offsets = torch.arange(width, dtype=x.dtype)
    distance = (first - x).unsqueeze(-1) + offsets  # in grid steps, at most width / 2
    inside = (1 - (2 * distance / width).square()).clamp_min(0)
    weights = torch.special.i0e(_shape(width) * inside.sqrt())
    # i0e is I0 times exp(-argument): bring all to the one factor exp(-shape).
    weights = weights * torch.exp(_shape(width) * (inside.sqrt() - 1))
    rows = torch.remainder(first.long().unsqueeze(-1) + offsets.long(), size)
    rows = rows + size * torch.arange(3)[:, None]
    return Window(rows.flatten(-2).int(), weights.flatten(-2))


@lru_cache(maxsize=8)
def basis(num_frequencies: int, dtype: torch.dtype) -> Tensor:
    """Cosines, then sines, on the grid over the window's transform, (M, 2 K).

    One direction's table (M, H) is its product with the coefficients A, then B (2 K, H).
    """
    with torch.inference_mode(mode=False):  # kept, so it must also serve training
        return _basis(grid_size(num_frequencies), num_frequencies, _WIDTHS[dtype]).to(dtype)


def _basis(size: int, num_frequencies: int, width: int) -> Tensor:
    k = torch.arange(1, num_frequencies + 1, dtype=torch.float64)
    # Transform of I0(shape sqrt(1 - (2 t / w)^2)) exp(-shape), |t| < w / 2, at k / M.
    root = (_shape(width) ** 2 - (math.pi * width * k / size).square()).sqrt()
    transform = width * torch.sinh(root) / root * math.exp(-_shape(width))
    phases = 2 * math.pi * torch.arange(size, dtype=torch.float64)[:, None] / size * k
    return torch.cat([phases.cos() / transform, phases.sin() / transform], dim=1)


def read(table: Tensor, where: Window) -> Tensor:
    """Weighted sums (E, H) of the rows of a table (any, H); differentiable in the table."""
    return _Read.apply(table, where)


class _Read(torch.autograd.Function):
    """`embedding_bag` both ways: its own backward pass is several times slower."""

    @staticmethod
    def forward(ctx: FunctionCtx, table: Tensor, where: Window) -> Tensor:
        ctx.where, ctx.num_rows = where, len(table)
        return functional.embedding_bag(
            where.rows, table, per_sample_weights=where.weights, mode="sum"
        )

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        rows, edges, weights = ctx.where.by_row
        starts = torch.searchsorted(rows, torch.arange(ctx.num_rows, dtype=rows.dtype))
        summed = functional.embedding_bag(
            edges, gradient, starts.int(), per_sample_weights=weights, mode="sum"
        )
        return summed, None


def _shape(width: int) -> float:
    """The window's shape parameter for twofold oversampling: a little below pi w (1 - 1 / 4)."""
    return 0.976 * math.pi * width * (1 - 1 / (2 * _OVERSAMPLING))
