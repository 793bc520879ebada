"""The protocol of crystal texts: what the language model reads and generates.

There are two texts: `coordinates` (`llm.text`, the paper's) and `symmetric` (`llm.symmetric_text`).
Both begin with two lines for the whole crystal. Two lines per site follow: the element's symbol, in
the symmetric text with the name of the site, and three coordinates. A site is one atom in the text
of coordinates, and one orbit of the space group in the symmetric text.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

import numpy as np
from pymatgen.core import Lattice

from flowllm.crystal import Crystal, cell_formula
from flowllm.data.symmetry_operations import Operations
from flowllm.llm.apart import LineCheck
from flowllm.llm.periodic_points import PeriodicPoints

HEADER_LINES = 2
"""Lines before the first site."""

MAX_LENGTH = 1000.0
"""Upper limit of lengths in angstrom. Longer cells of a few atoms are not crystals, and much longer
ones would overflow float32."""


class Reason(StrEnum):
    """Reasons why a text is not the requested crystal."""

    TRUNCATED = "truncated"
    WRONG_COUNT = "wrong_count"
    BAD_NUMBER = "bad_number"
    UNKNOWN_ELEMENT = "unknown_element"
    UNKNOWN_GROUP = "unknown_group"
    CELL_MISMATCH = "cell_mismatch"
    UNKNOWN_SITE = "unknown_site"
    WRONG_MULTIPLICITY = "wrong_multiplicity"
    TOO_MANY_ATOMS = "too_many_atoms"
    NONPHYSICAL_LATTICE = "nonphysical_lattice"
    FORMULA_MISMATCH = "formula_mismatch"
    COINCIDING_ATOMS = "coinciding_atoms"
    CLOSE_ATOMS = "close_atoms"
    ATOMS_MISMATCH = "atoms_mismatch"
    ELEMENTS_MISMATCH = "elements_mismatch"
    GROUP_MISMATCH = "group_mismatch"


EXHAUSTED = "exhausted"
"""Status of a crystal for which all drafts were rejected."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Reason why a text is not the requested crystal, with details.

    Attributes:
        reason: name of the reason.
        detail: description with the line and its content.
    """

    reason: Reason
    detail: str


class RejectedTextError(Exception):
    """Rejection of a text while it is decoded."""

    def __init__(self, reason: Reason, detail: str) -> None:
        """Store the rejection."""
        super().__init__(detail)
        self.rejection = Rejection(reason, detail)


@dataclass(frozen=True)
class SiteText:
    """The two lines of one site.

    Attributes:
        atomic_number: element.
        num_atoms: number of atoms of the site in the primitive cell.
        label: first line, the symbol (and the name of the site).
        coords: second line, three coordinates.
    """

    atomic_number: int
    num_atoms: int
    label: str
    coords: str


@dataclass(frozen=True)
class Description:
    """A crystal as lines of text, whose sites can be put into another order.

    Attributes:
        header: the two lines of the whole crystal.
        sites: the sites, in the order of the text.
        longest: longest lattice vector that is written, angstrom.
    """

    header: tuple[str, str]
    sites: tuple[SiteText, ...]
    longest: float

    @property
    def text(self) -> str:
        """The crystal text."""
        lines = [*self.header]
        for site in self.sites:
            lines += [site.label, site.coords]
        return "\n".join(lines)

    @property
    def atomic_numbers(self) -> np.ndarray:
        """Atomic number of each atom of the decoded crystal, uint8 (n,), in its order."""
        numbers = [site.atomic_number for site in self.sites]
        return np.repeat(numbers, [site.num_atoms for site in self.sites]).astype(np.uint8)

    def shuffled(self, rng: np.random.Generator) -> "Description":
        """Put the sites into a random order; all orders have the same probability."""
        order = rng.permutation(len(self.sites))
        return replace(self, sites=tuple(self.sites[i] for i in order))

    def hidden(self, atomic_number: int, mask: str) -> "Description":
        """Replace the symbol of an element by a word at all its sites."""
        sites = [
            replace(site, label=" ".join([mask, *site.label.split()[1:]]))
            if site.atomic_number == atomic_number
            else site
            for site in self.sites
        ]
        return replace(self, sites=tuple(sites))


@dataclass(frozen=True)
class Limits:
    """What a text must fulfill besides its form.

    Attributes:
        max_atoms: maximum number of atoms per primitive cell.
        composition: required number of atoms per primitive cell by atomic number, None for any.
        reject_close_atoms: whether texts with two atoms at one point are rejected.
        min_distance: smallest distance between two atoms in angstrom, None for any.
    """

    max_atoms: int
    composition: Mapping[int, int] | None = None
    reject_close_atoms: bool = True
    min_distance: float | None = None


@dataclass(frozen=True)
class Decoded:
    """The crystal of a text.

    Attributes:
        crystal: the crystal.
        operations: exact operations of its space group on its fractional coordinates, without
            translations of the lattice; None if the text names no group.
        group: number of the space group that the text names, None if it names none.
    """

    crystal: Crystal
    operations: Operations | None = None
    group: int | None = None


def composition_of(atomic_numbers: np.ndarray) -> dict[int, int]:
    """Return the number of atoms by atomic number, in ascending order of atomic number."""
    numbers, counts = np.unique(atomic_numbers, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def check_composition(atomic_numbers: np.ndarray, composition: Mapping[int, int] | None) -> None:
    """Reject atoms that are not those of the required composition, if there is one.

    Raises:
        RejectedTextError: formula_mismatch.
    """
    if composition is not None and composition_of(atomic_numbers) != dict(composition):
        asked = cell_formula(np.repeat(list(composition), list(composition.values())))
        detail = f"{cell_formula(atomic_numbers)}, asked for {asked}"
        raise RejectedTextError(Reason.FORMULA_MISMATCH, detail)


def check_lengths(lengths: Sequence[float]) -> None:
    """Reject lengths (angstrom) that are not those of a cell.

    Raises:
        RejectedTextError: nonphysical_lattice.
    """
    if min(lengths) <= 0 or max(lengths) >= MAX_LENGTH:
        detail = f"lengths {list(lengths)} are not all between 0 and {MAX_LENGTH:.0f} angstrom"
        raise RejectedTextError(Reason.NONPHYSICAL_LATTICE, detail)


def check_distances(crystal: Crystal, limits: Limits, coinciding: float = 0.0) -> None:
    """Reject a crystal with atoms nearer than the limits allow, periodic images included.

    Args:
        crystal: the crystal.
        limits: its `reject_close_atoms` and `min_distance`.
        coinciding: distance up to which atoms are at one point, angstrom; 0: not checked.

    Raises:
        RejectedTextError: coinciding_atoms or close_atoms.
    """
    is_checked = limits.reject_close_atoms and coinciding > 0
    if not is_checked and limits.min_distance is None:
        return
    lattice = Lattice.from_parameters(*crystal.lengths.tolist(), *crystal.angles.tolist())
    coords = crystal.frac_coords.astype(np.float64)
    if is_checked and not PeriodicPoints(lattice, coinciding).add(coords):
        detail = f"atoms are nearer than {coinciding:g} angstrom to each other"
        raise RejectedTextError(Reason.COINCIDING_ATOMS, detail)
    if limits.min_distance is not None:
        points = PeriodicPoints(lattice, limits.min_distance)
        for atom, point in enumerate(coords):
            if not points.add(point[None]):
                near = f"{limits.min_distance:g} angstrom to another one or to an image"
                raise RejectedTextError(
                    Reason.CLOSE_ATOMS, f"atom {atom + 1} is nearer than {near}"
                )


class CrystalText(Protocol):
    """One kind of crystal text.

    Attributes:
        first_lines: number of lines that are drawn first and alone where the form of a text is
            given, since the form of the rest depends on them; 0 if it does not.
    """

    first_lines: int

    def describe(self, crystal: Crystal) -> Description:
        """Return the lines of a crystal.

        Raises:
            FlowllmError: the crystal has no such text.
        """
        ...

    def decode(self, text: str, limits: Limits) -> Decoded | Rejection:
        """Return the crystal of a text, or the first reason why it is rejected.

        No text raises an error.
        """
        ...

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
        """Return the regular expression or grammar of the next piece of texts within the limits.

        It describes the `first_lines` if nothing is written, otherwise all of the rest. A grammar
        is in the notation of xgrammar (EBNF) and begins with the rule root.

        Args:
            elements: atomic numbers that may occur.
            max_atoms: maximum number of atoms per primitive cell.
            max_length: integer part of the longest lattice vector in angstrom, 1 to 99.
            written: lines that the text has already, with their line breaks.
            num_atoms: number of atoms that the texts must have, None for any.
            group: number of the only space group, None for any; a text without groups ignores it.
        """
        ...

    def cell_grammar(
        self,
        atomic_numbers: Sequence[int],
        max_length: int,
        written: str = "",
        *,
        group: int | None = None,
    ) -> str:
        """Return what `grammar` returns for texts with these atoms, in this order.

        Args:
            atomic_numbers: atomic number of each atom of the primitive cell.
            max_length: integer part of the longest lattice vector in angstrom, 1 to 99.
            written: lines that the text has already, with their line breaks.
            group: number of the only space group, None for any; a text without groups ignores it.
        """
        ...

    def line_check(self, min_distance: float) -> LineCheck:
        """Return the check of a new text (`llm.apart`).

        Args:
            min_distance: minimum distance of two atoms, or of an atom and its image, in angstrom.
        """
        ...

    def every_line(self) -> str:
        """Return lines of text with every number, symbol and site that can occur."""
        ...

    def longest_header(self) -> str:
        """Return the two lines of a crystal with the most characters, and a line break."""
        ...

    def longest_sites(self, elements: Sequence[int]) -> list[str]:
        """Return two lines of sites, among them that with the most tokens, with line breaks."""
        ...
