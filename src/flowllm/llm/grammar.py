"""Regular expressions that restrict generated texts to the form of crystal text.

With structured decoding, the engine allows only tokens that continue a match. This changes the
model's distribution and is therefore optional. Numbers are bounded so that every match has a cell
like those of the training crystals: lengths from 1 angstrom to the longest length of the training
crystals, and angles from 60 to 120 degrees that span a volume, as in Niggli-reduced cells. Two
atoms may still have the same coordinates; decoding rejects such texts.
"""

from collections.abc import Collection, Sequence
from itertools import groupby

from flowllm.llm.text_parts import element_symbol

_61_TO_119 = "6[1-9]|[7-9][0-9]|1[01][0-9]"
_60_TO_119 = "60|" + _61_TO_119
_COORDINATE = r"0\.[0-9][0-9]"


def crystal_regex(
    elements: Collection[int],
    max_atoms: int,
    max_length: int,
    written: str = "",
    *,
    num_atoms: int | None = None,
) -> str:
    """Return the expression that matches every crystal text within the given limits.

    Args:
        elements: atomic numbers that may occur.
        max_atoms: maximum number of atoms per cell.
        max_length: integer part of the longest lattice vector in angstrom, 1 to 99.
        written: lines that the text has already; the expression matches what follows them.
        num_atoms: number of atoms of the cell, None for any.
    """
    fewest, most = (1, max_atoms) if num_atoms is None else (num_atoms, num_atoms)
    symbol = f"({'|'.join(element_symbol(z) for z in sorted(elements))})"
    atom = rf"(\n{symbol}\n{_three(_COORDINATE)})"
    lines = written.count("\n")
    if lines < 2:
        return rf"{_lattice(max_length, lines)}{atom}{{{fewest},{most}}}"
    begun = lines // 2
    return rf"{_rest_of_atom(symbol, lines)}{atom}{{{max(0, fewest - begun)},{most - begun}}}"


def cell_regex(atomic_numbers: Sequence[int], max_length: int, written: str = "") -> str:
    """Return the expression that matches crystal texts with exactly these atoms in this order.

    Args:
        atomic_numbers: atomic number of each atom.
        max_length: integer part of the longest lattice vector in angstrom, 1 to 99.
        written: lines that the text has already; the expression matches what follows them.
    """
    numbers = [int(z) for z in atomic_numbers]
    lines = written.count("\n")
    if lines < 2:
        parts = [_lattice(max_length, lines)]
    else:
        atom = lines // 2 - 1
        parts = [_rest_of_atom(element_symbol(numbers[atom]), lines)]
        numbers = numbers[atom + 1 :]
    for z, run in groupby(numbers):
        atoms = rf"(\n{element_symbol(z)}\n{_three(_COORDINATE)})"
        parts.append(rf"{atoms}{{{len(list(run))}}}")
    return "".join(parts)


def _lattice(max_length: int, lines: int) -> str:
    """Return the expression of the lines of lengths and angles, or of the second one alone."""
    length = rf"({_whole_numbers(max_length)})\.[0-9]"
    return rf"({_angles()})" if lines else rf"{_three(length)}\n({_angles()})"


def _rest_of_atom(symbol: str, lines: int) -> str:
    """Return the expression of an atom's lines, or of the second one after an odd number."""
    coordinates = _three(_COORDINATE)
    return coordinates if lines % 2 else rf"{symbol}\n{coordinates}"


def _angles() -> str:
    """Return the expression of three angles that span a volume.

    Of all triples of whole degrees from 60 to 120, only (120, 120, 120) and the permutations of
    (60, 60, 120) span none.
    """
    low, any_below = f"({_61_TO_119})", f"({_60_TO_119})"
    triples = [[any_below] * 3]
    for place in range(3):
        for others in ([any_below, low], [low, "60"]):
            triples.append([*others[:place], "120", *others[place:]])
        triples.append(["120"] * place + [any_below] + ["120"] * (2 - place))
    return "|".join(" ".join(triple) for triple in triples)


def _whole_numbers(last: int) -> str:
    """Return the expression of the whole numbers from 1 to `last`, which is at most 99."""
    if last < 10:
        return f"[1-{last}]"
    tens, ones = divmod(last, 10)
    full_tens = f"|[1-{tens - 1}][0-9]" if tens > 1 else ""
    return f"[1-9]{full_tens}|{tens}[0-{ones}]"


def _three(number: str) -> str:
    """Return the expression of three numbers separated by spaces."""
    return " ".join([number] * 3)
