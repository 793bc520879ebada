"""Grammars of the rest of a symmetric text, some lines of which are written.

They have the rules of one group only. A site without free coordinates that is used already is left
out at the next orbit, since its atoms would coincide, unless there is no other site.
"""

from collections.abc import Collection, Sequence
from itertools import groupby

from flowllm.data.wyckoff import Site, SpaceGroup, space_group
from flowllm.llm.symmetric_grammar import (
    Runs,
    cell_terms,
    label_term,
    position_rule,
    run_rules,
    site_rules,
    symbol_rule,
    whole_grammar,
)

Orbits = list[tuple[str, Site]]
"""Symbol and site of each orbit."""


def rest_grammar(
    elements: Collection[int],
    max_atoms: int,
    max_length: int,
    written: str,
    num_atoms: int | None = None,
) -> str:
    """Return the grammar of what follows written lines in texts of `symmetric_grammar`."""
    if num_atoms is not None:
        return _rest_of_runs([(None, num_atoms)], [symbol_rule(elements)], max_length, written)
    lines = written.split("\n")[:-1]
    group = space_group(int(lines[0]))
    name = f"g{group.number}"
    sites = " | ".join(rule for _, rule in site_rules(group))
    rules = [symbol_rule(elements), f'{name}_site ::= "\\n" symbol " " ({sites})']
    most = max_atoms // min(site.num_atoms for site in group.sites.values())
    if len(lines) == 1:
        return whole_grammar(f"{cell_terms(group)} {name}_site{{1,{most}}}", rules, max_length)
    orbits, site = _orbits(group, lines)
    left = max(0, most - len(orbits) - 1)
    if site is not None:
        first = position_rule(site.position)
    else:
        following = _next_sites(orbits, list(group.sites.values()))
        first = f'symbol " " ({" | ".join(map(_terms, following))})'
    return whole_grammar(f"{first} {name}_site{{0,{left}}}", rules, max_length)


def rest_of_cell_grammar(atomic_numbers: Sequence[int], max_length: int, written: str) -> str:
    """Return the grammar of what follows written lines in texts of `symmetric_cell_grammar`."""
    runs = [(int(z), len(list(run))) for z, run in groupby(atomic_numbers)]
    return _rest_of_runs(runs, [], max_length, written)


def _rest_of_runs(runs: Runs, shared: Sequence[str], max_length: int, written: str) -> str:
    """Return the grammar of what follows written lines in texts with given numbers of atoms."""
    lines = written.split("\n")[:-1]
    group = space_group(int(lines[0]))
    rules = [*shared, *run_rules(group, runs)]
    name = f"g{group.number}"
    if len(lines) == 1:
        return whole_grammar(f"{cell_terms(group)} {name}_0_{runs[0][1]}", rules, max_length)
    orbits, site = _orbits(group, lines)
    done = sum(orbit.num_atoms for _, orbit in orbits)
    run = 0
    while done >= runs[run][1]:
        done -= runs[run][1]
        run += 1
    left = runs[run][1] - done
    rest = {rule.split(" ::= ")[0] for rule in rules}

    def following(size: int) -> str | None:
        """Return the rule after an orbit of a size; None if no text has it here."""
        if size == left:
            return f"{name}_{run + 1}_{runs[run + 1][1]}" if run + 1 < len(runs) else ""
        after = f"{name}_{run}_{left - size}"
        return after if after in rest else None

    if site is not None:
        root = f"{position_rule(site.position)} {following(site.num_atoms) or ''}"
    else:
        possible = [one for one in group.sites.values() if following(one.num_atoms) is not None]
        parts = [
            f"{_terms(one)} {following(one.num_atoms)}" for one in _next_sites(orbits, possible)
        ]
        root = f"{label_term(runs[run][0])} ({' | '.join(parts)})"
    return whole_grammar(root, rules, max_length)


def _orbits(group: SpaceGroup, lines: Sequence[str]) -> tuple[Orbits, Site | None]:
    """Return the complete orbits of a text, and the site of one without coordinates, if any."""
    labels = [line.split() for line in lines[2::2]]
    orbits = [(symbol, group.sites[label]) for symbol, label in labels]
    if len(lines) % 2:
        return orbits[:-1], orbits[-1][1]
    return orbits, None


def _next_sites(orbits: Orbits, sites: Sequence[Site]) -> Sequence[Site]:
    """Return the sites that an orbit can have without being on the points of another one."""
    used = {site.label for _, site in orbits if not site.has_freedom}
    return [site for site in sites if site.label not in used] or sites


def _terms(site: Site) -> str:
    """Return the terms of a site's name and coordinates."""
    return f'"{site.label}\\n" {position_rule(site.position)}'
