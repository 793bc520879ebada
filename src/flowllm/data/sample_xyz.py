"""Samples as frames of extended XYZ."""

import io
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from flowllm.crystal import Crystal
from flowllm.data.sample_crystals import UnparsedSample, crystal_from_vectors
from flowllm.data.sample_files import read_text
from flowllm.errors import FlowllmError

_NAME = re.compile(r"(?:^|\s)(?:material_id|id|name)=(\"(?:[^\"\\]|\\.)*\"|\S+)", re.IGNORECASE)


def read_xyz(path: Path) -> Iterator[UnparsedSample]:
    """Yield the frames of an extended XYZ file; a broken frame does not affect the others.

    Raises:
        FlowllmError: the file does not begin with a number of atoms.
    """
    # A line with nothing but a number begins a frame.
    text = read_text(path).replace("\r\n", "\n")
    start, *frames = re.split(r"^(?=[ \t]*\d+[ \t]*$)", text, flags=re.MULTILINE)
    if start.strip():
        raise FlowllmError(f"{path}: does not begin with a number of atoms")
    for number, frame in enumerate(frames):
        yield UnparsedSample(_name_of(frame, number), partial(_from_frame, frame))


def _name_of(frame: str, number: int) -> str:
    """Return the id or name in a frame's second line, or its number."""
    comment = frame.split("\n", 2)[1] if "\n" in frame else ""
    found = _NAME.search(comment)
    if found is None:
        return f"frame {number}"
    try:
        return str(json.loads(found[1]))
    except ValueError:
        return found[1].strip('"')


def _from_frame(text: str) -> Crystal:
    from ase.io import extxyz

    head, _, *lines = [*text.rstrip().split("\n"), ""]
    atoms = [line for line in map(str.strip, lines) if line and not line.startswith("VEC")]
    if len(atoms) != int(head):
        raise FlowllmError(f"a frame of {int(head)} atoms has {len(atoms)} lines of atoms")
    try:
        frame = next(extxyz.read_xyz(io.StringIO(text), 0))
    except KeyError as error:
        raise FlowllmError(f"no element or column {error}") from error
    if frame.cell.rank < 3:
        raise FlowllmError("a frame without a Lattice of three vectors")
    return crystal_from_vectors(
        frame.numbers, frame.get_scaled_positions(wrap=False), frame.cell.array
    )
