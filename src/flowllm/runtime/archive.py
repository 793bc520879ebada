"""Moving outputs of a finished run to another folder and back, and deleting repeatable ones.

Records, logs and tables stay. A moved output is copied, compared byte by byte and listed in
`archive.json` before the original is removed, so that an interruption loses nothing.
"""

import filecmp
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from flowllm.config.stages import STAGES
from flowllm.errors import FlowllmError
from flowllm.io.archive_index import Archived, output_time, read_index, write_index
from flowllm.io.files import atomic_folder, atomic_path

_REMOVED = ".removed"
"""End of the hidden name of a folder that is being removed."""

_REPORT = "every extension, since the report reads it"


@dataclass(frozen=True)
class Part:
    """Outputs of a run that are archived together.

    Attributes:
        pattern: paths of the outputs within the run's folder.
        stage: the stage that makes them.
        inputs: paths within the run's folder that the stage needs to make them again.
        needed_by: the later work that reads them.
    """

    pattern: str
    stage: str
    inputs: tuple[str, ...]
    needed_by: str


PARTS = {
    "crystals": Part(
        "crystals/[tv]*.parquet",
        "prepare",
        ("download/manifest.json",),
        "every new row (metrics); training; more pairs",
    ),
    "llm/adapter": Part("llm/adapter", "finetune_llm", (), f"{_REPORT}; merge_adapter"),
    "llm/model": Part(
        "llm/model", "merge_adapter", ("llm/adapter",), "a new base; more samples; more pairs"
    ),
    "pairs": Part("pairs/*/*.parquet", "sample_pairs", (), f"{_REPORT}; a new flow"),
    "rfm": Part("rfm/[!._]*", "train_rfm", (), f"{_REPORT}; refine"),
    "base": Part("base/*/*.parquet", "sample_base", (), f"{_REPORT}; a new row on that base"),
    "generated": Part("generated/*/*.parquet", "refine", (), "more samples; other relaxations"),
    "trajectories": Part("trajectories/*/*.parquet", "refine", (), "nothing"),
    "relaxed": Part(
        "relaxed/*/*.parquet", "prerelax", (), f"{_REPORT}; another hull or second potential"
    ),
}
"""Parts of a run by name, in the order of the pipeline."""


def outputs_of(run_dir: Path, name: str) -> list[Path]:
    """Return the outputs of a part that are present.

    Raises:
        FlowllmError: there is no part of that name.
    """
    if name not in PARTS:
        raise FlowllmError(
            f"{name}: nothing to archive has this name; there are {', '.join(PARTS)}"
        )
    found = sorted(run_dir.glob(PARTS[name].pattern))
    return [path for path in found if not path.name.startswith(("_", "."))]


def size_of(paths: Iterable[Path]) -> int:
    """Return the bytes of files and folders."""
    files = (file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]))
    return sum(file.stat().st_size for file in files if file.is_file())


def move_away(run_dir: Path, output: Path, target: Path) -> None:
    """Move an output to the same path below another folder, and list it as archived.

    Raises:
        FlowllmError: the target has such a path already, or cannot be written.
    """
    name = str(output.relative_to(run_dir))
    place = target.absolute() / name
    if not place.exists():
        _copy(output, place)
    elif not _same(output, place):  # equal where an earlier attempt was interrupted
        raise FlowllmError(
            f"{place}: exists already, with other content; name another folder, or move it away"
        )
    archived = read_index(run_dir)
    archived[name] = Archived(str(place), output_time(output), size_of([output]))
    write_index(run_dir, archived)
    _remove(output)


def bring_back(run_dir: Path, name: str) -> None:
    """Move an archived output back to its place, with its time.

    Raises:
        FlowllmError: the archived copy is missing, or the output cannot be written.
    """
    archived = read_index(run_dir)
    place, output = Path(archived[name].place), run_dir / name
    if not output.exists():
        if not place.exists():
            raise FlowllmError(
                f"{place}: the archived copy of {output} is missing. Mount or copy it there, or "
                f"let it be made again: flowllm restore --forget {run_dir} {name}"
            )
        _copy(place, output)
        _remove(place)
    forget(run_dir, name)


def forget(run_dir: Path, name: str) -> None:
    """Remove an output from the list of archived ones; its copy stays where it is."""
    archived = read_index(run_dir)
    del archived[name]
    write_index(run_dir, archived)


def archived_names(run_dir: Path, asked: Sequence[str]) -> list[str]:
    """Return the archived outputs with the given paths, or below them; all if none is given.

    Raises:
        FlowllmError: nothing is archived under one of the paths.
    """
    index = read_index(run_dir)
    found = {one: [name for name in index if f"{name}/".startswith(f"{one}/")] for one in asked}
    for one, names in found.items():
        if not names:
            raise FlowllmError(
                f"{one}: no such output of {run_dir} is archived; `flowllm archive {run_dir}` "
                "lists those that are"
            )
    return sorted({name for names in found.values() for name in names}) if asked else sorted(index)


def check_part(run_dir: Path, name: str, target: Path | None) -> list[Path]:
    """Return the outputs of a part that may be moved, or deleted.

    Args:
        run_dir: the run's folder.
        name: name of the part.
        target: folder that the part is moved to; None if it is deleted.

    Raises:
        FlowllmError: the part is not there or is a link, the target is in the run's folder, or the
            part would not be made again with the same content.
    """
    outputs, part = outputs_of(run_dir, name), PARTS[name]
    for left in run_dir.glob(f"{PurePath(part.pattern).parent}/.*{_REMOVED}"):
        left.unlink() if left.is_symlink() else shutil.rmtree(left)  # of a killed command
    if not outputs:
        raise FlowllmError(f"{run_dir}: has no {name}, or it is archived already")
    if links := [path for path in outputs if path.is_symlink()]:
        raise FlowllmError(
            f"{links[0]}: a link to {links[0].resolve()}, which is not in the run's folder; move "
            "that by hand, and set the link to its new place"
        )
    if target is not None:
        if target.resolve().is_relative_to(run_dir.resolve()):
            raise FlowllmError(f"--to {target}: is in the run's folder; name one outside of it")
        return outputs
    if not STAGES[part.stage].repeatable:
        raise FlowllmError(
            f"{name}: {part.stage} would not make it again with the same content; move it with --to"
        )
    for needed in part.inputs:
        if not (run_dir / needed).exists():
            raise FlowllmError(
                f"{run_dir / needed}: missing, so that {part.stage} could not make {name} again"
            )
    return outputs


def delete_part(run_dir: Path, name: str) -> None:
    """Delete the outputs of a part, which `check_part` allows."""
    for output in outputs_of(run_dir, name):
        _remove(output)


def _copy(source: Path, to: Path) -> None:
    """Copy a file or folder with its times, and compare the copy before it gets its name.

    Raises:
        FlowllmError: the copy differs, or cannot be written.
    """
    writer = atomic_folder if source.is_dir() else atomic_path
    with writer(to) as copy:
        if source.is_dir():
            shutil.copytree(source, copy, dirs_exist_ok=True)
        else:
            shutil.copy2(source, copy)
        if not _same(source, copy):
            raise FlowllmError(f"{to}: the copy differs from {source}; check the disk")


def _same(one: Path, other: Path) -> bool:
    """Return whether two files, or the files of two folders, have the same names and bytes."""
    if not one.is_dir():
        return filecmp.cmp(one, other, shallow=False)
    names = [
        {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        for folder in (one, other)
    ]
    return names[0] == names[1] and all(
        filecmp.cmp(one / name, other / name, shallow=False) for name in names[0]
    )


def _remove(output: Path) -> None:
    """Remove a file, or a folder as a whole: it loses its name before its first file."""
    if not output.is_dir():
        output.unlink()
        return
    nameless = output.with_name(f".{output.name}{_REMOVED}")
    if nameless.exists():
        shutil.rmtree(nameless)
    output.rename(nameless)
    shutil.rmtree(nameless)
