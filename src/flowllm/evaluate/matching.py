"""Matching of crystals: equivalence classes, novelty, and distance to the relaxed state.

Two crystals are the same if pymatgen's StructureMatcher matches them. Only pairs with the same
reduced composition and the same number of atoms in the primitive cell are compared, since the
matcher itself rejects all others. The primitive, Niggli-reduced cell is computed once per crystal,
not once per pair. The results are those of the matcher on all pairs.
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
    """Tolerances of pymatgen's StructureMatcher for primitive cells scaled to one volume.

    Attributes:
        ltol: tolerance of lattice lengths, as a fraction.
        stol: tolerance of sites, in units of the cube root of the volume per atom.
        angle_tol: tolerance of lattice angles in degrees.
    """

    ltol: float
    stol: float
    angle_tol: float

    def matcher(self) -> StructureMatcher:
        """Return the matcher."""
        return StructureMatcher(**asdict(self), primitive_cell=True, scale=True)


DEFAULT = Tolerances(ltol=0.2, stol=0.3, angle_tol=5)
"""pymatgen's defaults: for S.U.N. and, by the paper's text, for its table 2."""

LOOSE = Tolerances(ltol=0.3, stol=0.5, angle_tol=10)
"""The peers' tolerances for crystal structure prediction; in the authors' code, for table 2."""


MAX_POINTS = 200_000
"""Maximum number of lattice points within the range of a comparison. The most elongated of 12,000
real and generated crystals has 7,000."""

MAX_PAIRS = 1_000_000
"""Maximum number of pairs of such points with about the lengths of the two longest edges; the same
crystals have up to 13,000."""

MAX_EDGE = 10_000.0
"""Maximum edge in angstrom: beyond it pymatgen's search grid takes hundreds of MB."""

LENGTH_UNIT = "cube root of the volume per atom"
"""Unit of the distances between crystals."""

_REACH = 1 + LOOSE.ltol
"""Maximum ratio of two edges that match."""


def check_comparable(lattice: Lattice) -> None:
    """Refuse a cell for which the matcher would need too much time and memory.

    The matcher lists all lattice points within the length of the longest edge (at least 1
    angstrom), and all pairs of points with about the lengths of two edges. For a cell with edges
    of 0.01 and 1,000 angstrom the list takes 20 GB.

    Raises:
        FlowllmError: the cell is too elongated; the message states its edges and the limit.
    """
    reduced = lattice.get_lll_reduced_lattice()
    edges, volume = sorted(reduced.abc), reduced.volume
    points = 4 / 3 * math.pi * max(_REACH * edges[2], 1.0) ** 3 / volume
    shells = [
        4 / 3 * math.pi * (_REACH**3 - _REACH**-3) * edge**3 / volume + 2 for edge in edges[1:]
    ]
    # Written so that NaN is refused: a comparison with NaN is false.
    if not (points <= MAX_POINTS and math.prod(shells) <= MAX_PAIRS and edges[2] <= MAX_EDGE):
        raise FlowllmError(
            f"edges of {edges[0]:.3g}, {edges[1]:.3g} and {edges[2]:.3g} angstrom: too small, "
            f"too long or too elongated to be compared ({points:.3g} lattice points within reach, "
            f"limit {MAX_POINTS:,})"
        )


class ReducedCrystal:
    """A crystal reduced for the matcher.

    Attributes:
        name: id of the crystal.
        reduced: primitive, Niggli-reduced cell.
        key: sort key that fixes the order of the two crystals of a pair.
    """

    def __init__(self, name: str, crystal: Crystal) -> None:
        """Reduce the crystal as StructureMatcher does before a comparison.

        Raises:
            FlowllmError: the cell is too elongated (`check_comparable`).
        """
        self.name = name
        structure = crystal.to_structure()
        check_comparable(structure.lattice)
        self.reduced: Structure = StructureMatcher._get_reduced_structure(structure)
        check_comparable(self.reduced.lattice)
        # Which of two structures is mapped onto the other can decide a borderline case. Sorting a
        # pair by this key makes the result independent of the order of the rows.
        self.key = (len(self.reduced), crystal.lengths.tolist(), crystal.frac_coords.tolist(), name)

    def matches(self, other: "ReducedCrystal", matcher: StructureMatcher) -> bool:
        """Return whether the matcher matches the two crystals."""
        first, second = sorted((self, other), key=lambda crystal: crystal.key)
        return first.fits(second, matcher)

    def fits(self, other: "ReducedCrystal", matcher: StructureMatcher) -> bool:
        """Return whether the matcher maps the other crystal onto this one, in this order."""
        if len(self.reduced) != len(other.reduced):
            return False
        return bool(matcher.fit(self.reduced, other.reduced, skip_structure_reduction=True))


def equivalence_classes(
    crystals: Sequence[ReducedCrystal], tolerances: Tolerances = DEFAULT
) -> dict[str, str]:
    """Group crystals of one composition into classes whose members are joined by chains of matches.

    The matcher is not transitive. Greedy grouping would therefore depend on the order of the
    crystals; chains of matches do not.

    Returns:
        The smallest name in the class of each crystal, by name.
    """
    matcher = tolerances.matcher()
    classes: list[list[ReducedCrystal]] = []
    for crystal in crystals:
        joined, apart = [crystal], []
        for members in classes:
            if any(crystal.matches(member, matcher) for member in members):
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
    crystals: Sequence[ReducedCrystal], tolerances: Tolerances = DEFAULT
) -> frozenset[str]:
    """Return the crystals that remain if each kept crystal removes its direct matches.

    This is the rule of FlowMM's `scripts_analysis/novelty.py`, which the paper's code uses. The
    result depends on the order, and a chain of matches may join two of the remaining crystals.

    Args:
        crystals: crystals of one composition, in the order of their file.
        tolerances: tolerances of the matcher; FlowMM uses the defaults.
    """
    matcher = tolerances.matcher()
    removed: set[str] = set()
    for kept in crystals:
        if kept.name not in removed:
            # As in FlowMM's code, the kept crystal is the matcher's first argument.
            removed |= {
                other.name for other in crystals if other is not kept and kept.fits(other, matcher)
            }
    return frozenset(one.name for one in crystals) - removed


def first_match(
    crystal: ReducedCrystal, references: Sequence[ReducedCrystal], tolerances: Tolerances = DEFAULT
) -> str | None:
    """Return the smallest name among the references that match the crystal; None without any."""
    matcher = tolerances.matcher()
    for reference in sorted(references, key=lambda reference: reference.name):
        if crystal.matches(reference, matcher):
            return reference.name
    return None


def rms_distance(first: Crystal, second: Crystal, tolerances: Tolerances) -> float | None:
    """Return the root mean square distance of the atoms of two crystals, None without a match.

    The steps and the value are those of StructureMatcher.get_rms_dist: the distance at the best
    match of the lattices, in units of the cube root of the volume per atom.

    Raises:
        FlowllmError: a cell is too elongated (`check_comparable`).
    """
    matcher = tolerances.matcher()
    reduced = [ReducedCrystal("", crystal).reduced for crystal in (first, second)]
    one, other = matcher._process_species(reduced)
    prepared = matcher._preprocess(one, other, skip_structure_reduction=True)
    found = matcher._match(*prepared, use_rms=True, break_on_match=False)
    return None if found is None else float(found[0])


def rms_distance_or_error(
    first: Crystal, second: Crystal, tolerances: Tolerances
) -> tuple[float | None, str | None]:
    """Return `rms_distance` and None, or None and the error of the comparison."""
    try:
        return rms_distance(first, second, tolerances), None
    except Exception as error:  # pymatgen raises many types; one crystal must not stop all
        return None, f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Bucket:
    """All crystals of one reduced composition: the unit of parallel work.

    Attributes:
        samples: relaxed crystals by id.
        stable: ids of the stable samples.
        references: known crystals by id, per named set (`train`, `val`).
        novelty_sets: names of the sets against which novelty is tested.
    """

    samples: Mapping[str, Crystal]
    stable: frozenset[str]
    references: Mapping[str, Mapping[str, Crystal]]
    novelty_sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class BucketMatches:
    """Matches of the crystals of a bucket, or of several.

    Attributes:
        classes: the smallest id in the equivalence class of each sample, by id; the classes are
            those among all generated crystals (paper, appendix D).
        greedy_sun: the stable and novel samples that `kept_greedily` keeps, in the order of their
            ids, which is the order of their draws. This is S.U.N. by the authors' code.
        known: ids of the matching reference by id of the sample, per set of references.
        failed: errors of the samples without a reduced cell, by id; no other attribute has them.
    """

    classes: dict[str, str]
    greedy_sun: frozenset[str]
    known: dict[str, dict[str, str]]
    failed: dict[str, str]


def match_bucket(bucket: Bucket) -> BucketMatches:
    """Find the equivalence classes of a bucket's samples, and the known crystals among them."""
    samples, failed = reduced_crystals(bucket.samples)
    known = {}
    for set_name, crystals in bucket.references.items():
        references, _ = reduced_crystals(crystals)
        found = {sample.name: first_match(sample, references) for sample in samples}
        known[set_name] = {name: match for name, match in found.items() if match is not None}
    seen = {name for each in bucket.novelty_sets for name in known[each]}
    stable_novel = [one for one in samples if one.name in bucket.stable - seen]
    kept = kept_greedily(stable_novel)
    return BucketMatches(equivalence_classes(samples), kept, known, failed)


def reduced_crystals(
    crystals: Mapping[str, Crystal],
) -> tuple[list[ReducedCrystal], dict[str, str]]:
    """Return the reduced crystals by name, and the errors of those without a reduced cell."""
    reduced, failed = [], {}
    for name, crystal in sorted(crystals.items()):
        try:
            reduced.append(ReducedCrystal(name, crystal))
        except Exception as error:  # pymatgen raises many types; one crystal must not stop all
            failed[name] = f"{type(error).__name__}: {error}"
    return reduced, failed
