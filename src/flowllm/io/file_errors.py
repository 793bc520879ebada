"""Messages about files that cannot be used: what is wrong with a file, and what to do."""

import errno
import json
import os
import shlex
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flowllm.errors import FlowllmError

FULL = (errno.ENOSPC, errno.EDQUOT)

_CAUSES = {
    errno.ENOENT: "no such file or folder",
    errno.EACCES: "permission denied; ask its owner for access, or give another path",
    errno.EPERM: "the operation is not permitted; ask its owner for access, or give another path",
    errno.EROFS: "the file system is read-only; give a path that can be written to",
    errno.EISDIR: "it is a folder, but a file is expected; move it away or give another path",
    errno.ENOTDIR: "a part of its path is a file, but a folder is expected; move that file away",
    errno.ENOTEMPTY: "the folder is not empty; move it away",
    errno.EEXIST: "it exists already; move it away or give another path",
    errno.ELOOP: "its symbolic links form a loop; remove them",
    errno.ENAMETOOLONG: "the name is too long for the file system; shorten run_dir or the name",
    errno.EIO: "input/output error: the disk or the network file system failed; check it, then run "
    "the same command again",
    errno.ESTALE: "the network file system has lost it; run the same command again",
    errno.EMFILE: "too many files are open; raise the limit (`ulimit -n`) and run the same command "
    "again",
    errno.ENFILE: "too many files are open on this machine; run the same command again later",
    errno.EBUSY: "another process uses it; run the same command again later",
    errno.EMLINK: "its folder has as many folders as the file system allows; lower "
    "dft_inputs.folders_per_directory",
    errno.EXDEV: "it is on another file system; give a path on the same one",
}

_FULL = "no space left on the device; free some, or raise the quota (also of files)"

_SHOWN_PROBLEMS = 3


def is_refusal(error: OSError) -> bool:
    """Return whether the operating system refused something.

    Libraries raise OSError for damaged files too: torch seeks before the beginning of a truncated
    file, which the system calls invalid.
    """
    return error.errno not in (None, errno.EINVAL) or type(error) is not OSError


def cause(error: OSError) -> str:
    """Return what the operating system refused, and what to do about it."""
    if error.errno in FULL:
        return _FULL
    if isinstance(error, FileNotFoundError):  # Arrow's error has no errno
        return _CAUSES[errno.ENOENT]
    return _CAUSES.get(error.errno or 0, error.strerror or str(error))


def explain(error: OSError, path: Path | str | None = None) -> str:
    """Return one sentence: the path, what the operating system refused, what to do.

    Args:
        error: has an `errno`.
        path: the path to name, where the error's own is unknown or a temporary one.
    """
    named = path if path is not None else error.filename
    if named is None:  # Arrow, safetensors and others put the path into the text
        return str(error) if error.errno is None else f"{error.strerror or error}: {cause(error)}"
    return f"{os.fsdecode(named)}: {cause(error)}"


def remake(path: Path) -> str:
    """Return how to make a damaged file of the pipeline again, with the same bytes."""
    if any(part.endswith(".partial") for part in path.parts):
        return "delete it and run the same command again: the other parts are kept"
    return (
        f"delete it and make it again: `snakemake {shlex.quote(str(path))}` with the options of "
        "the run makes only this file; then run the same command again"
    )


def read_json(path: Path, cure: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        cure: what to do if the file cannot be used; ends the message.

    Raises:
        FlowllmError: the file is missing, cannot be read or is not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        # The cure makes the file, which helps only where it is missing.
        made = f"; {cure}" if isinstance(error, FileNotFoundError) else ""
        raise FlowllmError(explain(error, path) + made) from error
    except (ValueError, RecursionError) as error:
        raise FlowllmError(f"{path}: not JSON, empty or truncated ({error}); {cure}") from error


def check_form(values: Any, form: Any, path: Path, cure: str) -> None:
    """Check the content of a JSON file against a pydantic model or another type.

    Raises:
        FlowllmError: the content has another form; the message names the file and the keys.
    """
    try:
        TypeAdapter(form).validate_python(values)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        said = [f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}" for one in problems]
        more = len(said) - _SHOWN_PROBLEMS
        shown = "; ".join(said[:_SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        raise FlowllmError(f"{path}: has an unexpected form ({shown}); {cure}") from error
