"""Files and folders have the permissions that the umask leaves, so that a group can use them."""

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flow_pairs import prototypes, write_pairs
from flow_training import small_settings
from flowllm.io.files import atomic_folder, atomic_path, write_text
from flowllm.stages import train_rfm
from llm_run import CONFIGS, merged_model


@pytest.fixture(params=[0o027, 0o002], ids=["027", "002"])
def umask(request):
    """The process's umask during a test."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """The permissions of a folder's members, by path."""
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in sorted(folder.rglob("*"))
    }


def expected(folder: Path, umask: int) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): (0o777 if path.is_dir() else 0o666) & ~umask
        for path in sorted(folder.rglob("*"))
    }


def test_a_folder_of_every_library(umask, tmp_path):
    with atomic_folder(tmp_path / "made") as folder:
        (folder / "inner").mkdir()
        save_file({"a": torch.zeros(2)}, folder / "inner" / "weights.safetensors")
        torch.save({"a": torch.zeros(2)}, folder / "optimizer.pt")
        (folder / "record.json").write_text("{}")
    assert modes(tmp_path) == expected(tmp_path, umask)
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o777 & ~umask


def test_a_program_stays_executable(umask, tmp_path):
    with atomic_folder(tmp_path / "made") as folder:
        (folder / "job.sh").touch(0o755)
    found = stat.S_IMODE((tmp_path / "made" / "job.sh").stat().st_mode)
    assert found == (0o755 & ~umask) | (0o666 & ~umask)


def test_single_files(umask, tmp_path):
    write_text(tmp_path / "record.json", "{}")
    with atomic_path(tmp_path / "checkpoint.pt") as temporary:
        torch.save({"a": torch.zeros(2)}, temporary)
    assert modes(tmp_path) == expected(tmp_path, umask)


def test_a_fine_tuned_and_merged_model(umask, tmp_path):
    merged_model(tmp_path)
    for name in ("adapter", "model"):
        assert modes(tmp_path / name) == expected(tmp_path / name, umask)
        assert list((tmp_path / name).glob("*.safetensors"))


def test_a_trained_flow(umask, tmp_path):
    pairs = tmp_path / "pairs.parquet"
    write_pairs(pairs, prototypes()[:12], 0)
    settings = small_settings(CONFIGS[0])
    train_rfm.run(settings, pairs=[pairs], val_pairs=[pairs], out=tmp_path / "flow")
    assert modes(tmp_path) == expected(tmp_path, umask)
    assert list((tmp_path / "flow").glob("*.safetensors"))
