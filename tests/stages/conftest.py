"""Fixtures that several tests of `stages` ask for."""

import pytest

from flow_pairs import prototypes, write_pairs


@pytest.fixture
def config_path(request):
    return request.config.rootpath / "config.yaml"


@pytest.fixture
def shards(tmp_path):
    """Two training shards and one validation shard of real crystals with made-up drafts."""
    crystals = prototypes()
    paths = [tmp_path / "pairs" / f"shard-{i}.parquet" for i in range(2)]
    for seed, path in enumerate(paths):
        write_pairs(path, crystals[seed:20:2], seed)
    val = tmp_path / "val" / "shard-0.parquet"
    write_pairs(val, crystals[:8], 99, split="val")
    return {"pairs": paths, "val_pairs": [val]}
