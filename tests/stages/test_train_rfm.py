"""train_rfm: the stage on real crystals, its loss, its resumption after a kill."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import kstest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flow_pairs import (
    BOUNDS,
    LLM_FLOW,
    OPTIONS,
    open_pairs,
    prototypes,
    statistics,
    write_pairs,
)
from flow_training import small_settings, start_training
from flowllm.config.stage_settings import StageSettings
from flowllm.errors import FlowllmError
from flowllm.rfm.base_distribution import LlmBaseDistribution, base_distribution_record
from flowllm.rfm.loader import size_groups
from flowllm.rfm.model import build_field, load_model
from flowllm.rfm.pairs import PREPARED
from flowllm.rfm.shared_steps import agree, share_of_batch
from flowllm.rfm.train import average_weights, learning_rate, train
from flowllm.runtime.distributed import make_fabric
from flowllm.runtime.provenance import read_provenance
from flowllm.runtime.tensorboard import events_path
from flowllm.seeds import derive
from flowllm.stages import train_rfm

NOISY_FLOW = LLM_FLOW | {"coords_noise": 0.02, "lengths_noise": 0.1, "angles_noise": 1.0}


def test_writes_model_curve_and_counts(config_path, shards, tmp_path):
    out = tmp_path / "flow"
    train_rfm.run(small_settings(config_path), **shards, out=out)
    record = json.loads((out / "model.json").read_text())
    assert record["steps"] == 12
    assert record["counts"]["pairs"]["not_ok"] == 2
    assert record["counts"]["pairs"]["pairs"] == 20
    rows = list(csv.DictReader((out / "training_curve.csv").open()))
    assert [int(row["step"]) for row in rows] == [4, 8, 12]
    for row in rows:
        whole = 200 * float(row["val_coords_error"]) + float(row["val_lattice_error"])
        assert float(row["val_loss"]) == pytest.approx(whole)
    events = EventAccumulator(str(events_path(out))).Reload().Scalars("val_loss")
    assert {event.step: event.value for event in events} == pytest.approx(
        {int(row["step"]): float(row["val_loss"]) for row in rows}
    )
    assert record["validation_loss"] == min(float(row["val_loss"]) for row in rows)
    assert not list(tmp_path.glob(".*"))  # no partial or temporary folder is left
    counts = json.loads((tmp_path / "_flow.provenance.json").read_text())["counts"]
    assert (counts["rows_in"], counts["rows_out"], counts["rows_failed"]) == (31, 28, 3)


def test_the_learning_rate_falls_by_half_a_cosine(config_path):
    section = small_settings(config_path, learning_rate=3.0, min_learning_rate=1.0).train_rfm
    rates = [learning_rate(step, 4, section) for step in range(5)]
    assert rates == pytest.approx([3, 2 + 0.5**0.5, 2, 2 - 0.5**0.5, 1])


@pytest.mark.parametrize(
    ("step", "kept"), [(0, 0.1), (8, 0.5), (71, 8 / 9), (81, 0.9), (1000, 0.9)]
)
def test_the_average_forgets_the_first_weights_sooner_than_its_decay(step, kept):
    average, current = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    average_weights([average], [current], step, decay=0.9)
    assert average.tolist() == pytest.approx([kept, 2 * kept + 4 * (1 - kept)])
    assert current.tolist() == [0, 4]


def test_same_seed_same_weights_other_seed_other_weights(config_path, shards, tmp_path):
    settings = small_settings(config_path)
    for name in ("a", "b"):
        train_rfm.run(settings, **shards, out=tmp_path / name)
    a, b = (load_file(tmp_path / name / "weights.safetensors") for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    other = StageSettings("train_rfm", {"seed": 8, "version": 1, **settings.values})
    train_rfm.run(other, **shards, out=tmp_path / "c")
    c = load_file(tmp_path / "c" / "weights.safetensors")
    key = "network.coords_head.weight"
    assert not torch.equal(a[key], c[key])


def test_a_flow_has_its_own_augment_axes_in_place_of_the_section(config_path, shards, tmp_path):
    weights = {}
    for section, row in ((True, None), (False, None), (True, False), (False, True)):
        own = {} if row is None else {"augment_axes": row}
        settings = small_settings(config_path, LLM_FLOW | own, augment_axes=section)
        out = tmp_path / f"{section}-{row}"
        train_rfm.run(settings, **shards, out=out)
        weights[section, row] = (out / "weights.safetensors").read_bytes()
    assert weights[True, False] == weights[False, None]
    assert weights[False, True] == weights[True, None]
    assert weights[True, None] != weights[False, None]


def test_a_types_flow_is_trained_from_the_simple_base(config_path, shards, tmp_path):
    """c1 is the same, but c0 is drawn: other statistics, and the fitted base in model.json."""
    flow = {"name": "types", "start": "simple"}
    for name in ("llm", "types"):
        settings = small_settings(config_path, **({"flow": flow} if name == "types" else {}))
        train_rfm.run(settings, **shards, out=tmp_path / name)
    llm, types = (
        json.loads((tmp_path / name / "model.json").read_text()) for name in ("llm", "types")
    )
    assert llm["start"]["kind"] == "llm"
    assert types["start"]["kind"] == "simple"
    assert types["counts"]["pairs"]["pairs"] == llm["counts"]["pairs"]["pairs"]
    assert "reduced" not in types["counts"]["pairs"]
    # Uniform coordinates are far from those of the crystal, drafts are near to them.
    stds = [record["standardization"]["coords_velocity_std"] for record in (llm, types)]
    assert stds[1] > 3 * stds[0]
    loaded, start = load_model(tmp_path / "types", torch.device("cpu"))
    assert start.log_lengths_mean == types["start"]["log_lengths_mean"]
    assert not loaded.training


def test_bf16_trains_what_fp32_does_but_for_its_rounding(config_path, shards, tmp_path):
    """Products have 8 bits of mantissa; weights, their average and the loss are in float32."""
    curves = {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        train_rfm.run(small_settings(config_path, precision=precision), **shards, out=out)
        weights = load_file(out / "weights.safetensors")
        assert all(value.dtype == torch.float32 for value in weights.values())
        curves[precision] = list(csv.DictReader((out / "training_curve.csv").open()))
    for one, other in zip(curves["fp32"], curves["bf16"], strict=True):
        assert float(one["val_loss"]) != float(other["val_loss"])
        assert float(one["val_loss"]) == pytest.approx(float(other["val_loss"]), rel=0.02)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_is_plain_training_but_for_rounding(config_path, shards, tmp_path):
    """The batches include groups of one crystal and crystals of two atoms."""
    settings = small_settings(config_path, num_layers=1, hidden_dim=8, batch_size=3, max_steps=8)
    section = settings.train_rfm
    pairs, _ = train_rfm.prepare_split("train", shards["pairs"], tmp_path, OPTIONS)
    assert min(map(min, pairs.num_atoms)) == 2
    trained = {}
    for name in ("plain", "compiled"):
        chosen = section.model_copy(update={"compile": name == "compiled"})
        files = tmp_path / f"{name}.pt", tmp_path / name
        fabric = make_fabric(section.precision)
        trained[name] = train(chosen, 7, pairs, pairs, statistics(pairs), *files, fabric)
    for one, other in zip(trained["plain"].curve, trained["compiled"].curve, strict=True):
        for column in ("train_loss", "val_loss"):
            assert one[column] == pytest.approx(other[column], rel=1e-4)
    for name, value in trained["plain"].weights.items():
        torch.testing.assert_close(trained["compiled"].weights[name], value, atol=1e-5, rtol=1e-4)


class Seen(torch.nn.Module):
    """Records the types of its inputs, and of a product with one of them."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, batches, times):
        self.inputs = {x.dtype for x in (*vars(batches[0]).values(), *times)}
        found = self.linear(batches[0].start_coords)
        self.product = found.dtype
        return found.sum()


def test_bf16_rounds_products_and_not_the_pairs(shards, tmp_path):
    """A coordinate in bfloat16 has an error of up to 1/512 of the cell."""
    pairs, _ = train_rfm.prepare_split("train", shards["pairs"][:1], tmp_path, OPTIONS)
    batch = pairs.batch(next(size_groups(pairs.num_atoms, 4)))
    seen = Seen()
    make_fabric("bf16").setup(seen)([batch], [torch.rand(len(batch))])
    assert seen.inputs == {torch.int64, torch.float32}
    assert seen.product == torch.bfloat16


def _written(path):
    return path.stat().st_mtime_ns if path.exists() else None


def test_stopped_killed_and_resumed_gives_the_same_weights(config_path, shards, tmp_path):
    """SIGTERM saves and ends; SIGKILL loses the steps after the last checkpoint.

    The flow has noise, which a resumed run must draw as the undisturbed one.
    """
    settings = small_settings(config_path, NOISY_FLOW, max_steps=120, val_steps=10)
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    train_rfm.run(settings, **shards, out=tmp_path / "whole")
    checkpoint = tmp_path / ".cut.partial" / "checkpoint.pt"
    steps = [0]
    for sent, code in ((signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)):
        process = start_training(settings, shards, tmp_path / "cut", env)
        seen = _written(checkpoint)
        while _written(checkpoint) == seen and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(sent)
        assert process.wait() == code, "training ended before it could be stopped"
        steps.append(torch.load(checkpoint, weights_only=True)["state"]["step"])
    assert 0 < steps[1] < steps[2] < 120
    kept = checkpoint.with_name("seconds.json")
    spent = json.loads(kept.read_text())["seconds"]
    kept.write_text(json.dumps({"seconds": spent + 1000}))
    assert start_training(settings, shards, tmp_path / "cut", env).wait() == 0
    assert 1000 + spent < read_provenance(tmp_path / "cut")["seconds"] < 2000
    whole, cut = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    untimed = [
        [{**row, "seconds": ""} for row in csv.DictReader(path.open())]
        for path in (tmp_path / "whole/training_curve.csv", tmp_path / "cut/training_curve.csv")
    ]
    assert untimed[0] == untimed[1]


def test_two_processes_train_what_one_does(config_path, shards, tmp_path):
    """The batch is shared and the gradients are averaged: equal results up to rounding.

    Ten pairs in batches of three: the last batch of an epoch has one pair, so one process has none.
    Both processes are stopped between validations and resume, with the sums of the losses so far.
    """
    settings = small_settings(config_path, max_steps=6, batch_size=3, learning_rate=1e-3)
    section = settings.train_rfm
    base_distribution = LlmBaseDistribution(0.02, 0.1, 1.0)
    options = replace(OPTIONS, base_distribution=base_distribution)
    pairs, _ = train_rfm.prepare_split("train", shards["pairs"][:1], tmp_path, options)
    scales = statistics(pairs)
    fabric = make_fabric(section.precision)
    files = tmp_path / "alone.pt", tmp_path / "events"
    alone = train(section, settings.seed, pairs, pairs, scales, *files, fabric)
    values = {"seed": settings.seed, "version": settings.version, **settings.values}
    script = Path(__file__).parents[1] / "helpers" / "two_processes.py"
    words = [sys.executable, str(script), str(tmp_path), json.dumps(values), str(tmp_path / "two")]
    words.append(json.dumps(base_distribution_record(base_distribution)))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(words, check=True, env=env)
    together = load_file(tmp_path / "two")
    curve = json.loads((tmp_path / "two.json").read_text())
    assert [row["step"] for row in curve] == [4, 6]
    for row, expected in zip(curve, alone.curve, strict=True):
        timeless = {**expected, "seconds": row["seconds"]}
        assert row == pytest.approx(timeless, rel=1e-4)
    for name, value in alone.weights.items():
        torch.testing.assert_close(together[name], value, atol=1e-5, rtol=1e-4)
    seed = derive(settings.seed, "train_rfm", "weights")
    start = build_field(alone.field.network.size, BOUNDS, scales, seed).state_dict()
    moved = [(value - start[name]).abs().max() for name, value in alone.weights.items()]
    assert max(moved) > 1e-3


@dataclass
class Ranks:
    """Several processes, simulated in sequence; the last one gets the result, as from NCCL."""

    world_size: int
    heard: list = field(default_factory=list)

    def all_reduce(self, said, reduce_op):
        self.heard.append(said * (1 / self.world_size) if reduce_op == "mean" else said.clone())
        return sum(self.heard[1:], self.heard[0])


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
@pytest.mark.parametrize("world_size", [1, 2, 10, 11, 12, 14, 64])
def test_all_processes_agree_whatever_their_number(world_size, bad):
    """One non-finite share skips the step, one process stops all; errors are the mean."""
    ranks = Ranks(world_size)
    shares = torch.rand(world_size, 2)
    if bad is not None:
        shares[world_size // 2, 1] = bad
    for rank, errors in enumerate(shares):
        agreed = agree(errors, errors.sum(), bad is not None and rank == 0, ranks)
    assert (agreed.finite, agreed.stopping) == (bad is None, bad is not None)
    if bad is None:
        torch.testing.assert_close(agreed.errors, shares.double().mean(dim=0))


CPU = torch.device("cpu")


@dataclass
class Rank:
    """The attributes of a process that `share_of_batch` reads."""

    global_rank: int
    world_size: int
    device: torch.device = CPU


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_pairs_are_dealt_evenly_and_once(shards, tmp_path, world_size):
    """The batch has many groups of one or two pairs."""
    options = replace(OPTIONS, base_distribution=LlmBaseDistribution(0.02, 0.1, 1.0))
    pairs, _ = train_rfm.prepare_split("train", shards["pairs"], tmp_path, options)
    batch = list(size_groups(pairs.num_atoms, 2))
    total = len(pairs)
    whole, size = share_of_batch(pairs, batch, 7, 3, Rank(0, 1))
    assert (len(batch) > 8, size) == (True, total)
    parts = [share_of_batch(pairs, batch, 7, 3, Rank(r, world_size)) for r in range(world_size)]
    dealt = [sum(map(len, groups)) for (groups, _), _ in parts]
    assert sum(dealt) == total
    assert max(dealt) - min(dealt) <= 1
    assert {size for _, size in parts} == {total}

    def moments(shares):
        """Return times and the noisy start lattices with these times, sorted by time."""
        rows = [
            (t.item(), *lattice.tolist())
            for (groups, times), _ in shares
            for group, of_group in zip(groups, times, strict=True)
            for t, lattice in zip(of_group, group.start_lattice, strict=True)
        ]
        return sorted(rows)

    assert moments(parts) == moments([(whole, size)])


class NoPairs:
    """Pairs without content, for the times alone."""

    def draw(self, *_):
        return self

    def to(self, _):
        return self


def test_each_step_has_its_own_times_and_all_are_uniform():
    batch = [np.zeros((20, 2), dtype=int)]
    shares = [share_of_batch(NoPairs(), batch, 7, step, Rank(0, 1)) for step in range(300)]
    times = np.array([of_group.numpy() for ((_, [of_group]), _) in shares])
    assert len(np.unique(times, axis=0)) == 300
    assert kstest(times.ravel(), "uniform").pvalue > 1e-3


def test_each_epoch_has_its_own_noise(config_path, shards, tmp_path):
    section = small_settings(config_path).train_rfm
    options = replace(OPTIONS, base_distribution=LlmBaseDistribution(0.02, 0.1, 1.0))
    pairs, _ = train_rfm.prepare_split("train", shards["pairs"][:1], tmp_path, options)
    batch = [np.array([[0, row]]) for row in range(len(pairs))]
    fabric = make_fabric(section.precision)
    drawn = [share_of_batch(pairs, batch, 7, step, fabric)[0][0] for step in (3, 3, 13)]
    for first, again, later in zip(*drawn, strict=True):
        assert torch.equal(first.start_coords, again.start_coords)
        assert not torch.equal(first.start_coords, later.start_coords)
        assert not torch.equal(first.start_lattice, later.start_lattice)


def test_processes_wait_for_one_that_prepares_the_paper_s_pairs(monkeypatch):
    """One of two nodes; preparation takes an hour at one millisecond per pair on one core."""
    values = {
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_NODEID": "1",
        "SLURM_JOB_ID": "3",
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "15003",
        "NODE_RANK": "0",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    strategy = make_fabric("fp32").strategy
    assert strategy.num_nodes == 2
    assert strategy._timeout > timedelta(milliseconds=3 * 3.3e6)


def test_no_usable_pair_says_so(config_path, tmp_path):
    path = tmp_path / "pairs" / "shard-0.parquet"
    write_pairs(path, [], 0)
    with pytest.raises(FlowllmError, match=r"no pair can be used.*not_ok"):
        train_rfm.run(
            small_settings(config_path), pairs=[path], val_pairs=[path], out=tmp_path / "flow"
        )


def test_training_that_diverges_stops_and_says_so(config_path, shards, tmp_path):
    settings = small_settings(config_path, learning_rate=1e30)
    with pytest.raises(FlowllmError, match="lower train_rfm"):
        train_rfm.run(settings, **shards, out=tmp_path / "flow")


def spoiled(path, rows):
    """Return the prepared pairs with NaN in some rows."""
    content = pa.ipc.open_file(path).read_all().to_pylist()
    for row in rows:
        content[row]["start_lattice"] = [math.nan] * 6
    with pa.ipc.new_file(path.with_name("bad.arrow"), PREPARED) as writer:
        writer.write_table(pa.Table.from_pylist(content, schema=PREPARED))
    return open_pairs([path.with_name("bad.arrow")])


def test_a_step_with_a_non_finite_loss_is_skipped_and_counted(config_path, shards, tmp_path):
    """One prepared pair has NaN: its step changes nothing, the other steps do."""
    settings = small_settings(config_path, batch_size=1, max_steps=None, epochs=2, val_steps=5)
    section = settings.train_rfm
    pairs, _ = train_rfm.prepare_split("train", shards["pairs"][:1], tmp_path / "p", OPTIONS)
    standardization = statistics(pairs)
    bad = spoiled(tmp_path / "p" / "train-00000.arrow", rows=[3])
    fabric = make_fabric(section.precision)
    files = tmp_path / "c.pt", tmp_path / "events"
    trained = train(section, 7, bad, pairs, standardization, *files, fabric)
    assert trained.summary["skipped_steps"] == 2
    assert trained.summary["steps"] == 20
    assert all(value.isfinite().all() for value in trained.field.state_dict().values())
    assert len({row["val_loss"] for row in trained.curve}) == 4


def test_a_stretch_of_skipped_steps_later_does_not_end_training(config_path, shards, tmp_path):
    """The training loss is NaN for these steps; the weights from before are kept."""
    settings = small_settings(config_path, batch_size=1, max_steps=None, epochs=1, val_steps=1)
    section = settings.train_rfm
    pairs, _ = train_rfm.prepare_split("train", shards["pairs"][:1], tmp_path / "p", OPTIONS)
    standardization = statistics(pairs)
    bad = spoiled(tmp_path / "p" / "train-00000.arrow", rows=[3])
    files = tmp_path / "c.pt", tmp_path / "events"
    trained = train(section, 7, bad, pairs, standardization, *files, make_fabric("fp32"))
    assert trained.summary["skipped_steps"] == 1
    assert sum(math.isnan(row["train_loss"]) for row in trained.curve) == 1


def test_training_none_of_whose_steps_counts_stops_and_says_so(config_path, shards, tmp_path):
    """Otherwise it would end without an error and save the initial weights."""
    settings = small_settings(config_path, max_steps=6)
    pairs, _ = train_rfm.prepare_split("train", shards["pairs"][:1], tmp_path, OPTIONS)
    bad = spoiled(tmp_path / "train-00000.arrow", rows=range(len(pairs)))
    section = settings.train_rfm
    files = tmp_path / "c.pt", tmp_path / "events"
    fabric = make_fabric(section.precision)
    with pytest.raises(FlowllmError, match=r"train_rfm: all 4 steps were skipped.*lower train_rfm"):
        train(section, 7, bad, pairs, statistics(pairs), *files, fabric)


def test_patience_stops_training(config_path, shards, tmp_path):
    settings = small_settings(
        config_path, learning_rate=1e-12, min_learning_rate=0, patience=2, val_steps=1, max_steps=50
    )
    train_rfm.run(settings, **shards, out=tmp_path / "flow")
    record = json.loads((tmp_path / "flow" / "model.json").read_text())
    assert record["stopped_early"]
    assert record["steps"] < 50
    assert record["steps"] == record["best_step"] + 2


def many_shards(folder: Path, count: int) -> None:
    """Make `count` shards of 20 pairs each, links to one file."""
    (folder / "train").mkdir(parents=True)
    (folder / "val").mkdir()
    write_pairs(folder / "one.parquet", prototypes()[:20], seed=0)
    write_pairs(folder / "val" / "shard-00000.parquet", prototypes()[:5], seed=1, split="val")
    for shard in range(count):
        os.link(folder / "one.parquet", folder / "train" / f"shard-{shard:05d}.parquet")


def run_under_limit(
    config_path, folder: Path, count: int, hard: int
) -> subprocess.CompletedProcess:
    """Train on a folder with the usual limit of 1,024 open files; `hard` is how far it can rise."""
    settings = small_settings(config_path)
    values = {"seed": settings.seed, "version": settings.version, **settings.values}
    words = [f"--pairs={folder}/train={count}", f"--val-pairs={folder}/val=1"]
    words += ["--out", str(folder / "flow"), "--settings", json.dumps(values)]
    command = [sys.executable, "-m", "flowllm", "train_rfm", *words]
    return subprocess.run(
        ["sh", "-c", f'ulimit -Sn 1024; ulimit -Hn {hard}; exec "$0" "$@"', *command],
        capture_output=True,
        text=True,
        check=False,
    )


def test_three_thousand_shards_are_opened_and_not_read_into_memory(config_path, tmp_path):
    many_shards(tmp_path, 3000)
    done = run_under_limit(config_path, tmp_path, 3000, 4096)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "_flow.provenance.json").read_text())
    assert record["counts"]["rows_out"] == 3000 * 20 + 5
    assert len(record["input_paths"]["pairs"]) == 3000
    assert record["peak_memory_mb"] < 2000


def test_more_shards_than_a_process_may_open_are_refused_by_name(config_path, tmp_path):
    many_shards(tmp_path, 900)
    done = run_under_limit(config_path, tmp_path, 900, 1024)
    assert done.returncode == 1
    assert "900 shards are open at once, but a process may open 1024 files" in done.stderr
    assert "sizes.pairs_per_shard" in done.stderr


def test_groups_of_a_size_are_all_its_pairs_in_order_of_shards():
    rng = np.random.default_rng(0)
    num_atoms = [rng.integers(1, 6, size=n) for n in (7, 0, 12, 1)]
    groups = list(size_groups(num_atoms, 4))
    every = [(size, i, row) for i, sizes in enumerate(num_atoms) for row, size in enumerate(sizes)]
    found = [(num_atoms[i][row], i, row) for group in groups for i, row in group]
    assert found == sorted(every)
    assert max(map(len, groups)) <= 4
