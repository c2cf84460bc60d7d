"""DataComp's subset files: which uids are in one."""

from __future__ import annotations

import bisect
import functools
import hashlib

import numpy as np

from jaxvl import paths
from jaxvl.config import ConfigError
from jaxvl.data.folders import local_cache_folder

UID_DIGITS = 32


@functools.lru_cache(maxsize=4)
def subset(file: str) -> np.ndarray:
    """The uids of a DataComp subset file, memory-mapped. Raises ConfigError for a file of another kind."""
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
    if uids.dtype != np.dtype("u8,u8") or uids.ndim != 1:
        raise ConfigError("rules.uid_subset", f"{file!r} is {uids.dtype} {list(uids.shape)}; must be a sorted list of dtype u8,u8")
    return uids


def is_in_subset(uids: np.ndarray, uid: str) -> bool:
    """Whether a sorted array of dtype `u8,u8` holds the first and last 16 hex digits of `uid`; reads log2(n) of its entries."""
    wanted = int(uid[:16], 16), int(uid[16:], 16)
    at = bisect.bisect_left(uids, wanted, key=lambda pair: pair.item())
    return at < len(uids) and uids[at].item() == wanted
