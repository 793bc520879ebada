"""The folder of a trained flow: weights.safetensors, model.json, training_curve.csv."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowllm.errors import FlowllmError
from flowllm.io.file_errors import explain
from flowllm.io.files import atomic_folder
from flowllm.io.release import check_released
from flowllm.io.start_files import FLOW_DESCRIPTION
from flowllm.io.weights_file import check_safetensors
from flowllm.rfm.base_distribution import (
    BaseDistribution,
    base_distribution_from_record,
    base_distribution_record,
)
from flowllm.rfm.manifold import AngleBounds
from flowllm.rfm.network import NetworkSize, Standardization, VelocityField

WEIGHTS = "weights.safetensors"
CURVE = "training_curve.csv"

_DAMAGE = (KeyError, TypeError, ValueError, RuntimeError, SafetensorError, FlowllmError)
"""Errors of reading files that are damaged or were written by another program."""


def save_model(
    folder: Path,
    field: VelocityField,
    weights: Mapping[str, Tensor],
    base_distribution: BaseDistribution,
    description: Mapping[str, Any],
    curve: Sequence[Mapping[str, Any]],
) -> None:
    """Write the folder of a flow, and replace an older one.

    Args:
        folder: the model's folder.
        field: the velocity field, whose size, bounds and statistics are recorded.
        weights: state of `field` to save (the averaged weights of the best step).
        base_distribution: the base distribution that it was trained with.
        description: further content of `model.json`: counts, steps, losses.
        curve: rows of the training curve, at least one.
    """
    with atomic_folder(folder) as temporary:
        tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        save_file(tensors, temporary / WEIGHTS)
        record = {
            "network": asdict(field.network.size),
            "angle_bounds": list(field.bounds),
            "standardization": asdict(standardization_of_field(field)),
            "start": base_distribution_record(base_distribution),
            **description,
        }
        (temporary / FLOW_DESCRIPTION).write_text(
            json.dumps(record, indent=2, sort_keys=True) + "\n"
        )
        _write_curve(temporary / CURVE, curve)


def load_model(folder: Path, device: torch.device) -> tuple[VelocityField, BaseDistribution]:
    """Load a flow, in float32 and evaluation mode, and its base distribution.

    Weights of a released flow have half precision and are converted.

    Raises:
        FlowllmError: a file is missing or damaged, has other content than train_rfm writes, or is
            not the released one.
    """
    check_released(folder)
    try:
        record = json.loads((folder / FLOW_DESCRIPTION).read_text())
        low, high = record["angle_bounds"]
        field = build_field(
            NetworkSize(**record["network"]),
            (low, high),
            Standardization(**record["standardization"]),
        )
        check_safetensors(folder / WEIGHTS, "the weights are damaged")
        field.load_state_dict(load_file(folder / WEIGHTS))
        base_distribution = base_distribution_from_record(record["start"])
    except (*_DAMAGE, FileNotFoundError) as error:
        raise FlowllmError(
            f"{folder}: not a model of train_rfm ({error}); delete it and run train_rfm again"
        ) from error
    except OSError as error:
        raise FlowllmError(explain(error, folder)) from error
    field.to(device).requires_grad_(False).eval()
    return field, base_distribution


def build_field(
    size: NetworkSize, bounds: AngleBounds, standardization: Standardization, seed: int = 0
) -> VelocityField:
    """Build a velocity field with weights drawn from a seed; the global seed stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VelocityField(size, bounds, standardization)


def standardization_of_field(field: VelocityField) -> Standardization:
    """Return the statistics of a field."""
    names = Standardization.__dataclass_fields__
    return Standardization(**{name: getattr(field, name).tolist() for name in names})


def _write_curve(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the training curve as CSV with the columns of its first row."""
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        # Times have a fixed width, because the digest of the folder depends on the files' sizes.
        writer.writerows({**row, "seconds": f"{row['seconds']:010.1f}"} for row in rows)
