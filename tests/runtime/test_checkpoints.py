"""Checkpoints that are not whole."""

import pytest
import torch

from flowllm.errors import FlowllmError
from flowllm.runtime.checkpoints import load_checkpoint

CPU = torch.device("cpu")


def test_a_checkpoint_comes_back(tmp_path):
    torch.save({"step": 3, "weights": torch.arange(5.0)}, tmp_path / "checkpoint.pt")
    loaded = load_checkpoint(tmp_path / "checkpoint.pt", CPU)
    assert loaded["step"] == 3
    assert torch.equal(loaded["weights"], torch.arange(5.0))


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_cut_off_checkpoint_is_named(tmp_path, share):
    path = tmp_path / "checkpoint.pt"
    torch.save({"step": 3, "weights": torch.arange(5000.0)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(FlowllmError, match=r"checkpoint\.pt: not a whole checkpoint .* delete it"):
        load_checkpoint(path, CPU)


class Foreign:
    """A class that no checkpoint of ours holds."""


def test_objects_of_other_classes_are_not_made(tmp_path):
    torch.save(Foreign(), tmp_path / "checkpoint.pt")
    with pytest.raises(FlowllmError, match="not a whole checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt", CPU)
