"""Tables of a run's progress: outcome of the draws, rejections, time and cost."""

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


def outcome_table(results: Sequence[Result]) -> Table:
    """Return the outcome of the draws: the number of crystals that reached each stage."""
    columns = (
        METHOD,
        Column("energies", "Energies"),
        Column("generated", "Generated", "rate", 1),
        Column("not_converged", "Relaxed, not converged", "count"),
        Column("placed_on_hull", "Placed on the hull", "rate", 1),
        Column("stopped", "Not relaxed, by reason"),
        Column("fingerprinted", "Fingerprint found", "rate", 1),
        Column("fingerprints", "Without a fingerprint"),
    )
    rows = []
    for result in results:
        counts = result.numbers["counts"]
        # The statuses of relaxation include those of crystals that failed at an earlier stage.
        row = {
            "energies": result.kind,
            "not_converged": counts["not_converged"],
            "stopped": _all_but_ok(counts["relaxed"]),
            "fingerprints": _all_but_ok(counts["fingerprints"]),
        }
        rows.append(result.row | row)
    return Table(
        "fates",
        "Outcome of the draws",
        "Crystals that were rejected, failed or were not computed remain in every denominator. A "
        "crystal whose relaxation did not converge counts with its last energy, an upper bound.",
        columns,
        rows,
        protocol="A crystal without a fingerprint is neither covered nor valid (timeout: CrystalNN "
        "exceeded its time limit).",
    )


def _all_but_ok(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items() if name != "ok") or "–"


def draft_table(counts: Sequence[DraftCount]) -> Table:
    """Return how many of the language model's texts are crystals, with and without a grammar."""
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
        "A draft is accepted if its text is a crystal that fits the prompt; a rejected draft is "
        "drawn again, up to max_attempts times. A grammar restricts the text to lengths, angles "
        "and atoms, so that the accepted share then says less about the model.",
        columns,
        rows,
    )


def invariance_table(increases: pa.Table) -> Table:
    """Return how much the perplexity depends on the description of a crystal."""
    columns = (
        Column("what", "Text of a validation crystal"),
        Column("value", "Mean", "mean", 4),
    )
    names = {
        "perplexity": "perplexity per token, without changes",
        "ipt_translation": "increase in perplexity under translation",
        "ipt_permutation": "increase in perplexity under permutation of the atoms",
    }
    rows = [
        {"what": text, "value": summary(increases.column(name).to_pylist(), "1", "validation")}
        for name, text in names.items()
        if len(increases)
    ]
    return Table(
        "invariance",
        "Invariance of the language model",
        "Increase (equation 9): mean perplexity over random descriptions of a crystal minus the "
        "lowest value, the original description included; it is 0 for an invariant model. The "
        "prompt states no condition, and crystals of one atom have only one order.",
        columns,
        rows,
    )


def merging_table(records: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return the validation losses of adapter and merged model; None if they were not recorded."""
    counts = [one["counts"] for one in records if one["stage"] == "invariance"]
    losses = [one for one in counts if "merged_val_loss" in one]
    if not losses:
        return None
    adapter, merged = losses[0]["adapter_val_loss"], losses[0]["merged_val_loss"]
    rise = merged - adapter
    note = "Losses on the validation texts of the fine-tuning, in nats per token. "
    if rise > MAX_LOSS_RISE:
        note += (
            f"Warning: merging raised the loss by {rise:.4f}, more than {MAX_LOSS_RISE:g}, so that "
            "the merged model differs from the trained one; merge_adapter.into: dequantized keeps "
            "the weights of the training."
        )
    rows = [
        {"what": "adapter, with the weights of its training", "loss": adapter},
        {"what": "merged model", "loss": merged},
        {"what": "increase", "loss": rise},
    ]
    columns = (Column("what", "Model"), Column("loss", "Validation loss", "number", 4))
    return Table("merging", "Increase of the loss by merging", note, columns, rows)


def rejection_table(rejections: Sequence[tuple[str, str, int]]) -> Table:
    """Return the rejected source rows, drafts and samples, by reason."""
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
        "Rejections",
        "Source rows that are in no split, drafts of the language model that were rejected, atoms "
        "within drafts that were drawn again (min_distance), and draws that were given up after "
        "the last attempt. No crystal: a draw for which no draft could be made, or another model's "
        "sample that could not be read.",
        columns,
        rows,
    )


def cost_table(costs: Sequence[StageCost]) -> Table:
    """Return time, throughput, cost, memory and rows of each stage."""
    columns = (
        Column("stage", "Stage"),
        Column("jobs", "Jobs", "count"),
        Column("seconds", "Seconds, all jobs", "number", 1),
        Column("longest", "Longest job, s", "number", 1),
        Column("rows_per_second", "Rows per second", "number", 2),
        Column("tokens_per_second", "Tokens per second", "number", 1),
        Column("core_hours", "Core-hours", "number", 3),
        Column("gpu_hours", "GPU-hours", "number", 3),
        Column("gpu_seconds_per_row", "GPU-seconds per output row", "number", 3),
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
        "Wall time inside the stages, from their records; jobs may have run at the same time.",
        columns,
        rows,
        protocol="A resumed job has the time of all its attempts until their last saved parts. "
        "Rows per second are those of one job with its start, tokens per second those of "
        "generation alone; core-hours and GPU-hours are wall time times the cores and GPUs that "
        "are visible to a job.",
    )


def speed_table(results: Sequence[Result], seconds: Mapping[str, float | None]) -> Table:
    """Return the time per 10,000 crystals and per S.U.N. crystal (paper, appendix G)."""
    columns = (
        METHOD,
        Column("energies", "S.U.N. by"),
        Column("minutes_per_10000", "Minutes per 10,000", "number", 1),
        Column("seconds_per_sun", "Seconds per S.U.N.", "number", 2),
    )
    published = published_rows([column.key for column in columns])
    rows: list[dict[str, Any]] = []
    for result in results:
        total = seconds.get(result.method)
        drawn = result.numbers["counts"]["drawn"]
        if not total or not drawn:
            continue
        sun = result.numbers["rates"]["sun_rate"]["numerator"]
        row: dict[str, Any] = {"setting": result.method, "energies": energy_name([result])}
        row["minutes_per_10000"] = round(total / drawn * 10_000 / 60, 1)
        row["seconds_per_sun"] = round(total / sun, 2) if sun else None
        rows.append(row)
    return Table(
        "speed",
        "Time of generation (the paper's appendix G)",
        "Wall time of sampling and refining, from the records of these jobs with their starts, on "
        "the machines listed under Provenance. Shaded rows are published, for one A100-80GB.",
        columns,
        rows + published,
        protocol=published_note(published),
    )
