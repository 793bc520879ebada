"""Structures as text other than CIF: JSON, Python's dictionaries and POSCAR, parsed as data."""

import ast
import json
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

from pymatgen.core import Structure
from pymatgen.io.vasp.inputs import Poscar

from flowllm.errors import FlowllmError

MAX_NOTATION = 1 << 22
"""Characters per structure in Python's notation, whose syntax tree takes 50 times the memory."""


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dictionary from the pairs of a JSON object. json itself keeps the last of two values.

    Raises:
        FlowllmError: a key is given twice.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise FlowllmError(f"the key {twice!r} is given twice in one JSON object")
    return values


def read_notation(text: str) -> dict[str, Any]:
    """Read a dictionary in JSON's or in Python's notation (`str` of a dictionary).

    Raises:
        FlowllmError: the text is neither, or is too long.
    """
    try:
        values = json.loads(text, object_pairs_hook=unique_keys)
    except ValueError:
        values = _read_python(text)
    if not isinstance(values, dict):
        raise FlowllmError(f"a {type(values).__name__}, not a dictionary")
    return values


class _Numbers(ast.NodeTransformer):
    """Replacement of the names that `str` of a dictionary writes for non-finite numbers."""

    def visit_Name(self, node: ast.Name) -> ast.AST:  # ast calls it by this name
        return ast.Constant({"nan": math.nan, "inf": math.inf}[node.id])


def _read_python(text: str) -> object:
    if len(text) > MAX_NOTATION:
        raise FlowllmError(
            f"a dictionary of {len(text):,} characters that is not JSON; limit {MAX_NOTATION:,}"
        )
    try:
        # literal_eval builds plain values only; it refuses any remaining name or call.
        return ast.literal_eval(_Numbers().visit(ast.parse(text.strip(), mode="eval")))
    except KeyError as error:
        raise FlowllmError(
            f"the name {error} in a dictionary, which is neither JSON nor Python's "
            "notation of plain values"
        ) from error
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        kind = type(error).__name__
        raise FlowllmError(f"a dictionary that is neither JSON nor Python's ({kind})") from error


def read_poscar(text: str) -> Structure:
    """Read a POSCAR or CONTCAR.

    Raises:
        FlowllmError: the text does not name its elements, has fewer lines than atoms, or has a
            scale that is not a number.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if len(lines) < 8:
        raise FlowllmError(f"a POSCAR of {len(lines)} lines, at least 8 are needed")
    _check_counts(lines)
    lines[1] = _positive_scale(lines)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        poscar = Poscar.from_str("\n".join(lines), read_velocities=False)
    if not poscar.true_names:
        raise FlowllmError(
            "a POSCAR that does not name its elements (VASP 4); add the line of symbols before "
            "the numbers of atoms"
        )
    return poscar.structure


def _check_counts(lines: Sequence[str]) -> None:
    """Refuse numbers of atoms that are not one per symbol, or larger than the number of lines.

    Symbols and numbers may take several lines, the same number of each. pymatgen drops symbols
    without a number.
    """
    first = next((i for i, line in enumerate(lines[:16]) if i >= 5 and _is_counts(line)), None)
    if first is None:
        raise FlowllmError("a POSCAR without a line of the numbers of atoms")
    symbols = " ".join(lines[5:first]).split()
    counts = " ".join(lines[first : first + max(first - 5, 1)]).split()
    if symbols and len(symbols) != len(counts):
        raise FlowllmError(f"a POSCAR of {len(symbols)} symbols has {len(counts)} numbers of atoms")
    atoms = sum(int(one) for one in counts if _is_counts(one))
    if atoms > len(lines):
        raise FlowllmError(f"a POSCAR of {atoms} atoms has {len(lines)} lines")


def _is_counts(line: str) -> bool:
    words = line.partition("!")[0].split()
    return bool(words) and all(re.fullmatch(r"[0-9]{1,18}", word) for word in words)


def _positive_scale(lines: Sequence[str]) -> str:
    """Return the scale of lengths as text. A negative number in a POSCAR is a volume, angstrom^3.

    pymatgen would multiply Cartesian coordinates by the volume itself.
    """
    try:
        scale = float(lines[1])
        rows = [[float(number) for number in line.split()[:3]] for line in lines[2:5]]
        (a, b, c), (d, e, f), (g, h, i) = rows
    except ValueError as error:
        raise FlowllmError(
            f"a POSCAR whose scale or lattice vectors are not numbers ({error})"
        ) from error
    volume = abs(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))
    if scale == 0 or volume == 0 or not math.isfinite(scale * volume):
        raise FlowllmError("a POSCAR whose cell has no volume")
    return lines[1] if scale > 0 else repr((-scale / volume) ** (1 / 3))
