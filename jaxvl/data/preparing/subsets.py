"""DataComp's subset files: `.npy` of sorted uids as pairs of 64-bit numbers (`u8,u8`).

The pairs are the first and the last 16 hexadecimal digits of each uid.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np

from jaxvl import paths
from jaxvl.config import ConfigError
from jaxvl.data.folders import local_cache_folder
from jaxvl.data.sources.pairs import PAIR, is_sorted

AT_ONCE = 2**20  # uids whose order is checked at a time


@functools.lru_cache(maxsize=4)
def subset(file: str) -> np.ndarray:
    """The uids of a subset file, memory-mapped, since a file of 10^9 is 16 GB. Raises ConfigError
    for a file of another kind."""
    path = paths.as_path(file)
    if paths.is_remote(path):
        name = hashlib.sha256(file.encode()).hexdigest()[:16]
        copy = local_cache_folder() / "fetched" / name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        paths.download(path, copy)
        path = copy
    try:
        uids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError("rules.uid_subset", f"{file!r} cannot be read: {error}") from None
    if uids.dtype != PAIR or uids.ndim != 1:
        raise ConfigError(
            "rules.uid_subset",
            f"{file!r} is {uids.dtype} {list(uids.shape)}; must be a sorted list of dtype u8,u8",
        )
    return uids


def check_subset(file: str) -> None:
    """Raises ConfigError for a file that is none, or is not sorted; in that nothing can be looked
    up."""
    uids = subset(file)
    for start in range(0, len(uids), AT_ONCE):
        if not is_sorted(uids[start : start + AT_ONCE + 1]):
            raise ConfigError(
                "rules.uid_subset",
                f"{file!r} is not sorted (near number {start:,}); save np.sort of it",
            )
