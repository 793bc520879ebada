"""The picture of the best candidates: crystals as balls and sticks, drawn by matplotlib."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Patch, Polygon

from flowllm.report.gallery import Candidate
from flowllm.report.scene import Scene

PICTURED = 8
"""Number of candidates in the picture."""

COLUMNS = 4

PANEL_WIDTH, PANEL_HEIGHT = 2.3, 3.0
"""Inches per crystal."""

SHADES = 5
"""Circles per atom, from the rim to the highlight."""

BOND_WIDTH, EDGE_WIDTH = 0.22, 0.05
"""Angstrom."""

Color = tuple[float, float, float]
Shape = tuple[float, list[Patch]]
"""Depth, larger towards the reader, and what is drawn there."""


def candidates_picture(candidates: Sequence[Candidate]) -> Figure | None:
    """Draw the first candidates, with formula, space group and energy; None without any."""
    shown = candidates[:PICTURED]
    if not shown:
        return None
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(PANEL_WIDTH * columns, PANEL_HEIGHT * rows))
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, candidate in zip(panels, shown, strict=False):
        draw_scene(axes, candidate.scenes[0])
        letters = "".join(
            f"{name}$_{{{number}}}$" if number else name for name, number in candidate.formula_parts
        )
        axes.set_title(letters, y=-0.1, va="top", fontsize=14, fontweight="bold")
        axes.text(
            0.5,
            -0.24,
            f"{candidate.space_group}\n{candidate.e_above_hull:+.3f} eV/atom",
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=10,
            color="#444444",
        )
    return figure


def draw_scene(axes: Axes, scene: Scene) -> None:
    """Draw a scene of `scene.scene` in its first view, without perspective."""
    shapes = sorted(_shapes(scene), key=lambda shape: shape[0])
    patches = [patch for _, drawn in shapes for patch in drawn]
    axes.add_collection(PatchCollection(patches, match_original=True))
    axes.legend(
        [Circle((0, 0), facecolor=color, edgecolor="#333333") for _, color, _ in scene["kinds"]],
        [symbol for symbol, _, _ in scene["kinds"]],
        loc="lower center",
        bbox_to_anchor=(0.5, -0.08),
        ncols=len(scene["kinds"]),
        handlelength=0.7,
        handletextpad=0.4,
        columnspacing=1.0,
        frameon=False,
    )
    reach = scene["size"] + 0.5
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")


def _shapes(scene: Scene) -> Iterator[Shape]:
    """Yield the edges, the bonds in two halves, and the atoms."""
    view = np.reshape(scene["view"], (3, 3))
    for edge in scene["edges"]:
        start, end = np.reshape(edge, (2, 3)) @ view.T
        grey = to_rgb("#8a8a8a")
        yield min(start[2], end[2]) - 1e-3, [_stick(start, end, EDGE_WIDTH, grey)]
    atoms = np.array([atom[:3] for atom in scene["atoms"]]) @ view.T
    kinds = [scene["kinds"][atom[3]] for atom in scene["atoms"]]
    for bond in scene["bonds"]:
        for near, far in (bond, bond[::-1]):
            middle = (atoms[near] + atoms[far]) / 2
            _, color, radius = kinds[near]
            length = float(np.linalg.norm(middle - atoms[near])) or 1.0
            # From the surface of the atom, so that a bond towards the reader does not cross it.
            start = atoms[near] + min(0.9 * radius / length, 1) * (middle - atoms[near])
            stick = _stick(start, middle, BOND_WIDTH, to_rgb(color), rim="#666666")
            yield (start[2] + middle[2]) / 2 - 1e-3, [stick]
    for position, (_, color, radius) in zip(atoms, kinds, strict=True):
        yield position[2], list(_ball(position, radius, to_rgb(color)))


def _stick(
    start: np.ndarray, end: np.ndarray, width: float, color: Color, rim: str | None = None
) -> Patch:
    """Return a thin rectangle between two points of the view."""
    along = end[:2] - start[:2]
    length = float(np.hypot(*along)) or 1.0
    across = width / 2 * np.array([-along[1], along[0]]) / length
    corners = [start[:2] + across, end[:2] + across, end[:2] - across, start[:2] - across]
    return Polygon(corners, facecolor=color, edgecolor=rim or "none", linewidth=0.4)


def _ball(position: np.ndarray, radius: float, color: Color) -> Iterator[Patch]:
    """Yield circles that get smaller and lighter towards a highlight at the upper left."""
    x, y = position[:2]
    yield Circle((x, y), radius, facecolor=color, edgecolor="#333333", linewidth=0.6)
    for step in range(1, SHADES):
        share = step / SHADES
        shift = 0.38 * radius * share
        lighter = tuple(part + (1 - part) * 0.85 * share**1.5 for part in color)
        inner = radius * (1 - share) * 0.9
        yield Circle((x - shift, y + shift), inner, facecolor=lighter, edgecolor="none")
