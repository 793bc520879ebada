"""The split of a source that has none of its own."""

from collections.abc import Iterable, Sequence

from flowllm.data.manifest import SPLITS
from flowllm.seeds import derive


def assign_splits(
    material_ids: Iterable[str], shares: Sequence[float], seed: int
) -> dict[str, str]:
    """Assign each material to train, val or test.

    Materials are put in an order that depends on nothing but the seed and their own ids, and cut
    by the shares: the order of the source's rows does not matter, and the shares are exact.

    Args:
        material_ids: names of the materials; repeated ones count once.
        shares: of train, val and test, with sum 1.
        seed: the configuration's seed.

    Returns:
        The split by material id.
    """
    ordered = sorted(set(material_ids), key=lambda name: (derive(seed, "prepare", name), name))
    sizes = share_sizes(len(ordered), shares)
    splits = [split for split, size in zip(SPLITS, sizes, strict=True) for _ in range(size)]
    return dict(zip(ordered, splits, strict=True))


def share_sizes(total: int, shares: Sequence[float]) -> list[int]:
    """Cut a total by shares into whole numbers with that sum (largest remainders).

    A share above zero gets at least one where there are as many things as such shares.
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
