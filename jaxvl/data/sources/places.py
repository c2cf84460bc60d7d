"""Records by number over files, shards or row groups that follow each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Places:
    """Where each record is.

    Attributes:
      sizes: int64 [groups], records of each group.
    """

    def __init__(self, sizes: Sequence[int]):
        self.sizes = np.array(sizes, np.int64)
        self._ends = np.cumsum(self.sizes)

    def __len__(self) -> int:
        """Number of records."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, i: int) -> tuple[int, int]:
        """(group, number in the group) of record `i`."""
        group = int(self._ends.searchsorted(i, "right"))
        return group, i - int(self._ends[group] - self.sizes[group])

    def shards(self) -> np.ndarray:
        """int64: the sizes of groups that have records."""
        return self.sizes[self.sizes > 0]


def name_of(files: Sequence[str]) -> str:
    """The first file, and how many there are more."""
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1:,} more"
