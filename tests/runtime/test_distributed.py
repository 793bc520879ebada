"""GPUs that SLURM gives to a training, against those that PyTorch sees."""

import logging

import pytest
import torch

from flowllm.errors import PassingError
from flowllm.runtime.distributed import check_gpus


@pytest.mark.parametrize(("given", "visible"), [(None, 0), ("", 0), ("2", 2), ("1", 8)])
def test_as_many_gpus_as_slurm_gives_are_enough(monkeypatch, caplog, given, visible):
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", given)
    check_gpus(visible)
    assert not caplog.records


@pytest.mark.parametrize(
    ("listed", "visible"), [("", 0), ("-1", 0), ("0", 1), ("0,-1,1", 1), ("GPU-1,GPU-2", 2)]
)
def test_gpus_that_the_user_hides_are_not_expected(monkeypatch, caplog, listed, visible):
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    check_gpus(visible)
    assert not caplog.records


def test_a_node_whose_gpus_cannot_be_used_is_named(monkeypatch, caplog):
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    with pytest.raises(PassingError, match=r"gives this job 4 GPUs, but PyTorch sees 3"):
        check_gpus(3)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with caplog.at_level(logging.WARNING):
        check_gpus(0)
    assert "4 GPUs were requested, but PyTorch is the CPU build" in caplog.text
