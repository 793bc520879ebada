"""refine: every base row becomes a row; over-fitted pairs are reproduced."""

import shutil

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from safetensors.torch import load_file, save_file

from flow_pairs import base_row, draft_of, pair_row, prototypes
from flowllm import tables
from flowllm.config import StageSettings
from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.stages import refine, train_rfm
from test_train_rfm import config_path, small_settings  # noqa: F401


def refine_settings(num_steps: int, batch_size: int = 4, **changes) -> StageSettings:
    setting = {"name": "flow", "base": "base", "num_steps": num_steps}
    section = {"integrator": "euler", "batch_size": batch_size, "anneal_slope": 0.0} | changes
    return StageSettings("refine", {"seed": 7, "version": 1, "refine": section, "setting": setting})


@pytest.fixture(scope="module")
def overfitted(request, tmp_path_factory):
    """A flow trained on seven pairs of two sizes until it knows them, and these pairs."""
    folder = tmp_path_factory.mktemp("overfitted")
    rng = np.random.default_rng(3)
    targets = [c for n in (3, 6) for c in prototypes() if c.num_atoms == n][2:9]
    drafts = [draft_of(target, rng) for target in targets]
    rows = [pair_row(d, t, i) for i, (d, t) in enumerate(zip(drafts, targets, strict=True))]
    path = folder / "shard-0.parquet"
    tables.write_table(path, rows, tables.PAIRS, {})
    settings = small_settings(
        request.config.rootpath / "config.yaml",
        hidden_dim=64,
        num_layers=3,
        num_frequencies=8,
        max_steps=700,
        val_steps=100,
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
    after = []
    for row, target in zip(found, targets, strict=True):
        assert row["status"] == "ok"
        end, goal = tables.crystal_of(row).to_structure(), target.to_structure()
        after.append(matcher.get_rms_dist(end, goal))
    assert all(match is not None for match in after)
    assert max(match[0] for match in after) < 0.02


def base_rows():
    """Real crystals, one in a skewed cell, one that failed, one no cell can hold."""
    rng = np.random.default_rng(0)
    crystals = [draft_of(c, rng) for c in prototypes()[:12]]
    rows = [base_row(crystal, index) for index, crystal in enumerate(crystals)]
    skewed = Crystal.from_arrays([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], [4, 4, 4], [50, 80, 70])
    failed = {"id": "base-000099", "status": "truncated", "error": "no stop token"}
    return [*rows[:5], failed, *rows[5:], base_row(skewed, 100)]


def refined(model, folder, rows, settings):
    tables.write_table(folder / "base.parquet", rows, tables.BASE, {})
    out = folder / "out.parquet"
    refine.run(settings, base=folder / "base.parquet", model=model, out=out)
    return tables.read_table(out, tables.GENERATED).to_pylist()


def test_every_base_row_becomes_a_row(overfitted, tmp_path):
    rows = base_rows()
    found = refined(overfitted[0], tmp_path, rows, refine_settings(3))
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    for row, given in zip(found, rows, strict=True):
        assert row["num_steps"] == 3
        if given["status"] == "ok":
            assert row["status"] == "ok"
            assert row["formula"] == given["formula"]
            assert row["atomic_numbers"] == given["atomic_numbers"]
            assert 59.9 < min(row["angles"]) < max(row["angles"]) < 120.1
        else:
            assert (row["status"], row["error"]) == ("truncated", "no stop token")
            assert row["frac_coords"] is None


def test_no_steps_copy_the_crystals(overfitted, tmp_path):
    """Also the one whose angles the flow could not take."""
    rows = base_rows()
    found = refined(overfitted[0], tmp_path, rows, refine_settings(0))
    for row, given in zip(found, rows, strict=True):
        for name in ("atomic_numbers", "frac_coords", "lengths", "angles", "status"):
            assert row[name] == given.get(name)


def test_batches_do_not_change_the_crystals(overfitted, tmp_path):
    """One by one, all at once, and in another order: equal but for float rounding."""
    rows = base_rows()
    alone = refined(overfitted[0], tmp_path, rows, refine_settings(10, batch_size=1))
    together = refined(overfitted[0], tmp_path, rows, refine_settings(10, batch_size=512))
    turned = refined(overfitted[0], tmp_path, rows[::-1], refine_settings(10, batch_size=3))[::-1]
    for other in (together, turned):
        for a, b in zip(alone, other, strict=True):
            if a["status"] != "ok":
                continue
            gaps = np.array(a["frac_coords"]) - np.array(b["frac_coords"])
            assert np.abs(gaps - np.round(gaps)).max() < 1e-4
            np.testing.assert_allclose(a["lengths"], b["lengths"], rtol=1e-4)
            np.testing.assert_allclose(a["angles"], b["angles"], rtol=1e-4)


def test_same_input_same_bytes(overfitted, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        refined(overfitted[0], tmp_path / name, base_rows(), refine_settings(2))
    files = [(tmp_path / name / "out.parquet").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_a_flow_that_leaves_the_numbers_gives_rows_with_reasons(overfitted, tmp_path):
    """Weights made far too large: crystals that are no crystals fail, each with its reason."""
    model = tmp_path / "flow"
    shutil.copytree(overfitted[0], model)
    weights = load_file(model / "weights.safetensors")
    weights["lattice_velocity_mean"] = weights["lattice_velocity_mean"] - 1e3
    save_file(weights, model / "weights.safetensors")
    found = refined(model, tmp_path, base_rows(), refine_settings(2))
    bad = [row for row in found if row["status"] == "not_physical"]
    assert len(bad) == len(found) - 1
    assert all("length" in row["error"] or "volume" in row["error"] for row in bad)
    assert all(row["lengths"] is None for row in bad)


def test_a_folder_that_is_no_model_says_so(tmp_path):
    with pytest.raises(FlowllmError, match=r"flow: not a model of train_rfm"):
        refined(tmp_path / "flow", tmp_path, base_rows(), refine_settings(2))
