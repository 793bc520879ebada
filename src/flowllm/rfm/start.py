"""The earlier flow that a training continues from (`train_rfm.start`)."""

import json

import torch

from flowllm.config.sections.flow import Flow, TrainRfm
from flowllm.errors import FlowllmError
from flowllm.io.release import check_released
from flowllm.io.start_files import FLOW_DESCRIPTION, flow_folder
from flowllm.io.weights_file import check_safetensors
from flowllm.rfm.model import WEIGHTS, load_model
from flowllm.rfm.network import VelocityField

_SIZES = ("hidden_dim", "num_layers", "time_dim", "num_frequencies")

_CURE = (
    "give the folder rfm of another run, or the folder of one of its networks, or run train_rfm "
    "there again"
)


def load_start(section: TrainRfm, flow: Flow) -> VelocityField | None:
    """Return the network that a flow continues from; None without a start.

    Raises:
        FlowllmError: as in `check_start`, or the weights cannot be loaded.
    """
    if section.start is None:
        return None
    check_start(section, flow)
    return load_model(flow_folder(section.start, flow.name), torch.device("cpu"))[0]


def check_start(section: TrainRfm, flow: Flow) -> None:
    """Check that a flow can continue from the start's network (`io.start_files.flow_folder`).

    The weights mean something only with the same layers and the same coordinates of the cell, and
    the network has learned to move crystals from one base distribution.

    Args:
        section: section `train_rfm`, whose start is not None.
        flow: the flow.

    Raises:
        FlowllmError: there is no such network, or it is damaged or not the released one; or its
            size, its bounds of the angles or its base distribution is another.
    """
    folder = flow_folder(str(section.start), flow.name)
    try:
        record = json.loads((folder / FLOW_DESCRIPTION).read_text())
        found = {name: record["network"][name] for name in _SIZES}
        found |= {
            "angle_bounds": tuple(record["angle_bounds"]),
            "start": record["start"]["kind"],
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise FlowllmError(
            f"train_rfm.start: {folder}: has no network of flow {flow.name} ({said}); {_CURE}"
        ) from error
    check_released(folder)
    check_safetensors(folder / WEIGHTS, _CURE)
    asked = {name: getattr(section, name) for name in (*_SIZES, "angle_bounds")}
    for name, value in {**asked, "start": flow.start}.items():
        if found[name] != value:
            key = f"the flow's {name}" if name == "start" else f"train_rfm.{name}"
            raise FlowllmError(
                f"train_rfm.start: {folder}: its network has {key} {found[name]}, but this run has "
                f"{value}. Give the same value, or {_CURE}"
            )
