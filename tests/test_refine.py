"""refine: every base row becomes a row; over-fitted pairs are reproduced."""

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher

from flow_pairs import base_row, draft_of, pair_row, prototypes
from flowllm import tables
from flowllm.config import StageSettings
from flowllm.stages import refine, train_rfm
from test_train_rfm import config_path, small_settings  # noqa: F401


def refine_settings(num_steps: int, batch_size: int = 4, **changes) -> StageSettings:
    setting = {"name": "flow", "base": "base", "num_steps": num_steps}
    section = {"batch_size": batch_size, "anneal_slope": 0.0} | changes
    return StageSettings("refine", {"seed": 7, "version": 1, "refine": section, "setting": setting})


@pytest.fixture(scope="module")
def overfitted(request, tmp_path_factory):
    """A flow trained on six pairs until it knows them, and these pairs."""
    folder = tmp_path_factory.mktemp("overfitted")
    rng = np.random.default_rng(3)
    targets = [c for c in prototypes() if 2 <= c.num_atoms <= 6][:6]
    drafts = [draft_of(target, rng) for target in targets]
    rows = [pair_row(d, t, i) for i, (d, t) in enumerate(zip(drafts, targets, strict=True))]
    path = folder / "shard-0.parquet"
    tables.write_table(path, rows, tables.PAIRS, {})
    settings = small_settings(
        request.config.rootpath / "config.yaml",
        hidden_dim=64,
        num_layers=3,
        num_frequencies=8,
        max_steps=1200,
        val_steps=200,
        learning_rate=3e-3,
        ema_decay=0.99,
    )
    train_rfm.run(settings, pairs=[path], val_pairs=[path], out=folder / "flow")
    return folder / "flow", drafts, targets


def test_overfitted_flow_reproduces_its_targets(overfitted, tmp_path):
    model, drafts, targets = overfitted
    base = tmp_path / "base.parquet"
    rows = [base_row(draft, index) for index, draft in enumerate(drafts)]
    tables.write_table(base, rows, tables.BASE, {})
    refine.run(refine_settings(50), base=base, model=model, out=tmp_path / "out.parquet")
    found = tables.read_table(tmp_path / "out.parquet", tables.GENERATED).to_pylist()
    matcher = StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3)
    before, after = [], []
    for row, draft, target in zip(found, drafts, targets, strict=True):
        assert row["status"] == "ok"
        end, goal = tables.crystal_of(row).to_structure(), target.to_structure()
        before.append(matcher.get_rms_dist(draft.to_structure(), goal))
        after.append(matcher.get_rms_dist(end, goal))
    print(before, after)
    assert all(match is not None for match in after)
    assert max(match[0] for match in after) < 0.02
