"""Grammars that restrict generated texts to the form of the symmetric text.

They are context-free grammars in the notation of xgrammar (EBNF), since the alternatives of 230
groups share their parts. A grammar fixes the number of a group, the number of cell parameters that
its system has, the names of its sites, fixed coordinates, and coordinates that depend on another
one (x, 2x). With given atoms it also fixes the sum of the orbits of each element. Not enforced are
distances, and that a site without free coordinates is used once; decoding rejects such texts.
"""

import re
from collections.abc import Iterator, Sequence
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


def symmetric_grammar(elements: Sequence[int], max_atoms: int, max_length: int) -> str:
    """Return the grammar of all symmetric texts within the given limits.

    Args:
        elements: atomic numbers that may occur.
        max_atoms: maximum number of atoms per primitive cell; bounds the number of orbits.
        max_length: integer part of the longest conventional lattice vector in angstrom, 1 to 99.
    """
    symbols = " | ".join(f'"{element_symbol(z)}"' for z in sorted(elements))
    rules, roots = [f"symbol ::= {symbols}"], []
    for group in _groups():
        sites = " | ".join(rule for _, rule in site_rules(group))
        most = max_atoms // min(site.num_atoms for site in group.sites.values())
        if most == 0:
            continue
        name = f"g{group.number}"
        rules.append(f'{name}_site ::= "\\n" symbol " " ({sites})')
        rules.append(f"{name} ::= {_header(group)} {name}_site{{1,{most}}}")
        roots.append(name)
    return whole_grammar(" | ".join(roots), rules, max_length)


def symmetric_cell_grammar(atomic_numbers: Sequence[int], max_length: int) -> str:
    """Return the grammar of symmetric texts with exactly these atoms, element by element.

    Args:
        atomic_numbers: atomic number of each atom of the primitive cell; equal neighbors are the
            atoms of one or several orbits.
        max_length: integer part of the longest conventional lattice vector in angstrom, 1 to 99.
    """
    runs = [(int(z), len(list(run))) for z, run in groupby(atomic_numbers)]
    rules, roots = [], []
    for group in _groups():
        made = list(run_rules(group, runs))
        if made:
            roots.append(f"g{group.number}")
            rules += made
    return whole_grammar(" | ".join(roots), rules, max_length)


def _groups() -> Iterator[SpaceGroup]:
    """Yield all space groups."""
    yield from (space_group(number) for number in range(1, NUM_GROUPS + 1))


def run_rules(group: SpaceGroup, runs: Sequence[tuple[int, int]]) -> Iterator[str]:
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
            yield f'{name}_{run}_{left} ::= "\\n{element_symbol(z)} " ({" | ".join(parts)})'
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
