"""What several files share of the tests `test_matching`."""

from crystals import rattled, supercell, translated_and_permuted
from flowllm.evaluate.matching import Bucket, match_bucket
from flowllm.evaluate.validity import reduced_composition


def fast_classes(crystals):
    buckets = {}
    for name, crystal in crystals.items():
        buckets.setdefault(reduced_composition(crystal.atomic_numbers), {})[name] = crystal
    found = {}
    for members in buckets.values():
        found |= match_bucket(Bucket(members, frozenset(), {})).classes
    return found


def with_planted_duplicates(crystals):
    planted = dict(crystals)
    for index, (name, crystal) in enumerate(sorted(crystals.items())):
        kind = index % 5
        if kind == 0:
            planted[f"{name}-moved"] = translated_and_permuted(crystal, index)
        elif kind == 1 and crystal.num_atoms <= 6:
            planted[f"{name}-supercell"] = supercell(crystal)
        elif kind == 2:
            planted[f"{name}-rattled"] = rattled(crystal, 0.05, index)
        elif kind == 3:
            planted[f"{name}-far"] = rattled(crystal, 0.6, index)
    return planted
