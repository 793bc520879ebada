"""By which energies, hull, thresholds and matcher some results were made, in words for captions."""

from collections.abc import Sequence

from flowllm.config.sections.flow import TRAIN_COMPOSITIONS
from flowllm.report.metrics_files import Result, once_per_method


def energy_name(results: Sequence[Result]) -> str:
    """Return the names of the energies behind some results."""
    names = {name for result in results for name in result.numbers["protocol"]["energy_sources"]}
    return ", ".join(sorted(names)) or "none"


def hull_name(results: Sequence[Result]) -> str:
    """Return the reference hulls of some results, their sizes, and their unfinished entries."""
    names = set()
    for protocol in (result.numbers["protocol"] for result in results):
        size = f"{protocol['hull_compositions']:,} compositions".replace(",", "\u202f")
        if count := protocol["hull_not_converged"]:
            size += f", {count} entries not converged: upper bounds"
        names |= {f"{name} ({size})" for name in protocol["hull_sources"]}
    return ", ".join(sorted(names)) or "none"


def corrections(results: Sequence[Result]) -> str:
    """Return the correction schemes of DFT energies in words, nothing for a potential's."""
    found = {name for one in results for name in one.numbers["protocol"]["correction_schemes"]}
    return f"; corrections: {', '.join(sorted(found))}" if found else ""


def _matcher(result: Result) -> str:
    matcher = result.numbers["protocol"]["matcher"]
    return f"{matcher['name']} {matcher['ltol']}, {matcher['stol']}, {matcher['angle_tol']}°"


def made_by(results: Sequence[Result]) -> str:
    """Return energies, hull, corrections, thresholds and matcher of some results in words."""
    return (
        f"Energies: {energy_name(results)}; hull: {hull_name(results)}{corrections(results)}; "
        f"{rules(results)}. "
    )


def special_rows(results: Sequence[Result]) -> str:
    """Return which rows lack the flow or the language model, in words; nothing without any."""
    said = []
    for result in once_per_method(results):
        row = result.numbers["sampling"]["setting"]
        if row and row["base"] == TRAIN_COMPOSITIONS:
            said.append(
                f"{result.method}: compositions of the training set, FlowMM's uniform base, no "
                "language model (FlowMM itself generates the atoms too). "
            )
        elif row and row["flow"] is None:
            said.append(f"{result.method}: the language model's crystals, not refined. ")
    return "".join(said)


def close_atoms(results: Sequence[Result]) -> str:
    """Return for which rows, and how many, drafts were rejected for two atoms at one point."""
    said = []
    for result in once_per_method(results):
        if result.numbers["sampling"].get("sample_base", {}).get("reject_close_atoms"):
            counts = result.numbers["counts"]
            found = counts["llm_rejections"].get("coinciding_atoms", 0)
            said.append(f"{result.method} ({found} of {counts['llm_drafts']} drafts)")
    return redrawn_note(said)


def redrawn_note(rows: Sequence[str]) -> str:
    """Return that the drafts of some rows were rejected for close atoms; nothing without any.

    The paper's protocol rejects only texts that do not parse, and counts such crystals as invalid.
    """
    if not rows:
        return ""
    return (
        "Drafts with two atoms at one point were rejected and drawn again, which the paper's "
        f"protocol does not do and which raises the validity: {', '.join(rows)}. "
    )


def rules(results: Sequence[Result]) -> str:
    """Return thresholds, novelty and matcher of some results in words."""
    said = []
    for result in results:
        rule = result.numbers["protocol"]["stability_rule"]
        against = {"train": "the training split", "train_val": "the train and val splits"}[
            result.numbers["protocol"]["novelty_against"]
        ]
        sign = "≤" if rule["inclusive"] else "<"
        text = (
            f"stable: E_hull {sign} {rule['stable_below']:g} eV/atom with at least "
            f"{rule['min_elements']} elements; metastable: < {rule['metastable_below']:g} eV/atom, "
            f"the stable ones included; novel against {against}; same crystal: {_matcher(result)}"
        )
        if text not in said:
            said.append(text)
    return "; or ".join(said)
