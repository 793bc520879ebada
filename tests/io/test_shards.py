"""Shards as options of a command: files, or a folder with its number of shards."""

from pathlib import Path

import pytest
from cyclopts import App

from flowllm.errors import FlowllmError
from flowllm.io.shards import Shards, expand_shards


def test_a_folder_with_a_count_is_its_first_shards(tmp_path):
    for shard in range(4):  # one more than asked for, of an earlier run
        (tmp_path / f"shard-{shard:05d}.parquet").touch()
    named = [Path(f"{tmp_path}/shard-0000{shard}.parquet") for shard in range(3)]
    assert expand_shards([f"{tmp_path}=3"]) == named
    assert expand_shards([*map(str, named)]) == named


def test_files_and_folders_keep_their_order():
    words = ["b/x.parquet", "a=2", "c=d/y.parquet"]
    found = [Path("b/x.parquet"), Path("a/shard-00000.parquet"), Path("a/shard-00001.parquet")]
    assert expand_shards(words) == [*found, Path("c=d/y.parquet")]


def test_a_file_whose_name_ends_like_a_count_is_a_file(tmp_path):
    path = tmp_path / "pairs=3"
    path.touch()
    assert expand_shards([str(path)]) == [path]


def test_a_folder_without_a_count_is_refused(tmp_path):
    with pytest.raises(FlowllmError, match=r"is a folder.*=20"):
        expand_shards([str(tmp_path)])


def test_the_command_line_expands_repeated_options():
    app, seen = App(result_action="return_value"), []

    @app.default
    def command(*, pairs: Shards, val_pairs: Shards = ()) -> None:
        seen.extend([list(pairs), list(val_pairs)])

    app(["--pairs", "a=2", "--pairs=b.parquet", "--val-pairs=v=1"], exit_on_error=False)
    pairs = [Path("a/shard-00000.parquet"), Path("a/shard-00001.parquet"), Path("b.parquet")]
    assert seen == [pairs, [Path("v/shard-00000.parquet")]]
