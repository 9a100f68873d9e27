"""Random streams that are pure functions of their key, so a resumed run draws the same numbers."""

import zlib

import numpy as np


def keyed_rng(seed: int, stream: str, index: int) -> np.random.Generator:
    """The generator of (run seed, named stream, index), the same on every machine.

    Raises:
        ValueError: a negative seed or index.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be >= 0, got {seed} and {index}")
    key = np.array([seed, zlib.crc32(stream.encode())], dtype=np.uint64)
    counter = np.array([0, 0, 0, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
