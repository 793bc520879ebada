"""Which crystals are the same: equivalence classes, novelty, and closeness to the relaxed state.

Two crystals are the same where pymatgen's StructureMatcher says so. It is asked only about pairs
that it could match: of one reduced composition, and with as many atoms in the primitive cell, both
of which it demands itself. Each crystal's primitive, Niggli-reduced cell is found once, not once a
pair. So the answers are exactly the matcher's own on all pairs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError


@dataclass(frozen=True)
class Tolerances:
    """Tolerances of pymatgen's StructureMatcher; primitive cells, scaled to one volume.

    Attributes:
        ltol: of lattice lengths, as a fraction.
        stol: of sites, in units of the cube root of the volume an atom.
        angle_tol: of lattice angles, degrees.
    """

    ltol: float
    stol: float
    angle_tol: float

    def matcher(self) -> StructureMatcher:
        """Return the matcher."""
        return StructureMatcher(**asdict(self), primitive_cell=True, scale=True)


DEFAULT = Tolerances(ltol=0.2, stol=0.3, angle_tol=5)
"""pymatgen's defaults: S.U.N. and, by the paper's text, table 2."""

LOOSE = Tolerances(ltol=0.3, stol=0.5, angle_tol=10)
"""The peers' tolerances of crystal structure prediction; table 2 by the authors' code."""


MAX_POINTS = 200_000
"""Lattice points within reach of a comparison; of 12,000 real and generated crystals the most
elongated has 7,000."""

MAX_PAIRS = 1_000_000
"""Pairs of such points about as long as the two longest edges; 13,000 in the same crystals."""

MAX_EDGE = 10_000.0
"""Angstrom; beyond it pymatgen's grid for the search of lattice points takes hundreds of MB."""

_REACH = 1 + LOOSE.ltol
"""The largest factor by which an edge may differ from another and match it."""


def check_comparable(lattice: Lattice) -> None:
    """Refuse a cell that the matcher would need too much time and memory for.

    It lists all lattice points as far away as the longest edge (at least 1 angstrom), and all pairs
    of points about as long as two edges: for a needle of 0.01 and 1,000 angstrom they take 20 GB.

    Raises:
        FlowllmError: says how elongated the cell is, and the limit.
    """
    reduced = lattice.get_lll_reduced_lattice()
    edges, volume = sorted(reduced.abc), reduced.volume
    points = 4 / 3 * math.pi * max(_REACH * edges[2], 1.0) ** 3 / volume
    shells = [
        4 / 3 * math.pi * (_REACH**3 - _REACH**-3) * edge**3 / volume + 2 for edge in edges[1:]
    ]
    # A comparison with NaN is false.
    if not (points <= MAX_POINTS and math.prod(shells) <= MAX_PAIRS and edges[2] <= MAX_EDGE):
        raise FlowllmError(
            f"edges of {edges[0]:.3g}, {edges[1]:.3g} and {edges[2]:.3g} angstrom: too small, "
            f"too long or too elongated to be compared ({points:.3g} lattice points within reach, "
            f"limit {MAX_POINTS:,})"
        )


class Candidate:
    """A crystal on its way to the matcher, reduced at most once.

    Attributes:
        name: its id.
        reduced: its primitive, Niggli-reduced cell.
    """

    def __init__(self, name: str, crystal: Crystal) -> None:
        """Reduce the crystal as StructureMatcher does before it compares.

        Raises:
            FlowllmError: the cell is too elongated (`check_comparable`).
        """
        self.name = name
        structure = crystal.to_structure()
        check_comparable(structure.lattice)
        self.reduced: Structure = StructureMatcher._get_reduced_structure(structure)
        check_comparable(self.reduced.lattice)
        # Which of two structures is scaled and mapped onto which can decide a border case, so a
        # pair is always given in the order of this key, whatever the order of the rows.
        self.key = (len(self.reduced), crystal.lengths.tolist(), crystal.frac_coords.tolist(), name)

    def matches(self, other: "Candidate", matcher: StructureMatcher) -> bool:
        """Whether the matcher says that the two are the same."""
        first, second = sorted((self, other), key=lambda candidate: candidate.key)
        return first.fits(second, matcher)

    def fits(self, other: "Candidate", matcher: StructureMatcher) -> bool:
        """Whether the matcher maps the other crystal onto this one, in this order."""
        if len(self.reduced) != len(other.reduced):
            return False
        return bool(matcher.fit(self.reduced, other.reduced, skip_structure_reduction=True))


def equivalence_classes(
    candidates: Sequence[Candidate], tolerances: Tolerances = DEFAULT
) -> dict[str, str]:
    """Group candidates of one composition into classes of which a chain of matches joins any two.

    The matcher is not transitive, so that classes by first come, first served would depend on the
    order; chains do not.

    Returns:
        For each candidate's name the smallest name in its class.
    """
    matcher = tolerances.matcher()
    classes: list[list[Candidate]] = []
    for candidate in candidates:
        joined, apart = [candidate], []
        for members in classes:
            if any(candidate.matches(member, matcher) for member in members):
                joined += members
            else:
                apart.append(members)
        classes = [*apart, joined]
    return {
        member.name: min(other.name for other in members)
        for members in classes
        for member in members
    }


def kept_greedily(
    candidates: Sequence[Candidate], tolerances: Tolerances = DEFAULT
) -> frozenset[str]:
    """Return the candidates that remain where each one that is kept removes its direct matches.

    Rule of FlowMM's `scripts_analysis/novelty.py`, which the paper's code uses. The result depends
    on the order, and two of the crystals that remain may be joined by a chain of matches.

    Args:
        candidates: crystals of one composition, in the order of their file.
        tolerances: of the matcher; FlowMM uses the defaults.
    """
    matcher = tolerances.matcher()
    removed: set[str] = set()
    for kept in candidates:
        if kept.name not in removed:
            # The kept crystal is the matcher's first argument, as in that code.
            removed |= {
                other.name
                for other in candidates
                if other is not kept and kept.fits(other, matcher)
            }
    return frozenset(one.name for one in candidates) - removed


def first_match(
    candidate: Candidate, references: Sequence[Candidate], tolerances: Tolerances = DEFAULT
) -> str | None:
    """Return the smallest name among the references that are the same as the candidate."""
    matcher = tolerances.matcher()
    for reference in sorted(references, key=lambda reference: reference.name):
        if candidate.matches(reference, matcher):
            return reference.name
    return None


def rms_distance(first: Crystal, second: Crystal, tolerances: Tolerances) -> float | None:
    """Return the root mean square distance of the atoms of two crystals, None without a match.

    In units of the cube root of the volume an atom, at the best match of the lattices: what
    StructureMatcher.get_rms_dist returns, whose steps these are.

    Raises:
        FlowllmError: a cell is too elongated (`check_comparable`).
    """
    matcher = tolerances.matcher()
    reduced = [Candidate("", crystal).reduced for crystal in (first, second)]
    prepared = matcher._preprocess(
        *matcher._process_species(reduced), skip_structure_reduction=True
    )
    found = matcher._match(*prepared, use_rms=True, break_on_match=False)
    return None if found is None else float(found[0])


def rms_distance_or_error(
    first: Crystal, second: Crystal, tolerances: Tolerances
) -> tuple[float | None, str | None]:
    """Return `rms_distance` and None, or None and why pymatgen could not compare the crystals."""
    try:
        return rms_distance(first, second, tolerances), None
    except Exception as error:  # pymatgen raises many kinds; one crystal must not stop all
        return None, f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Bucket:
    """All crystals of one reduced composition: the unit of parallel work.

    Attributes:
        samples: relaxed crystals by id.
        stable: which of them are stable.
        references: known crystals by id, in named sets (`train`, `val`).
        novelty_sets: names of the sets that decide which of the stable samples are novel.
    """

    samples: Mapping[str, Crystal]
    stable: frozenset[str]
    references: Mapping[str, Mapping[str, Crystal]]
    novelty_sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class BucketMatches:
    """What the matcher says of a bucket.

    Attributes:
        classes: for each sample the smallest id of its equivalence class (paper, appendix D:
            among all generated crystals).
        greedy_sun: the stable and novel samples that `kept_greedily` keeps, in the order of their
            ids, which is that of their draws: S.U.N. by the authors' code.
        known: by set of references, for each sample that is in it the id that it matches.
        failed: samples that have no reduced cell, by id, and why; they are in neither of the above.
    """

    classes: dict[str, str]
    greedy_sun: frozenset[str]
    known: dict[str, dict[str, str]]
    failed: dict[str, str]


def match_bucket(bucket: Bucket) -> BucketMatches:
    """Find the equivalence classes of a bucket's samples, and which of them are known."""
    if len(bucket.samples) == 1 and not any(bucket.references.values()):
        alone = dict.fromkeys(bucket.samples, *bucket.samples)
        return BucketMatches(alone, bucket.stable, {name: {} for name in bucket.references}, {})
    samples, failed = _candidates(bucket.samples)
    known = {}
    for set_name, crystals in bucket.references.items():
        references, _ = _candidates(crystals)
        found = {sample.name: first_match(sample, references) for sample in samples}
        known[set_name] = {name: match for name, match in found.items() if match is not None}
    seen = {name for each in bucket.novelty_sets for name in known[each]}
    stable_novel = [one for one in samples if one.name in bucket.stable - seen]
    kept = kept_greedily(stable_novel)
    return BucketMatches(equivalence_classes(samples), kept, known, failed)


def _candidates(crystals: Mapping[str, Crystal]) -> tuple[list[Candidate], dict[str, str]]:
    """Return the crystals in the order of their names, and those that have no reduced cell."""
    candidates, failed = [], {}
    for name, crystal in sorted(crystals.items()):
        try:
            candidates.append(Candidate(name, crystal))
        except Exception as error:  # pymatgen raises many kinds; one crystal must not stop all
            failed[name] = f"{type(error).__name__}: {error}"
    return candidates, failed
