"""Tables of the crystals' quality: the paper's tables 1, 2 and 4, and structure prediction."""

from collections.abc import Mapping, Sequence
from typing import Any

from flowllm.evaluate.aggregate import ALL
from flowllm.evaluate.hull import EnergySource
from flowllm.evaluate.matching import LENGTH_UNIT
from flowllm.evaluate.statistics import rate
from flowllm.report.metrics_files import Result, of_kind, once_per_method
from flowllm.report.protocol_text import (
    close_atoms,
    energy_name,
    hull_name,
    made_by,
    not_relaxed,
    not_relaxed_note,
    origin,
    redrawn_note,
    special_rows,
)
from flowllm.report.published import published_note, published_rows
from flowllm.report.table import METHOD, Column, Table

_DRAWN = Column("drawn", "Crystals", "count")
_METASTABLE = Column("metastability_rate", "Metastable", "rate")
_STABLE = Column("stability_rate", "Stable", "rate")
_NOVEL = Column("novelty", "Novel", "rate")
_SUN = Column("sun_rate", "S.U.N.", "rate")

_LEAD_COLUMNS = (
    Column("origin", "Made by", beneath=True),
    _DRAWN,
    Column("validity", "Valid", "rate"),
    Column("relaxed", "Relaxed", "rate"),
    Column("delta_energy_per_atom", "Energy released, eV/atom", "mean", 3),
    Column("num_steps", "Steps", "mean", 1),
)
"""Columns of the page's first table besides those of stability."""

_PART_COLUMNS = (
    METHOD,
    Column("uniqueness", "Unique", "rate"),
    Column("novel_of_stable", "Novel, of stable", "rate"),
    Column("unique_of_stable_novel", "Unique, of stable and novel", "rate"),
    Column("metastable_sun_rate", "Metastable S.U.N.", "rate"),
)

_GENERATED_COLUMNS = (
    Column("structural_validity", "Structural validity", "rate"),
    Column("compositional_validity", "Composition validity", "rate"),
    Column("coverage_recall", "Coverage recall", "rate"),
    Column("coverage_precision", "Coverage precision", "rate"),
    Column("wasserstein_density", "Distance of density", "distance", 3),
    Column("wasserstein_num_elements", "Distance of number of elements", "distance", 3),
)

_BY_DFT = (
    Column("stability_rate", "Stable, by DFT", "rate"),
    Column("sun_rate", "S.U.N., by DFT", "rate"),
)

_GROUND_STATE_COLUMNS = (
    METHOD,
    Column("match_rate", "Match rate", "rate"),
    Column("rmsd", "RMSD", "mean", 4),
    Column("delta_energy_per_cell", "Energy released, eV per cell", "mean", 3),
)

_MATCH_OF_RELAXED = Column("match_rate_of_relaxed", "Match rate, of the relaxed", "rate")

_RATES_NOTE = (
    "Rates are over all draws unless the heading says otherwise; in small print are counts and "
    "Wilson's 95 % interval in percent. Valid: no two atoms closer than 0.5 Å, a volume of at "
    "least 0.1 Å³, a composition that SMACT accepts, and a fingerprint by CrystalNN. Energy "
    "released: decrease of the potential energy by the relaxation. Unique and S.U.N. count "
    "classes joined by chains of matches, a lower bound of the authors' greedy rule. "
)

_SHADED = "Shaded rows are published values, and a dash is a value that is not known."


def sun_table(results: Sequence[Result], kind: EnergySource, *, lead: bool = False) -> Table:
    """Return stability and S.U.N. by one source of energies (paper, table 1).

    Args:
        results: all results.
        kind: source of the energies.
        lead: whether this is the page's first table, which also has the origin of the crystals,
            their number, their validity and their relaxation.
    """
    ours = of_kind(results, kind)
    columns = (*(_LEAD_COLUMNS if lead else ()), _METASTABLE, _STABLE, _NOVEL, _SUN)
    rows = [result.row | _before_stability(result, results) for result in ours]
    if kind == "potential":
        title = "Stability and S.U.N., estimated by a machine-learned potential"
        caption = "Estimates, not DFT, with counts and 95 % intervals in small print."
        published: list[dict[str, Any]] = []
    else:
        title = "Stability and S.U.N. by DFT"
        published = published_rows([column.key for column in columns])
        caption = _SHADED if published else "Counts and 95 % intervals are in small print."
    return Table(
        f"stability_{kind}",
        title,
        caption,
        (METHOD, *columns),
        [*rows, *published],
        protocol=f"{made_by(ours)}{special_rows(ours)}{_RATES_NOTE}{close_atoms(ours)}"
        f"{published_note(published)}",
    )


def _before_stability(result: Result, results: Sequence[Result]) -> dict[str, Any]:
    """Return a method's origin, and its numbers of the relaxation by the potential if any."""
    relaxed = [one for one in of_kind(results, "potential") if one.method == result.method]
    keys = ("relaxed", "delta_energy_per_atom", "num_steps")
    return {"origin": origin(result)} | {key: one.row[key] for one in relaxed for key in keys}


def sun_parts_table(results: Sequence[Result], kind: EnergySource) -> Table:
    """Return the rates between stable and S.U.N. by one source of energies (paper, section 5.3)."""
    ours = of_kind(results, kind)
    published = published_rows([column.key for column in _PART_COLUMNS]) if kind == "dft" else []
    return Table(
        f"sun_parts_{kind}",
        "From stable to S.U.N., " + ("by DFT" if kind == "dft" else "by the potential (estimates)"),
        "Of the rates, only those whose heading says so are not over all draws."
        + (f" {_SHADED}" if published else ""),
        _PART_COLUMNS,
        [*(result.row for result in ours), *published],
        protocol=f"{made_by(ours)}{published_note(published)}",
    )


def paper_table(results: Sequence[Result], flows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return validity, coverage and distances as generated, and published values (paper, table 1).

    Without DFT results there are also its columns by DFT, which have published values alone. If the
    flows differ in their noise, the noise is shown too (paper, table 4).

    Args:
        results: all results.
        flows: rows `flows` of the configuration by name.
    """
    noise = _noise_of(results, flows)
    by_dft = () if of_kind(results, "dft") else _BY_DFT
    columns = (METHOD, *(_NOISE_COLUMNS if noise else ()), *_GENERATED_COLUMNS, *by_dft)
    keys = [column.key for column in (METHOD, *_GENERATED_COLUMNS)]
    ours = once_per_method(results)
    rows = [{key: one.row[key] for key in keys} | noise.get(one.method, {}) for one in ours]
    published = published_rows([column.key for column in columns], every=True)
    sets = sorted({one.numbers["protocol"]["oxidation_states"] for one in ours})
    return Table(
        "paper",
        "Crystals as generated (the paper's table 1" + (" and table 4)" if noise else ")"),
        f"Before any relaxation, with counts and 95 % intervals in small print. {_SHADED}",
        columns,
        [*rows, *published],
        protocol="Structural validity: no two atoms closer than 0.5 Å and a volume of at least "
        f"0.1 Å³; composition validity: SMACT with oxidation states {', '.join(sets)}. Coverage of "
        "the test split is by CDVAE's fingerprints and cut-offs for MP-20 (0.4, 10), with "
        "precision over all draws; distances (Wasserstein, in g/cm³ and elements) are those of up "
        f"to 1,000 valid crystals to the test split. {_NOISE_NOTE if noise else ''}"
        f"{special_rows(results)}{close_atoms(results)}{published_note(published)}",
    )


E_HULL_BOUNDS = (0.0, 0.03, 0.05, 0.08, 0.1)
"""Thresholds in eV/atom: those of the paper and its peers, and some between them."""


def e_hull_table(results: Sequence[Result], kind: EnergySource) -> Table:
    """Return the number of crystals per threshold of E_hull, for the paper's figure 3a."""
    ours = of_kind(results, kind)
    rows = []
    for result in ours:
        drawn, values = result.numbers["counts"]["drawn"], result.e_above_hull
        counted = {f"at_most_{x:g}": sum(value <= x for value in values) for x in E_HULL_BOUNDS}
        shares = {key: rate(count, drawn, ALL) for key, count in counted.items()}
        rows.append(result.row | {"mean": result.row["e_above_hull"]} | shares)
    return Table(
        f"e_hull_{kind}",
        f"E above hull by {energy_name(ours)}" + (" (estimates)" if kind == "potential" else ""),
        "Shares of all draws, with any number of elements; a sparse hull overestimates stability.",
        (
            METHOD,
            *(Column(f"at_most_{x:g}", f"≤ {x:g} eV/atom", "rate") for x in E_HULL_BOUNDS),
            Column("mean", "Mean, eV/atom", "mean", 3),
        ),
        rows,
        protocol=f"Hull: {hull_name(ours)}. {not_relaxed_note(ours)}",
    )


def num_elements_table(results: Sequence[Result]) -> Table:
    """Return the number of crystals per number of elements, for the paper's figure 3b."""
    ours = once_per_method(results)
    histograms = [result.numbers["histograms"]["num_elements"] for result in ours]
    series = {"test split": histograms[0]["test"]} | {
        result.method: histogram["generated"]
        for result, histogram in zip(ours, histograms, strict=True)
    }
    numbers = sorted({int(key) for counts in series.values() for key in counts})
    rows = [
        {"setting": name}
        | {str(n): rate(counts.get(str(n), 0), sum(counts.values()), "crystals") for n in numbers}
        for name, counts in series.items()
    ]
    columns = (Column(str(n), f"{n} element" + "s" * (n > 1), "rate", 1) for n in numbers)
    return Table(
        "num_elements",
        "Number of distinct elements",
        "Shares of the generated crystals, and of the crystals of the test split.",
        (METHOD, *columns),
        rows,
    )


_NOISE_COLUMNS = (
    Column("coords_noise", "Noise of coordinates", "number", 3),
    Column("lengths_noise", "of lengths, Å", "number", 3),
    Column("angles_noise", "of angles, °", "number", 2),
)

_NOISE_NOTE = (
    "Noise: standard deviations of Gaussian noise before the flow, in training and sampling, for "
    "coordinates in fractions of the cell (the paper's table 4, whose levels we do not know). "
)


def _noise_of(
    results: Sequence[Result], flows: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the noise on the language model's crystals by method; empty if all have the same."""
    noise = {}
    for result in once_per_method(results):
        flow = flows.get(result.numbers["sampling"]["setting"].get("flow") or "")
        if flow and flow["start"] == "llm":
            noise[result.method] = {column.key: flow[column.key] for column in _NOISE_COLUMNS}
    return noise if len({tuple(levels.values()) for levels in noise.values()}) > 1 else {}


def ground_state_table(results: Sequence[Result]) -> Table:
    """Return the distance of the generated crystals to their relaxed state (paper, table 2).

    If select excluded crystals, the match rate of the relaxed ones is shown beside that of all.
    """
    ours = of_kind(results, "potential")
    columns: tuple[Column, ...] = _GROUND_STATE_COLUMNS
    if any(map(not_relaxed, ours)):
        columns = (*columns[:2], _MATCH_OF_RELAXED, *columns[2:])
    published = published_rows([column.key for column in columns])
    return Table(
        "ground_state",
        "Distance to the relaxed state (the paper's table 2)",
        f"Crystals as generated, compared with their relaxed state. {_SHADED}",
        columns,
        [result.row for result in ours] + published,
        protocol=f"Relaxed by {energy_name(ours)}; match rate and RMSD over the matches (in units "
        f"of the {LENGTH_UNIT}) are by StructureMatcher's defaults (0.2, 0.3, 5°) as in the "
        "paper's text; rates by its code's tolerances (0.3, 0.5, 10°) are under Other readings of "
        "the rules. The energy released is by the same potential; the paper's appendix E uses DFT. "
        f"{not_relaxed_note(ours)}{published_note(published)}",
    )


def csp_table(predictions: Sequence[Mapping[str, Any]]) -> Table:
    """Return crystal structure prediction of the test split, from formula-conditioned samples."""
    columns = (
        METHOD,
        Column("attempts", "Attempts, k", "count"),
        Column("csp_match_rate", "Match rate, best of k", "rate"),
        Column("match_rate_first", "Match rate, first", "rate"),
        Column("match_rate_smact_valid", "Match rate, SMACT-valid only", "rate"),
        Column("rmse", "RMSE, best of k", "mean", 4),
        Column("rmse_first", "RMSE, first", "mean", 4),
        Column("metre", "METRe, best of k", "rate"),
        Column("metre_first", "METRe, first", "rate"),
        Column("crmse", "cRMSE, best of k", "mean", 4),
        Column("crmse_first", "cRMSE, first", "mean", 4),
    )
    published = published_rows([column.key for column in columns])
    redrawn = [one["setting"] for one in predictions if one.get("reject_close_atoms")]
    rows = []
    for one in predictions:
        row = {"setting": one["setting"], "attempts": one["attempts"]}
        rates = one["rates"]
        rows.append(row | rates | one["means"] | {"csp_match_rate": rates["match_rate"]})
    return Table(
        "csp",
        "Crystal structure prediction",
        "Crystals predicted from the formulas of the test split, with rates over the test crystals "
        f"that were predicted. {_SHADED}",
        columns,
        rows + published,
        protocol="A match is by StructureMatcher (0.3, 0.5, 10°), and a prediction with atoms "
        "closer than 0.5 Å never matches. SMACT-valid only: the composition must be valid too, as "
        "in the peers' code, although it is given; RMSE is over the matches, in units of the "
        f"{LENGTH_UNIT}. METRe: a test crystal counts if a prediction of any test crystal matches "
        "it, for formulas with several crystals; cRMSE is over all test crystals, with the "
        "tolerance 0.5 for one without a match (arXiv 2509.12178). "
        f"{redrawn_note(redrawn)}{published_note(published)}",
    )
