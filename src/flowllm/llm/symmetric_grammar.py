"""Grammars that restrict generated texts to the form of the symmetric text.

They are context-free grammars in the notation of xgrammar (EBNF), since the alternatives of 230
groups share their parts. A grammar fixes the number of a group, the number of cell parameters that
its system has, the names of its sites, fixed coordinates, and coordinates that depend on another
one (x, 2x). With given atoms it also fixes the sum of the orbits of each element. Not enforced are
distances, and that a site without free coordinates is used once; decoding rejects such texts.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from itertools import groupby

from flowllm.data.wyckoff import (
    FREE_PARAMETERS,
    NUM_GROUPS,
    SpaceGroup,
    parse_position,
    space_group,
)
from flowllm.llm.text_parts import coordinate, element_symbol

_LENGTHS = 3

_STEPS = 100
"""Values of a coordinate with two decimal places."""

_TWICE = re.compile(r"([xyz]).*\1")

_ANGLES = {"monoclinic": "beta", "triclinic": "angle"}


Runs = Sequence[tuple[int | None, int]]
"""Numbers of atoms by element, in the order of a text; None is any element of the rule symbol."""


def symmetric_grammar(
    elements: Collection[int],
    max_atoms: int,
    max_length: int,
    num_atoms: int | None = None,
    group: int | None = None,
) -> str:
    """Return the grammar of all symmetric texts within the given limits.

    Args:
        elements: atomic numbers that may occur.
        max_atoms: maximum number of atoms per primitive cell; bounds the number of orbits.
        max_length: integer part of the longest conventional lattice vector in angstrom, 1 to 99.
        num_atoms: number of atoms per primitive cell, None for any.
        group: number of the only space group, None for all.
    """
    rules, roots = [symbol_rule(elements)], []
    for one in _groups(group):
        name = f"g{one.number}"
        if num_atoms is None:
            made = _free_rules(one, max_atoms)
        else:
            made = list(run_rules(one, [(None, num_atoms)]))
        if made:
            roots.append(name)
            rules += made
    return whole_grammar(" | ".join(roots), rules, max_length)


def symbol_rule(elements: Collection[int]) -> str:
    """Return the rule of an element's symbol."""
    symbols = " | ".join(f'"{element_symbol(z)}"' for z in sorted(elements))
    return f"symbol ::= {symbols}"


def _free_rules(group: SpaceGroup, max_atoms: int) -> list[str]:
    """Return the rules of a group for any orbits; none where each has too many atoms."""
    sites = " | ".join(rule for _, rule in site_rules(group))
    most = max_atoms // min(site.num_atoms for site in group.sites.values())
    if most == 0:
        return []
    name = f"g{group.number}"
    return [
        f'{name}_site ::= "\\n" symbol " " ({sites})',
        f"{name} ::= {_header(group)} {name}_site{{1,{most}}}",
    ]


def symmetric_cell_grammar(
    atomic_numbers: Sequence[int], max_length: int, group: int | None = None
) -> str:
    """Return the grammar of symmetric texts with exactly these atoms, element by element.

    Args:
        atomic_numbers: atomic number of each atom of the primitive cell; equal neighbors are the
            atoms of one or several orbits.
        max_length: integer part of the longest conventional lattice vector in angstrom, 1 to 99.
        group: number of the only space group, None for all.
    """
    runs = [(int(z), len(list(run))) for z, run in groupby(atomic_numbers)]
    rules, roots = [], []
    for one in _groups(group):
        made = list(run_rules(one, runs))
        if made:
            roots.append(f"g{one.number}")
            rules += made
    return whole_grammar(" | ".join(roots), rules, max_length)


def _groups(only: int | None = None) -> Iterator[SpaceGroup]:
    """Yield all space groups, or the only one."""
    numbers = range(1, NUM_GROUPS + 1) if only is None else [only]
    yield from (space_group(number) for number in numbers)


def group_has_atoms(group: int, count: int) -> bool:
    """Return whether orbits of a group can add up to a number of atoms per primitive cell."""
    sizes = {site.num_atoms for site in space_group(group).sites.values()}
    return count in _sums(tuple(sorted(sizes)), count)


def label_term(z: int | None) -> str:
    """Return the term of an element's symbol with the space behind it."""
    return 'symbol " "' if z is None else f'"{element_symbol(z)} "'


def run_rules(group: SpaceGroup, runs: Runs) -> Iterator[str]:
    """Yield the rules of a group for elements with numbers of atoms; none where that is impossible.

    Rule g{group}_{run}_{left} matches the rest of a text in which `left` atoms of the element and
    all atoms of later ones are left.
    """
    by_size: dict[int, list[str]] = {}
    for size, rule in site_rules(group):
        by_size.setdefault(size, []).append(rule)
    possible = _sums(tuple(by_size), max(count for _, count in runs))
    if not all(count in possible for _, count in runs):
        return
    name = f"g{group.number}"
    for size, rules in by_size.items():
        yield f"{name}_s{size} ::= {' | '.join(rules)}"
    for run, (z, count) in enumerate(runs):
        following = f" {name}_{run + 1}_{runs[run + 1][1]}" if run + 1 < len(runs) else ""
        for left in range(1, count + 1):
            if left not in possible or count - left not in possible:
                continue
            parts = []
            for size in by_size:
                if left - size in possible:
                    rest = f" {name}_{run}_{left - size}" if left > size else following
                    parts.append(f"{name}_s{size}{rest}")
            yield f'{name}_{run}_{left} ::= "\\n" {label_term(z)} ({" | ".join(parts)})'
    yield f"{name} ::= {_header(group)} {name}_0_{runs[0][1]}"


@cache
def _sums(sizes: tuple[int, ...], largest: int) -> frozenset[int]:
    """Return the sums of sizes up to a largest one, 0 included."""
    sums = {0}
    for total in range(1, largest + 1):
        if any(total - size in sums for size in sizes):
            sums.add(total)
    return frozenset(sums)


def _header(group: SpaceGroup) -> str:
    """Return the terms of the two lines of a group."""
    return f'"{group.number}\\n" {cell_terms(group)}'


def cell_terms(group: SpaceGroup) -> str:
    """Return the terms of the line of a group's cell."""
    angle = _ANGLES.get(group.system, "")
    free = FREE_PARAMETERS[group.system]
    terms = ["length" if place < _LENGTHS else angle for place in free]
    return ' " " '.join(terms)


def site_rules(group: SpaceGroup) -> Iterator[tuple[int, str]]:
    """Yield the number of atoms and the terms of each site: its name and its coordinates."""
    for label, site in group.sites.items():
        yield site.num_atoms, f'"{label}\\n" {position_rule(site.position)}'


def position_rule(position: str) -> str:
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
        return f"{position_rule(position)} ::= " + ' " " '.join(parts)
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
    return f"{position_rule(position)} ::= " + " | ".join(lines).replace('" " " "', " ")


def whole_grammar(root: str, rules: Sequence[str], max_length: int) -> str:
    """Return a grammar with the parts that all groups share.

    Args:
        root: terms of the whole text.
        rules: the other rules.
        max_length: as in `symmetric_grammar`.
    """
    used = set(re.findall(r"\bat_\w+", "\n".join([root, *rules])))
    positions = sorted(
        {
            site.position
            for group in _groups()
            for site in group.sites.values()
            if position_rule(site.position) in used
        }
    )
    lengths = [f'"{length}"' for length in range(1, max_length + 1)]
    shared = [
        f'length ::= ({" | ".join(lengths)}) "." [0-9]',
        'beta ::= "9" [0-9] | "1" [0-5] [0-9]',
        'angle ::= "6" [0-9] | [7-9] [0-9] | "10" [0-9] | "11" [0-9] | "120"',
        'free ::= "0." [0-9] [0-9]',
    ]
    return "\n".join([f"root ::= {root}", *rules, *map(_position, positions), *shared]) + "\n"
