"""Outputs of a run that are moved away and brought back, also by a command that is killed."""

import os
import shutil
from pathlib import Path

import pytest

from flowllm.errors import FlowllmError
from flowllm.io.archive_index import read_index
from flowllm.runtime import archive
from flowllm.runtime.archive import archived_names, bring_back, check_part, move_away, outputs_of

MODEL = "llm/model"


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """A run with a model of two files and its adapter, made long ago."""
    run_dir = tmp_path / "run"
    for name in ("llm/adapter/weights", "llm/model/weights", "llm/model/tokenizer/vocabulary"):
        path = run_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        os.utime(path, (1000.5, 1000.5))
    return run_dir


def files(folder: Path) -> dict[str, tuple[str, float]]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): (p.read_text(), p.stat().st_mtime) for p in found}


def test_a_moved_folder_is_the_same_in_its_new_place(run_dir, tmp_path):
    before = files(run_dir / MODEL)
    move_away(run_dir, run_dir / MODEL, tmp_path / "archive")
    assert not (run_dir / MODEL).exists()
    assert files(tmp_path / "archive" / MODEL) == before
    assert read_index(run_dir)[MODEL].size == sum(len(text) for text, _ in before.values())


def test_a_moved_folder_comes_back_with_its_times(run_dir, tmp_path):
    before = files(run_dir)
    move_away(run_dir, run_dir / MODEL, tmp_path / "archive")
    bring_back(run_dir, MODEL)
    assert files(run_dir) == before


class KilledError(Exception):
    pass


def killed(*_: object) -> None:
    raise KilledError


@pytest.mark.parametrize("step", ["write_index", "_remove"])
def test_an_interrupted_move_is_completed_by_the_next(run_dir, tmp_path, monkeypatch, step):
    before = files(run_dir / MODEL)
    with monkeypatch.context() as patch:
        patch.setattr(archive, step, killed)
        with pytest.raises(KilledError):
            move_away(run_dir, run_dir / MODEL, tmp_path / "archive")
    assert files(run_dir / MODEL) == before
    move_away(run_dir, run_dir / MODEL, tmp_path / "archive")
    assert not (run_dir / MODEL).exists()
    assert files(tmp_path / "archive" / MODEL) == before


def test_an_interrupted_return_is_completed_by_the_next(run_dir, tmp_path, monkeypatch):
    before = files(run_dir)
    move_away(run_dir, run_dir / MODEL, tmp_path / "archive")
    with monkeypatch.context() as patch:
        patch.setattr(archive, "_remove", killed)
        with pytest.raises(KilledError):
            bring_back(run_dir, MODEL)
    bring_back(run_dir, MODEL)
    assert files(run_dir) == before


def test_a_removal_that_is_killed_leaves_no_half_of_a_folder(run_dir, tmp_path, monkeypatch):
    before = files(run_dir)
    remove = shutil.rmtree

    def killed_after_a_file(folder: Path, **words: bool) -> None:
        if words:  # by the writer of the copy
            remove(folder, **words)
            return
        next(path for path in Path(folder).rglob("*") if path.is_file()).unlink()
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed_after_a_file)
        with pytest.raises(KilledError):
            move_away(run_dir, run_dir / MODEL, tmp_path / "archive")
    assert not (run_dir / MODEL).exists()
    with pytest.raises(FlowllmError, match="archived already"):
        check_part(run_dir, MODEL, tmp_path / "archive")
    assert [path.name for path in (run_dir / "llm").iterdir()] == ["adapter"]
    bring_back(run_dir, MODEL)
    assert files(run_dir) == before


def test_another_file_in_the_target_is_not_replaced(run_dir, tmp_path):
    other = tmp_path / "archive" / MODEL
    other.mkdir(parents=True)
    with pytest.raises(FlowllmError, match="exists already, with other content"):
        move_away(run_dir, run_dir / MODEL, tmp_path / "archive")
    assert (run_dir / MODEL).exists()


def test_a_lost_copy_is_named_with_a_cure(run_dir, tmp_path):
    move_away(run_dir, run_dir / MODEL, tmp_path / "archive")
    (tmp_path / "archive").rename(tmp_path / "unmounted")
    with pytest.raises(FlowllmError, match="restore --forget"):
        bring_back(run_dir, MODEL)
    assert MODEL in read_index(run_dir)


def test_a_trained_part_is_not_deleted(run_dir):
    with pytest.raises(FlowllmError, match="finetune_llm would not make it again"):
        check_part(run_dir, "llm/adapter", None)


def test_a_model_without_its_adapter_is_not_deleted(run_dir, tmp_path):
    move_away(run_dir, run_dir / "llm/adapter", tmp_path / "archive")
    with pytest.raises(FlowllmError, match="could not make llm/model again"):
        check_part(run_dir, MODEL, None)


def test_a_link_to_another_disk_is_refused_and_stays(run_dir, tmp_path):
    (run_dir / MODEL).rename(tmp_path / "scratch")
    (run_dir / MODEL).symlink_to(tmp_path / "scratch")
    for target in (tmp_path / "archive", None):
        with pytest.raises(FlowllmError, match=r"a link to .*scratch.* move that by hand"):
            check_part(run_dir, MODEL, target)
    assert (run_dir / MODEL / "weights").exists()


def test_a_target_in_the_run_is_refused(run_dir):
    with pytest.raises(FlowllmError, match="is in the run's folder"):
        check_part(run_dir, MODEL, run_dir / "archive")


def test_an_unknown_part_is_named_with_those_that_exist(run_dir):
    with pytest.raises(FlowllmError, match=r"hull: nothing to archive .* llm/model"):
        outputs_of(run_dir, "hull")


def test_a_name_that_is_not_archived_is_refused(run_dir):
    with pytest.raises(FlowllmError, match="pairs: no such output"):
        archived_names(run_dir, ["pairs"])


def test_records_stay(run_dir):
    flow = run_dir / "rfm" / "llm"
    flow.mkdir(parents=True)
    (run_dir / "rfm" / "_llm.provenance.json").write_text("{}")
    (run_dir / "rfm" / "_llm.tensorboard").mkdir()
    assert outputs_of(run_dir, "rfm") == [flow]
