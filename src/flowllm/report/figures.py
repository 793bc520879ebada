"""The figures of the report, one function per figure, without a display and reproducible."""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from matplotlib.typing import RcKeyType

from flowllm.report.metrics_files import Result
from flowllm.report.protocol_text import symmetry_text
from flowllm.report.provenance import starts_from_drafts
from flowllm.report.training_history import Curve

# Okabe and Ito's colors, which can be distinguished with any color vision; the configured main
# color precedes them. Lines also differ in dashes and bars in hatching, for print.
PALETTE = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#0072B2", "#000000")
DASHES = ("-", "--", "-.", ":")
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "++")
GREY = "#6b6b6b"
PALE = "#e4e4e4"
"""Bars of the test split: in black and white no color of a method is as light."""

WIDTH, HEIGHT = 5.2, 3.5
"""Inches; small, so that the text is readable on a phone."""

LOG_SPAN = 20
"""Ratio of the largest to the smallest loss above which the axis is logarithmic."""

E_HULL_RANGE = (-0.5, 1.0)
"""eV/atom; values outside are counted in the end bins."""

RC_PARAMS: dict[RcKeyType, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "flowllm",
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class LineStyle:
    """Color, dashes and hatching of one method, the same in every figure."""

    color: str
    dashes: str
    hatch: str


def line_styles(methods: Iterable[str], main: str) -> dict[str, LineStyle]:
    """Return the style of each method, the first in the main color.

    Args:
        methods: names of the methods; repeated names are ignored.
        main: the configured color, #rrggbb.
    """
    palette = [main, *(color for color in PALETTE if color.lower() != main.lower())]
    return {
        name: LineStyle(
            palette[index % len(palette)],
            DASHES[index % len(DASHES)],
            HATCHES[index % len(HATCHES)],
        )
        for index, name in enumerate(dict.fromkeys(methods))
    }


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT))
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels)) > 24 else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def e_hull_histogram(results: Sequence[Result], styles: Mapping[str, LineStyle]) -> Figure:
    """Draw the histogram of E_hull with the threshold of stability (paper, figure 3a).

    Args:
        results: methods by one source of energies.
        styles: styles of `line_styles`.
    """
    figure, axes = _figure()
    low, high = E_HULL_RANGE
    edges = np.linspace(low, high, 31)
    for result in results:
        drawn = result.numbers["counts"]["drawn"]
        # Clipped to just inside the range, so that all values are within the last bin.
        values = np.clip(result.e_above_hull, low, high - 1e-9)
        counts, _ = np.histogram(values, edges)
        style = styles[result.method]
        axes.stairs(
            100 * counts / max(drawn, 1),
            edges,
            color=style.color,
            linestyle=style.dashes,
            linewidth=1.8,
            label=result.method,
        )
    axes.set_ylim(bottom=0)
    if not any(result.e_above_hull for result in results):
        axes.set_ylim(0, 1)
        axes.text(
            0.5,
            0.5,
            "no crystal was placed on the hull",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=GREY,
        )
    bound = results[0].numbers["protocol"]["stability_rule"]["stable_below"]
    axes.axvline(bound, color="black", linestyle=(0, (4, 3)), linewidth=1.2)
    axes.text(bound, 1.01, "stable ←", transform=axes.get_xaxis_transform(), ha="right", fontsize=9)
    axes.set_xticks([low, 0, 0.5, high], [f"≤ {low:g}", "0", "0.5", f"≥ {high:g}"])
    axes.set_xlabel("E above hull, eV/atom")
    axes.set_ylabel("% of all draws")
    _legend_below(figure, axes)
    return figure


def num_elements_bars(results: Sequence[Result], styles: Mapping[str, LineStyle]) -> Figure:
    """Draw the numbers of distinct elements, generated and in the test split (paper, figure 3b)."""
    figure, axes = _figure()
    histograms = [result.numbers["histograms"]["num_elements"] for result in results]
    series = [("test split", histograms[0]["test"], LineStyle(PALE, "-", ""))]
    for result, histogram in zip(results, histograms, strict=True):
        series.append((result.method, histogram["generated"], styles[result.method]))
    largest = max((int(key) for _, counts, _ in series for key in counts), default=1)
    positions = np.arange(1, largest + 1)
    width = 0.84 / len(series)
    for index, (name, counts, style) in enumerate(series):
        total = sum(counts.values())
        axes.bar(
            positions + (index - (len(series) - 1) / 2) * width,
            [100 * counts.get(str(key), 0) / max(total, 1) for key in positions],
            width,
            color=style.color,
            hatch=style.hatch,
            edgecolor=GREY if index == 0 else "white",
            linewidth=0.5,
            label=name,
        )
    axes.set_xticks(positions)
    axes.set_xlabel("distinct elements")
    axes.set_ylabel("% of the crystals")
    _legend_below(figure, axes)
    return figure


_Point = tuple[int, Mapping[str, float]]
"""Number of steps, and a rate as in the metrics' JSON."""


def _step_lines(
    results: Sequence[Result], flows: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[_Point]]:
    """Return the points (steps, rate) of each base and flow with at least two numbers of steps.

    The language model's crystals without a flow are the point at 0 steps of each flow that starts
    from them unchanged, not of one that adds noise or starts from another distribution.
    """
    lines: dict[tuple[str, str, bool | None], list[_Point]] = {}
    starts: dict[str, _Point] = {}
    for result in results:
        row = result.numbers["sampling"]["setting"]
        if not row:
            continue  # another model's samples
        point = (row["num_steps"], result.numbers["rates"]["structural_validity"])
        if row["flow"] is None:
            starts[row["base"]] = point
        else:
            key = (row["base"], row["flow"], row.get("keep_symmetry"))
            lines.setdefault(key, []).append(point)
    found = {}
    for (base, flow, kept), points in lines.items():
        if len({steps for steps, _ in points}) < 2:
            continue
        start = starts.get(base) if flow in flows and starts_from_drafts(flows[flow]) else None
        points = [*points, *filter(None, [start])]
        found[f"base {base}, flow {flow}{symmetry_text(kept)}"] = sorted(
            points, key=lambda point: point[0]
        )
    return found


def validity_against_steps(
    results: Sequence[Result], flows: Mapping[str, Mapping[str, Any]], main: str
) -> Figure | None:
    """Draw structural validity against the number of integration steps (paper, figure 3c).

    Args:
        results: one result per method; methods that differ only in their steps make one line.
        flows: rows `flows` of the configuration by name, as far as the run's records have them.
        main: the configured color.

    Returns:
        The figure, or None if no base has methods with two numbers of steps.
    """
    lines = _step_lines(results, flows)
    if not lines:
        return None
    figure, axes = _figure()
    styles = line_styles(lines, main)
    for name, points in lines.items():
        values = np.array(
            [[100 * rate[key] for key in ("value", "low", "high")] for _, rate in points]
        )
        axes.errorbar(
            [steps for steps, _ in points],
            values[:, 0],
            yerr=[values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]],
            color=styles[name].color,
            linestyle=styles[name].dashes,
            marker="o",
            markersize=4,
            capsize=3,
            label=name,
        )
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xticks(sorted({steps for points in lines.values() for steps, _ in points}))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("integration steps")
    axes.set_ylabel("structural validity, %")
    axes.set_ylim(top=101)  # so that a marker at 100 % is not cut off
    _legend_below(figure, axes)
    return figure


def training_curve(curve: Curve, main: str) -> Figure | None:
    """Draw the losses against optimizer steps; return None if the curve has no loss."""
    losses = {
        name: values
        for name, values in curve.columns.items()
        if "loss" in name and any(map(math.isfinite, values))
    }
    if "step" not in curve.columns or not losses:
        return None
    figure, axes = _figure()
    styles = line_styles(losses, main)
    for name, values in losses.items():
        points = [
            (step, value)
            for step, value in zip(curve.columns["step"], values, strict=True)
            if math.isfinite(value)
        ]
        axes.plot(
            *zip(*points, strict=True),
            color=styles[name].color,
            linestyle=styles[name].dashes,
            marker="o" if len(points) < 30 else None,
            markersize=3.5,
            label=name.replace("_", " "),
        )
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("loss")
    shown = [value for values in losses.values() for value in values if math.isfinite(value)]
    if min(shown) > 0 and max(shown) > LOG_SPAN * min(shown):
        axes.set_yscale("log")
    _legend_below(figure, axes)
    return figure


def render(make: Callable[[], Figure | None]) -> dict[str, bytes] | None:
    """Render a figure in the report's style as SVG and PNG.

    Args:
        make: returns the figure, or None if there are no data.

    Returns:
        Contents of the files by suffix, identical for identical figures; None without a figure.
    """
    with matplotlib.rc_context(RC_PARAMS):
        figure = make()
        if figure is None:
            return None
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    return {"svg": svg.getvalue(), "png": png.getvalue()}
