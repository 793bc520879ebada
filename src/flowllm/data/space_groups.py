"""Space groups by the names that CIFs give them: the 530 settings of Hall's table, from spglib.

Hall, Acta Cryst. A37, 517 (1981); International Tables B (2010), table A1.4.2.7. A setting has
fixed axes and a fixed origin, so its operations are known; a name may belong to several settings.
"""

import re
from collections.abc import Iterable
from functools import cache

import spglib

from flowllm.data.symmetry_operations import Operations

_ALL = range(1, 531)
"""Numbers of the settings in Hall's table."""

_CUBIC_WITH_CENTER = (*range(200, 207), *range(221, 231))

_OLD_NAMES = {
    **dict(enumerate(("Abm2", "Bma2", "B2cm", "C2mb", "Cm2a", "Ac2m"), 191)),
    **dict(enumerate(("Aba2", "Bba2", "B2cb", "C2cb", "Cc2a", "Ac2a"), 203)),
    **dict(enumerate(("Cmca", "Ccmb", "Abma", "Acam", "Bbcm", "Bmab"), 304)),
    **dict(enumerate(("Cmma", "Cmmb", "Abmm", "Acmm", "Bmcm", "Bmam"), 316)),
    **dict(enumerate(("Ccca", "Ccca", "Cccb", "Cccb", "Abaa", "Abaa"), 322)),
    **dict(enumerate(("Acaa", "Acaa", "Bbcb", "Bbcb", "Bbab", "Bbab"), 328)),
}
"""Names by setting from before the glide plane e (de Wolff et al., Acta Cryst. A48, 727 (1992))."""

_WITH_SUFFIX = re.compile(r"(?P<name>.+?)(?::(?P<code>.+)|o(?P<origin>[12])|(?P<letter>[hrsz]))")

_OF_ICSD = {"s": "1", "z": "2"}
"""The ICSD's letters for the first origin choice, and for the one at a center of symmetry."""


@cache
def operations_of(setting: int) -> Operations:
    """Return the operations of a setting, a number from 1 to 530."""
    found = spglib.get_symmetry_from_database(setting)
    if found is None:
        raise ValueError(f"setting {setting}, expected 1 to 530")
    return Operations(found["rotations"].astype(int), found["translations"] % 1)


def number_of(setting: int) -> int:
    """Return the number of the space group that a setting belongs to."""
    return _type(setting).number


def lattice_letter(setting: int) -> str:
    """Return the letter of a setting's lattice, e.g. P or F; R has hexagonal or its own axes."""
    return _type(setting).international_full[0]


def settings_of_number(number: int) -> frozenset[int]:
    """Return the settings of a space group's number."""
    return frozenset(one for one in _ALL if number_of(one) == number)


def settings_of_hall(symbol: str) -> frozenset[int]:
    """Return the setting of a Hall symbol, an empty set where the table does not have it."""
    return _by_hall().get(_plain_hall(symbol), frozenset())


def settings_of_schoenflies(symbol: str) -> frozenset[int]:
    """Return the settings of a Schoenflies symbol, an empty set where it is unknown."""
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
        Sets of settings in order of preference; the first set with a setting that fits the cell
        is meant. A short monoclinic symbol has the unique axis b, then c, then a. Empty where the
        name is unknown.
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
    """Return a symbol in lower case, without spaces and punctuation, and with ASCII minus signs."""
    for minus in "\u2212\u2013\u00af":
        name = name.replace(minus, "-")
    return re.sub(r"[\s_()'\"]", "", name).lower()


@cache
def _type(setting: int) -> spglib.SpaceGroupType:
    found = spglib.get_spacegroup_type(setting)
    if found is None:
        raise ValueError(f"setting {setting}, expected 1 to 530")
    return found


def _choice(setting: int) -> str:
    return _type(setting).choice.lower()


@cache
def _by_hall() -> dict[str, frozenset[int]]:
    return _sets((_plain_hall(_type(one).hall_symbol), one) for one in _ALL)


@cache
def _by_schoenflies() -> dict[str, frozenset[int]]:
    return _sets((_plain(_type(one).schoenflies), one) for one in _ALL)


@cache
def _by_name() -> dict[str, tuple[frozenset[int], ...]]:
    """Map full names to settings, and short monoclinic names to one set per unique axis."""
    exact = _sets((name, one) for one in _ALL for name in _names(one))
    names: dict[str, tuple[frozenset[int], ...]] = {
        name: (settings,) for name, settings in exact.items()
    }
    for axis in "bca":
        of_axis = [one for one in _ALL if _is_monoclinic(one) and _choice(one).startswith(axis)]
        short = _sets((_without_ones(one), one) for one in of_axis)
        for name in short.keys() - exact.keys():
            names[name] = (*names.get(name, ()), short[name])
    return names


def _names(setting: int) -> set[str]:
    """Return the names that fix the axes of a setting."""
    found = _type(setting)
    # spglib's first name of a monoclinic setting is that of the group, whatever the axes.
    names = found.international.split("=")[1 if _is_monoclinic(setting) else 0 :]
    plain = {_plain(name) for name in (*names, found.international_full)}
    if setting in _OLD_NAMES:
        plain.add(_plain(_OLD_NAMES[setting]))
    if found.number in _CUBIC_WITH_CENTER:
        # Until 1983 these names had no bar: Fm3m.
        plain |= {name.replace("-3", "3") for name in plain}
    return plain


def _is_monoclinic(setting: int) -> bool:
    return 3 <= number_of(setting) <= 15


def _without_ones(setting: int) -> str:
    """Return the short symbol of a monoclinic setting: P 21/c for P 1 21/c 1."""
    lattice, *axes = _type(setting).international_full.split()
    return _plain(lattice + "".join(one for one in axes if one != "1"))


def _sets(pairs: Iterable[tuple[str, int]]) -> dict[str, frozenset[int]]:
    sets: dict[str, frozenset[int]] = {}
    for name, setting in pairs:
        sets[name] = sets.get(name, frozenset()) | {setting}
    return sets
