"""Shards of a table as options of a command: files, or a folder with its number of shards.

The workflow gives `FOLDER=COUNT`, because a command that names each file is limited to 128 kB, the
length of one argument on Linux: about 1,600 shards.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from flowllm.errors import FlowllmError


def shard_name(shard: int) -> str:
    """Return the file name of a shard, counted from 0."""
    return f"shard-{shard:05d}.parquet"


def expand_shards(words: Iterable[str]) -> list[Path]:
    """Return the files that words name; `FOLDER=COUNT` names the first shards of a folder.

    Raises:
        FlowllmError: a word is a folder without the number of its shards.
    """
    return [path for word in words for path in _files(word)]


def _files(word: str) -> Iterator[Path]:
    folder, sign, count = word.rpartition("=")
    if sign and count.isdecimal() and not Path(word).is_file():
        for shard in range(int(count)):
            yield Path(folder, shard_name(shard))
    elif Path(word).is_dir():
        raise FlowllmError(
            f"{word}: is a folder, and it may contain shards of another run. Give the number of "
            f"its shards, for example {word}=20"
        )
    else:
        yield Path(word)


def _convert(_type: Any, tokens: Sequence[Token]) -> list[Path]:
    return expand_shards(token.value for token in tokens)


Shards = Annotated[Sequence[Path], Parameter(converter=_convert)]
"""Type of a stage's parameter that receives the files of a table's shards."""
