"""refine: every base row becomes a row; an overfitted flow reproduces its pairs."""

import csv
import itertools
import json
import os
import shutil
import signal
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
from safetensors.torch import load_file, save_file
from torch.profiler import ProfilerActivity, profile

from crystals import rocksalt
from flow_pairs import BOUNDS, NO_NOISE, base_row, draft_of, pair_row, prototypes
from flow_training import small_settings, start_training
from flowllm.config.stage_settings import StageSettings
from flowllm.crystal import Crystal
from flowllm.data.symmetry_operations import operation_columns
from flowllm.errors import FlowllmError
from flowllm.io import schemas, tables
from flowllm.llm.crystal_text import Limits
from flowllm.llm.symmetric_text import SymmetricText
from flowllm.llm.text import decode, encode
from flowllm.rfm.base_distribution import (
    LlmBaseDistribution,
    SimpleBaseDistribution,
    base_distribution_record,
)
from flowllm.rfm.model import build_field
from flowllm.rfm.network import NetworkSize, Standardization, bytes_per_crystal
from flowllm.rfm.symmetry import TOLERANCE
from flowllm.runtime.provenance import read_provenance
from flowllm.stages import refine, train_rfm


def refine_settings(num_steps: int, batch_memory_mb: int = 100, row=None, **changes):
    flow = "llm" if num_steps else None
    method = {"name": "flow", "base": "base", "flow": flow, "num_steps": num_steps}
    method |= row or {}
    section = {
        "integrator": "euler",
        "batch_memory_mb": batch_memory_mb,
        "anneal_slope": 0.0,
        "keep_symmetry": False,
        "trajectory_every": None,
    } | changes
    return StageSettings("refine", {"seed": 7, "version": 1, "refine": section, "method": method})


@pytest.fixture(scope="module")
def overfitted(request, tmp_path_factory):
    """A flow that was overfitted to pairs of two sizes, with a kill during training; the pairs."""
    folder = tmp_path_factory.mktemp("overfitted")
    rng = np.random.default_rng(3)
    targets = [c for n in (3, 6) for c in prototypes() if c.num_atoms == n][2:9]
    drafts = [draft_of(target, rng) for target in targets]
    rows = [pair_row(d, t, i) for i, (d, t) in enumerate(zip(drafts, targets, strict=True))]
    path = folder / "shard-0.parquet"
    tables.write_table(path, rows, schemas.PAIRS, {})
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
    shards = {"pairs": [path], "val_pairs": [path]}
    process = start_training(settings, shards, folder / "flow", os.environ)
    checkpoint = folder / ".flow.partial" / "checkpoint.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "training ended before it could be killed"
    train_rfm.run(settings, **shards, out=folder / "flow")
    return folder / "flow", drafts, targets


def test_overfitted_flow_reproduces_its_targets(overfitted, tmp_path):
    model, drafts, targets = overfitted
    base = tmp_path / "base.parquet"
    rows = [base_row(draft, index) for index, draft in enumerate(drafts)]
    tables.write_table(base, rows, schemas.BASE, {})
    refine.run(refine_settings(50), base=base, model=model, out=tmp_path / "out.parquet")
    found = tables.read_table(tmp_path / "out.parquet", schemas.GENERATED).to_pylist()
    matcher = StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3)
    after = []
    for row, target in zip(found, targets, strict=True):
        assert row["status"] == "ok"
        end, goal = tables.crystal_of(row).to_structure(), target.to_structure()
        after.append(matcher.get_rms_dist(end, goal))
    assert all(match is not None for match in after)
    assert max(match[0] for match in after) < 0.02


def test_overfitting_drives_the_coordinates_error_to_near_zero(overfitted):
    with (overfitted[0] / "training_curve.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    record = json.loads((overfitted[0] / "model.json").read_text())
    variance = record["standardization"]["coords_velocity_std"] ** 2
    assert float(rows[-1]["val_coords_error"]) < 0.02 * variance
    # The curve continues after the kill: it has every validation once.
    assert [int(row["step"]) for row in rows] == list(range(100, 701, 100))


def base_rows():
    """Return rows of real crystals, of one in a skewed cell, and of one that failed."""
    rng = np.random.default_rng(0)
    crystals = [draft_of(c, rng) for c in prototypes()[:12]]
    rows = [base_row(crystal, index) for index, crystal in enumerate(crystals)]
    skewed = Crystal.from_arrays([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], [4, 4, 4], [50, 80, 70])
    failed = {"id": "base-000099", "status": "truncated", "error": "no stop token"}
    return [*rows[:5], failed, *rows[5:], base_row(skewed, 100)]


def refined(model, folder, rows, settings):
    tables.write_table(folder / "base.parquet", rows, schemas.BASE, {})
    out = folder / "out.parquet"
    refine.run(settings, base=folder / "base.parquet", model=model, out=out)
    return tables.read_table(out, schemas.GENERATED).to_pylist()


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


@pytest.mark.parametrize("integrator", ["euler", "rk4"])
def test_kept_symmetry_holds_to_the_end(overfitted, tmp_path, integrator):
    """A flow trained on other crystals breaks most space groups, and none with the option."""
    crystals = [crystal for crystal in prototypes() if crystal.num_atoms <= 6]
    texts = [decode(encode(crystal), max_atoms=6) for crystal in crystals]
    drafts = [draft for draft in texts if isinstance(draft, Crystal)]
    rows = [base_row(draft, index) for index, draft in enumerate(drafts)]
    before = [symmetry_order(draft, TOLERANCE) for draft in drafts]
    lower = {}
    for keep in (False, True):
        settings = refine_settings(6, integrator=integrator, keep_symmetry=keep)
        found = refined(overfitted[0], tmp_path, rows, settings)
        assert {row["status"] for row in found} == {"ok"}
        after = [symmetry_order(tables.crystal_of(row), 1e-3) for row in found]
        lower[keep] = sum(b < a for a, b in zip(before, after, strict=True))
    assert lower[True] == 0
    assert lower[False] > len(drafts) / 2


def test_a_row_keeps_the_symmetry_or_not_in_place_of_the_section(overfitted, tmp_path):
    salt = Crystal.from_arrays([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], [4] * 3, [90] * 3)
    rows = [base_row(salt, 0)]
    found = {}
    for section, row in itertools.product((False, True), (None, False, True)):
        settings = refine_settings(2, keep_symmetry=section, row={"keep_symmetry": row})
        refined(overfitted[0], tmp_path, rows, settings)
        counts = read_provenance(tmp_path / "out.parquet")["counts"]
        found[section, row] = "starts_symmetric" in counts
    assert found == {
        **{(section, None): section for section in (False, True)},
        **{(section, row): row for section in (False, True) for row in (False, True)},
    }


def test_the_record_counts_the_starts_by_their_symmetry(overfitted, tmp_path):
    """Rock salt, three random atoms, and two coinciding atoms, for which spglib finds no group."""
    salt = Crystal.from_arrays([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], [4] * 3, [90] * 3)
    coords = np.random.default_rng(0).random((3, 3))
    skew = Crystal.from_arrays([3, 8, 9], coords, [4, 5, 6.2], [70, 85, 99])
    double = Crystal.from_arrays([11, 11], [[0, 0, 0], [0, 0, 0]], [4] * 3, [90] * 3)
    rows = [base_row(crystal, i) for i, crystal in enumerate([salt, salt, skew, double])]
    found = refined(overfitted[0], tmp_path, rows, refine_settings(2, keep_symmetry=True))
    assert {row["status"] for row in found} == {"ok"}
    counts = read_provenance(tmp_path / "out.parquet")["counts"]
    assert counts["starts_symmetric"] == 2
    assert counts["starts_without_symmetry"] == 1
    assert counts["starts_undetermined"] == 1
    refined(overfitted[0], tmp_path, rows, refine_settings(2))
    assert "starts_symmetric" not in read_provenance(tmp_path / "out.parquet")["counts"]


class ConstantField:
    """A velocity field that moves every coordinate alike and no lattice."""

    lattice_mean, bounds = torch.zeros(6), BOUNDS
    network = SimpleNamespace(size=NetworkSize(16, 2, 8, 4))

    def __init__(self, coords_velocity):
        self.coords_velocity = coords_velocity

    def __call__(self, _elements, coords, lattice, _time):
        return torch.full_like(coords, self.coords_velocity), torch.zeros_like(lattice)


def refined_by(field, start, crystal, settings, operations=None):
    """Refine a crystal without files; return its row and the counts of the starts."""
    row = base_row(crystal, 0) | operation_columns(operations)
    given = pa.Table.from_pylist([row], schemas.BASE).to_pylist()
    [found], _, counts = refine.refine_rows(given, field, start, settings, None)
    return found, counts


def test_the_configured_annealing_and_integrator_move_the_atoms():
    """A velocity of 0.05 times 1 + 2 t, integrated exactly; two Euler steps would give 0.075."""
    settings = refine_settings(2, integrator="midpoint", anneal_slope=2.0)
    found, _ = refined_by(ConstantField(0.05), NO_NOISE, rocksalt(), settings)
    way = np.array(found["frac_coords"]) - rocksalt().frac_coords
    assert way == pytest.approx(0.05 * (1 + 2 / 2), abs=1e-6)


def test_the_group_that_a_text_names_is_kept_where_noise_hides_it():
    """Without the group of the text, a search finds no symmetry."""
    text = "136\n4.6 3.0\nTi 2a\n0.00 0.00 0.00\nO 4f\n0.31 0.31 0.00"
    rutile = SymmetricText().decode(text, Limits(6))
    start, settings = LlmBaseDistribution(0.05, 0.0, 0.0), refine_settings(1, keep_symmetry=True)
    for operations, kind, order in (
        (rutile.operations, "starts_symmetric", 16),
        (None, "starts_without_symmetry", 1),
    ):
        task = ConstantField(0.0), start, rutile.crystal, settings, operations
        found, counts = refined_by(*task)
        assert counts == {kind: 1}
        assert symmetry_order(tables.crystal_of(found), 1e-3) == order


def symmetry_order(crystal, tolerance):
    """Return the number of operations of the space group, with the translations of the cell."""
    return len(SpacegroupAnalyzer(crystal.to_structure(), tolerance).get_symmetry_operations())


def test_no_steps_copy_the_crystals(overfitted, tmp_path):
    """This includes the crystal whose angles are outside the bounds of the flow."""
    rows = base_rows()
    found = refined(overfitted[0], tmp_path, rows, refine_settings(0))
    for row, given in zip(found, rows, strict=True):
        for name in ("atomic_numbers", "frac_coords", "lengths", "angles", "status"):
            assert row[name] == given.get(name)


def assert_same(rows, others):
    """Compare rows up to float rounding."""
    for a, b in zip(rows, others, strict=True):
        assert (a["id"], a["status"]) == (b["id"], b["status"])
        if a["status"] != "ok":
            continue
        gaps = np.array(a["frac_coords"]) - np.array(b["frac_coords"])
        assert np.abs(gaps - np.round(gaps)).max() < 1e-4
        np.testing.assert_allclose(a["lengths"], b["lengths"], rtol=1e-4)
        np.testing.assert_allclose(a["angles"], b["angles"], rtol=1e-4)


def test_batches_do_not_change_the_crystals(overfitted, tmp_path):
    """Crystals are refined one by one, all of a size at once, and in another order."""
    rows, settings = base_rows(), refine_settings(10)
    alone = [refined(overfitted[0], tmp_path, [row], settings)[0] for row in rows]
    assert_same(alone, refined(overfitted[0], tmp_path, rows, settings))
    assert_same(alone, refined(overfitted[0], tmp_path, rows[::-1], settings)[::-1])


def test_batches_fill_the_memory_and_hold_one_size():
    size = NetworkSize(hidden_dim=512, num_layers=6, time_dim=256, num_frequencies=128)
    sizes = [5, 20, 5, 100, 5, 20, 5]
    tasks = {10 * i: refine.RefinementInput(np.ones(n), None) for i, n in enumerate(sizes)}
    memory_mb = 2 * bytes_per_crystal(size, 20) // 10**6 + 1
    batches = list(refine._batches_by_size(tasks, memory_mb, size))
    # Two crystals of 20 atoms fit, and all four of 5. One of 100 does not fit, but is a batch.
    assert batches == [[0, 20, 40, 60], [10, 50], [30]]


@pytest.mark.parametrize("num_atoms", [3, 12])
def test_memory_of_a_batch_is_within_its_estimate(num_atoms):
    """The bytes are those that torch allocates, by its profiler."""
    size = NetworkSize(hidden_dim=128, num_layers=2, time_dim=32, num_frequencies=32)
    scales = Standardization([6.0] * 6, [2.0] * 6, 0.05, [0.0] * 6, [0.1] * 6)
    field = build_field(size, (59.9, 120.1), scales).requires_grad_(False)
    batch = 400 // num_atoms
    point = torch.rand(batch, num_atoms, 3), torch.rand(batch, 6) + 4
    elements, time = torch.ones(batch, num_atoms, dtype=torch.long), torch.rand(batch)
    for autocast in (False, True):  # GPUs use autocast
        with torch.inference_mode(), torch.autocast("cpu", enabled=autocast):
            field(elements, *point, time)  # constants that are cached
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
                field(elements, *point, time)
        held = np.cumsum(
            [e.nbytes() for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
        )
        assert 0.2 < held.max() / (batch * bytes_per_crystal(size, num_atoms)) < 1


def test_trajectories_lead_from_the_start_to_the_refined_crystal(overfitted, tmp_path):
    model, drafts, _ = overfitted
    base, out, path = (tmp_path / f"{name}.parquet" for name in ("base", "out", "path"))
    failed = {"id": "base-000099", "status": "truncated", "error": "no stop token"}
    rows = [failed, *(base_row(draft, index) for index, draft in enumerate(drafts))]
    tables.write_table(base, rows, schemas.BASE, {})
    settings = refine_settings(10, trajectory_every=4)
    refine.run(settings, base=base, model=model, out=out, trajectories=path)
    frames = tables.read_table(path, schemas.TRAJECTORIES).to_pylist()
    ends = tables.read_table(out, schemas.GENERATED).to_pylist()[1:]
    assert [frame["step"] for frame in frames] == [0, 4, 8, 10] * len(drafts)
    assert [frame["time"] for frame in frames[:4]] == [0.0, 0.4, 0.8, 1.0]
    for index, (draft, end) in enumerate(zip(drafts, ends, strict=True)):
        own = frames[4 * index : 4 * index + 4]
        assert {frame["id"] for frame in own} == {end["id"]}
        first, last = tables.crystal_of(own[0]), own[-1]
        np.testing.assert_allclose(first.frac_coords, draft.frac_coords, atol=1e-6)
        np.testing.assert_allclose(first.angles, draft.angles, atol=1e-3)
        assert all(last[name] == end[name] for name in ("frac_coords", "lengths", "angles"))
    # The crystals are the same without the option.
    refine.run(refine_settings(10), base=base, model=model, out=tmp_path / "plain.parquet")
    assert tables.read_table(tmp_path / "plain.parquet", schemas.GENERATED).to_pylist()[1:] == ends


def test_noise_and_the_simple_base_change_the_start_reproducibly(overfitted, tmp_path):
    """Draws depend on the row's id, not on the order of the rows or on the shard."""
    rows = base_rows()
    found = {}
    for kind, base_distribution in (
        ("plain", LlmBaseDistribution(0.0, 0.0, 0.0)),
        ("noise", LlmBaseDistribution(0.05, 0.1, 1.0)),
        ("simple", SimpleBaseDistribution([1.6, 1.7, 2.0], [0.2, 0.2, 0.2])),
    ):
        model = tmp_path / kind
        shutil.copytree(overfitted[0], model)
        record = json.loads((model / "model.json").read_text())
        record["start"] = base_distribution_record(base_distribution)
        (model / "model.json").write_text(json.dumps(record))
        found[kind] = refined(model, tmp_path, rows, refine_settings(2))
        assert_same(found[kind], refined(model, tmp_path, rows[::-1], refine_settings(2))[::-1])
        assert [row["formula"] for row in found[kind]] == [row.get("formula") for row in rows]
    for one, other in itertools.combinations(found.values(), 2):
        for a, b in zip(one, other, strict=True):
            assert a["status"] == "truncated" or a["lengths"] != b["lengths"]


def test_same_input_same_bytes(overfitted, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        refined(overfitted[0], tmp_path / name, base_rows(), refine_settings(2))
    files = [(tmp_path / name / "out.parquet").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_one_crystal_that_fails_neither_hides_nor_spoils_the_others(overfitted, tmp_path):
    """If an element's embedding is NaN, its crystals fail, and the rest of the batch does not."""
    model = tmp_path / "flow"
    shutil.copytree(overfitted[0], model)
    before = refined(model, tmp_path, base_rows(), refine_settings(2))
    crystals = [row for row in before if row["status"] == "ok"]
    element = crystals[0]["atomic_numbers"][0]
    weights = load_file(model / "weights.safetensors")
    weights["network.element.weight"][element] = float("nan")
    save_file(weights, model / "weights.safetensors")
    after = refined(model, tmp_path, base_rows(), refine_settings(2))
    hit = [element in (row["atomic_numbers"] or []) for row in before]
    assert 0 < sum(hit) < len(crystals)
    assert_same(
        [row for row, bad in zip(before, hit, strict=True) if not bad],
        [row for row, bad in zip(after, hit, strict=True) if not bad],
    )
    for row, bad in zip(after, hit, strict=True):
        if bad:
            assert row["status"] == "not_physical"
            assert row["error"]
            assert row["frac_coords"] is None


def test_a_flow_to_unphysical_lattices_gives_rows_with_reasons(overfitted, tmp_path):
    """With far too large velocities the lattices are no cells: each crystal fails with a reason."""
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


def test_a_flow_without_its_model_says_so(tmp_path):
    with pytest.raises(FlowllmError, match="method flow: needs --model"):
        refined(None, tmp_path, base_rows(), refine_settings(2))


def test_coinciding_atoms_of_one_element_separate_only_with_noise(overfitted, tmp_path):
    """The field is equivariant, so it moves such atoms alike."""
    coords = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    one = Crystal.from_arrays([11, 17, 17], coords, [4, 4, 4], [90, 90, 90])
    for noise, keep in ((0.0, False), (0.0, True), (0.05, False)):
        model = tmp_path / f"flow-{noise}-{keep}"
        shutil.copytree(overfitted[0], model)
        record = json.loads((model / "model.json").read_text())
        record["start"] = base_distribution_record(LlmBaseDistribution(noise, 0.0, 0.0))
        (model / "model.json").write_text(json.dumps(record))
        settings = refine_settings(5, keep_symmetry=keep)
        [row] = refined(model, tmp_path, [base_row(one, 0)], settings)
        assert row["status"] == "ok"
        _, first, second = np.array(row["frac_coords"])
        gap = np.abs(first - second - np.round(first - second)).max()
        assert gap < 1e-5 if noise == 0 else gap > 1e-2
