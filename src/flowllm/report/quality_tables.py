"""How good the crystals are: the paper's tables 1, 2 and 4, and structure prediction."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flowllm.evaluate.aggregate import ALL
from flowllm.evaluate.statistics import rate
from flowllm.report.metrics_files import Result, of_kind, once_per_method
from flowllm.report.protocol_text import (
    close_atoms,
    energy_name,
    hull_name,
    made_by,
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

TERMINAL_COLUMNS = (
    METHOD,
    Column("structural_validity", "Valid structure", "rate"),
    Column("compositional_validity", "Valid composition", "rate"),
    Column("relaxed", "Relaxed", "rate"),
    _METASTABLE,
    _STABLE,
    _NOVEL,
    _SUN,
)
"""What is printed of each method; counts stand beside the rates."""

_PAPER_COLUMNS = (
    METHOD,
    _STRUCTURE,
    _COMPOSITION,
    *_COVERAGE,
    *_DISTANCES,
    Column("stability_rate", "Stable, by DFT", "rate"),
    Column("sun_rate", "S.U.N., by DFT", "rate"),
)
"""The paper's table 1."""

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


def sun_table(results: Sequence[Result], kind: Literal["potential", "dft"]) -> Table:
    """Stability and S.U.N. by the potential or by DFT (paper, table 1): two tables, never mixed."""
    ours = of_kind(results, kind)
    rows = [result.row for result in ours]
    how = made_by(ours)
    every = (
        "Every rate is over all that was drawn unless its heading says otherwise; "
        "in small print: counts and Wilson's 95 % interval in percent. Unique and S.U.N. count "
        "classes that chains of matches join: a lower bound of the authors' greedy rule, which is "
        "among both readings of the rules. "
    )
    if kind == "potential":
        title = "Stability and S.U.N., estimated by a machine-learned potential"
        caption = f"Estimates, not DFT. {how}{every}"
    else:
        published = published_rows([column.key for column in _SUN_COLUMNS])
        rows += published
        title = "Stability and S.U.N. by DFT"
        caption = how + every if ours else "No DFT results of this run yet. "
        caption += published_note(published)
    return Table(f"stability_{kind}", title, caption, _SUN_COLUMNS, rows)


def paper_table(results: Sequence[Result]) -> Table:
    """Everyone in one table (paper, table 1): ours, other models' samples, published values.

    Stability and S.U.N. are DFT's or a dash: the potential's estimates have a table of their own.
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
    how = made_by(dft) if dft else "No DFT results of this run yet: its estimates stand below. "
    published = published_rows(keys, every=True)
    return Table(
        "paper",
        "Everyone in one table (the paper's table 1)",
        f"This run's rows, then published ones. {how}What the columns mean: tables below; a dash "
        "in this run's rows: not computed. "
        f"{special_rows(results)}{close_atoms(results)}{published_note(published)}",
        _PAPER_COLUMNS,
        rows + published,
    )


def proxy_table(results: Sequence[Result]) -> Table:
    """Validity, coverage and property distances as generated (paper, table 1)."""
    ours = once_per_method(results)
    sets = sorted({result.numbers["protocol"]["oxidation_states"] for result in ours})
    return Table(
        "proxy",
        "Proxy metrics of the generated crystals",
        "Before any relaxation. Structural: no two atoms closer than 0.5 Å, at least 0.1 Å³. "
        f"Composition: SMACT with oxidation states {', '.join(sets)}; "
        "valid: both, and CrystalNN gives a fingerprint. Coverage of the test split with CDVAE's "
        "fingerprints and MP-20's cut-offs (0.4, 10); precision over all generated, and over valid "
        "ones as crystal-text-llm has it. Wasserstein distances (g/cm³, elements) of up to 1,000 "
        f"valid crystals to the test split. {close_atoms(ours)}",
        _PROXY_COLUMNS,
        [result.row for result in ours],
    )


E_HULL_BOUNDS = (0.0, 0.03, 0.05, 0.08, 0.1)
"""eV/atom; those of the paper, of its peers and in between."""


def e_hull_table(results: Sequence[Result], kind: Literal["potential", "dft"]) -> Table:
    """How many crystals lie how near to the hull: the numbers behind the paper's figure 3a."""
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
        f"Of all generated; any number of elements. Hull: {hull_name(ours)}; a small one flatters.",
        (
            METHOD,
            _DRAWN,
            *(Column(f"at_most_{x:g}", f"≤ {x:g} eV/atom", "rate") for x in E_HULL_BOUNDS),
            Column("mean", "Mean, eV/atom", "mean", 3),
        ),
        rows,
    )


def num_elements_table(results: Sequence[Result]) -> Table:
    """How many crystals have how many elements: the numbers behind the paper's figure 3b."""
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
        "Distinct elements",
        "Of the generated crystals, and of the test split's.",
        (METHOD, *columns),
        rows,
    )


_NOISE_COLUMNS = (
    Column("coords_noise", "Noise of coordinates", "number", 3),
    Column("lengths_noise", "of lengths, Å", "number", 3),
    Column("angles_noise", "of angles, °", "number", 2),
)


def noise_table(results: Sequence[Result], flows: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Proxy metrics against the noise on the language model's crystals (paper, table 4).

    Args:
        results: all results.
        flows: how each velocity network was trained, by name.

    Returns:
        The table, or None where all networks have the same noise.
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
        "Gaussian noise before the flow, in training and sampling (the paper's table 4; its levels "
        "are not known to us): standard deviations, of coordinates in fractions of the cell. The "
        "metrics are those of the table before.",
        (METHOD, *_NOISE_COLUMNS, *_PROXY_COLUMNS[2:]),
        rows,
    )


def ground_state_table(results: Sequence[Result]) -> Table:
    """Distance of the generated crystals to their relaxed state (paper, table 2)."""
    ours = of_kind(results, "potential")
    published = published_rows([column.key for column in _GROUND_STATE_COLUMNS])
    return Table(
        "ground_state",
        "Distance of the generated crystals to their relaxed state",
        f"Relaxed by {energy_name(ours)}. Match rate and RMSD by StructureMatcher's defaults "
        "(0.2, 0.3, 5°), as the paper says; its code's (0.3, 0.5, 10°) stand under other ways of "
        "counting. RMSD in units of the cube root of the volume an atom, over the matches. "
        "Δ-energy: what the relaxation gained, by the same potential (the paper's appendix E has "
        "DFT's relaxation). " + published_note(published),
        _GROUND_STATE_COLUMNS,
        [result.row for result in ours] + published,
    )


def csp_table(predictions: Sequence[Mapping[str, Any]]) -> Table:
    """Crystal structure prediction of the test split, from formula-conditioned samples."""
    columns = (
        METHOD,
        Column("attempts", "Attempts, k", "count"),
        Column("csp_match_rate", "Match rate, best of k", "rate"),
        Column("match_rate_first", "Match rate, first", "rate"),
        Column("match_rate_smact_valid", "Match rate, SMACT-valid only", "rate"),
        Column("rmse", "RMSE, best of k", "mean", 4),
        Column("rmse_first", "RMSE, first", "mean", 4),
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
        "Crystals of the test split's formulas; the rate is over the test crystals that were "
        "predicted. Match: StructureMatcher 0.3, 0.5, 10°; a prediction with atoms closer than "
        "0.5 Å never matches. SMACT-valid only: the peers' flag of validity asks for it too, "
        "though the formula is given. RMSE in units of the cube root of the volume an atom, over "
        f"the matches. {redrawn_note(redrawn)}{published_note(published)}",
        columns,
        rows + published,
    )
