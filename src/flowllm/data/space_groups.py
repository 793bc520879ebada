"""Space groups by what CIFs call them: the 530 settings of Hall's table, as spglib lists them.

Hall, Acta Cryst. A37, 517 (1981); International Tables B (2010), table A1.4.2.7. A method has
fixed axes and a fixed origin, so its operations are known; a name may belong to several.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import spglib

_ALL = range(1, 531)
"""Numbers of the settings."""

_CUBIC_WITH_CENTER = (*range(200, 207), *range(221, 231))

_OLD_NAMES = {
    **dict(enumerate(("Abm2", "Bma2", "B2cm", "C2mb", "Cm2a", "Ac2m"), 191)),
    **dict(enumerate(("Aba2", "Bba2", "B2cb", "C2cb", "Cc2a", "Ac2a"), 203)),
    **dict(enumerate(("Cmca", "Ccmb", "Abma", "Acam", "Bbcm", "Bmab"), 304)),
    **dict(enumerate(("Cmma", "Cmmb", "Abmm", "Acmm", "Bmcm", "Bmam"), 316)),
    **dict(enumerate(("Ccca", "Ccca", "Cccb", "Cccb", "Abaa", "Abaa"), 322)),
    **dict(enumerate(("Acaa", "Acaa", "Bbcb", "Bbcb", "Bbab", "Bbab"), 328)),
}
"""Names by number of the method from before the glide plane e (de Wolff et al., Acta Cryst. A48,
727 (1992))."""

_WITH_SUFFIX = re.compile(r"(?P<name>.+?)(?::(?P<code>.+)|o(?P<origin>[12])|(?P<letter>[hrsz]))")

_OF_ICSD = {"s": "1", "z": "2"}
"""The ICSD's letters for the first origin choice, and for the one at a center of symmetry."""


@dataclass(frozen=True)
class Operations:
    """Symmetry operations x' = R x + t of m elements on fractional coordinates.

    Attributes:
        rotations: int (m, 3, 3).
        translations: float (m, 3), in [0, 1).
    """

    rotations: np.ndarray
    translations: np.ndarray

    def __len__(self) -> int:
        """Return the number of operations."""
        return len(self.rotations)


@cache
def operations_of(method: int) -> Operations:
    """Return the operations of a method, a number from 1 to 530."""
    found = spglib.get_symmetry_from_database(method)
    return Operations(found["rotations"].astype(int), found["translations"] % 1)


def number_of(method: int) -> int:
    """Return the number of the space group that a method is one of."""
    return _type(method).number


def settings_of_number(number: int) -> frozenset[int]:
    """Return the settings of a space group's number."""
    return frozenset(one for one in _ALL if number_of(one) == number)


def settings_of_hall(symbol: str) -> frozenset[int]:
    """Return the method of a Hall symbol; none where the table does not have the symbol."""
    return _by_hall().get(_plain_hall(symbol), frozenset())


def settings_of_schoenflies(symbol: str) -> frozenset[int]:
    """Return the settings of a space group's Schoenflies symbol; none where it is unknown."""
    return _by_schoenflies().get(_plain(symbol), frozenset())


def settings_of_choice(choice: str) -> frozenset[int]:
    """Return the settings with a code of axes or origin, such as `b1`, `2`, `H` or `cab`."""
    wanted = {"abc": ""}.get(choice.lower(), choice.lower())
    return frozenset(one for one in _ALL if _choice(one) == wanted)


def settings_of_name(name: str) -> tuple[frozenset[int], ...]:
    """Return the settings of a Hermann-Mauguin symbol, full or short, old or new.

    Spaces, underscores and parentheses do not matter. A suffix chooses among settings: `:2`, `O2`,
    `:H` or `H`, `:b1`, or ICSD's `S` and `Z`.

    Returns:
        Sets of settings, of which the first that fits the cell is meant: a short monoclinic symbol
        has the unique axis b, then c, then a. No set where the name is unknown.
    """
    plain = _plain(name)
    if plain in _by_name():
        return _by_name()[plain]
    match = _WITH_SUFFIX.fullmatch(plain)
    if match is None or match["name"] not in _by_name():
        return ()
    suffix = next(one for one in match.group("code", "origin", "letter") if one)
    chosen = settings_of_choice(_OF_ICSD.get(suffix, suffix))
    return tuple(one & chosen for one in _by_name()[match["name"]] if one & chosen)


def _plain_hall(symbol: str) -> str:
    """Return a Hall symbol with single spaces: P 3 2 is another group than P 32."""
    return " ".join(symbol.replace("_", " ").lower().split())


def _plain(name: str) -> str:
    """Return a symbol without what its spellings differ in."""
    for minus in "\u2212\u2013\u00af":
        name = name.replace(minus, "-")
    return re.sub(r"[\s_()'\"]", "", name).lower()


@cache
def _type(method: int) -> spglib.SpaceGroupType:
    return spglib.get_spacegroup_type(method)


def _choice(method: int) -> str:
    return _type(method).choice.lower()


@cache
def _by_hall() -> dict[str, frozenset[int]]:
    return _sets((_plain_hall(_type(one).hall_symbol), one) for one in _ALL)


@cache
def _by_schoenflies() -> dict[str, frozenset[int]]:
    return _sets((_plain(_type(one).schoenflies), one) for one in _ALL)


@cache
def _by_name() -> dict[str, tuple[frozenset[int], ...]]:
    """Give each name the settings that it says exactly; short ones of monoclinic groups by axis."""
    exact = _sets((name, one) for one in _ALL for name in _names(one))
    names = {name: (settings,) for name, settings in exact.items()}
    for axis in "bca":
        of_axis = [one for one in _ALL if _is_monoclinic(one) and _choice(one).startswith(axis)]
        short = _sets((_without_ones(one), one) for one in of_axis)
        for name in short.keys() - exact.keys():
            names[name] = (*names.get(name, ()), short[name])
    return names


def _names(method: int) -> set[str]:
    """Return the names that fix the axes of a method."""
    found = _type(method)
    # The first of spglib's names of a monoclinic method is its group's, whatever the axes.
    names = found.international.split("=")[1 if _is_monoclinic(method) else 0 :]
    plain = {_plain(name) for name in (*names, found.international_full)}
    if method in _OLD_NAMES:
        plain.add(_plain(_OLD_NAMES[method]))
    if found.number in _CUBIC_WITH_CENTER:
        # Before 1983 the bar was left out: Fm3m.
        plain |= {name.replace("-3", "3") for name in plain}
    return plain


def _is_monoclinic(method: int) -> bool:
    return 3 <= number_of(method) <= 15


def _without_ones(method: int) -> str:
    """Return the short symbol of a monoclinic method: P 1 21/c 1 is P 21/c."""
    lattice, *axes = _type(method).international_full.split()
    return _plain(lattice + "".join(one for one in axes if one != "1"))


def _sets(pairs: Iterable[tuple[str, int]]) -> dict[str, frozenset[int]]:
    sets: dict[str, frozenset[int]] = {}
    for name, method in pairs:
        sets[name] = sets.get(name, frozenset()) | {method}
    return sets
