"""How a run went: what became of the draws, what was turned away, time and cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from flowllm.config.sections.llm import MAX_LOSS_RISE
from flowllm.evaluate.statistics import rate, summary
from flowllm.report.metrics_files import Result
from flowllm.report.protocol_text import energy_name
from flowllm.report.provenance import DraftCount, StageCost
from flowllm.report.published import published_note, published_rows
from flowllm.report.table import METHOD, Column, Table


def fate_table(results: Sequence[Result]) -> Table:
    """What became of the draws: how many crystals reached each stage."""
    columns = (
        METHOD,
        Column("origin", "Made by"),
        Column("energies", "Energies"),
        Column("drawn", "Drawn", "count"),
        Column("generated", "Generated", "rate", 1),
        Column("relaxed", "Relaxed", "rate", 1),
        Column("not_converged", "Relaxed, not converged", "count"),
        Column("placed_on_hull", "Placed on the hull", "rate", 1),
        Column("stopped", "What stopped the others"),
        Column("fingerprints", "Without a fingerprint"),
    )
    rows = []
    for result in results:
        counts = result.numbers["counts"]
        # A crystal that failed early has a status of its own at each later stage; the later
        # statuses are the complete list.
        row = {
            "origin": _origin(result),
            "energies": result.kind,
            "not_converged": counts["not_converged"],
            "stopped": _all_but_ok(counts["relaxed"]),
            "fingerprints": _all_but_ok(counts["fingerprints"]),
        }
        rows.append(result.row | row)
    return Table(
        "fates",
        "What became of the draws",
        "Crystals that were rejected, failed or never computed stay in every denominator. One "
        "whose relaxation did not converge counts with the energy that it had reached, an upper "
        "bound. Without a fingerprint: not covered, not valid; timeout: CrystalNN took too long.",
        columns,
        rows,
    )


def _all_but_ok(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items() if name != "ok") or "–"


def _origin(result: Result) -> str:
    """Return in words how a method's crystals were made, or from where they were read."""
    sampling = result.numbers["sampling"]
    if file := sampling["external"].get("file"):
        return f"another model, {file}"
    if not (method := sampling["setting"]):
        return "–"
    said = [f"base {method['base']}"]
    if base := sampling["base"]:
        said.append(f"τ {base['temperature']:g}, P {base['top_p']:g}")
    flow = method["flow"]
    said.append("no flow" if flow is None else f"flow {flow}, {method['num_steps']} steps")
    return ", ".join(said)


def draft_table(counts: Sequence[DraftCount]) -> Table:
    """How many of the language model's texts are crystals, with and without a grammar."""
    columns = (
        Column("where", "Drawn for"),
        Column("form", "Form of the text"),
        Column("temperature", "τ", "number"),
        Column("top_p", "P", "number"),
        Column("drafts", "Drafts", "count"),
        Column("accepted", "Accepted, of drafts", "rate", 1),
        Column("filled", "Filled, of draws", "rate", 1),
    )
    rows = [
        {
            "where": one.where,
            "form": "by grammar" if one.structured else "free",
            "temperature": one.temperature,
            "top_p": one.top_p,
            "drafts": one.drafts,
            "accepted": rate(one.accepted, one.drafts, "drafts"),
            "filled": rate(one.accepted, one.draws, "draws"),
        }
        for one in counts
    ]
    return Table(
        "drafts",
        "Validity of the language model's drafts",
        "A draft is accepted if its text is a crystal as the prompt asked; one that is not is "
        "drawn again, up to max_attempts times. Free: the model wrote what it would; by grammar: "
        "its text could only be lengths, angles and atoms, so that the share says less of it.",
        columns,
        rows,
    )


def invariance_table(increases: pa.Table) -> Table:
    """How much descriptions of one and the same crystal differ for the language model."""
    columns = (
        Column("what", "Of a validation crystal's text"),
        Column("value", "Mean", "mean", 4),
    )
    names = {
        "perplexity": "perplexity a token, as it stands",
        "ipt_translation": "increase in perplexity under translation",
        "ipt_permutation": "increase in perplexity under permutation of the atoms",
    }
    rows = [
        {"what": said, "value": summary(increases.column(name).to_pylist(), "1", "validation")}
        for name, said in names.items()
        if len(increases)
    ]
    return Table(
        "invariance",
        "Invariance of the language model",
        "Equation 9: mean perplexity over random descriptions of a crystal, less the lowest of "
        "them and of its own; 0 for a model that knows them to be the same. The prompt gives no "
        "condition; crystals of one atom have one order only.",
        columns,
        rows,
    )


def merging_table(records: Sequence[Mapping[str, Any]]) -> Table | None:
    """Validation losses of the adapter and of the merged model; None where neither was recorded."""
    counts = [one["counts"] for one in records if one["stage"] == "invariance"]
    losses = [one for one in counts if "merged_val_loss" in one]
    if not losses:
        return None
    adapter, merged = losses[0]["adapter_val_loss"], losses[0]["merged_val_loss"]
    rise = merged - adapter
    note = "Both on the validation texts of the fine-tuning, nats per token. "
    if rise > MAX_LOSS_RISE:
        note += (
            f"Warning: merging raised the loss by {rise:.4f}, more than {MAX_LOSS_RISE:g}. The "
            "merged model is not the one that was trained; merge_adapter.into: dequantized keeps "
            "the weights of the training. "
        )
    rows = [
        {"what": "adapter, beside the weights of its training", "loss": adapter},
        {"what": "merged model", "loss": merged},
        {"what": "rise", "loss": rise},
    ]
    columns = (Column("what", "Of"), Column("loss", "Validation loss", "number", 4))
    return Table("merging", "What merging costs", note, columns, rows)


def rejection_table(rejections: Sequence[tuple[str, str, int]]) -> Table:
    """What was turned away and why, source rows and drafts of the language model."""
    columns = (
        Column("where", "Where"),
        Column("reason", "Reason"),
        Column("count", "Count", "count"),
    )
    rows = [
        {"where": where, "reason": reason, "count": count} for where, reason, count in rejections
    ]
    return Table(
        "rejections",
        "What was turned away",
        "Source rows that are in no split; drafts of the language model that were drawn again; "
        "draws given up after the last attempt.",
        columns,
        rows,
    )


def cost_table(costs: Sequence[StageCost]) -> Table:
    """Time, throughput, cost, memory and rows of each stage."""
    columns = (
        Column("stage", "Stage"),
        Column("jobs", "Jobs", "count"),
        Column("seconds", "Seconds, all jobs", "number", 1),
        Column("longest", "Longest job, s", "number", 1),
        Column("rows_per_second", "Rows a second", "number", 2),
        Column("tokens_per_second", "Tokens a second", "number", 1),
        Column("core_hours", "Core-hours", "number", 3),
        Column("gpu_hours", "GPU-hours", "number", 3),
        Column("gpu_seconds_per_row", "GPU-seconds a row out", "number", 3),
        Column("peak_memory_mb", "Peak memory, MiB", "count"),
        Column("rows_in", "Rows in", "count"),
        Column("rows_out", "Rows out", "count"),
        Column("rows_failed", "Failed", "count"),
    )
    rows = [
        {
            "stage": cost.stage,
            "jobs": cost.jobs,
            "seconds": round(cost.seconds, 1),
            "longest": round(cost.longest, 1),
            "rows_per_second": cost.rows_per_second,
            "tokens_per_second": cost.tokens_per_second,
            "core_hours": cost.core_hours,
            "gpu_hours": cost.gpu_hours,
            "gpu_seconds_per_row": cost.gpu_seconds_per_row,
            "peak_memory_mb": cost.peak_memory_mb,
            **cost.rows,
        }
        for cost in costs
    ]
    return Table(
        "stages",
        "Time, throughput and cost of each stage",
        "Wall time inside the stages, from their records; jobs may have run at the same time. "
        "Rows a second: of one job, its start included. Tokens a second: while generating. "
        "Core-hours and GPU-hours: wall time times the cores and GPUs that a job saw.",
        columns,
        rows,
    )


def speed_table(results: Sequence[Result], seconds: Mapping[str, float | None]) -> Table:
    """Time to generate 10,000 crystals and time for one S.U.N. crystal (paper, appendix G)."""
    columns = (
        METHOD,
        Column("energies", "S.U.N. by"),
        Column("minutes_per_10000", "Minutes for 10,000", "number", 1),
        Column("sun", "S.U.N.", "count"),
        Column("seconds_per_sun", "Seconds for one S.U.N.", "number", 2),
    )
    published = published_rows([column.key for column in columns])
    rows: list[dict[str, Any]] = []
    for result in results:
        total = seconds.get(result.method)
        drawn = result.numbers["counts"]["drawn"]
        if not total or not drawn:
            continue
        sun = result.numbers["rates"]["sun_rate"]["numerator"]
        row = {"setting": result.method, "energies": energy_name([result])}
        row["minutes_per_10000"] = round(total / drawn * 10_000 / 60, 1)
        row["sun"] = sun
        row["seconds_per_sun"] = round(total / sun, 2) if sun else None
        rows.append(row)
    return Table(
        "speed",
        "Time to generate",
        "Drawing the base and refining it, from the recorded times of these jobs, each one's start "
        "included, on the machines of the provenance below; published: one A100-80GB. "
        + published_note(published),
        columns,
        rows + published,
    )
