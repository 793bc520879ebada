"""The chain from training to the flow on symmetric text, with real vLLM on a tiny model."""

from pathlib import Path

import numpy as np
import pytest
import spglib

from flowllm.crystal import Crystal
from flowllm.data.standard_cell import standardized
from flowllm.data.symmetry_operations import operations_of_row
from flowllm.errors import FlowllmError
from flowllm.io.schemas import PAIRS
from flowllm.io.tables import crystal_of, read_table
from flowllm.llm.crystal_text import Decoded, Limits
from flowllm.llm.crystal_texts import crystal_text
from flowllm.llm.model_record import read_record
from flowllm.rfm.base_distribution import LlmBaseDistribution
from flowllm.rfm.model import build_field
from flowllm.rfm.network import NetworkSize, Standardization
from flowllm.runtime.provenance import read_provenance
from flowllm.stages import finetune_llm, merge_adapter, refine, sample_pairs
from llm_run import crystal_table, settings_for, small_crystals
from tiny_llm import write_tiny_llm

SYMMETRIC = {"prepare": {"cell": "standard"}, "prompts": {"crystal_text": "symmetric"}}
COUNT = 6


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("symmetric text")
    base = write_tiny_llm(folder / "base")
    crystals = [standardized(crystal).crystal for crystal in small_crystals()]
    train = crystal_table(folder / "train.parquet", crystals)
    shuffled = {"finetune_llm": {"augment_permutation": True}, **SYMMETRIC}
    settings = settings_for("finetune_llm", base, **shuffled)
    finetune_llm.run(settings, train=train, val=train, out=folder / "adapter")
    settings = settings_for("merge_adapter", base)
    merge_adapter.run(settings, adapter=folder / "adapter", out=folder / "model")
    return {"base": base, "train": train, "model": folder / "model", "out": folder / "pairs"}


def pairs(paths: dict[str, Path], out: Path, **changes) -> Path:
    section = {"structured": True, "chunk_size": 3, "reject_close_atoms": True}
    settings = settings_for("sample_pairs", paths["base"], sample_pairs=section, **changes)
    sample_pairs.run(
        settings,
        model=paths["model"],
        crystals=paths["train"],
        split="train",
        first_draw=0,
        count=COUNT,
        out=out,
    )
    return out


@pytest.fixture(scope="module")
def rows(paths):
    return read_table(pairs(paths, paths["out"] / "shard.parquet", **SYMMETRIC), PAIRS).to_pylist()


def test_the_record_names_the_text_and_the_longest_conventional_vector(paths):
    record = read_record(paths["model"])
    assert record.prompts["crystal_text"] == "symmetric"
    # The conventional cell of Na2O-like rock salt is longer than every primitive vector (4.0).
    assert record.max_length == 6


def test_drafts_have_the_atoms_of_the_formula_and_exact_operations(rows):
    accepted = [row for row in rows if row["status"] == "ok"]
    assert accepted, [row["error"] for row in rows]
    for row in accepted:
        decoded = crystal_text("symmetric").decode(row["text"], Limits(5))
        assert isinstance(decoded, Decoded)
        draft, operations = crystal_of(row), operations_of_row(row)
        assert draft.formula == row["formula"] == decoded.crystal.formula
        coords = draft.frac_coords.astype(float)
        for rotation, translation in zip(
            operations.rotations, operations.translations, strict=True
        ):
            steps = (coords @ rotation.T + translation)[:, None] - coords
            distances = np.abs(steps - steps.round()).max(axis=-1)
            distances[draft.atomic_numbers[:, None] != draft.atomic_numbers] = 1
            assert distances.min(axis=1).max() < 1e-6


def test_other_text_than_that_of_the_training_is_refused(paths, tmp_path):
    with pytest.raises(FlowllmError, match="crystal_text differ"):
        pairs(paths, tmp_path / "shard.parquet")


def test_the_flow_keeps_the_group_of_the_text(rows):
    """A flow with random weights moves atoms and cell, and the operations stay exact."""
    size = NetworkSize(hidden_dim=32, num_layers=2, time_dim=16, num_frequencies=4)
    scales = Standardization([6.0] * 6, [2.0] * 6, 0.05, [0.0] * 6, [0.1] * 6)
    field = build_field(size, (59.9, 120.1), scales).requires_grad_(False)
    start = LlmBaseDistribution(0.0, 0.0, 0.0)
    method = {"name": "flow", "base": "base", "flow": "llm", "num_steps": 4}
    section = {
        "integrator": "euler",
        "batch_memory_mb": 100,
        "anneal_slope": 0.0,
        "keep_symmetry": True,
        "trajectory_every": None,
    }
    values = {"seed": 7, "version": 1, "refine": section, "method": method}
    settings = refine.Settings("refine", values)
    made, _, counts = refine.refine_rows(rows, field, start, settings, None)
    moved = 0
    for given, row in zip(rows, made, strict=True):
        if row["status"] != "ok":
            continue
        end, operations = crystal_of(row), operations_of_row(given)
        moved += float(np.abs(end.lengths - crystal_of(given).lengths).max()) > 1e-4
        assert has_operations(end, len(operations))
    assert moved
    assert not counts["starts_undetermined"]


def has_operations(crystal: Crystal, count: int) -> bool:
    """Whether spglib finds at least this number of operations."""
    cell = (crystal.to_structure().lattice.matrix, crystal.frac_coords, crystal.atomic_numbers)
    return len(spglib.get_symmetry(cell, symprec=1e-3)["rotations"]) >= count


def test_provenance_counts_rejections_by_their_reasons(paths, rows):
    counts = read_provenance(paths["out"] / "shard.parquet")["counts"]
    assert counts["rows_out"] == sum(row["status"] == "ok" for row in rows)
