"""Random numbers of the host, as pure functions of (seed, purpose, position).

Two purposes, or two seeds however near, share no numbers: NumPy's `SeedSequence` mixes them. What
is drawn for a position of a stream depends on nothing else, not on the batch that it is in nor on
who else draws.
"""

from __future__ import annotations

import hashlib

import numpy as np

WORDS = 4  # numbers that one step of Philox's counter gives


def derive(seed: int, *purpose: str | int) -> int:
    """A seed of 128 bits for one purpose (`derive(seed, "data", task)`). Raises ValueError where
    `seed` is negative."""
    spawn_key = tuple(
        int.from_bytes(hashlib.sha256(repr(part).encode()).digest()[:8], "little")
        for part in purpose
    )
    low, high = (
        np.random.SeedSequence(seed, spawn_key=spawn_key).generate_state(2, np.uint64).tolist()
    )
    return low | high << 64


class Uniforms:
    """Uniform numbers in [0, 1) for every position of a stream.

    They are Philox's (Salmon et al. 2011): keyed by seed and purpose, with a counter that follows
    from the position.

    Args:
      seed, purpose: see `derive`.
      n: numbers of a position.
    """

    def __init__(self, seed: int, *purpose: str | int, n: int):
        self._key = derive(seed, *purpose)
        self._n = n
        self._counts = -(-n // WORDS)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """float64 [len(positions), n]. Positions that follow each other are drawn together."""
        if not len(positions):
            return np.empty((0, self._n))
        breaks = np.flatnonzero(np.diff(positions) != 1) + 1
        return np.concatenate(
            [self._run(int(run[0]), len(run)) for run in np.split(positions, breaks)]
        )

    def _run(self, first: int, length: int) -> np.ndarray:
        generator = np.random.Generator(
            np.random.Philox(key=self._key, counter=first * self._counts)
        )
        return generator.random((length, self._counts * WORDS))[:, : self._n]
