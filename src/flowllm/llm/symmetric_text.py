"""Symmetric crystal text: the space group, its conventional cell, and one atom per orbit.

Line 1 is the number of the space group. Line 2 has the free parameters of the conventional cell:
lengths in angstrom with one decimal place, then angles in whole degrees. Two lines per orbit
follow: the element's symbol with the site (multiplicity and letter), and the fractional coordinates
of the representative with two decimal places. Rutile is::

    136
    4.6 3.0
    Ti 2a
    0.00 0.00 0.00
    O 4f
    0.31 0.31 0.00

The setting is spglib's standard one (`data.wyckoff`). Decoding moves each representative onto its
site, which removes the rounding of fixed coordinates (1/3 is written 0.33), takes the orbit by the
group's operations, and the primitive cell by the centering of its lattice. The crystal therefore
has the group that the text names, or a supergroup of it, and its operations are known exactly.
"""

from collections.abc import Collection, Sequence

import numpy as np

from flowllm.crystal import MAX_ATOMIC_NUMBER, Crystal, lattice_has_volume
from flowllm.data.standard_cell import (
    NoDescriptionError,
    Orbit,
    StandardCrystal,
    describe,
    expand,
)
from flowllm.data.standard_frame import cell_words
from flowllm.data.wyckoff import FREE_PARAMETERS, NUM_GROUPS, Site, SpaceGroup, space_group
from flowllm.errors import FlowllmError
from flowllm.llm.apart import LineCheck
from flowllm.llm.crystal_text import (
    HEADER_LINES,
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
from flowllm.llm.orbit_lines import OrbitLines
from flowllm.llm.symmetric_grammar import symmetric_cell_grammar, symmetric_grammar
from flowllm.llm.text_parts import (
    coordinate,
    element_of,
    element_symbol,
    excerpt,
    numbers_of_line,
)

_COINCIDING = 0.01
"""Angstrom. Atoms of two orbits on one point are nearer; their coordinates differ by rounding."""

_NUMBERS = range(1, NUM_GROUPS + 1)


class SymmetricText:
    """The symmetric text; see `crystal_text.CrystalText`."""

    first_lines = 1

    def describe(self, crystal: Crystal) -> Description:
        """Return the lines of a crystal in a primitive cell.

        Raises:
            FlowllmError: the crystal has no description in a standard setting.
        """
        try:
            standard = describe(crystal)
        except NoDescriptionError as error:
            raise FlowllmError(
                f"{crystal.formula} has no symmetric text: {error}. Prepare the crystals with "
                "prepare.cell: standard."
            ) from error
        return lines_of(standard)

    def decode(self, text: str, limits: Limits) -> Decoded | Rejection:
        """Return the crystal of a text with its operations, or the reason of its rejection.

        The first reason in this order is returned: number of lines or values, numbers, group, cell,
        elements, names of sites, number of atoms, lattice, formula, points that are not on their
        sites, atoms too near.
        """
        try:
            standard = _standard(text, limits)
            expanded = expand(standard)
            check_distances(expanded.crystal, limits, _COINCIDING)
        except RejectedTextError as error:
            return error.rejection
        except (ValueError, FlowllmError) as error:
            return Rejection(Reason.NONPHYSICAL_LATTICE, str(error))
        return Decoded(expanded.crystal, expanded.operations, standard.group.number)

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
        """Return the form of the first line, or the grammar of the rest within the limits."""
        return symmetric_grammar(
            elements, max_atoms, max_length, written, num_atoms=num_atoms, group=group
        )

    def cell_grammar(
        self,
        atomic_numbers: Sequence[int],
        max_length: int,
        written: str = "",
        *,
        group: int | None = None,
    ) -> str:
        """Return the form of the first line, or the grammar of the rest with these atoms."""
        return symmetric_cell_grammar(atomic_numbers, max_length, written, group=group)

    def line_check(self, min_distance: float) -> LineCheck:
        """Return the check of a new text."""
        return OrbitLines(min_distance)

    def every_line(self) -> str:
        """Return lines with every number, symbol and site that can occur."""
        sites = _labels()
        symbols = [element_symbol(z) for z in range(1, MAX_ATOMIC_NUMBER + 1)]
        lines = [str(number) for number in _NUMBERS]
        lines += [" ".join([f"{tenths / 10:.1f}"] * 3) for tenths in range(1000)]
        lines += [f"1.0 1.0 1.0 {degrees}" for degrees in range(1, 180)]
        lines += [" ".join([f"0.{hundredths:02d}"] * 3) for hundredths in range(100)]
        lines += [f"{symbol} {sites[0]}" for symbol in symbols]
        lines += [f"{symbols[0]} {site}" for site in sites]
        return "\n".join(lines)

    def longest_header(self) -> str:
        """Return the two lines of a triclinic crystal, which has the most characters."""
        return "230\n100.0 100.0 100.0 120 120 120\n"

    def longest_sites(self, elements: Sequence[int]) -> list[str]:
        """Return two lines of an orbit for each element and each multiplicity."""
        by_multiplicity = {label[:-1]: label for label in _labels()}
        return [
            f"{element_symbol(z)} {label}\n0.00 0.00 0.00\n"
            for z in elements
            for label in by_multiplicity.values()
        ]


def _labels() -> list[str]:
    """Return the names of all sites, each once."""
    return sorted({label for number in _NUMBERS for label in space_group(number).sites})


def lines_of(standard: StandardCrystal) -> Description:
    """Return the lines of a description."""
    cell = " ".join(cell_words(standard.group, standard.cell))
    sites = [
        SiteText(
            orbit.atomic_number,
            orbit.site.num_atoms,
            f"{element_symbol(orbit.atomic_number)} {orbit.site.label}",
            " ".join(map(coordinate, orbit.point.tolist())),
        )
        for orbit in standard.orbits
    ]
    longest = float(max(standard.group.cell(standard.cell)[0]))
    return Description((str(standard.group.number), cell), tuple(sites), longest)


def _standard(text: str, limits: Limits) -> StandardCrystal:
    """Return the description that a text gives.

    Raises:
        RejectedTextError: the text is not the requested crystal.
    """
    lines = text.strip().split("\n")
    if len(lines) < HEADER_LINES + 2 or len(lines) % 2:
        detail = f"{len(lines)} lines, expected {HEADER_LINES} and 2 for each orbit"
        raise RejectedTextError(Reason.WRONG_COUNT, detail)
    group = _group(lines)
    cell = _cell(lines, group)
    places = range(HEADER_LINES, len(lines), 2)
    points = [np.array(numbers_of_line(lines, line + 1, 3)) for line in places]
    elements, sites = zip(*(_element_and_site(lines, line, group) for line in places), strict=True)
    counts = [site.num_atoms for site in sites]
    if sum(counts) > limits.max_atoms:
        detail = f"{sum(counts)} atoms, at most {limits.max_atoms} are allowed"
        raise RejectedTextError(Reason.TOO_MANY_ATOMS, detail)
    if not lattice_has_volume(group.cell(cell)[1]):
        raise RejectedTextError(Reason.NONPHYSICAL_LATTICE, f"{lines[1]}: angles span no volume")
    check_composition(np.repeat(elements, counts), limits.composition)
    orbits = [
        Orbit(element, site, _on_site(lines, line, group, site, point))
        for line, element, site, point in zip(places, elements, sites, points, strict=True)
    ]
    return StandardCrystal(group, cell, tuple(orbits))


def _group(lines: Sequence[str]) -> SpaceGroup:
    """Return the space group of line 1."""
    (value,) = numbers_of_line(lines, 0, 1)
    if value not in _NUMBERS:
        detail = f"line 1: {excerpt(lines[0])} is not the number of a space group, 1 to 230"
        raise RejectedTextError(Reason.UNKNOWN_GROUP, detail)
    return space_group(int(value))


def _cell(lines: Sequence[str], group: SpaceGroup) -> np.ndarray:
    """Return the free parameters of the conventional cell in line 2."""
    expected = len(FREE_PARAMETERS[group.system])
    if (count := len(lines[1].split())) != expected:
        detail = (
            f"line 2 has {count} values, but the {group.system} cell of group {group.number} has "
            f"{expected}: {excerpt(lines[1])}"
        )
        raise RejectedTextError(Reason.CELL_MISMATCH, detail)
    cell = np.array(numbers_of_line(lines, 1, expected))
    check_lengths(group.cell(cell)[0].tolist())
    return cell


def _element_and_site(lines: Sequence[str], line: int, group: SpaceGroup) -> tuple[int, Site]:
    """Return the element and the site of a line, which is counted from 0."""
    words = lines[line].split()
    if len(words) != 2:
        detail = f"line {line + 1} has {len(words)} words, expected 2: {excerpt(lines[line])}"
        raise RejectedTextError(Reason.WRONG_COUNT, detail)
    symbol, label = words
    element = element_of(symbol, line)
    if label in group.sites:
        return element, group.sites[label]
    same_letter = [name for name in group.sites if name[-1] == label[-1]]
    reason = Reason.WRONG_MULTIPLICITY if same_letter else Reason.UNKNOWN_SITE
    hint = f", which has {same_letter[0]}" if same_letter else ""
    detail = f"line {line + 1}: {excerpt(label)} is no site of group {group.number}{hint}"
    raise RejectedTextError(reason, detail)


def _on_site(
    lines: Sequence[str], line: int, group: SpaceGroup, site: Site, point: np.ndarray
) -> np.ndarray:
    """Move a representative onto its site; lines are counted from 0."""
    moved = group.on_site(site, point)
    if moved is None:
        detail = f"line {line + 2}: {excerpt(lines[line + 1])} is not on site {site.label}"
        raise RejectedTextError(Reason.WRONG_MULTIPLICITY, detail)
    if (count := len(group.orbit(moved))) != site.num_atoms:
        detail = (
            f"line {line + 2}: {excerpt(lines[line + 1])} has {count} images in the primitive "
            f"cell, but site {site.label} has {site.num_atoms}"
        )
        raise RejectedTextError(Reason.WRONG_MULTIPLICITY, detail)
    return moved
