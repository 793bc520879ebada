"""Bases with conditions from the fine-tuning to the report's table."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pymatgen.core import Element

from crystals import caesium_chloride, fcc, rocksalt
from evaluated_run import Draw, stage_settings, write_run
from flowllm.errors import FlowllmError
from flowllm.io.schemas import CRYSTALS_WITH_PROPERTIES, REQUESTED_BASE, REQUESTED_METRICS
from flowllm.io.tables import crystal_columns, read_metadata, read_table, write_table
from flowllm.llm.model_record import read_record
from flowllm.report.metrics_files import read_results
from flowllm.report.request_tables import got_text, request_tables
from flowllm.runtime.provenance import read_provenance
from flowllm.stages import finetune_llm, merge_adapter, metrics, sample_base
from llm_run import settings_for, small_crystals
from tiny_llm import write_tiny_llm

NAME = "tau0.7-p0.9"
OWN = {
    "prepare": {"properties": {"magnetism": {"column": "m", "categories": ["AFM", "FM", "PM"]}}},
    "prompts": {"properties": {"magnetism": "It is {magnetism}."}},
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    """A tiny model trained on prompts with an own property, of which PM never occurs."""
    folder = tmp_path_factory.mktemp("conditions")
    rows = [
        {
            "id": f"crystal-{i}",
            **crystal_columns(crystal),
            "num_atoms": crystal.num_atoms,
            "formula": crystal.formula,
            "numbers": [],
            "labels": [("magnetism", "FM" if i % 2 else "AFM")] if i else [],
        }
        for i, crystal in enumerate(small_crystals())
    ]
    write_table(folder / "train.parquet", rows, CRYSTALS_WITH_PROPERTIES, {})
    base = write_tiny_llm(folder / "base")
    given = settings_for("finetune_llm", base, finetune_llm={"properties_share": 0.5}, **OWN)
    train = folder / "train.parquet"
    finetune_llm.run(given, train=train, val=train, out=folder / "adapter")
    given = settings_for("merge_adapter", base)
    merge_adapter.run(given, adapter=folder / "adapter", out=folder / "model")
    return {"base": base, "model": folder / "model"}


def sample(paths, out: Path, conditions: dict, first: int = 0, count: int = 4, **section) -> list:
    section = {"backend": "transformers", "structured": False, "max_attempts": 1} | section
    row = {"name": NAME, "temperature": 0.7, "top_p": 0.9, "conditions": conditions}
    given = settings_for(
        "sample_base", paths["base"], row=NAME, sample_base=section, bases=[row], **OWN
    )
    sample_base.run(given, model=paths["model"], first_draw=first, count=count, out=out, gpus=0)
    return read_table(out, REQUESTED_BASE).to_pylist()


def test_the_record_has_the_values_of_the_training(paths):
    record = read_record(paths["model"])
    assert record.categories == {"magnetism": ["AFM", "FM"]}
    assert record.prompts["magnetism"] == "It is {magnetism}."


def test_wishes_of_a_file_are_asked_in_turn_whatever_the_shards(paths, tmp_path):
    wishes = tmp_path / "wishes.csv"
    wishes.write_text('magnetism,elements\nFM,\n,"Na,Cl"\nAFM,\n')
    whole = sample(paths, tmp_path / "whole.parquet", {"file": str(wishes)}, count=5)
    parts = sample(paths, tmp_path / "a.parquet", {"file": str(wishes)}, count=2)
    parts += sample(paths, tmp_path / "b.parquet", {"file": str(wishes)}, first=2, count=3)
    assert whole == parts
    asked = [dict(row["asked"]) for row in whole]
    assert asked[0] == asked[3] == {"magnetism": "FM"}
    assert asked[1] == asked[4] == {"elements": "Na,Cl"}
    assert "It is AFM." in whole[2]["prompt"]
    assert read_provenance(tmp_path / "whole.parquet")["input_paths"]["wishes"] == str(wishes)


def test_a_category_that_no_training_crystal_has_is_refused(paths, tmp_path):
    with pytest.raises(FlowllmError, match="magnetism is 'PM', expected one of AFM, FM"):
        sample(paths, tmp_path / "out.parquet", {"properties": {"magnetism": "PM"}})


def test_a_condition_that_no_training_text_gave_is_refused(paths, tmp_path):
    with pytest.raises(FlowllmError, match="no prompt that gives band_gap"):
        sample(paths, tmp_path / "out.parquet", {"band_gap": 1.0})


def test_structured_drafts_have_the_asked_elements_and_number_of_atoms(paths, tmp_path):
    rows = sample(
        paths,
        tmp_path / "out.parquet",
        {"elements": "Na,Cl,O", "elements_mode": "subset", "num_atoms": 3},
        backend="vllm",
        structured=True,
        max_attempts=20,
    )
    for row in rows:
        assert row["status"] == "ok"
        assert len(row["atomic_numbers"]) == 3
        # The prompt asks for a choice of the elements, and no other occurs.
        sentence = row["prompt"].split("Elements ")[1].split(".")[0]
        asked = {Element(symbol).Z for symbol in sentence.split(", ")}
        assert set(row["atomic_numbers"]) <= asked <= {8, 11, 17}
        assert len(asked) >= 2
        assert "elements_mismatch" not in row["rejections"]
        # The first ten attempts may have any number of atoms, and the others have three.
        assert row["rejections"][10:].count("atoms_mismatch") == 0


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Four draws that were asked for rock salt near the hull; one of them failed."""
    draws = [
        Draw(rocksalt(), rocksalt(), -0.1),
        Draw(rocksalt(), rocksalt(), 0.2),
        Draw(caesium_chloride(), caesium_chloride(), 0.01),
        Draw(None, rejections=["truncated"]),
    ]
    run = write_run(tmp_path_factory.mktemp("asked"), draws, {"train": {"mp-0": fcc("Au")}})
    asked = [("formula", "NaCl"), ("space_group_number", "225"), ("e_above_hull", "0.05")]
    for path in run.base:
        rows = [
            row | {"asked": [*asked, ("band_gap", "5.0")]}
            for row in pq.read_table(path).to_pylist()
        ]
        write_table(path, rows, REQUESTED_BASE, {"settings": read_metadata(path)["settings"]})
    metrics.run(stage_settings("metrics"), **run.paths(), out=run.out, workers=1)
    return run


def test_metrics_have_asked_beside_got(measured):
    rows = read_table(measured.out.with_suffix(".parquet"), REQUESTED_METRICS).to_pylist()
    got = [dict(row["got"]) for row in rows]
    assert got[0] == {"formula": "Na1Cl1", "space_group_number": "225", "e_above_hull": "-0.1000"}
    assert got[2]["space_group_number"] == "221"
    assert got[3] == {}
    assert [row["all_met"] for row in rows] == [True, False, False, False]
    rates = json.loads(measured.out.read_text())["wishes"]
    assert rates["band_gap"] is None
    shares = {name: one["numerator"] for name, one in rates.items() if one}
    assert shares == {"formula": 2, "space_group_number": 2, "e_above_hull": 2, "all": 1}
    assert {one["denominator"] for one in rates.values() if one} == {4}


def test_the_report_has_the_wishes_and_the_crystals(measured):
    shares, crystals = request_tables(read_results([measured.out]), "potential")
    (row,) = shares.rows
    assert (row["drawn"], row["all"]["numerator"], row["band_gap"]) == (4, 1, "not measured")
    titles = [column.title for column in shares.columns]
    assert titles[3:] == [
        *("Formula", "Band gap", "E above hull", "Space group", "All that are measured")
    ]
    assert [one["met"] for one in crystals.rows] == ["3 of 3", "2 of 3", "1 of 3"]
    assert crystals.rows[0]["wish"].startswith("formula NaCl, space_group_number 225")
    assert crystals.rows[0]["got"] == (
        "formula Na1Cl1, space_group_number 225, e_above_hull -0.1000, band_gap not measured"
    )


def test_crystals_that_select_excluded_are_named_below_the_wishes(measured):
    (result,) = read_results([measured.out])
    shares, _ = request_tables([result], "potential")
    assert "select.skip" not in shares.protocol
    counts = result.numbers["counts"]
    counts = counts | {"relaxed": counts["relaxed"] | {"known": 2}}
    shares, _ = request_tables(
        [replace(result, numbers=result.numbers | {"counts": counts})], "potential"
    )
    assert f"{result.method} (2 known)" in shares.protocol


def test_a_base_without_conditions_has_no_such_tables(tmp_path):
    run = write_run(tmp_path, [Draw(rocksalt(), rocksalt(), -0.1)], {})
    metrics.run(stage_settings("metrics"), **run.paths(), out=run.out, workers=1)
    assert "wishes" not in json.loads(run.out.read_text())
    assert request_tables(read_results([run.out]), "potential") == []


def test_a_condition_that_nothing_measures_is_shown_with_its_crystal(tmp_path):
    """A crystal that was not placed on the hull has no energy, which is unknown."""
    draws = [Draw(rocksalt(), rocksalt(), None), Draw(None, rejections=["truncated"])]
    run = write_run(tmp_path, draws, {})
    for path, asked in zip(run.base, ("band_gap", "e_above_hull"), strict=True):
        rows = [row | {"asked": [(asked, "0.1")]} for row in pq.read_table(path).to_pylist()]
        write_table(path, rows, REQUESTED_BASE, {"settings": read_metadata(path)["settings"]})
    metrics.run(stage_settings("metrics"), **run.paths(), out=run.out, workers=1)
    _, crystals = request_tables(read_results([run.out]), "potential")
    assert [row["got"] for row in crystals.rows] == ["band_gap not measured"]
    asked = {"asked": [("e_above_hull", "0.1")], "got": [], "met": [("e_above_hull", False)]}
    assert got_text(asked) == "e_above_hull unknown"
