"""Sums of orbits: which orbits can follow in a symmetric text that has to have given atoms."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby

from flowllm.data.wyckoff import NUM_GROUPS, Site, SpaceGroup, space_group

Kind = tuple[int, bool]
"""Kind of a site: its number of atoms in the primitive cell, and whether a coordinate is free."""

State = tuple[int, int, tuple[int, ...]]
"""Element, its atoms that are left, and the unused sites without freedom, by their size."""


def kind_of(site: Site) -> Kind:
    """Return the kind of a site."""
    return site.num_atoms, site.has_freedom


def runs_of(atomic_numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return each run of equal atomic numbers with its length."""
    return [(int(z), len(list(run))) for z, run in groupby(atomic_numbers)]


class OrbitSums:
    """States of a text of one group between its orbits, element by element.

    A site without free coordinates holds one orbit only, so that a state has their number. Which of
    the sites of one size are used is not part of it.

    Attributes:
        start: state before the first orbit.
        kinds: kinds of the group's sites, in order.
    """

    def __init__(self, group: SpaceGroup, counts: Sequence[int]) -> None:
        """Start a text.

        Args:
            group: space group.
            counts: number of atoms of each element, in the order of the text.
        """
        sites = group.sites.values()
        fixed = Counter(site.num_atoms for site in sites if not site.has_freedom)
        self._counts, self._sizes = tuple(counts), sorted(fixed)
        self.kinds = sorted({kind_of(site) for site in sites})
        # More than all atoms can use do not matter.
        most = tuple(min(fixed[size], sum(counts) // size) for size in self._sizes)
        self.start: State = (0, self._counts[0], most)
        self._can_end: dict[State, bool] = {}

    def after(self, state: State, kind: Kind) -> State | None:
        """Return the state after an orbit, or None if the text cannot be completed then."""
        run, left, fixed = state
        size, is_free = kind
        if self.is_end(state) or size > left:
            return None
        if not is_free:
            place = self._sizes.index(size)
            if not fixed[place]:
                return None
            fixed = (*fixed[:place], fixed[place] - 1, *fixed[place + 1 :])
        if size == left:
            run += 1
            left = size + self._counts[run] if run < len(self._counts) else size
        following = run, left - size, fixed
        return following if self.can_end(following) else None

    def is_end(self, state: State) -> bool:
        """Return whether all atoms are in the text."""
        return state[0] == len(self._counts)

    def can_end(self, state: State) -> bool:
        """Return whether a text can be completed from a state."""
        if state not in self._can_end:
            following = (self.after(state, kind) for kind in self.kinds)
            self._can_end[state] = self.is_end(state) or any(one is not None for one in following)
        return self._can_end[state]

    def reachable(self, state: State) -> Iterator[State]:
        """Yield a state and all that can follow it, each once, without the end."""
        found, waiting = {state}, [state]
        while waiting:
            current = waiting.pop()
            if self.is_end(current):
                continue
            yield current
            for kind in self.kinds:
                following = self.after(current, kind)
                if following is not None and following not in found:
                    found.add(following)
                    waiting.append(following)


@cache
def possible_groups(counts: tuple[int, ...]) -> tuple[int, ...]:
    """Return the groups whose orbits can add up to numbers of atoms of elements."""
    sums = ((number, OrbitSums(space_group(number), counts)) for number in range(1, NUM_GROUPS + 1))
    return tuple(number for number, one in sums if one.can_end(one.start))
