"""The protocol of crystal texts: what the language model reads and generates.

There are two texts: `coordinates` (`llm.text`, the paper's) and `symmetric` (`llm.symmetric_text`).
Both begin with two lines for the whole crystal. Two lines per site follow: the element's symbol, in
the symmetric text with the name of the site, and three coordinates. A site is one atom in the text
of coordinates, and one orbit of the space group in the symmetric text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

import numpy as np

from flowllm.crystal import Crystal
from flowllm.data.symmetry_operations import Operations

HEADER_LINES = 2
"""Lines before the first site."""


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
    """

    header: tuple[str, str]
    sites: tuple[SiteText, ...]

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
    """

    crystal: Crystal
    operations: Operations | None = None


class CrystalText(Protocol):
    """One kind of crystal text."""

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

    def grammar(self, elements: Sequence[int], max_atoms: int, max_length: int) -> str:
        """Return the regular expression of all texts within the limits.

        Args:
            elements: atomic numbers that may occur.
            max_atoms: maximum number of atoms per primitive cell.
            max_length: integer part of the longest lattice vector in angstrom, 1 to 99.
        """
        ...

    def cell_grammar(self, atomic_numbers: Sequence[int], max_length: int) -> str:
        """Return the regular expression of texts with these atoms, in this order of elements.

        Args:
            atomic_numbers: atomic number of each atom of the primitive cell.
            max_length: integer part of the longest lattice vector in angstrom, 1 to 99.
        """
        ...

    def every_line(self) -> str:
        """Return lines of text with every number, symbol and site that can occur."""
        ...

    def longest_header(self) -> str:
        """Return the two lines of a crystal with the most characters, and a line break."""
        ...

    def longest_site(self, symbol: str) -> str:
        """Return the two lines of an element's site with the most characters, with line breaks."""
        ...
