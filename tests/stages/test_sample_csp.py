"""Structure prediction's sampling with real vLLM on a tiny model."""

from pathlib import Path

import pytest
from pymatgen.core import Element

from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.io.schemas import CSP_BASE
from flowllm.io.tables import crystal_of, read_table
from flowllm.llm import model_folder
from flowllm.llm.engines.base import Draft
from flowllm.llm.prompts import PromptTokens
from flowllm.stages import sample_csp
from llm_run import (
    crystal_table,
    merged_model,
    options_of_engine,
    settings_for,
    small_crystals,
)
from tiny_llm import make_tokenizer

K = 3


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return merged_model(tmp_path_factory.mktemp("csp"))


def predict(paths, out, first_draw, count, chunk_size=4, **changes):
    settings = settings_for(
        "sample_csp",
        paths["base"],
        row="csp",
        csp_bases=[{"name": "csp", "temperature": 0.7, "top_p": 0.9, "attempts": K}],
        sample_base={"structured": True, "chunk_size": chunk_size, **changes},
    )
    model, crystals = paths["model"], paths["train"]
    sample_csp.run(
        settings,
        model=model,
        crystals=crystals,
        first_draw=first_draw,
        count=count,
        out=out,
        gpus=0,
    )
    return read_table(out, CSP_BASE).to_pylist()


def test_every_attempt_has_the_atoms_of_its_test_crystal(paths, tmp_path):
    rows = predict(paths, tmp_path / "shard.parquet", 2, 4)
    expected = [(number, attempt) for number in range(2, 6) for attempt in range(K)]
    assert [row["id"] for row in rows] == [f"csp-{n:06d}-{k:03d}" for n, k in expected]
    for row, (number, _) in zip(rows, expected, strict=True):
        target = small_crystals()[number]
        assert row["material_id"] == f"crystal-{number}"
        atoms = " ".join(Element.from_Z(int(z)).symbol for z in target.atomic_numbers)
        assert f" {atoms}." in row["prompt"]
        assert row["status"] == "ok"
        found = crystal_of(row)
        assert sorted(found.atomic_numbers) == sorted(target.atomic_numbers)
    assert len({row["text"] for row in rows}) == len(rows)


def test_the_engine_gets_the_configured_temperature_and_top_p(paths, tmp_path, monkeypatch):
    out = tmp_path / "shard.parquet"
    found = options_of_engine(monkeypatch, lambda: predict(paths, out, 0, 2))
    assert (found.temperature, found.top_p) == (0.7, 0.9)


class Seeds:
    """Engine whose texts are the seeds of their requests, and no crystals."""

    cached_prompt_tokens = 0

    def __init__(self, *_, **__):
        prompts = settings_for("finetune_llm", Path("x")).prompts
        self.prompts, self.waiting = PromptTokens(prompts, make_tokenizer()), []

    def submit(self, key, request):
        text = self.prompts.answer(str(request.seed))
        self.waiting.append((key, Draft(text, truncated=False)))

    def finished(self):
        found, self.waiting = self.waiting, []
        return found

    def close(self):
        pass


def test_an_attempt_does_not_depend_on_its_shard_or_chunk(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(model_folder, "VllmEngine", Seeds)
    changes = {"min_distance": None, "max_attempts": 2}
    whole = predict(paths, tmp_path / "whole.parquet", 0, 5, **changes)
    part = predict(paths, tmp_path / "part.parquet", 2, 3, chunk_size=2, **changes)
    assert part == whole[2 * K :]
    assert len({row["text"] for row in whole}) == 5 * K


def test_more_test_crystals_than_there_are(paths, tmp_path):
    with pytest.raises(FlowllmError, match=r"contains 8 crystals, .*lower sizes.num_csp_crystals"):
        predict(paths, tmp_path / "shard.parquet", 6, 3)


def test_a_test_crystal_larger_than_any_of_training_is_a_row_with_the_reason(paths, tmp_path):
    """The reason is known before sampling; the other crystals are sampled."""
    coords = [[i / 10, 0.5, 0.5] for i in range(8)]
    large = Crystal.from_arrays([11] * 4 + [17] * 4, coords, [9, 4, 4], [90, 90, 90])
    crystals = crystal_table(tmp_path / "test.parquet", [large, small_crystals()[0]])
    rows = predict({**paths, "train": crystals}, tmp_path / "shard.parquet", 0, 2)
    assert [row["status"] for row in rows] == ["too_many_atoms"] * K + ["ok"] * K
    assert {row["attempts"] for row in rows[:K]} == {0}
    assert "8 atoms, but the model was trained on crystals of at most 5" in rows[0]["error"]
    only = predict({**paths, "train": crystals}, tmp_path / "only.parquet", 0, 1)
    assert [row["status"] for row in only] == ["too_many_atoms"] * K
