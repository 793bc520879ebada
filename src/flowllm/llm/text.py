"""Crystal text: the representation of a crystal that the language model reads and generates.

Line 1 has the three lengths in angstrom with one decimal place, line 2 the three angles in whole
degrees. Two lines per atom follow: the symbol of its element, and its fractional coordinates with
two decimal places (paper, section 4.1)::

    5.6 5.6 5.6
    90 90 90
    Na
    0.00 0.00 0.00
    Cl
    0.50 0.50 0.50

Decoding a generated text returns either a crystal or a rejection with one reason. One of the
reasons does not concern the form and can be turned off: two atoms at the same point. A model with
little training repeats lines of coordinates, and the flow, which is equivariant under permutations,
cannot separate two atoms of one element that start at the same point. The paper's protocol does not
reject such texts.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from flowllm.crystal import MAX_ATOMIC_NUMBER, Crystal, lattice_has_volume
from flowllm.llm.apart import LineCheck
from flowllm.llm.coordinate_lines import CoordinateLines
from flowllm.llm.crystal_text import (
    Decoded,
    Description,
    Limits,
    Reason,
    RejectedTextError,
    Rejection,
    SiteText,
    check_composition,
    check_distances,
    check_lengths,
)
from flowllm.llm.grammar import cell_regex, crystal_regex
from flowllm.llm.text_parts import coordinate, element_of, element_symbol, numbers_of_line

MAX_LENGTH_WRITTEN = 100
"""Lengths below this value in angstrom are in `CoordinatesText.every_line`. Cells of few atoms are
shorter."""


class CoordinatesText:
    """The text of coordinates; see `crystal_text.CrystalText`."""

    first_lines = 0

    def describe(self, crystal: Crystal) -> Description:
        """Return the lines of a crystal; the order of its atoms is kept.

        Numbers are rounded from the exact value of the stored float32 (ties to even) and never
        truncated. Rounded coordinates stay in [0, 1): 0.996 is written as 0.00, which is the
        nearest point of the torus.
        """
        lengths = " ".join(f"{length:.1f}" for length in crystal.lengths.tolist())
        angles = " ".join(f"{angle:.0f}" for angle in crystal.angles.tolist())
        atoms = zip(crystal.atomic_numbers.tolist(), crystal.frac_coords.tolist(), strict=True)
        sites = [
            SiteText(number, 1, element_symbol(number), " ".join(map(coordinate, coords)))
            for number, coords in atoms
        ]
        return Description((lengths, angles), tuple(sites), float(crystal.lengths.max()))

    def decode(self, text: str, limits: Limits) -> Decoded | Rejection:
        """Return the crystal of a text, or the reason of its rejection; see `decode`."""
        decoded = decode(
            text,
            max_atoms=limits.max_atoms,
            composition=limits.composition,
            reject_close_atoms=limits.reject_close_atoms,
            min_distance=limits.min_distance,
        )
        return decoded if isinstance(decoded, Rejection) else Decoded(decoded)

    def grammar(
        self,
        elements: Collection[int],
        max_atoms: int,
        max_length: int,
        written: str = "",
        *,
        num_atoms: int | None = None,
        group: int | None = None,
    ) -> str:
        """Return the regular expression of all texts within the limits, or of their rest."""
        del group  # the text names none
        return crystal_regex(elements, max_atoms, max_length, written, num_atoms=num_atoms)

    def cell_grammar(
        self,
        atomic_numbers: Sequence[int],
        max_length: int,
        written: str = "",
        *,
        group: int | None = None,
    ) -> str:
        """Return the regular expression of texts with these atoms in this order, or of the rest."""
        del group
        return cell_regex(atomic_numbers, max_length, written)

    def line_check(self, min_distance: float) -> LineCheck:
        """Return the check of a new text."""
        return CoordinateLines(min_distance)

    def every_line(self) -> str:
        """Return lines with every number and symbol that can occur."""
        numbers = [
            *(f"{tenths / 10:.1f}" for tenths in range(10 * MAX_LENGTH_WRITTEN)),
            *(str(degrees) for degrees in range(181)),
            *(f"0.{hundredths:02d}" for hundredths in range(100)),
        ]
        lines = [" ".join([number] * 3) for number in numbers]
        atoms = [f"{element_symbol(z)}\n{lines[-1]}" for z in range(1, MAX_ATOMIC_NUMBER + 1)]
        return "\n".join([*lines, *atoms])

    def longest_header(self) -> str:
        """Return the two lines of a crystal with the most characters, and a line break."""
        return "100.0 100.0 100.0\n120 120 120\n"

    def longest_sites(self, elements: Sequence[int]) -> list[str]:
        """Return the two lines of an atom of each element, with line breaks."""
        return [f"{element_symbol(z)}\n0.00 0.00 0.00\n" for z in elements]


def encode(crystal: Crystal) -> str:
    """Return the text of a crystal; see `CoordinatesText.describe`."""
    return CoordinatesText().describe(crystal).text


def decode(
    text: str,
    *,
    max_atoms: int,
    composition: Mapping[int, int] | None = None,
    reject_close_atoms: bool = True,
    min_distance: float | None = None,
) -> Crystal | Rejection:
    """Return the crystal of a text, or the reason why it is rejected. No text raises an error.

    Spaces around lines are ignored, and coordinates outside [0, 1) are wrapped. Angles must be
    between 0 and 180 degrees and span a positive volume; the narrower interval of the flow is not
    checked here.

    Args:
        text: generated text without its end token.
        max_atoms: maximum number of atoms per cell.
        composition: required number of atoms per cell by atomic number, None for any.
        reject_close_atoms: whether texts with two atoms at one point are rejected.
        min_distance: smallest distance between two atoms in angstrom, None for any.

    Returns:
        The crystal, or the first reason in this order: number of lines or values, numbers,
        elements, number of atoms, lattice, formula, coinciding atoms, close atoms.
    """
    try:
        crystal = _decode(text, max_atoms, composition)
        if reject_close_atoms:
            _check_coinciding_atoms(crystal.frac_coords)
        check_distances(crystal, Limits(max_atoms, min_distance=min_distance))
    except RejectedTextError as error:
        return error.rejection
    return crystal


def _decode(text: str, max_atoms: int, composition: Mapping[int, int] | None) -> Crystal:
    """Return the crystal of a text.

    Raises:
        RejectedTextError: the text is not the requested crystal.
    """
    lines = text.strip().split("\n")
    if len(lines) < 4 or len(lines) % 2:
        detail = f"{len(lines)} lines, expected 2 and 2 for each atom"
        raise RejectedTextError(Reason.WRONG_COUNT, detail)
    lengths = numbers_of_line(lines, 0, 3)
    angles = numbers_of_line(lines, 1, 3)
    coords = [numbers_of_line(lines, line, 3) for line in range(3, len(lines), 2)]
    numbers = [element_of(lines[line].strip(), line) for line in range(2, len(lines), 2)]
    if len(numbers) > max_atoms:
        detail = f"{len(numbers)} atoms, at most {max_atoms} are allowed"
        raise RejectedTextError(Reason.TOO_MANY_ATOMS, detail)
    check_lengths(lengths)
    if not lattice_has_volume(np.asarray(angles)):
        raise RejectedTextError(Reason.NONPHYSICAL_LATTICE, f"angles {angles} span no volume")
    crystal = Crystal.from_arrays(numbers, coords, lengths, angles)
    check_composition(crystal.atomic_numbers, composition)
    return crystal


def _check_coinciding_atoms(frac_coords: np.ndarray) -> None:
    """Reject two atoms with the same wrapped coordinates (n, 3)."""
    _, first, counts = np.unique(frac_coords, axis=0, return_index=True, return_counts=True)
    if counts.max() > 1:
        atom = int(first[counts.argmax()]) + 1
        detail = f"{counts.max()} atoms at the point of atom {atom}"
        raise RejectedTextError(Reason.COINCIDING_ATOMS, detail)
