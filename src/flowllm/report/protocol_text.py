"""Texts for captions: energies, hull, thresholds and matcher of some results."""

from collections.abc import Sequence

from flowllm.config.sections.flow import TRAIN_COMPOSITIONS
from flowllm.evaluate.screening import NOT_RELAXED
from flowllm.report.metrics_files import Result, once_per_method


def energy_name(results: Sequence[Result]) -> str:
    """Return the names of the energies of some results."""
    names = {name for result in results for name in result.numbers["protocol"]["energy_sources"]}
    return ", ".join(sorted(names)) or "none"


def hull_name(results: Sequence[Result]) -> str:
    """Return the reference hulls of some results, with their sizes and unconverged entries."""
    names = set()
    for protocol in (result.numbers["protocol"] for result in results):
        size = f"{protocol['hull_compositions']:,} compositions".replace(",", "\u202f")
        if count := protocol["hull_not_converged"]:
            size += f", {count} entries not converged: upper bounds"
        names |= {f"{name} ({size})" for name in protocol["hull_sources"]}
    return ", ".join(sorted(names)) or "none"


def hull_size(results: Sequence[Result]) -> str:
    """Return the number of compositions of the hulls of some results as text."""
    sizes = sorted({result.numbers["protocol"]["hull_compositions"] for result in results})
    return " and ".join(f"{size:,} compositions".replace(",", "\u202f") for size in sizes)


def corrections(results: Sequence[Result]) -> str:
    """Return the correction schemes of DFT energies as text; empty for a potential."""
    found = {name for one in results for name in one.numbers["protocol"]["correction_schemes"]}
    return f"; corrections: {', '.join(sorted(found))}" if found else ""


def _matcher(result: Result) -> str:
    matcher = result.numbers["protocol"]["matcher"]
    return f"{matcher['name']} {matcher['ltol']}, {matcher['stol']}, {matcher['angle_tol']}°"


def made_by(results: Sequence[Result]) -> str:
    """Return energies, hull, thresholds, matcher and excluded crystals of some results as text."""
    return (
        f"Energies: {energy_name(results)}; hull: {hull_name(results)}{corrections(results)}; "
        f"{rules(results)}. {not_relaxed_note(results)}"
    )


def symmetry_text(kept: bool | None) -> str:
    """Return the `keep_symmetry` of a row of `methods` as text; empty where it has none."""
    return "" if kept is None else f", symmetry {'kept' if kept else 'not kept'}"


def origin(result: Result) -> str:
    """Return how the crystals of a method were made, or the file they were read from, as text."""
    sampling = result.numbers["sampling"]
    if file := sampling["external"].get("file"):
        return f"another model, {file}"
    if not (method := sampling["setting"]):
        return "–"
    start = f"base {method['base']}"
    if base := sampling["base"]:
        drawn = f"τ {base['temperature']:g}, P {base['top_p']:g}"
        start = f"language model ({method['base']}: {drawn})"
    flow = method["flow"]
    moved = "no flow" if flow is None else f"flow {flow} in {method['num_steps']} steps"
    return f"{start}, {moved}" + symmetry_text(method.get("keep_symmetry"))


def special_rows(results: Sequence[Result]) -> str:
    """Return which rows are without the flow or the language model, as text; empty if none are."""
    notes = []
    for result in once_per_method(results):
        if result.numbers.get("wishes"):
            notes.append(
                f"{result.method}: its draws were asked for conditions (see On request), so that "
                "its rates are not those of unconditional generation. "
            )
        row = result.numbers["sampling"]["setting"]
        if row and row["base"] == TRAIN_COMPOSITIONS:
            notes.append(
                f"{result.method}: compositions of the training set, FlowMM's uniform base, no "
                "language model (FlowMM itself also generates the compositions). "
            )
        elif row and row["flow"] is None:
            notes.append(f"{result.method}: the language model's crystals, not refined. ")
    return "".join(notes)


def close_atoms(results: Sequence[Result]) -> str:
    """Return the rows with drafts rejected for two atoms at one point, and their numbers."""
    rows = []
    for result in once_per_method(results):
        drawn = result.numbers["sampling"].get("sample_base", {})
        if drawn.get("min_distance"):
            rows.append(
                f"{result.method} (atoms at least {drawn['min_distance']:g} angstrom apart)"
            )
        elif drawn.get("reject_close_atoms"):
            counts = result.numbers["counts"]
            found = counts["llm_rejections"].get("coinciding_atoms", 0)
            rows.append(f"{result.method} ({found} of {counts['llm_drafts']} drafts)")
    return redrawn_note(rows)


def redrawn_note(rows: Sequence[str]) -> str:
    """Return a note on rows whose drafts were rejected for close atoms; empty without such rows.

    The paper's protocol rejects only texts that do not parse, and counts these crystals as invalid.
    """
    if not rows:
        return ""
    return (
        "Drafts with two atoms at one point were rejected and drawn again, which the paper's "
        f"protocol does not do and which raises the validity: {', '.join(rows)}. "
    )


def not_relaxed(result: Result) -> dict[str, int]:
    """Return the number of crystals that select excluded from the relaxation, by their status."""
    relaxed = result.numbers["counts"]["relaxed"]
    return {name: relaxed[name] for name in NOT_RELAXED if relaxed.get(name)}


def not_relaxed_note(results: Sequence[Result]) -> str:
    """Return how many crystals select excluded from the relaxation; empty if it excluded none."""
    notes = []
    for result in once_per_method(results):
        if excluded := not_relaxed(result):
            counted = ", ".join(f"{count} {name}" for name, count in excluded.items())
            notes.append(f"{result.method} ({counted})")
    if not notes:
        return ""
    return (
        "Crystals that were known or repeated as generated were not relaxed (select.skip). They "
        "count as not stable, not unique, not novel and without a match or an energy, so that "
        "rates of these over all draws cannot be compared with a run without it: "
        f"{', '.join(notes)}. "
    )


def rules(results: Sequence[Result]) -> str:
    """Return thresholds, novelty and matcher of some results as text."""
    texts: list[str] = []
    for result in results:
        rule = result.numbers["protocol"]["stability_rule"]
        against = {"train": "the training split", "train_val": "the train and val splits"}[
            result.numbers["protocol"]["novelty_against"]
        ]
        if (known := result.numbers["protocol"]["known_crystals"]) is not None:
            against += f" and the crystals of {known}"
        sign = "≤" if rule["inclusive"] else "<"
        text = (
            f"stable: E_hull {sign} {rule['stable_below']:g} eV/atom with at least "
            f"{rule['min_elements']} elements; metastable: < {rule['metastable_below']:g} eV/atom, "
            f"stable ones included; novel against {against}; same crystal: {_matcher(result)}"
        )
        if text not in texts:
            texts.append(text)
    return "; or ".join(texts)
