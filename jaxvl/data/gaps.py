"""Parts of a stream of records that no batch has, such as those of steps that a run skips."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Span = tuple[int, int]  # the first position, and the one after the last


class Gaps:
    """Positions of a stream, and how many records outside of the gaps come before them.

    Args:
      spans: they may touch or overlap.
    """

    def __init__(self, spans: Iterable[Span] = ()):
        merged: list[list[int]] = []
        for start, end in sorted((int(a), int(b)) for a, b in spans):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            elif start < end:
                merged.append([start, end])
        self.spans: tuple[Span, ...] = tuple((a, b) for a, b in merged)

    def place(self, counts: np.ndarray) -> np.ndarray:
        """Positions int64 [n] of the records that have so many, int64 [n], before them."""
        positions = np.asarray(counts, np.int64)
        for start, end in self.spans:
            positions = np.where(positions >= start, positions + (end - start), positions)
        return positions

    def count(self, position: int) -> int:
        """Records outside of the gaps before a position."""
        within = (min(position, end) - start for start, end in self.spans if start < position)
        return position - sum(within)

    def forward(self, position: int, records: int) -> int:
        """The position so many records further on; backward where `records` is negative."""
        return int(self.place(np.int64(self.count(position) + records)))

    def covered(self, position: int, records: int) -> tuple[Span, ...]:
        """The spans that so many records from a position on lie in."""
        if not self.spans:
            return ((position, position + records),)
        places = self.place(self.count(position) + np.arange(records))
        cuts = np.flatnonzero(np.diff(places) != 1) + 1
        parts = np.split(places, cuts)
        return tuple((int(part[0]), int(part[-1]) + 1) for part in parts)
