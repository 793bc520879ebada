"""Base crystals without the language model: training compositions, the rest FlowMM's base."""

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from crystals import caesium_chloride, fcc, perovskite, rocksalt
from flowllm.config.stage_settings import StageSettings
from flowllm.errors import FlowllmError
from flowllm.io import schemas, tables
from flowllm.rfm.base_distribution import SimpleBaseDistribution, draw_start
from flowllm.seeds import generator
from flowllm.stages import sample_compositions

TRAIN = [rocksalt(), rocksalt("Mg", "O", 4.2), caesium_chloride(), perovskite(), fcc()]
SETTINGS = StageSettings("sample_compositions", {"seed": 3, "version": 1})


@pytest.fixture
def train(tmp_path):
    rows = [
        {"id": f"mp-{i}", **tables.crystal_columns(one), "formula": one.formula}
        for i, one in enumerate(TRAIN)
    ]
    tables.write_table(tmp_path / "train.parquet", rows, schemas.CRYSTALS, {})
    return tmp_path / "train.parquet"


def drawn(train, first_draw, count):
    out = train.with_name(f"shard-{first_draw}.parquet")
    sample_compositions.run(SETTINGS, crystals=train, first_draw=first_draw, count=count, out=out)
    return tables.read_table(out, schemas.BASE).to_pylist()


def test_draws_come_from_the_named_distributions(train):
    rows = drawn(train, 0, 2000)
    crystals = [tables.crystal_of(row) for row in rows]
    counted = Counter(row["formula"] for row in rows)
    assert set(counted) == {one.formula for one in TRAIN}
    assert stats.chisquare(list(counted.values())).pvalue > 1e-3
    coords = np.concatenate([one.frac_coords for one in crystals])
    assert stats.kstest(coords.ravel(), "uniform").pvalue > 1e-3
    angles = np.concatenate([one.angles for one in crystals])
    assert stats.kstest(angles, stats.uniform(60, 60).cdf).pvalue > 1e-3
    logs = np.log([one.lengths for one in TRAIN])
    for axis in range(3):
        expected = stats.norm(logs[:, axis].mean(), logs[:, axis].std())
        found = np.log([one.lengths[axis] for one in crystals])
        assert stats.kstest(found, expected.cdf).pvalue > 1e-3


def test_a_draw_does_not_depend_on_its_shard(train):
    assert drawn(train, 0, 4)[2:] == drawn(train, 2, 2)


def test_a_simple_flow_takes_the_atoms_and_nothing_else():
    """Two crystals that share their atoms alone set out from the same point."""
    first, second = rocksalt(), rocksalt(a=9.0)
    first_draw = SimpleBaseDistribution([1.0, 1.0, 1.0], [0.1, 0.1, 0.1])
    points = [
        draw_start(first_draw, one, (59.9, 120.1), generator(1, "refine", "start", "x"))
        for one in (first, second)
    ]
    assert (points[0].coords == points[1].coords).all()
    assert (points[0].lattice == points[1].lattice).all()


def test_the_language_models_columns_are_empty(train):
    for row in drawn(train, 0, 5):
        assert row["status"] == "ok"
        for column in ("prompt", "text", "attempts", "rejections", "num_tokens"):
            assert row[column] is None


def test_an_empty_training_split_is_named(tmp_path):
    tables.write_table(tmp_path / "train.parquet", [], schemas.CRYSTALS, {})
    with pytest.raises(FlowllmError, match=r"train\.parquet: contains no crystals"):
        drawn(tmp_path / "train.parquet", 0, 1)
