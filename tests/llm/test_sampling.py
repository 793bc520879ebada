"""Repeated drafts and their decoding, with an engine that returns given texts."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from crystals import caesium_chloride, rocksalt
from flowllm.config.load import load_config
from flowllm.io.schemas import BASE
from flowllm.io.tables import read_table
from flowllm.llm.crystal_text import Reason, Rejection, composition_of
from flowllm.llm.engines.base import Draft, DraftRequest
from flowllm.llm.pairing import by_species
from flowllm.llm.prompts import UNCONDITIONAL, Conditions, PromptTokens
from flowllm.llm.redraws import Form
from flowllm.llm.sampling import (
    DrawRequest,
    Sampler,
    Speed,
    base_row,
    sample_columns,
    sampling_counts,
    write_samples,
)
from flowllm.llm.text import encode
from flowllm.runtime.provenance import StageRun, recorded
from flowllm.runtime.resume import partial_path
from llm_run import CONFIGS
from tiny_llm import make_tokenizer

PROMPTS = PromptTokens(load_config(CONFIGS).prompts, make_tokenizer())
SALT, CAESIUM = encode(rocksalt()), encode(caesium_chloride())


class ScriptedEngine:
    """An engine that returns given texts, two at a time, and records the requests."""

    cached_prompt_tokens = 0

    def __init__(self, write: Callable[[DraftRequest], str]) -> None:
        self.write = write
        self.requests: list[DraftRequest] = []
        self.waiting: list[tuple[int, DraftRequest]] = []
        self.closed = False

    def submit(self, key: int, request: DraftRequest) -> None:
        self.requests.append(request)
        self.waiting.append((key, request))

    def finished(self) -> list[tuple[int, Draft]]:
        batch, self.waiting = self.waiting[:2], self.waiting[2:]
        assert batch
        return [(key, self.draft(request)) for key, request in batch]

    def draft(self, request: DraftRequest) -> Draft:
        return Draft(PROMPTS.answer(self.write(request)), truncated=False)

    def close(self) -> None:
        self.closed = True


LIMITS = {"max_attempts": 3, "reject_close_atoms": True}


def sampler(engine: ScriptedEngine, **changes: object) -> Sampler:
    return Sampler(lambda: engine, PROMPTS, max_atoms=4, **LIMITS | changes)


def salt_task(seed: int, form: Form | None = None) -> DrawRequest:
    composition = composition_of(rocksalt().atomic_numbers)
    return DrawRequest(
        Conditions("Na1Cl1"), composition, form, lambda attempt: 100 * seed + attempt
    )


def test_only_what_was_rejected_is_drawn_again_with_the_next_seed():
    # Draw 1 succeeds at its third attempt, draw 2 never, the others at once.
    bad = {100, 101, 200, 201, 202}
    engine = ScriptedEngine(lambda request: CAESIUM if request.seed in bad else SALT)
    outcomes = sampler(engine).draw([salt_task(seed) for seed in range(4)])
    # Repeated drafts are queued after the waiting ones.
    assert [r.seed for r in engine.requests] == [0, 100, 200, 300, 101, 201, 102, 202]
    assert [outcome.attempts for outcome in outcomes] == [1, 3, 3, 1]
    assert [outcome.crystal is not None for outcome in outcomes] == [True, True, False, True]
    reasons = [rejection.reason for rejection in outcomes[1].rejections]
    assert reasons == ["formula_mismatch", "formula_mismatch"]
    answer = len(PROMPTS.answer(SALT))
    assert outcomes[0].num_tokens == answer
    assert outcomes[1].num_tokens == answer + 2 * len(PROMPTS.answer(CAESIUM))
    assert outcomes[0].text == SALT
    assert outcomes[2].text == CAESIUM


@pytest.mark.parametrize("reject_close_atoms", [True, False])
def test_two_atoms_at_one_point_are_drawn_again_where_asked(reject_close_atoms):
    clash = SALT.replace("0.50 0.50 0.50", "0.00 0.00 0.00")
    assert clash != SALT
    engine = ScriptedEngine(lambda request: clash if request.seed == 0 else SALT)
    made = sampler(engine, reject_close_atoms=reject_close_atoms)
    [outcome] = made.draw([salt_task(0)])
    assert outcome.text == (SALT if reject_close_atoms else clash)
    reasons = [rejection.reason for rejection in outcome.rejections]
    assert reasons == ["coinciding_atoms"] * reject_close_atoms


def test_prompts_and_expressions_reach_the_engine():
    engine = ScriptedEngine(lambda _: SALT)
    sampler(engine).draw(
        [
            salt_task(0, form=lambda written: f"{written}x+"),
            DrawRequest(UNCONDITIONAL, None, None, lambda _: 7),
        ]
    )
    first, second = engine.requests
    assert first == DraftRequest(PROMPTS.prompt(Conditions("Na1Cl1")), 0, "x+")
    assert second == DraftRequest(PROMPTS.prompt(UNCONDITIONAL), 7, None)


def test_prompts_are_grouped_and_long_texts_come_first():
    engine = ScriptedEngine(lambda _: SALT)
    asked = [("Na1Cl1", 2), ("Cs1Cl1", 2), ("Ca1Ti1O3", 5), ("Na1Cl1", 2), ("Cs1Cl1", 2)]
    tasks = [
        DrawRequest(Conditions(formula), {1: atoms}, None, lambda _, i=i: i)
        for i, (formula, atoms) in enumerate(asked)
    ]
    sampler(engine, max_attempts=1).draw(
        [*tasks, DrawRequest(UNCONDITIONAL, None, None, lambda _: 5)]
    )
    order = [request.seed for request in engine.requests]
    assert order[0] == 2
    assert order[-1] == 5
    assert sorted(order[1:5]) == [0, 1, 3, 4]
    prompts = [request.prompt for request in engine.requests]
    assert prompts[1] == prompts[2] != prompts[3] == prompts[4]


def test_a_truncated_draft_is_rejected():
    class Cut(ScriptedEngine):
        def draft(self, request):
            return Draft(super().draft(request).tokens[:-1], truncated=True)

    outcome = sampler(Cut(lambda _: SALT), max_attempts=1).draw([salt_task(0)])[0]
    assert outcome.crystal is None
    assert [rejection.reason for rejection in outcome.rejections] == ["truncated"]


def test_the_engine_starts_when_needed_and_is_closed():
    started = []

    def start() -> ScriptedEngine:
        started.append(ScriptedEngine(lambda _: SALT))
        return started[-1]

    with Sampler(start, PROMPTS, max_atoms=2, **LIMITS) as idle:
        pass
    assert idle.speed == Speed()
    assert started == []
    with Sampler(start, PROMPTS, max_atoms=2, **LIMITS) as busy:
        busy.draw([salt_task(0)])
        busy.draw([salt_task(1)])
    assert len(started) == 1
    assert started[0].closed
    assert busy.speed.tokens == 2 * len(PROMPTS.answer(SALT))


def test_an_engine_that_does_not_close_costs_no_text(tmp_path):
    class Stuck(ScriptedEngine):
        def close(self) -> None:
            raise RuntimeError("engine core died")

    def write(engine: ScriptedEngine) -> None:
        drawn = sampler(engine)
        run = StageRun("sample_base", 1, {}, 42, {})

        def make_rows(items: range) -> list[dict]:
            outcomes = drawn.draw([salt_task(i) for i in items])
            return [base_row(f"{i}", outcomes[0], "prompt") for i in items]

        with recorded(run, out):
            write_samples(drawn, out, run, BASE, 3, 1, make_rows)

    out = tmp_path / "shard.parquet"
    with pytest.raises(RuntimeError, match="engine core died"):
        write(Stuck(lambda _: SALT))
    assert not out.exists()
    assert len(list(partial_path(out).glob("part-*"))) == 3
    again = ScriptedEngine(lambda _: SALT)
    write(again)
    assert again.requests == []
    assert read_table(out, BASE).num_rows == 3
    assert not partial_path(out).exists()


def test_columns_and_counts():
    engine = ScriptedEngine(lambda request: SALT if request.seed in (0, 101) else "5.0 x")
    drawn = sampler(engine)
    outcomes = drawn.draw([salt_task(seed) for seed in range(3)])
    rows = [sample_columns(outcome, "prompt") for outcome in outcomes]
    assert [row["status"] for row in rows] == ["ok", "ok", "exhausted"]
    assert [row["rejections"] for row in rows] == [[], ["wrong_count"], ["wrong_count"] * 3]
    assert rows[0]["error"] is rows[1]["error"] is None
    assert rows[2]["error"].startswith("3 drafts, the last wrong_count: 1 lines")
    counts = sampling_counts(rows, drawn.speed)
    assert counts["rows_in"] == 3
    assert counts["rows_out"] == 2
    assert counts["rows_failed"] == 1
    assert counts["drafts"] == 6
    assert counts["acceptance"] == round(2 / 6, 4)
    assert counts["rejections"] == {"wrong_count": 4}
    assert counts["prompt_tokens"] == 6 * len(PROMPTS.prompt(Conditions("Na1Cl1")))
    assert counts["generated_tokens"] == sum(row["num_tokens"] for row in rows)


def test_by_species_sorts_atoms_and_keeps_the_order_within_an_element():
    crystal = rocksalt()
    reversed_crystal = type(crystal)(
        crystal.atomic_numbers[[1, 0, 1, 0]],
        crystal.frac_coords[[0, 0, 1, 1]],
        crystal.lengths,
        crystal.angles,
    )
    ordered = by_species(reversed_crystal)
    assert ordered.atomic_numbers.tolist() == [11, 11, 17, 17]
    assert ordered.frac_coords[:, 0].tolist() == [0.0, 0.5, 0.0, 0.5]
    assert by_species(crystal).atomic_numbers.tolist() == [11, 17]


def test_a_task_that_cannot_succeed_is_not_drawn():
    """A crystal with more atoms than in training gives a row with the reason and no draft."""
    engine = ScriptedEngine(lambda _: SALT)
    refusal = Rejection(Reason.TOO_MANY_ATOMS, "30 atoms, but")
    large = replace(salt_task(0), refusal=refusal)
    outcomes = sampler(engine).draw([large, salt_task(1), large])
    assert [outcome.attempts for outcome in outcomes] == [0, 1, 0]
    assert len(engine.requests) == 1
    rows = [sample_columns(outcome, "prompt") for outcome in outcomes]
    assert [row["status"] for row in rows] == ["too_many_atoms", "ok", "too_many_atoms"]
    assert rows[0]["error"] == "30 atoms, but"
    assert rows[0]["rejections"] == []
    counts = sampling_counts([rows[0]], Speed())
    assert (counts["drafts"], counts["acceptance"], counts["rows_failed"]) == (0, 0.0, 1)

    def never():
        raise AssertionError("the engine was started")

    idle = Sampler(never, PROMPTS, max_atoms=20, **LIMITS)
    assert idle.draw([large])[0].crystal is None
