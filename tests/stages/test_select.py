"""select: known and repeated drafts by pymatgen's matcher, independent of shards and workers."""

import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystals import (
    caesium_chloride,
    fcc,
    mp_20_sample,
    perovskite,
    rattled,
    rocksalt,
    translated_and_permuted,
)
from energy_rows import crystal_row, generated_row, settings
from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.io import schemas, tables
from flowllm.runtime.provenance import read_provenance
from flowllm.stages import prerelax, select

DRAFTS = [
    caesium_chloride(),  # 0: kept
    rocksalt(),  # 1: known
    None,  # 2: failed
    translated_and_permuted(caesium_chloride(), 1),  # 3: repeats 0
    perovskite(),  # 4: kept
    rattled(rocksalt(), 0.02, 1),  # 5: known, although it repeats 1 as well
    fcc(),  # 6: kept
    rattled(perovskite(), 0.02, 2),  # 7: repeats 4
]
TRAIN = {"mp-1": rocksalt(a=5.7), "mp-2": fcc("Au")}


def write(folder, drafts=DRAFTS, train=TRAIN, others=None, shards=1):
    rows = [generated_row(one, f"base-{n:06d}") for n, one in enumerate(drafts)]
    paths = []
    for shard in range(shards):
        paths.append(folder / "generated" / f"shard-{shard:05d}.parquet")
        tables.write_table(paths[-1], rows[shard::shards], schemas.GENERATED, {})
    crystals = []
    for name, known in [("train", train), ("others", others)]:
        if known is not None:
            crystals.append(folder / f"{name}.parquet")
            rows = [crystal_row(one, each) for each, one in known.items()]
            tables.write_table(crystals[-1], rows, schemas.CRYSTALS, {})
    return {"generated": paths, "crystals": crystals}


def selected(folder, skip=("known", "repeated"), workers=1, **parts):
    given = write(folder, **parts)
    out = folder / "selected.parquet"
    select.run(settings("select", select={"skip": skip}), **given, out=out, workers=workers)
    return out, tables.read_table(out, schemas.SELECTED).to_pylist()


def test_statuses_and_the_crystals_that_are_matched(tmp_path):
    out, rows = selected(tmp_path)
    kinds = ["ok", "known", "bad_number", "repeated", "ok", "known", "ok", "repeated"]
    assert [row["status"] for row in rows] == kinds
    matched = [None, "mp-1", None, "base-000000", None, "mp-1", None, "base-000004"]
    assert [row["matched_id"] for row in rows] == matched
    assert "matches the known crystal mp-1 as generated" in rows[1]["error"]
    assert read_provenance(out)["counts"]["not_relaxed"] == {"known": 2, "repeated": 2}


@pytest.mark.parametrize(
    ("skip", "statuses"),
    [
        ([], ["ok"] * 8),
        (["known"], ["ok", "known", "ok", "ok", "ok", "known", "ok", "ok"]),
        # Without the training crystals the first rock salt is relaxed.
        (["repeated"], ["ok", "ok", "ok", "repeated", "ok", "repeated", "ok", "repeated"]),
    ],
)
def test_what_is_skipped(tmp_path, skip, statuses):
    _, rows = selected(tmp_path, skip)
    statuses[2] = "bad_number"
    assert [row["status"] for row in rows] == statuses


def test_further_known_crystals_are_not_relaxed_either(tmp_path):
    """An id may be in both tables, for another crystal."""
    _, rows = selected(tmp_path, others={"mp-1": perovskite(), "mp-3": caesium_chloride()})
    kinds = ["known", "known", "bad_number", "known", "known", "known", "ok", "known"]
    assert [row["status"] for row in rows] == kinds
    matched = ["mp-3", "mp-1", None, "mp-3", "mp-1", "mp-1", None, "mp-1"]
    assert [row["matched_id"] for row in rows] == matched


def test_the_result_does_not_depend_on_shards_or_workers(tmp_path):
    one = selected(tmp_path / "one")[1]
    assert selected(tmp_path / "three", shards=3)[1] == one
    assert selected(tmp_path / "two", shards=2, workers=2)[1] == one


def test_a_repeated_draft_matches_the_crystal_that_is_relaxed_in_its_place(tmp_path):
    """Cells of which each matches its neighbors alone: every second one is relaxed."""
    cells = [
        Crystal.from_arrays([55, 17], [[0, 0, 0], [0.5] * 3], [4.12] * 3, [90, 90, angle])
        for angle in range(90, 119, 4)
    ]
    _, rows = selected(tmp_path, drafts=cells)
    matcher = StructureMatcher()
    by_name = {row["id"]: cell.to_structure() for row, cell in zip(rows, cells, strict=True)}
    for row in rows:
        if row["status"] == "repeated":
            assert matcher.fit(by_name[row["id"]], by_name[row["matched_id"]])
    assert [row["status"] for row in rows].count("ok") == 4


def test_real_crystals_by_all_pairs_of_the_matcher(tmp_path):
    crystals = list(mp_20_sample("test", 30).values())
    drafts = crystals + [translated_and_permuted(one, 3) for one in crystals[10:20]]
    train = {f"mp-{n}": rattled(one, 0.01, n) for n, one in enumerate(crystals[:15])}
    _, rows = selected(tmp_path, drafts=drafts, train=train)
    matcher, kept = StructureMatcher(), []
    known = [one.to_structure() for one in train.values()]
    for row, draft in zip(rows, drafts, strict=True):
        structure = draft.to_structure()
        if any(matcher.fit(structure, one) for one in known):
            expected = "known"
        elif any(matcher.fit(structure, one) for one in kept):
            expected = "repeated"
        else:
            expected = "ok"
            kept.append(structure)
        assert row["status"] == expected


def test_prerelax_relaxes_the_selected_crystals_alone(tmp_path):
    """The others are rows with the status of select, and their shard keeps its length."""
    selection, rows = selected(tmp_path, shards=2)
    relaxed = []
    for shard in range(2):
        out = tmp_path / f"relaxed-{shard}.parquet"
        prerelax.run(
            settings("prerelax", prerelax={"max_steps": 3}),
            generated=tmp_path / "generated" / f"shard-{shard:05d}.parquet",
            selection=[selection],
            out=out,
        )
        relaxed += tables.read_table(out, schemas.RELAXED).to_pylist()
    found = {row["id"]: row for row in relaxed}
    assert {name: row["status"] for name, row in found.items()} == {
        row["id"]: row["status"] for row in rows
    }
    for row in rows:
        assert (found[row["id"]]["lengths"] is not None) == (row["status"] == "ok")
        assert found[row["id"]]["error"] == row["error"]


def test_a_selection_of_other_crystals_is_refused(tmp_path):
    selection, _ = selected(tmp_path / "one")
    other = write(tmp_path / "two", drafts=DRAFTS[:4])["generated"][0]
    with pytest.raises(FlowllmError, match="run the stage select again"):
        prerelax.run(
            settings("prerelax"), generated=other, selection=[selection], out=tmp_path / "x.parquet"
        )
