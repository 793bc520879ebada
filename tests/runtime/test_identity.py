"""The time of a folder's content, which a folder that is made again keeps."""

import os
from pathlib import Path

import pytest

from flowllm.llm.model_identity import merged_identity
from flowllm.runtime.identity import content_time, identity_path, with_identity

LONG_AGO = 1_000_000_000.0


@pytest.fixture
def model(tmp_path) -> Path:
    """A model of long ago, with its identity."""
    make(tmp_path / "model", {"settings": 1})
    os.utime(identity_path(tmp_path / "model"), (LONG_AGO, LONG_AGO))
    return tmp_path / "model"


@pytest.fixture
def adapter(tmp_path) -> Path:
    """An adapter that is older than the model."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "weights").write_text("weights")
    os.utime(folder, (LONG_AGO - 10, LONG_AGO - 10))
    return folder


def make(model: Path, facts: dict) -> None:
    with with_identity(model, facts):
        model.mkdir(exist_ok=True)


def test_a_folder_of_the_same_identity_has_its_former_time(model, adapter):
    make(model, {"settings": 1})
    assert content_time(model, adapter) == LONG_AGO


def test_a_folder_of_another_identity_has_a_new_time(model, adapter):
    make(model, {"settings": 2})
    assert content_time(model, adapter) > LONG_AGO


def test_a_folder_that_is_older_than_its_source_has_no_time(model, adapter):
    os.utime(adapter, (LONG_AGO + 10, LONG_AGO + 10))
    assert content_time(model, adapter) is None


def test_a_folder_that_stays_since_its_successor_failed_keeps_its_time(model, adapter):
    with pytest.raises(OSError, match="full"), with_identity(model, {"settings": 2}):
        raise OSError("full")
    assert content_time(model, adapter) == LONG_AGO


def test_other_weights_are_another_identity(adapter):
    before = merged_identity(adapter, {}, 1)
    (adapter / "weights").write_text("WEIGHTS")  # of the same size
    assert merged_identity(adapter, {}, 1) != before


def test_settings_and_version_are_part_of_the_identity(adapter):
    one = merged_identity(adapter, {"into": "original"}, 1)
    assert one != merged_identity(adapter, {"into": "dequantized"}, 1)
    assert one != merged_identity(adapter, {"into": "original"}, 2)


def test_the_time_that_snakemake_writes_into_the_folder_is_not_part_of_it(adapter):
    before = merged_identity(adapter, {}, 1)
    (adapter / ".snakemake_timestamp").touch()
    assert merged_identity(adapter, {}, 1) == before
