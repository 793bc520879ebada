"""Random numbers of the pipeline, all derived from one seed and the name of their use."""

import hashlib

import numpy as np

Key = str | int


def derive(seed: int, *keys: Key) -> int:
    """Derive an independent 63-bit seed for the use that `keys` names.

    A draw's seed depends on what is drawn, not on the worker or the time, so results do not change
    with the number of workers or with interruptions.

    Args:
        seed: the configuration's seed.
        keys: what the seed is for, e.g. `("sample_pairs", "train", draw, attempt)`.

    Returns:
        An integer in [0, 2**63), stable across platforms and Python versions.
    """
    # NumPy's and Python's integers give the same text.
    named = [f"str:{key}" if isinstance(key, str) else f"int:{int(key)}" for key in keys]
    text = "\x1f".join([str(seed), *named])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, *keys: Key) -> np.random.Generator:
    """Return a numpy generator for the use that `keys` names (see `derive`)."""
    return np.random.default_rng(derive(seed, *keys))
