"""Grammars that restrict generated texts to the form of the symmetric text.

A text is drawn in two pieces, so that each grammar is small: a grammar of all 230 groups takes
seconds to compile. The first is a regular expression of the line of the group. The second, a
context-free grammar in the notation of xgrammar (EBNF), describes the rest of a text of that group.
It fixes the number of cell parameters, the names of the sites, fixed coordinates, and coordinates
that depend on another one (x, 2x). With given atoms it also fixes the sum of the orbits of each
element, and how many sites without free coordinates are used; without, the number of atoms is
limited. Not enforced are distances, and that no such site is used twice (`llm.orbit_lines`).
"""

import re
from collections.abc import Collection, Iterator, Sequence
from functools import cache

from flowllm.data.wyckoff import (
    FREE_PARAMETERS,
    NUM_GROUPS,
    Site,
    SpaceGroup,
    parse_position,
    space_group,
)
from flowllm.llm.orbit_sums import OrbitSums, State, kind_of, possible_groups, runs_of
from flowllm.llm.text_parts import coordinate, element_symbol

_LENGTHS = 3

_STEPS = 100
"""Values of a coordinate with two decimal places."""

_TWICE = re.compile(r"([xyz]).*\1")

_ANGLES = {"monoclinic": "beta", "triclinic": "angle"}

Orbits = list[tuple[str, Site]]
"""Symbol and site of each orbit."""


def symmetric_grammar(
    elements: Collection[int],
    max_atoms: int,
    max_length: int,
    written: str = "",
    *,
    num_atoms: int | None = None,
    group: int | None = None,
) -> str:
    """Return the form of the next piece of a symmetric text within the given limits.

    Args:
        elements: atomic numbers that may occur.
        max_atoms: maximum number of atoms per primitive cell.
        max_length: integer part of the longest conventional lattice vector in angstrom, 1 to 99.
        written: lines that the text has already, with their line breaks.
        num_atoms: number of atoms per primitive cell, None for any.
        group: number of the only space group, None for all.
    """
    shared = [f"symbol ::= {' | '.join(map(_quoted_symbol, sorted(elements)))}"]
    if num_atoms is not None:
        return _sums_grammar((num_atoms,), ["symbol"], shared, max_length, written, group)
    if not written:
        numbers = range(1, NUM_GROUPS + 1) if group is None else [group]
        return _group_line([n for n in numbers if _smallest(space_group(n)) <= max_atoms])
    lines = written.split("\n")[:-1]
    return _limited_grammar(space_group(int(lines[0])), lines, max_atoms, shared, max_length)


def symmetric_cell_grammar(
    atomic_numbers: Sequence[int], max_length: int, written: str = "", *, group: int | None = None
) -> str:
    """Return the form of the next piece of a text with exactly these atoms, element by element.

    Args:
        atomic_numbers: atomic number of each atom of the primitive cell; equal neighbors are the
            atoms of one or several orbits.
        max_length: integer part of the longest conventional lattice vector in angstrom, 1 to 99.
        written: lines that the text has already, with their line breaks.
        group: number of the only space group, None for all.
    """
    runs = runs_of(atomic_numbers)
    counts = tuple(count for _, count in runs)
    symbols = [_quoted_symbol(z) for z, _ in runs]
    return _sums_grammar(counts, symbols, [], max_length, written, group)


def _limited_grammar(
    group: SpaceGroup,
    lines: Sequence[str],
    max_atoms: int,
    shared: Sequence[str],
    max_length: int,
) -> str:
    """Return the grammar of the rest of a text with at most a number of atoms."""
    smallest = _smallest(group)
    rules = [*shared]
    for left in range(smallest, max_atoms + 1):
        sites = [site for site in group.sites.values() if site.num_atoms <= left]
        parts = [f"{_terms(one)}{_up_to(left - one.num_atoms, smallest)}" for one in sites]
        rules.append(f'up_{left} ::= "\\n" symbol " " ({" | ".join(parts)})')
    if len(lines) == 1:
        return _whole_grammar(f"{_cell_terms(group)} up_{max_atoms}", rules, max_length)
    orbits, site = _orbits(group, lines)
    left = max_atoms - sum(one.num_atoms for _, one in orbits)
    if site is not None:
        root = f"{_position_rule(site.position)}{_up_to(left - site.num_atoms, smallest)}"
        return _whole_grammar(root, rules, max_length)
    fitting = [one for one in group.sites.values() if one.num_atoms <= left]
    parts = [
        f"{_terms(one)}{_up_to(left - one.num_atoms, smallest)}"
        for one in _unused(orbits, fitting or list(group.sites.values()))
    ]
    return _whole_grammar(f'symbol " " ({" | ".join(parts)})', rules, max_length)


def _sums_grammar(
    counts: tuple[int, ...],
    symbols: Sequence[str],
    shared: Sequence[str],
    max_length: int,
    written: str,
    only: int | None,
) -> str:
    """Return the form of the next piece of a text with given numbers of atoms.

    Args:
        counts: number of atoms of each element, in the order of the text.
        symbols: term of the symbol of each element.
        shared: rules of these terms.
        max_length: as in `symmetric_grammar`.
        written: as in `symmetric_grammar`.
        only: as `group` in `symmetric_grammar`.
    """
    if not written:
        return _group_line([n for n in possible_groups(counts) if only in (None, n)])
    lines = written.split("\n")[:-1]
    group = space_group(int(lines[0]))
    sums = OrbitSums(group, counts)
    orbits, site = _orbits(group, lines)
    state: State | None = sums.start
    for _, orbit in orbits:
        state = state and sums.after(state, kind_of(orbit))
    if state is None:
        raise ValueError(f"no text with these atoms begins with {written!r}")

    def following(one: Site) -> str | None:
        """Return what follows an orbit after the written ones; None if no text has it here."""
        after = sums.after(state, kind_of(one))
        return None if after is None else _state_name(sums, after)

    rules = [*shared, *_state_rules(group, sums, symbols, state)]
    if len(lines) == 1:
        root = f"{_cell_terms(group)}{_state_name(sums, state)}"
    elif site is not None:
        root = f"{_position_rule(site.position)}{following(site) or ''}"
    else:
        possible = [one for one in group.sites.values() if following(one) is not None]
        parts = [f"{_terms(one)}{following(one)}" for one in _unused(orbits, possible)]
        root = f'{symbols[state[0]]} " " ({" | ".join(parts)})'
    return _whole_grammar(root, rules, max_length)


def _group_line(numbers: Sequence[int]) -> str:
    """Return the regular expression of the first line, for groups that are possible."""
    return rf"({'|'.join(map(str, numbers))})\n"


def _smallest(group: SpaceGroup) -> int:
    """Return the number of atoms of the smallest orbit."""
    return min(site.num_atoms for site in group.sites.values())


def _up_to(left: int, smallest: int) -> str:
    """Return the terms after an orbit that leaves room for a number of atoms."""
    return f" up_{left}?" if left >= smallest else ""


def _quoted_symbol(z: int) -> str:
    """Return the term of an element's symbol."""
    return f'"{element_symbol(z)}"'


def _state_name(sums: OrbitSums, state: State) -> str:
    """Return the term for the rest of a text from a state on."""
    if sums.is_end(state):
        return ""
    run, left, fixed = state
    return " rest_" + "_".join(map(str, [run, left, *fixed]))


def _state_rules(
    group: SpaceGroup, sums: OrbitSums, symbols: Sequence[str], start: State
) -> Iterator[str]:
    """Yield the rules of the kinds of sites, and of all states from one on."""
    for size, is_free in sums.kinds:
        sites = [one for one in group.sites.values() if kind_of(one) == (size, is_free)]
        yield f"s_{size}_{int(is_free)} ::= {' | '.join(map(_terms, sites))}"
    for state in sums.reachable(start):
        parts = [
            f"s_{kind[0]}_{int(kind[1])}{_state_name(sums, after)}"
            for kind in sums.kinds
            if (after := sums.after(state, kind)) is not None
        ]
        name = _state_name(sums, state).strip()
        yield f'{name} ::= "\\n" {symbols[state[0]]} " " ({" | ".join(parts)})'


def _orbits(group: SpaceGroup, lines: Sequence[str]) -> tuple[Orbits, Site | None]:
    """Return the complete orbits of a text, and the site of one without coordinates, if any."""
    labels = [line.split() for line in lines[2::2]]
    orbits = [(symbol, group.sites[label]) for symbol, label in labels]
    if len(lines) > 1 and len(lines) % 2:
        return orbits[:-1], orbits[-1][1]
    return orbits, None


def _unused(orbits: Orbits, sites: Sequence[Site]) -> Sequence[Site]:
    """Return the sites that an orbit can have without being on the points of another one."""
    used = {site.label for _, site in orbits if not site.has_freedom}
    return [site for site in sites if site.label not in used] or sites


def _terms(site: Site) -> str:
    """Return the terms of a site's name and coordinates."""
    return f'"{site.label}\\n" {_position_rule(site.position)}'


def _cell_terms(group: SpaceGroup) -> str:
    """Return the terms of the line of a group's cell."""
    angle = _ANGLES.get(group.system, "")
    free = FREE_PARAMETERS[group.system]
    terms = ["length" if place < _LENGTHS else angle for place in free]
    return ' " " '.join(terms)


def _position_rule(position: str) -> str:
    """Return the name of the rule of a position such as `x,2x,z`."""
    plain = position.replace("/", "o").replace("+", "p").replace("-", "m").replace(",", "_")
    return f"at_{plain}"


@cache
def _position(position: str) -> str:
    """Return the rule of a position; coordinates of one free parameter are listed together."""
    linear, constant = parse_position(position)
    repeated = _TWICE.search(position)
    if repeated is None:
        parts = [
            "free" if linear[row].any() else f'"{coordinate(constant[row])}"' for row in range(3)
        ]
        return f"{_position_rule(position)} ::= " + ' " " '.join(parts)
    axis = "xyz".index(repeated[1])
    lines = []
    for step in range(_STEPS):
        parts = []
        for row in range(3):
            if linear[row].any() and not linear[row, axis]:
                parts.append("free")
            else:
                value = linear[row, axis] * step / _STEPS + constant[row]
                parts.append(f'"{coordinate(round(value, 4))}"')
        lines.append(' " " '.join(parts))
    return f"{_position_rule(position)} ::= " + " | ".join(lines).replace('" " " "', " ")


def _whole_grammar(root: str, rules: Sequence[str], max_length: int) -> str:
    """Return a grammar with the rules of positions and numbers that it uses.

    Args:
        root: terms of the whole text.
        rules: the other rules.
        max_length: as in `symmetric_grammar`.
    """
    positions = _positions()
    used = sorted(set(re.findall(r"\bat_\w+", "\n".join([root, *rules]))))
    lengths = [f'"{length}"' for length in range(1, max_length + 1)]
    shared = [
        f'length ::= ({" | ".join(lengths)}) "." [0-9]',
        'beta ::= "9" [0-9] | "1" [0-5] [0-9]',
        'angle ::= "6" [0-9] | [7-9] [0-9] | "10" [0-9] | "11" [0-9] | "120"',
        'free ::= "0." [0-9] [0-9]',
    ]
    every = [f"root ::= {root}", *rules, *(_position(positions[name]) for name in used), *shared]
    return "\n".join(every) + "\n"


@cache
def _positions() -> dict[str, str]:
    """Return the first positions of all sites by the names of their rules."""
    groups = map(space_group, range(1, NUM_GROUPS + 1))
    sites = [site for group in groups for site in group.sites.values()]
    return {_position_rule(site.position): site.position for site in sites}
