"""Sampling of pairs with real vLLM on a tiny model."""

from pathlib import Path

import pandas as pd
import pytest

from flowllm.errors import FlowllmError
from flowllm.io.schemas import PAIRS
from flowllm.io.tables import crystal_of, read_table
from flowllm.llm.crystal_text import composition_of
from flowllm.llm.text import decode
from flowllm.llm.text_parts import element_symbol
from flowllm.runtime.provenance import read_provenance
from flowllm.seeds import generator
from flowllm.stages import sample_pairs
from llm_run import merged_model, options_of_engine, settings_for, small_crystals

COUNT = 7


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    return merged_model(tmp_path_factory.mktemp("pairs"))


def run(paths, out: Path, first_draw: int = 0, count: int = COUNT, split: str = "train", **changes):
    changes = {"structured": True, "chunk_size": 3, **changes}
    settings = settings_for("sample_pairs", paths["base"], sample_pairs=changes)
    sample_pairs.run(
        settings,
        model=paths["model"],
        crystals=paths["train"],
        split=split,
        first_draw=first_draw,
        count=count,
        out=out,
        gpus=0,
    )
    return out


@pytest.fixture(scope="module")
def shard(paths, tmp_path_factory) -> Path:
    return run(paths, tmp_path_factory.mktemp("shard") / "shard-00000.parquet")


def test_every_pair_has_the_atoms_of_its_training_crystal(shard):
    crystals = {f"crystal-{i}": crystal for i, crystal in enumerate(small_crystals())}
    rows = read_table(shard, PAIRS).to_pylist()
    assert [row["id"] for row in rows] == [f"train-{draw:08d}" for draw in range(COUNT)]
    for draw, row in enumerate(rows):
        chosen = int(generator(42, "sample_pairs", "train", draw).integers(8))
        assert row["material_id"] == f"crystal-{chosen}"
        assert row["status"] == "ok", row["error"]
        c0, c1 = crystal_of(row), crystal_of(row, "target_")
        truth = crystals[row["material_id"]]
        assert row["formula"] == truth.formula == c0.formula
        symbols = [element_symbol(z) for z in truth.atomic_numbers.tolist()]
        assert f"Formula {' '.join(symbols)}." in row["prompt"]
        assert c0.atomic_numbers.tolist() == sorted(truth.atomic_numbers.tolist())
        # c1 is the training crystal itself, every atom with its own coordinates.
        atoms = zip(truth.atomic_numbers.tolist(), truth.frac_coords.tolist(), strict=True)
        expected = sorted(atoms, key=lambda atom: atom[0])
        assert c1.frac_coords.tolist() == [coords for _, coords in expected]
        assert c1.lengths.tolist() == truth.lengths.tolist()


def test_draws_of_one_prompt_have_one_crystal(paths):
    def ids(draws: range, in_a_row: int) -> list[str]:
        targets = sample_pairs.draw_targets(42, paths["train"], "train", draws, in_a_row)
        return [material_id for _, material_id, _ in targets]

    single, grouped = ids(range(25), 1), ids(range(100), 4)
    assert grouped == [material_id for material_id in single for _ in range(4)]
    assert ids(range(6, 13), 4) == grouped[6:13]
    assert 1 < len(set(single)) < 25


def test_the_text_of_a_row_is_its_crystal(shard):
    for row in read_table(shard, PAIRS).to_pylist():
        c0 = crystal_of(row)
        decoded = decode(row["text"], max_atoms=5, composition=composition_of(c0.atomic_numbers))
        assert sorted(map(tuple, decoded.frac_coords.tolist())) == sorted(
            map(tuple, c0.frac_coords.tolist())
        )
        assert row["attempts"] == 1 + len(row["rejections"])
        assert row["num_tokens"] > len(row["text"]) / 2


def test_counts_are_in_the_record(shard):
    counts = read_provenance(shard)["counts"]
    frame = pd.read_parquet(shard)
    assert counts["rows_in"] == counts["rows_out"] == COUNT
    assert counts["drafts"] == frame["attempts"].sum()
    assert counts["generated_tokens"] == frame["num_tokens"].sum()
    assert counts["tokens_per_second"] > 0


def test_a_shard_repeats_exactly(paths, shard, tmp_path):
    again = run(paths, tmp_path / shard.name)
    assert again.read_bytes() == shard.read_bytes()


def test_a_draw_does_not_depend_on_its_shard(paths, shard, tmp_path):
    part = pd.read_parquet(run(paths, tmp_path / "part.parquet", first_draw=4, count=2))
    whole = pd.read_parquet(shard).iloc[4:6].reset_index(drop=True)
    assert part["id"].tolist() == whole["id"].tolist()
    assert part["material_id"].tolist() == whole["material_id"].tolist()
    assert part["text"].tolist() == whole["text"].tolist()


APART = {"min_distance": 1.0, "max_redraws": 1}


@pytest.fixture(scope="module")
def apart(paths, tmp_path_factory) -> Path:
    return run(paths, tmp_path_factory.mktemp("apart") / "shard-00000.parquet", **APART)


def test_no_pair_of_atoms_is_nearer_than_the_minimum(apart):
    rows = read_table(apart, PAIRS).to_pylist()
    for row in rows:
        assert row["status"] == "ok", row["error"]
        structure = crystal_of(row).to_structure()
        for site in structure:
            assert len(structure.get_sites_in_sphere(site.coords, 1.0)) == 1
    counts = read_provenance(apart)["counts"]
    assert counts["redraws"] == sum(row["redraws"] for row in rows) > 0
    assert counts["masked_atoms"] == sum(row["masked"] for row in rows)


@pytest.mark.parametrize("max_redraws", [0, 1])
def test_redraws_do_not_depend_on_shard_or_chunk(paths, apart, tmp_path, max_redraws):
    changes = {**APART, "max_redraws": max_redraws}
    whole = run(paths, tmp_path / "whole.parquet", **changes)
    if max_redraws == 1:
        assert pd.read_parquet(whole).equals(pd.read_parquet(apart))
    part = run(paths, tmp_path / "part.parquet", first_draw=3, count=4, chunk_size=2, **changes)
    texts = [pd.read_parquet(path)["text"].tolist() for path in (whole, part)]
    assert texts[0][3:7] == texts[1]


def test_the_engine_gets_the_configured_temperature_and_top_p(paths, tmp_path, monkeypatch):
    changes = {"temperature": 0.6, "top_p": 0.8}
    out = tmp_path / "shard.parquet"
    found = options_of_engine(monkeypatch, lambda: run(paths, out, **changes))
    assert (found.temperature, found.top_p) == (0.6, 0.8)


def test_free_texts_of_random_weights_are_given_up_and_counted(paths, tmp_path):
    out = run(paths, tmp_path / "free.parquet", count=3, structured=False, max_attempts=2)
    rows = read_table(out, PAIRS).to_pylist()
    for row in rows:
        assert row["status"] == "exhausted"
        assert row["attempts"] == len(row["rejections"]) == 2
        assert row["error"].startswith("2 drafts, the last ")
        assert crystal_of(row) is None
        assert crystal_of(row, "target_") is None
    assert read_provenance(out)["counts"]["rows_failed"] == 3


def test_other_prompts_than_the_model_was_trained_on_are_refused(paths, tmp_path):
    settings = settings_for("sample_pairs", paths["base"], prompts={"instruction": "Go:"})
    with pytest.raises(FlowllmError, match="instruction"):
        sample_pairs.run(
            settings,
            model=paths["model"],
            crystals=paths["train"],
            split="train",
            first_draw=0,
            count=1,
            out=tmp_path / "x.parquet",
            gpus=0,
        )
