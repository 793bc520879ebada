"""Tables of what a S.U.N. crystal costs, and of rates estimated from a part of the DFT runs."""

from collections.abc import Sequence

from flowllm.report.metrics_files import Result
from flowllm.report.protocol_text import not_relaxed_note
from flowllm.report.table import METHOD, Column, Table


def sun_cost_table(results: Sequence[Result]) -> Table:
    """Return S.U.N. per relaxation and per DFT run, by each source of energies."""
    columns = (
        METHOD,
        Column("energies", "Energies"),
        Column("sun_per_relaxation", "S.U.N. per relaxation", "rate"),
        Column("sun_per_dft_run", "S.U.N. per DFT run", "rate"),
        Column("sun_per_candidate", "S.U.N. per candidate's DFT run", "rate"),
    )
    return Table(
        "sun_cost",
        "S.U.N. per relaxation and per DFT run",
        "Relaxations are those by the potential, failed ones included; DFT runs are the folders of "
        "dft_inputs, missing and failed runs included, with the control sample of the candidates.",
        columns,
        [result.row | {"energies": result.kind} for result in results],
        protocol=not_relaxed_note(results),
    )


def estimate_table(results: Sequence[Result]) -> Table | None:
    """Return the rates over all draws that a part of the DFT runs gives; None without any."""
    estimated = [result for result in results if result.numbers["estimates"] is not None]
    if not estimated:
        return None
    rows = []
    for result in estimated:
        design, rates = (result.numbers["estimates"][key] for key in ("design", "rates"))
        counts = {
            "certain": design["certain"],
            "sample": f"{design['sample']} of {design['population']}",
            "missing": design["missing"],
        }
        rows.append({"setting": result.method} | counts | rates)
    return Table(
        "dft_estimates",
        "Rates over all draws, estimated from the computed crystals",
        "Each crystal of the random sample also counts for the crystals that it was drawn from, "
        "which is unbiased. A missing or failed run counts as not stable.",
        (
            METHOD,
            Column("certain", "Computed for certain", "count"),
            Column("sample", "Random sample, of others"),
            Column("missing", "Runs that are missing", "count"),
            Column("stability_rate", "Stable", "rate"),
            Column("metastability_rate", "Metastable", "rate"),
            Column("sun_rate", "S.U.N.", "rate"),
            Column("metastable_sun_rate", "Metastable S.U.N.", "rate"),
        ),
        rows,
        protocol="A crystal of the sample counts as many times as there are crystals in the set "
        "that it was drawn from per crystal of the sample. S.U.N.: stable by DFT, and by the "
        "potential's relaxed crystals novel and the nearest to the hull of its class. In small "
        "print: counted crystals of those computed for certain, plus those of the sample times "
        "their weight, of all draws; and the 95 % interval, which includes the error of the draws "
        f"and that of the sample. {not_relaxed_note(estimated)}",
    )
