"""Checks that files were computed from each other, by the digests in their footers.

Rows are joined by id, and the methods of one base have equal ids, so that files of two methods
could be joined without an error. Every table's footer records the digest of each input of its stage
(`provenance.StageRun.metadata`). A digest depends on the file's bytes and its name, but not on its
folder, so that a run can be moved or copied. Files without a record are not checked.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowllm.errors import FlowllmError
from flowllm.io.tables import read_metadata
from flowllm.runtime.provenance import digest, digest_role

GENERATED_KEY = "generated_digests"
"""Footer key of tables that were computed from relaxed crystals: digests of the generated ones."""


def check_computed_from(made: Sequence[Path], role: str, given: Sequence[Path]) -> None:
    """Refuse files that were computed from other inputs than the given ones.

    Args:
        made: Parquet files of a stage.
        role: the input's role in that stage, e.g. `generated` of `prerelax`.
        given: the files that are now given in this role; each file of `made` must have been
            computed from one of them, or from all of them.

    Raises:
        FlowllmError: a file was computed from another input; the message names it and the stage to
            run.
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
        paths: Parquet files; files without a record of this input are not checked.
        role: the input's role in the stage of each file.

    Raises:
        FlowllmError: two files differ; the message names them and the stage to run.
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
                "their footers. The two belong to different runs or methods. Give the files of one "
                f"run, or run the stage {_stage(metadata)} again for both"
            )


def generated_digests(relaxed: Sequence[Path]) -> dict[str, Any]:
    """Return the footer's entry about the generated crystals that some files descend from.

    DFT results are computed several stages after the generated crystals, whose digests pass through
    `dft_inputs` and `dft_collect`.

    Args:
        relaxed: shards of `prerelax`, or a table whose footer has the entry.

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
        FlowllmError: the message names the table and a file that it does not descend from.
    """
    metadata = read_metadata(made)
    recorded = metadata.get(GENERATED_KEY)
    if recorded is None:
        return
    for path in generated:
        if digest(path) not in recorded:
            raise _differs(made, metadata, "generated", path)


def _digests_of_all(given: Sequence[Path]) -> set[str]:
    """Return digests of all files as one role, in the given order and in the workflow's."""
    return {digest_role(given), digest_role(sorted(given, key=lambda path: path.name))}


def _counterpart(path: Path, given: Sequence[Path]) -> Path:
    """Return the given file with the same name, or the first one."""
    return next((one for one in given if one.name == path.name), given[0])


def _stage(metadata: dict[str, Any]) -> str:
    return str(metadata.get("stage", "that made it"))


def _differs(path: Path, metadata: dict[str, Any], role: str, given: Path) -> FlowllmError:
    return FlowllmError(
        f"{path}: was computed from another file than {given} (role {role}: the digest in its "
        "footer is not that file's). The two belong to different runs or methods. Give the files "
        f"of one run, or run the stage {_stage(metadata)} again with {given}"
    )
