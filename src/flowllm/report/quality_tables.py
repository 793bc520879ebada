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
    not_relaxed_note,
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
_STRUCTURE = Column("structural_validity", "Structural validity", "rate")
_COMPOSITION = Column("compositional_validity", "Composition validity", "rate")
_COVERAGE = (
    Column("coverage_recall", "Coverage recall", "rate"),
    Column("coverage_precision", "Coverage precision", "rate"),
)
_DISTANCES = (
    Column("wasserstein_density", "Distance of density", "distance", 3),
    Column("wasserstein_num_elements", "Distance of number of elements", "distance", 3),
)

_SUN_COLUMNS = (
    METHOD,
    _DRAWN,
    _METASTABLE,
    _STABLE,
    Column("uniqueness", "Unique", "rate"),
    _NOVEL,
    Column("novel_of_stable", "Novel, of stable", "rate"),
    Column("unique_of_stable_novel", "Unique, of stable and novel", "rate"),
    Column("metastable_sun_rate", "Metastable S.U.N.", "rate"),
    _SUN,
)

_PAPER_COLUMNS = (
    METHOD,
    _STRUCTURE,
    _COMPOSITION,
    *_COVERAGE,
    *_DISTANCES,
    Column("stability_rate", "Stable, by DFT", "rate"),
    Column("sun_rate", "S.U.N., by DFT", "rate"),
)
"""Columns of the paper's table 1."""

_PROXY_COLUMNS = (
    METHOD,
    _DRAWN,
    _STRUCTURE,
    _COMPOSITION,
    Column("fingerprinted", "Fingerprint found", "rate"),
    Column("validity", "Valid", "rate"),
    *_COVERAGE,
    Column("coverage_precision_of_valid", "Coverage precision, of valid", "rate"),
    *_DISTANCES,
)

_GROUND_STATE_COLUMNS = (
    METHOD,
    _DRAWN,
    Column("match_rate", "Match rate", "rate"),
    Column("rmsd", "RMSD", "mean", 4),
    Column("delta_energy_per_atom", "Δ-energy, eV/atom", "mean", 3),
    Column("delta_energy_per_cell", "Δ-energy, eV", "mean", 3),
    Column("num_steps", "Steps", "mean", 1),
)


_RATES_NOTE = (
    "Rates are over all draws unless the heading says otherwise, with counts and Wilson's 95 % "
    "interval in percent in small print. Unique and S.U.N. count classes joined by chains of "
    "matches, a lower bound of the authors' greedy rule (see Both readings of the rules). "
)


def sun_table(results: Sequence[Result], kind: EnergySource) -> Table:
    """Return stability and S.U.N. by one source of energies (paper, table 1)."""
    ours = of_kind(results, kind)
    rows = [result.row for result in ours]
    if kind == "potential":
        title = "Stability and S.U.N., estimated by a machine-learned potential"
        caption = f"Estimates, not DFT. {made_by(ours)}{_RATES_NOTE}"
    else:
        published = published_rows([column.key for column in _SUN_COLUMNS])
        rows += published
        title = "Stability and S.U.N. by DFT"
        caption = made_by(ours) + _RATES_NOTE if ours else "No DFT results of this run yet. "
        caption += published_note(published)
    caption += not_relaxed_note(ours)
    return Table(f"stability_{kind}", title, caption, _SUN_COLUMNS, rows)


def paper_table(results: Sequence[Result]) -> Table:
    """Return all methods in one table (paper, table 1), published values included.

    Stability and S.U.N. are by DFT, or a dash; the potential's estimates are in `sun_table`.
    """
    keys = [column.key for column in _PAPER_COLUMNS]
    by_dft = {"stability_rate", "sun_rate"}
    rows = []
    for method in dict.fromkeys(result.method for result in results):
        row: dict[str, Any] = {}
        for result in (one for one in results if one.method == method):
            found = result.row
            allowed = [key for key in keys if result.kind == "dft" or key not in by_dft]
            row |= {key: found[key] for key in allowed}
        rows.append(row)
    dft = of_kind(results, "dft")
    missing = "No DFT results of this run yet; the tables below contain estimates. "
    published = published_rows(keys, every=True)
    return Table(
        "paper",
        "All methods in one table (the paper's table 1)",
        "Rows of this run, then published rows; the columns are defined in the tables below, and a "
        "dash in a row of this run means that the value was not computed. "
        f"{made_by(dft) if dft else missing}"
        f"{special_rows(results)}{close_atoms(results)}{published_note(published)}",
        _PAPER_COLUMNS,
        rows + published,
    )


def proxy_table(results: Sequence[Result]) -> Table:
    """Return validity, coverage and property distances as generated (paper, table 1)."""
    ours = once_per_method(results)
    sets = sorted({result.numbers["protocol"]["oxidation_states"] for result in ours})
    return Table(
        "proxy",
        "Proxy metrics of the generated crystals",
        "Before any relaxation; structural validity: no two atoms closer than 0.5 Å and a volume "
        "of at least 0.1 Å³; composition validity: SMACT with oxidation states "
        f"{', '.join(sets)}; valid: both, and CrystalNN gives a fingerprint. Coverage of the test "
        "split is by CDVAE's fingerprints and cut-offs for MP-20 (0.4, 10), with precision over "
        "all draws, and over valid crystals as in crystal-text-llm; Wasserstein distances (g/cm³, "
        f"elements) are those of up to 1,000 valid crystals to the test split. {close_atoms(ours)}",
        _PROXY_COLUMNS,
        [result.row for result in ours],
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
        "Shares of all draws, with any number of elements; a sparse hull overestimates stability. "
        f"Hull: {hull_name(ours)}.",
        (
            METHOD,
            _DRAWN,
            *(Column(f"at_most_{x:g}", f"≤ {x:g} eV/atom", "rate") for x in E_HULL_BOUNDS),
            Column("mean", "Mean, eV/atom", "mean", 3),
        ),
        rows,
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


def noise_table(results: Sequence[Result], flows: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Return proxy metrics against the noise on the language model's crystals (paper, table 4).

    Args:
        results: all results.
        flows: rows `flows` of the configuration by name.

    Returns:
        The table, or None if all velocity networks have the same noise.
    """
    rows = []
    for result in once_per_method(results):
        flow = flows.get(result.numbers["sampling"]["setting"].get("flow") or "")
        if flow and flow["start"] == "llm":
            noise = {column.key: flow[column.key] for column in _NOISE_COLUMNS}
            rows.append(result.row | noise)
    if len({tuple(row[column.key] for column in _NOISE_COLUMNS) for row in rows}) < 2:
        return None
    return Table(
        "noise",
        "Noise on the language model's crystals",
        "Standard deviations of Gaussian noise before the flow, in training and sampling, for "
        "coordinates in fractions of the cell (the paper's table 4, whose levels we do not know). "
        "The other columns are those of the proxy metrics.",
        (METHOD, *_NOISE_COLUMNS, *_PROXY_COLUMNS[2:]),
        rows,
    )


def ground_state_table(results: Sequence[Result]) -> Table:
    """Return the distance of the generated crystals to their relaxed state (paper, table 2)."""
    ours = of_kind(results, "potential")
    published = published_rows([column.key for column in _GROUND_STATE_COLUMNS])
    return Table(
        "ground_state",
        "Distance of the generated crystals to their relaxed state",
        f"Relaxed by {energy_name(ours)}; match rate and RMSD over the matches (in units of the "
        f"{LENGTH_UNIT}) are by StructureMatcher's defaults (0.2, 0.3, 5°) as in the paper's text; "
        "rates by its code's tolerances (0.3, 0.5, 10°) are under Both readings of the rules. "
        "Δ-energy is the decrease of the energy by relaxation with the same potential; the "
        "paper's appendix E uses DFT. " + published_note(published),
        _GROUND_STATE_COLUMNS,
        [result.row for result in ours] + published,
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
        "that were predicted; a match is by StructureMatcher (0.3, 0.5, 10°), and a prediction "
        "with atoms closer than 0.5 Å never matches. SMACT-valid only: the composition must be "
        "valid too, as in the peers' code, although it is given; RMSE is over the matches, in "
        f"units of the {LENGTH_UNIT}. METRe: a test crystal counts if a prediction of any test "
        "crystal matches it, for formulas with several crystals; cRMSE is over all test crystals, "
        "with the tolerance 0.5 for one without a match (arXiv 2509.12178). "
        f"{redrawn_note(redrawn)}{published_note(published)}",
        columns,
        rows + published,
    )
