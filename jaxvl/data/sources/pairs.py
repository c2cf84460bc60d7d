"""Keys of records as sorted pairs of 64-bit numbers: no table of texts in memory."""

from __future__ import annotations

import concurrent.futures
import hashlib
from collections.abc import Iterable

import numpy as np

from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Source

PAIR = np.dtype("u8,u8")
READ_AT_ONCE = 16  # records, where a column cannot be had as a whole
BLOCK = 4096  # records


def pairs_of_hex(texts: Iterable[object]) -> tuple[np.ndarray, np.ndarray]:
    """([n] pairs, [n] whether a text is one): the first and last 16 of 32 hexadecimal digits, as
    DataComp's `uid`."""
    found = []
    valid = []
    for text in texts:
        ok = (
            isinstance(text, str)
            and len(text) == 32
            and all(digit in "0123456789abcdefABCDEF" for digit in text)
        )
        found.append((int(text[:16], 16), int(text[16:], 16)) if ok else (0, 0))
        valid.append(ok)
    return np.array(found, PAIR), np.array(valid, bool)


def pairs_of_keys(keys: Iterable[object]) -> np.ndarray:
    """[n] pairs: 128 bits of a hash of each key; a number and its digits are one key."""
    found = []
    for key in keys:
        digest = hashlib.blake2b(str(key).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        found.append((int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")))
    return np.array(found, PAIR)


def find_pairs(ordered: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """int64 [n]: the first place of each wanted pair in `ordered`, which is sorted; -1 where it is
    not there."""
    first = ordered["f0"]
    second = ordered["f1"]
    low = np.searchsorted(first, wanted["f0"], "left")
    high = np.searchsorted(first, wanted["f0"], "right")
    out = np.full(len(wanted), -1, np.int64)
    one = np.flatnonzero(high - low == 1)
    same = second[low[one]] == wanted["f1"][one]
    out[one[same]] = low[one[same]]
    for i in np.flatnonzero(high - low > 1):
        place = low[i] + np.searchsorted(second[low[i] : high[i]], wanted["f1"][i])
        if place < high[i] and second[place] == wanted["f1"][i]:
            out[i] = place
    return out


def is_sorted(pairs: np.ndarray) -> bool:
    """Whether pairs are in ascending order."""
    first = pairs["f0"]
    second = pairs["f1"]
    rising = first[:-1] < first[1:]
    return bool((rising | ((first[:-1] == first[1:]) & (second[:-1] <= second[1:]))).all())


def values_of(source: Source, column: str) -> np.ndarray:
    """All values of a column, object [n]; None of a record that lacks it or cannot be read. Read
    one by one where there is no other way."""
    whole = source.column(column)
    if whole is not None:
        values = np.empty(len(source), object)
        values[:] = whole.tolist()
        present = source.present(column)
        if present is not None:
            values[~present] = None
        return values

    def block(start: int) -> list[object]:
        found = []
        for i in range(start, min(start + BLOCK, len(source))):
            try:
                found.append(source.read(i, [column]).get(column))
            except BadRecord:
                found.append(None)
        return found

    values = np.empty(len(source), object)
    with concurrent.futures.ThreadPoolExecutor(READ_AT_ONCE) as pool:
        starts = range(0, len(source), BLOCK)
        for start, found in zip(starts, pool.map(block, starts)):
            values[start : start + len(found)] = found
    return values
