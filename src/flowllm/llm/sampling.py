"""Sampling of crystals: generate drafts, decode them, and repeat the rejected ones."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from flowllm.crystal import Crystal
from flowllm.data.symmetry_operations import Operations, operation_columns
from flowllm.io.tables import crystal_columns, write_table
from flowllm.llm.crystal_text import EXHAUSTED, Decoded, Limits, Reason, Rejection
from flowllm.llm.engines.base import Draft, Engine
from flowllm.llm.prompts import Conditions, PromptTokens
from flowllm.llm.redraws import Apart, Draw, Form
from flowllm.llm.required import ANY, Required
from flowllm.runtime.provenance import StageRun
from flowllm.runtime.resume import make_parts


@dataclass(frozen=True)
class DrawRequest:
    """One crystal to be sampled.

    Attributes:
        conditions: conditions of the prompt.
        composition: required number of atoms by atomic number, None for any composition.
        form: form of the text, None for a free text.
        first_form: form of the first half of the attempts, which leaves more to the model and may
            be rejected for it; None for `form`.
        seed: function from the number of the attempt (from 0) to its seed.
        refusal: reason why the crystal is not sampled, None if it is.
        required: what drafts are rejected for besides the composition.
    """

    conditions: Conditions
    composition: Mapping[int, int] | None
    form: Form | None
    seed: Callable[[int], int]
    refusal: Rejection | None = None
    required: Required = ANY
    first_form: Form | None = None


@dataclass
class Outcome:
    """Result of a draw request.

    Attributes:
        crystal: crystal of the accepted draft, None if no draft was accepted.
        operations: operations of its space group, None if its text names no group.
        text: text of the accepted draft, or of the last one.
        rejections: reasons of the rejected drafts, in order.
        num_tokens: number of sampled tokens of all drafts, redrawn ones included.
        redraws: number of redraws of all drafts (`llm.redraws`).
        masked: number of atoms of all drafts that were drawn under a mask with masked values.
        refusal: reason why the crystal was not sampled, None if it was.
    """

    crystal: Crystal | None = None
    operations: Operations | None = None
    text: str = ""
    rejections: list[Rejection] = field(default_factory=list)
    num_tokens: int = 0
    redraws: int = 0
    masked: int = 0
    refusal: Rejection | None = None

    @property
    def attempts(self) -> int:
        """Number of drafts."""
        return len(self.rejections) + (self.crystal is not None)


@dataclass
class Speed:
    """Totals of the engine in this process; a resumed job does not count earlier processes.

    Attributes:
        tokens: number of sampled tokens.
        prompt_tokens: number of tokens of all prompts; those of a redraw include the kept text.
        cached_prompt_tokens: number of prompt tokens that were read from a cache.
        seconds: time spent in `Sampler.draw`.
    """

    tokens: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    seconds: float = 0.0


class Sampler:
    """Sampler of crystals with one engine; as a context manager it closes the engine at the end.

    Attributes:
        speed: totals so far.
    """

    def __init__(
        self,
        start_engine: Callable[[], Engine],
        prompts: PromptTokens,
        *,
        max_atoms: int,
        max_attempts: int,
        reject_close_atoms: bool,
        apart: Apart | None = None,
    ) -> None:
        """Store the limits; the engine is started by the first call of `draw`.

        Args:
            start_engine: function that starts the engine.
            prompts: the prompts and the tokenizer.
            max_atoms: maximum number of atoms per crystal.
            max_attempts: maximum number of drafts per crystal.
            reject_close_atoms: whether drafts with two atoms at one point are rejected.
            apart: how the atoms of drafts are kept apart, None for not at all.
        """
        self._start_engine, self._prompts, self._apart = start_engine, prompts, apart
        self._reject_close_atoms = reject_close_atoms
        self._max_atoms, self._max_attempts = max_atoms, max_attempts
        self._engine: Engine | None = None
        self.speed = Speed()

    def __enter__(self) -> "Sampler":
        """Return the sampler."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the engine if it was started."""
        if self._engine is not None:
            self._engine.close()

    def draw(
        self, requests: Sequence[DrawRequest], advance: Callable[[], None] | None = None
    ) -> list[Outcome]:
        """Sample all crystals.

        Each draft is decoded as soon as it is finished and repeated if it is rejected, while other
        drafts are still being generated. Requests with the same prompt are submitted together, so
        that the engine can compute the prompt once. Requests with many atoms are submitted first,
        so that no long text is generated alone at the end.

        Args:
            requests: the crystals.
            advance: called for each crystal that is finished, for a progress bar.

        Returns:
            The outcomes in the order of the requests.
        """
        outcomes = [Outcome(refusal=request.refusal) for request in requests]
        drawn = [i for i, request in enumerate(requests) if request.refusal is None]
        if not drawn:
            return outcomes
        prompts = {i: self._prompts.prompt(requests[i].conditions) for i in drawn}
        in_order = sorted(drawn, key=lambda i: (-_num_atoms(requests[i]), prompts[i]))
        engine = self._engine = self._engine or self._start_engine()
        started = time.perf_counter()
        draws: dict[int, Draw] = {}

        def start(i: int) -> None:
            request, attempt = requests[i], outcomes[i].attempts
            is_first = request.first_form is not None and attempt < self._max_attempts // 2
            draws[i] = Draw(
                self._prompts,
                self._apart,
                prompt=prompts[i],
                seed=request.seed(attempt),
                form=request.first_form if is_first else request.form,
            )
            submit(i)

        def submit(i: int) -> None:
            piece = draws[i].next_piece()
            engine.submit(i, piece)
            self.speed.prompt_tokens += len(piece.start)

        for i in in_order:
            start(i)
        unfinished = len(drawn)
        while unfinished:
            for i, piece in engine.finished():
                if self._add(piece, draws[i], outcomes[i]):
                    submit(i)
                    continue
                self._decode(requests[i], draws[i], outcomes[i])
                if outcomes[i].crystal is None and outcomes[i].attempts < self._max_attempts:
                    start(i)
                else:
                    unfinished -= 1
                    if advance is not None:
                        advance()
        self.speed.seconds += time.perf_counter() - started
        self.speed.cached_prompt_tokens = engine.cached_prompt_tokens
        return outcomes

    def _add(self, piece: Draft, draw: Draw, outcome: Outcome) -> bool:
        """Count a piece and add it to its draft; return whether another one has to be drawn."""
        outcome.num_tokens += len(piece.tokens)
        self.speed.tokens += len(piece.tokens)
        return draw.finish(piece)

    def _decode(self, request: DrawRequest, draw: Draw, outcome: Outcome) -> None:
        """Decode a draft and add it to the outcome, as the crystal or as a rejection."""
        outcome.text = self._prompts.decode(draw.tokens)
        outcome.redraws += draw.redraws
        outcome.masked += draw.masked
        decoded = draw.rejection or self._decoded(outcome.text, request, draw.truncated)
        if isinstance(decoded, Rejection):
            outcome.rejections.append(decoded)
        else:
            outcome.crystal, outcome.operations = decoded.crystal, decoded.operations

    def _decoded(self, text: str, request: DrawRequest, truncated: bool) -> Decoded | Rejection:
        """Return the crystal of a text, or why it is rejected."""
        if truncated:
            return Rejection(Reason.TRUNCATED, "the text stopped before its end token")
        limits = Limits(
            self._max_atoms,
            request.composition,
            self._reject_close_atoms,
            self._apart.min_distance if self._apart else None,
        )
        decoded = self._prompts.crystal_text.decode(text, limits)
        if isinstance(decoded, Rejection):
            return decoded
        return request.required.rejection(decoded) or decoded


def _num_atoms(request: DrawRequest) -> int:
    """Return the required number of atoms; 0 if any number is allowed."""
    return sum(request.composition.values()) if request.composition else 0


def sample_columns(outcome: Outcome, prompt: str) -> dict[str, Any]:
    """Return the columns that pairs and base crystals share: prompt, text, attempts and status."""
    status, error = "ok", None
    if outcome.refusal is not None:
        status, error = outcome.refusal.reason.value, outcome.refusal.detail
    elif outcome.crystal is None:
        last = outcome.rejections[-1]
        status = EXHAUSTED
        error = f"{outcome.attempts} drafts, the last {last.reason}: {last.detail}"
    return {
        "prompt": prompt,
        "text": outcome.text,
        "attempts": outcome.attempts,
        "rejections": [rejection.reason.value for rejection in outcome.rejections],
        "num_tokens": outcome.num_tokens,
        "redraws": outcome.redraws,
        "masked": outcome.masked,
        "status": status,
        "error": error,
    }


def base_row(row_id: str, outcome: Outcome, prompt: str) -> dict[str, Any]:
    """Return a row of `schemas.BASE`: the sampled crystal and the columns of `sample_columns`."""
    crystal = outcome.crystal
    return {
        "id": row_id,
        **crystal_columns(crystal),
        **operation_columns(outcome.operations),
        "formula": None if crystal is None else crystal.formula,
        **sample_columns(outcome, prompt),
    }


def write_samples(
    sampler: Sampler,
    out: Path,
    run: StageRun,
    schema: pa.Schema,
    num_rows: int,
    chunk_size: int,
    make_rows: Callable[[range], Sequence[Mapping[str, Any]]],
) -> None:
    """Write a shard of sampled crystals and count its rows in the provenance record.

    The shard is built from parts, which remain on disk if the job is killed.

    Args:
        sampler: sampler that `make_rows` uses; closed at the end.
        out: path of the shard.
        run: run of the stage.
        schema: schema of the shard; it has the columns of `sample_columns`.
        num_rows: number of rows of the shard.
        chunk_size: number of rows per part.
        make_rows: function that returns the rows with the given numbers.
    """
    with sampler:
        table = make_parts(out, run, schema, num_rows, chunk_size, make_rows)
    # The shard is written after the engine is closed: closing it may fail, and Snakemake deletes
    # the output of a failed job.
    write_table(out, table, schema, run.metadata())
    columns = ["status", "attempts", "rejections", "redraws", "masked"]
    run.count(**sampling_counts(table.select(columns).to_pylist(), sampler.speed))


def sampling_counts(rows: Sequence[Mapping[str, Any]], speed: Speed) -> dict[str, Any]:
    """Return the counts of a shard for its provenance record.

    Args:
        rows: all rows of the shard with at least the columns status, attempts, rejections,
            redraws and masked.
        speed: totals of this process.
    """
    rejected = Counter(reason for row in rows for reason in row["rejections"])
    drafts = sum(row["attempts"] for row in rows)
    accepted = sum(row["status"] == "ok" for row in rows)
    return {
        "rows_in": len(rows),
        "rows_out": accepted,
        "rows_failed": len(rows) - accepted,
        "drafts": drafts,
        "acceptance": round(accepted / drafts, 4) if drafts else 0.0,
        "rejections": dict(sorted(rejected.items())),
        "redraws": sum(row["redraws"] for row in rows),
        "masked_atoms": sum(row["masked"] for row in rows),
        "generated_tokens": speed.tokens,
        "prompt_tokens": speed.prompt_tokens,
        "cached_prompt_tokens": speed.cached_prompt_tokens,
        "generation_seconds": round(speed.seconds, 1),
        "tokens_per_second": round(speed.tokens / speed.seconds, 1) if speed.seconds else None,
    }
