"""Drafts until one is the crystal that was asked for: draw, decode, draw the rejected again."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from flowllm.crystal import Crystal
from flowllm.io.tables import crystal_columns, write_table
from flowllm.llm.engines.base import Draft, Engine, Request
from flowllm.llm.prompts import Conditions, PromptTokens
from flowllm.llm.text import Rejection, decode
from flowllm.runtime.provenance import StageRun
from flowllm.runtime.resume import make_parts

EXHAUSTED = "exhausted"
"""Status of a draw none of whose drafts was accepted."""


@dataclass(frozen=True)
class DrawRequest:
    """One crystal to be drawn.

    Attributes:
        conditions: what the prompt says.
        composition: atomic number to count that the draft must have, None for any.
        regex: expression that holds the text to its form, None for a free text.
        seed: from the number of the attempt (from 0) to its seed.
        refusal: why it is not drawn, None where it is.
    """

    conditions: Conditions
    composition: Mapping[int, int] | None
    regex: str | None
    seed: Callable[[int], int]
    refusal: Rejection | None = None


@dataclass
class Outcome:
    """What became of a task.

    Attributes:
        crystal: the accepted draft's, None where none was accepted.
        text: of the accepted draft, or of the last one.
        rejections: why each rejected draft was, in order.
        num_tokens: sampled tokens of all drafts.
        refusal: why the task was not drawn at all, None where it was.
    """

    crystal: Crystal | None = None
    text: str = ""
    rejections: list[Rejection] = field(default_factory=list)
    num_tokens: int = 0
    refusal: Rejection | None = None

    @property
    def attempts(self) -> int:
        """Drafts that were made."""
        return len(self.rejections) + (self.crystal is not None)


@dataclass
class Speed:
    """What the engine did in this process: a resumed job counts what it did itself."""

    drafts: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    seconds: float = 0.0


class Sampler:
    """Draws crystals with one engine; as a context manager it closes the engine at the end.

    Attributes:
        speed: drafts, tokens of texts and prompts, and seconds so far.
    """

    def __init__(
        self,
        start_engine: Callable[[], Engine],
        prompts: PromptTokens,
        *,
        max_atoms: int,
        max_attempts: int,
        reject_close_atoms: bool,
    ) -> None:
        """Hold the engine and the limits.

        Args:
            start_engine: starts what writes texts, when the first is needed.
            prompts: prompts as tokens.
            max_atoms: the most atoms of a crystal.
            max_attempts: drafts a task before it is given up.
            reject_close_atoms: whether a draft with two atoms at one point is drawn again.
        """
        self._start_engine, self._prompts = start_engine, prompts
        self._reject_close_atoms = reject_close_atoms
        self._max_atoms, self._max_attempts = max_atoms, max_attempts
        self._engine: Engine | None = None
        self.speed = Speed()

    def __enter__(self) -> "Sampler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._engine is not None:
            self._engine.close()

    def draw(self, tasks: Sequence[DrawRequest]) -> list[Outcome]:
        """Draw all tasks; a draft is judged, and drawn again if rejected, while others are written.

        Tasks of one prompt go to the engine together, so that it can compute the prompt once, and
        those of many atoms first, so that no long text is left to be written alone at the end.
        """
        outcomes = [Outcome(refusal=task.refusal) for task in tasks]
        drawn = [i for i, task in enumerate(tasks) if task.refusal is None]
        if not drawn:
            return outcomes
        prompts = {i: self._prompts.prompt(tasks[i].conditions) for i in drawn}
        in_order = sorted(drawn, key=lambda i: (-_num_atoms(tasks[i]), prompts[i]))
        engine = self._engine = self._engine or self._start_engine()
        started = time.perf_counter()

        def submit(i: int) -> None:
            seed = tasks[i].seed(outcomes[i].attempts)
            engine.submit(i, Request(prompts[i], seed, tasks[i].regex))
            self.speed.prompt_tokens += len(prompts[i])

        for i in in_order:
            submit(i)
        unfinished = len(drawn)
        while unfinished:
            for i, draft in engine.finished():
                self._judge(tasks[i], draft, outcomes[i])
                if outcomes[i].crystal is None and outcomes[i].attempts < self._max_attempts:
                    submit(i)
                else:
                    unfinished -= 1
        self.speed.seconds += time.perf_counter() - started
        self.speed.cached_prompt_tokens = engine.cached_prompt_tokens
        return outcomes

    def _judge(self, task: DrawRequest, draft: Draft, outcome: Outcome) -> None:
        outcome.text = self._prompts.decode(draft.tokens)
        outcome.num_tokens += len(draft.tokens)
        self.speed.drafts += 1
        self.speed.tokens += len(draft.tokens)
        decoded = decode(
            outcome.text,
            max_atoms=self._max_atoms,
            composition=task.composition,
            truncated=draft.truncated,
            reject_close_atoms=self._reject_close_atoms,
        )
        if isinstance(decoded, Rejection):
            outcome.rejections.append(decoded)
        else:
            outcome.crystal = decoded


def _num_atoms(task: DrawRequest) -> int:
    """Atoms that were asked for; 0 for any number."""
    return sum(task.composition.values()) if task.composition else 0


def sample_columns(outcome: Outcome, prompt: str) -> dict[str, Any]:
    """Return the columns that pairs and base crystals share: the text and how it came about."""
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
        "status": status,
        "error": error,
    }


def base_row(row_id: str, outcome: Outcome, prompt: str) -> dict[str, Any]:
    """Return a row of `schemas.BASE`: the crystal as it was drawn, and how it came about."""
    crystal = outcome.crystal
    return {
        "id": row_id,
        **crystal_columns(crystal),
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
    """Write a shard of drawn crystals in parts that a kill leaves behind, and count what came.

    Args:
        sampler: what `make_rows` draws with; closed at the end.
        out: the shard.
        run: the stage's run.
        schema: of the shard; has the columns of `sample_columns`.
        num_rows: rows of the shard.
        chunk_size: rows of a part.
        make_rows: gives the rows of some row numbers.
    """
    with sampler:
        table = make_parts(out, run, schema, num_rows, chunk_size, make_rows)
    # Last of all: closing an engine may fail, and what a failed job has written is deleted.
    write_table(out, table, schema, run.metadata())
    columns = ["status", "attempts", "rejections"]
    run.count(**sampling_counts(table.select(columns).to_pylist(), sampler.speed))


def sampling_counts(rows: Sequence[Mapping[str, Any]], speed: Speed) -> dict[str, Any]:
    """Sum up a shard for its provenance record.

    Args:
        rows: all rows of the shard, at least columns status, attempts, rejections.
        speed: what this process generated.
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
        "generated_tokens": speed.tokens,
        "prompt_tokens": speed.prompt_tokens,
        "cached_prompt_tokens": speed.cached_prompt_tokens,
        "generation_seconds": round(speed.seconds, 1),
        "tokens_per_second": round(speed.tokens / speed.seconds, 1) if speed.seconds else None,
    }
