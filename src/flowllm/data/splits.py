"""The split into train, val and test of a source without a split."""

from collections.abc import Iterable, Sequence

from flowllm.data.manifest import SPLITS, Split
from flowllm.seeds import derive


def assign_splits(
    material_ids: Iterable[str], shares: Sequence[float], seed: int
) -> dict[str, Split]:
    """Assign each material to train, val or test.

    Materials are sorted by a hash of the seed and their ids, and cut by the shares. The order of
    the source's rows does not matter, and the shares are exact.

    Args:
        material_ids: names of the materials; repeated names count once.
        shares: fractions of train, val and test; their sum is 1.
        seed: the configuration's seed.

    Returns:
        The split by material id.
    """
    ordered = sorted(set(material_ids), key=lambda name: (derive(seed, "prepare", name), name))
    sizes = share_sizes(len(ordered), shares)
    splits = [split for split, size in zip(SPLITS, sizes, strict=True) for _ in range(size)]
    return dict(zip(ordered, splits, strict=True))


def share_sizes(total: int, shares: Sequence[float]) -> list[int]:
    """Divide a total by shares into whole numbers with that sum (largest remainders).

    Each share above zero gets at least 1 if the total allows it.
    """
    exact = [share * total for share in shares]
    sizes = [int(size) for size in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (sizes[i] - exact[i], i))
    for i in by_remainder[: total - sum(sizes)]:
        sizes[i] += 1
    for i, share in enumerate(shares):
        if share > 0 and sizes[i] == 0 and max(sizes) > 1:
            sizes[sizes.index(max(sizes))] -= 1
            sizes[i] += 1
    return sizes
