"""Whether files were computed from each other, by the digests that their footers record.

Rows are joined by id, and the methods of one base share their ids: files of two methods would fit
together without a word. Every table's footer records the digest of each input of its stage
(`provenance.StageRun.metadata`); a digest is of the file's bytes and its name, never of its folder,
so that a run that was moved or copied still fits. Files without a record are not checked.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowllm.errors import FlowllmError
from flowllm.io.tables import read_metadata
from flowllm.runtime.provenance import digest, digest_role

GENERATED_KEY = "generated_digests"
"""Footer key of tables that were computed from relaxed crystals: digests of what was relaxed."""


def check_computed_from(made: Sequence[Path], role: str, given: Sequence[Path]) -> None:
    """Refuse files that were computed from other inputs than the given ones.

    Args:
        made: Parquet files of a stage.
        role: the input's role in that stage, e.g. `generated` of `prerelax`.
        given: the files that are now given in this role; a file of `made` was computed from one of
            them, or from all of them.

    Raises:
        FlowllmError: names a file that was computed from something else, and the stage to run.
    """
    known = {digest(path) for path in given} | _digests_of_all(given)
    for path in made:
        metadata = read_metadata(path)
        recorded = metadata.get("inputs", {}).get(role)
        if recorded is not None and recorded not in known:
            raise _differs(path, metadata, role, _counterpart(path, given))


def check_same_input(paths: Sequence[Path], role: str) -> None:
    """Refuse files that were computed from different inputs of one role.

    Args:
        paths: Parquet files; those that record no such input are not checked.
        role: the input's role in the stage of each file.

    Raises:
        FlowllmError: names two files that differ, and the stage to run.
    """
    first: tuple[Path, str] | None = None
    for path in paths:
        metadata = read_metadata(path)
        recorded = metadata.get("inputs", {}).get(role)
        if recorded is None:
            continue
        first = first or (path, recorded)
        if recorded != first[1]:
            raise FlowllmError(
                f"{path} and {first[0]}: computed from different {role} files, by the digests in "
                "their footers; the two are of different runs or methods. Give the files of one "
                f"run, or run the stage {_stage(metadata)} again for both"
            )


def generated_digests(relaxed: Sequence[Path]) -> dict[str, Any]:
    """Return what a footer records of the generated crystals that some files descend from.

    DFT's results are several stages away from the generated crystals, whose digests are handed on
    through `dft_inputs` and `dft_collect`.

    Args:
        relaxed: shards of `prerelax`, or a table whose footer has the entry already.

    Returns:
        The entry `GENERATED_KEY`; empty where the files do not record their inputs.
    """
    found: set[str] = set()
    for path in relaxed:
        metadata = read_metadata(path)
        found |= {*metadata.get(GENERATED_KEY, ())}
        if recorded := metadata.get("inputs", {}).get("generated"):
            found.add(recorded)
    return {GENERATED_KEY: sorted(found)} if found else {}


def check_descends_from(made: Path, generated: Sequence[Path]) -> None:
    """Refuse a table that descends from other generated crystals, by its `GENERATED_KEY`.

    Raises:
        FlowllmError: names the table and a file that it does not descend from.
    """
    metadata = read_metadata(made)
    recorded = metadata.get(GENERATED_KEY)
    for path in generated if recorded is not None else ():
        if digest(path) not in recorded:
            raise _differs(made, metadata, "generated", path)


def _digests_of_all(given: Sequence[Path]) -> set[str]:
    """Digests of all files as one role, in the order given and in that of the workflow."""
    return {digest_role(given), digest_role(sorted(given, key=lambda path: path.name))}


def _counterpart(path: Path, given: Sequence[Path]) -> Path:
    """Return the given file of the same name, the first where none has it."""
    return next((one for one in given if one.name == path.name), given[0])


def _stage(metadata: dict[str, Any]) -> str:
    return str(metadata.get("stage", "that made it"))


def _differs(path: Path, metadata: dict[str, Any], role: str, given: Path) -> FlowllmError:
    return FlowllmError(
        f"{path}: was computed from another file than {given} (role {role}: the digest in its "
        "footer is not that file's); the two are of different runs or methods. Give the files of "
        f"one run, or run the stage {_stage(metadata)} again with {given}"
    )
