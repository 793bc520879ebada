"""Drafts until one is the crystal that was asked for: draw, decode, draw the rejected again."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from flowllm.crystal import Crystal
from flowllm.llm.engine import Draft, Request
from flowllm.llm.prompts import Conditions, PromptTokens
from flowllm.llm.text import Rejection, decode
from flowllm.resume import write_in_parts
from flowllm.runlog import StageRun
from flowllm.tables import crystal_columns

EXHAUSTED = "exhausted"
"""Status of a draw none of whose drafts was accepted."""


class Engine(Protocol):
    """What writes texts."""

    def generate(self, requests: Sequence[Request]) -> list[Draft]:
        """Write all texts, in the order of the requests."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


@dataclass(frozen=True)
class Task:
    """One crystal to be drawn.

    Attributes:
        conditions: what the prompt says.
        composition: atomic number to count that the draft must have, None for any.
        regex: expression that holds the text to its form, None for a free text.
        seed: from the number of the attempt (from 0) to its seed.
    """

    conditions: Conditions
    composition: Mapping[int, int] | None
    regex: str | None
    seed: Callable[[int], int]


@dataclass
class Outcome:
    """What became of a task.

    Attributes:
        crystal: the accepted draft's, None where none was accepted.
        text: of the accepted draft, or of the last one.
        rejections: the reasons of all rejected drafts, in order.
        detail: of the last rejection.
        num_tokens: sampled tokens of all drafts.
    """

    crystal: Crystal | None = None
    text: str = ""
    rejections: list[Rejection] = field(default_factory=list)
    num_tokens: int = 0

    @property
    def attempts(self) -> int:
        """Drafts that were made."""
        return len(self.rejections) + (self.crystal is not None)


@dataclass
class Speed:
    """What the engine did in this process: a resumed job counts what it did itself."""

    drafts: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Sampler:
    """Draws crystals with one engine; as a context manager it closes the engine at the end.

    Attributes:
        speed: drafts, tokens and seconds so far.
    """

    def __init__(
        self,
        start_engine: Callable[[], Engine],
        prompts: PromptTokens,
        *,
        max_atoms: int,
        max_attempts: int,
    ) -> None:
        """Hold the engine and the limits.

        Args:
            start_engine: starts what writes texts, when the first is needed.
            prompts: prompts as tokens.
            max_atoms: the most atoms of a crystal.
            max_attempts: drafts a task before it is given up.
        """
        self._start_engine, self._prompts = start_engine, prompts
        self._max_atoms, self._max_attempts = max_atoms, max_attempts
        self._engine: Engine | None = None
        self.speed = Speed()

    def __enter__(self) -> "Sampler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._engine is not None:
            self._engine.close()

    def draw(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Draw all tasks, in rounds: each round draws again what the one before rejected."""
        outcomes = [Outcome() for _ in tasks]
        pending = list(range(len(tasks)))
        for attempt in range(self._max_attempts):
            drafts = self._generate([tasks[i] for i in pending], attempt)
            for i, draft in zip(pending, drafts, strict=True):
                self._judge(tasks[i], draft, outcomes[i])
            pending = [i for i in pending if outcomes[i].crystal is None]
            if not pending:
                break
        return outcomes

    def _generate(self, tasks: Sequence[Task], attempt: int) -> list[Draft]:
        requests = [
            Request(self._prompts.prompt(task.conditions), task.seed(attempt), task.regex)
            for task in tasks
        ]
        if self._engine is None:
            self._engine = self._start_engine()
        started = time.perf_counter()
        drafts = self._engine.generate(requests)
        self.speed.seconds += time.perf_counter() - started
        self.speed.drafts += len(drafts)
        self.speed.tokens += sum(len(draft.tokens) for draft in drafts)
        return drafts

    def _judge(self, task: Task, draft: Draft, outcome: Outcome) -> None:
        outcome.text = self._prompts.decode(draft.tokens)
        outcome.num_tokens += len(draft.tokens)
        decoded = decode(
            outcome.text,
            max_atoms=self._max_atoms,
            composition=task.composition,
            truncated=draft.truncated,
        )
        if isinstance(decoded, Rejection):
            outcome.rejections.append(decoded)
        else:
            outcome.crystal = decoded


def sample_columns(outcome: Outcome, prompt: str) -> dict[str, Any]:
    """Return the columns that pairs and base crystals share: the text and how it came about."""
    failed = outcome.crystal is None
    last = outcome.rejections[-1] if failed else None
    return {
        "prompt": prompt,
        "text": outcome.text,
        "attempts": outcome.attempts,
        "rejections": [rejection.reason.value for rejection in outcome.rejections],
        "num_tokens": outcome.num_tokens,
        "status": EXHAUSTED if failed else "ok",
        "error": f"{outcome.attempts} drafts, the last {last.reason}: {last.detail}"
        if last
        else None,
    }


def base_row(row_id: str, outcome: Outcome, prompt: str) -> dict[str, Any]:
    """Return a row of `tables.BASE`: the crystal as it was drawn, and how it came about."""
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
        table = write_in_parts(out, run, schema, num_rows, chunk_size, make_rows)
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
        "acceptance": round(accepted / drafts, 4),
        "rejections": dict(sorted(rejected.items())),
        "generated_tokens": speed.tokens,
        "generation_seconds": round(speed.seconds, 1),
        "tokens_per_second": round(speed.tokens / speed.seconds, 1) if speed.seconds else None,
    }
