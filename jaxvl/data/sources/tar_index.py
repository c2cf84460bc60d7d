"""Index of a tar shard: which members make a sample, and where they lie.

Layout of an index file, little-endian; arrays can be memory-mapped. About 50 bytes a sample of
three members.
  magic       16 bytes
  length      uint64, bytes of the header
  header      JSON: version, shard (size, version), samples, members, suffixes, sizes (u4, u8),
              suffix (u2, u4), keys (bytes), numbers (suffixes), left_out {cause: [n, first name]},
              digest (SHA-256 of what follows, with the lists of the header)
  padding     zeros up to a multiple of 64
  number      int64 [numbers, samples] value of a member that is a whole number (`.cls`); NO_NUMBER
              where there is none
  size        [members] bytes of a member
  offset      uint32 [members], blocks of 512 bytes from the start of the shard
  first       uint32 [samples + 1], first member of a sample; members stand in the order of their
              samples
  key_end     uint32 [samples + 1], where the key of the sample before ends in `keys`
  suffix      [members] place in `suffixes`
  keys        UTF-8, one after the other
"""

from __future__ import annotations

import array
import dataclasses
import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxvl.data.records import DataError
from jaxvl.data.sources.tar_scan import BLOCK, Read, Scan
from jaxvl.paths import FileState

MAGIC = b"jaxvl tar index\n"
VERSION = 2
MOST_BLOCKS = 2**32
_ALIGNED = 64
# Members whose content is a number are kept: a class is known without a read.
NUMBERS = frozenset(("cls", "cls2", "class", "label", "index", "inx", "id"))
NO_NUMBER = -(2**63)
MOST_DIGITS = 19
_ARRAYS = ("number", "size", "offset", "first", "key_end", "suffix", "keys")

NO_SUFFIX = "name without a suffix"


class BadIndex(ValueError):
    """An index file that cannot be used; the shard is read anew."""


@dataclasses.dataclass(frozen=True, eq=False)
class TarIndex:
    """The samples of a shard.

    Attributes:
      state: of the shard when it was read.
      suffixes: what follows the first dot of a name, lower-cased: "jpg", "seg.png".
      numbers: suffixes of the rows of `number`.
      left_out: cause -> number of members that are in no sample, and the first one's name.
      digest: SHA-256 of the content; equal shards have equal ones wherever they lie.
      number, size, offset, first, key_end, suffix, keys: see the layout.
    """

    state: FileState
    suffixes: tuple[str, ...]
    numbers: tuple[str, ...]
    left_out: Mapping[str, tuple[int, str]]
    digest: str
    number: np.ndarray
    size: np.ndarray
    offset: np.ndarray
    first: np.ndarray
    key_end: np.ndarray
    suffix: np.ndarray
    keys: np.ndarray

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.first) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(getattr(self, name).nbytes for name in _ARRAYS)

    def key(self, i: int) -> str:
        """Name of the members of sample `i` up to the first dot of the last part of the path."""
        return _text(self.keys[self.key_end[i] : self.key_end[i + 1]].tobytes())

    def members(self, i: int) -> dict[str, tuple[int, int]]:
        """Suffix -> offset and size in bytes of the members of sample `i`, in their order."""
        start, stop = self.first[i : i + 2].tolist()
        suffixes = self.suffix[start:stop].tolist()
        offsets = self.offset[start:stop].tolist()
        sizes = self.size[start:stop].tolist()
        return {
            self.suffixes[s]: (offset * BLOCK, size)
            for s, offset, size in zip(suffixes, offsets, sizes)
        }

    def with_suffixes(self, suffixes: set[str]) -> np.ndarray:
        """bool [samples]: which samples have a member of one of the suffixes."""
        wanted = np.array([name in suffixes for name in self.suffixes], bool)
        samples = np.repeat(np.arange(len(self)), np.diff(self.first.astype(np.int64)))
        found = np.zeros(len(self), bool)
        found[samples[wanted[self.suffix]]] = True
        return found

    def numbers_of(self, suffix: str) -> np.ndarray | None:
        """int64 [samples]: the numbers that the members of a suffix hold; None where some sample
        has none."""
        if suffix not in self.numbers:
            return np.zeros(0, np.int64) if len(self) == 0 else None
        values = self.number[self.numbers.index(suffix)]
        return None if (values == NO_NUMBER).any() else values

    def all_keys(self) -> Iterator[str]:
        """The keys of all samples, in order."""
        content = self.keys.tobytes()
        ends = self.key_end.tolist()
        for start, end in zip(ends, ends[1:]):
            yield _text(content[start:end])

    def to_bytes(self) -> bytes:
        """The content of an index file."""
        header = {
            "version": VERSION,
            "shard": [self.state.size, self.state.version],
            "samples": len(self),
            "members": len(self.offset),
            "suffixes": self.suffixes,
            "numbers": self.numbers,
            "sizes": self.size.dtype.str[1:],
            "suffix": self.suffix.dtype.str[1:],
            "keys": len(self.keys),
            "left_out": {cause: list(about) for cause, about in self.left_out.items()},
            "digest": self.digest,
        }
        text = json.dumps(header).encode()
        start = len(MAGIC) + 8 + len(text)
        parts = [MAGIC, len(text).to_bytes(8, "little"), text, bytes(-start % _ALIGNED)]
        return b"".join([*parts, *(getattr(self, name).tobytes() for name in _ARRAYS)])


def read_index(content: bytes | mmap.mmap, check_digest: bool = True) -> TarIndex:
    """The index in the bytes of a file, which the arrays then look into.

    Raises:
      BadIndex: it is damaged or of another version.
    """
    if content[: len(MAGIC)] != MAGIC:
        raise BadIndex("it does not begin as an index")
    start = len(MAGIC) + 8
    length = int.from_bytes(content[len(MAGIC) : start], "little")
    if length > len(content) - start:
        raise BadIndex("it is cut short")
    try:
        header = json.loads(bytes(content[start : start + length]))
        index = _from_header(header, content, start + length + -(start + length) % _ALIGNED)
    except BadIndex:
        raise
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise BadIndex(f"{type(error).__name__}: {error}"[:200]) from None
    if check_digest:
        _check(index)
    return index


def _from_header(header: Mapping, content: bytes | mmap.mmap, start: int) -> TarIndex:
    """Raises ValueError and others where the header does not describe the content."""
    if header["version"] != VERSION:
        raise BadIndex(f"it is of version {header['version']!r}, not {VERSION}")
    samples, members, keys = (int(header[name]) for name in ("samples", "members", "keys"))
    kinds = {"sizes": ("u4", "u8"), "suffix": ("u2", "u4")}
    if min(samples, members, keys) < 0 or any(
        header[name] not in valid for name, valid in kinds.items()
    ):
        raise BadIndex("its header is damaged")
    numbers = tuple(str(suffix) for suffix in header["numbers"])
    layout = {
        "number": ("<i8", len(numbers) * samples),
        "size": (f"<{header['sizes']}", members),
        "offset": ("<u4", members),
        "first": ("<u4", samples + 1),
        "key_end": ("<u4", samples + 1),
        "suffix": (f"<{header['suffix']}", members),
        "keys": ("u1", keys),
    }
    if start + sum(np.dtype(kind).itemsize * n for kind, n in layout.values()) != len(content):
        raise BadIndex("it has another length than its header says")
    arrays = {}
    for name, (kind, n) in layout.items():
        arrays[name] = np.frombuffer(content, kind, n, start)
        start += arrays[name].nbytes
    arrays["number"] = arrays["number"].reshape(len(numbers), samples)
    size, version = header["shard"]
    suffixes = tuple(str(suffix) for suffix in header["suffixes"])
    left_out = {
        str(cause): (int(n), str(first)) for cause, (n, first) in header["left_out"].items()
    }
    return TarIndex(
        FileState(int(size), str(version)),
        suffixes,
        numbers,
        left_out,
        str(header["digest"]),
        **arrays,
    )


def _check(index: TarIndex) -> None:
    """Raises BadIndex where the digest is not that of the content, or the content leads outside of
    the shard."""
    arrays = {name: getattr(index, name) for name in _ARRAYS}
    if (
        _digest([index.suffixes, index.numbers, sorted(index.left_out.items())], arrays)
        != index.digest
    ):
        raise BadIndex("its content is not what was written")
    first = index.first.astype(np.int64)
    key_end = index.key_end.astype(np.int64)
    ordered = (
        first[0] == 0
        and key_end[0] == 0
        and (np.diff(first) > 0).all()
        and (np.diff(key_end) >= 0).all()
    )
    whole = ordered and first[-1] == len(index.offset) and key_end[-1] == len(index.keys)
    if not whole or (len(index.suffix) and int(index.suffix.max()) >= len(index.suffixes)):
        raise BadIndex("its arrays do not fit together")
    ends = index.offset.astype(np.uint64) * np.uint64(BLOCK) + index.size
    if (ends > index.state.size).any() or (ends < index.size).any():
        raise BadIndex("a member lies outside of the shard")


def make_index(name: str, state: FileState, read: Read, piece: int = 2**18) -> TarIndex:
    """The index of a tar file, by one pass over its headers.

    Args:
      name: of the file, for messages.
      read: (start, size) -> bytes of it.
      piece: bytes that are read at a time.

    Raises:
      DataError: it is no tar file, or larger than 2 TiB.
    """
    if state.size > MOST_BLOCKS * BLOCK:
        raise DataError(
            f"{name}: is larger than 2 TiB ({state.size:,} bytes); write smaller shards"
        )
    grouping = _Grouping()
    Scan(name, read, state.size, grouping.add, grouping.leave_out, piece).run()
    return grouping.index(state)


class _Grouping:
    """Members -> samples, as webdataset and open_clip group them, but members of a sample need not
    stand together.

    The key of a name goes up to the first dot of the last part of the path, the rest is the suffix,
    lower-cased. A member belongs to the last sample of its key, or begins another one where that
    has its suffix already.
    """

    def __init__(self):
        self._latest: dict[
            str, tuple[int, set[int]]
        ] = {}  # key -> its last sample, suffixes that it has
        self._suffix_ids: dict[str, int] = {}
        self._keys: list[bytes] = []
        self._sample = array.array("L")
        self._suffix = array.array("L")
        self._offset = array.array("Q")
        self._size = array.array("Q")
        self._left_out: dict[str, tuple[int, str]] = {}
        self._numbers: dict[str, dict[int, int]] = {}  # suffix -> sample -> value

    def leave_out(self, cause: str, name: str) -> None:
        """Counts a member that is in no sample."""
        n, first = self._left_out.get(cause, (0, name))
        self._left_out[cause] = (n + 1, first)

    def add(self, name: str, offset: int, size: int, read: Read) -> None:
        """Takes a member that is a plain file."""
        if _is_metadata(name):
            return
        key, suffix = split_name(name)
        if not suffix:
            self.leave_out(NO_SUFFIX, name)
            return
        number = self._suffix_ids.setdefault(suffix, len(self._suffix_ids))
        sample, has = self._latest.get(key, (-1, ()))
        if sample < 0 or number in has:
            sample = len(self._keys)
            has = set()
            self._latest[key] = (sample, has)
            self._keys.append(key.encode("utf-8", "surrogateescape"))
        has.add(number)
        self._sample.append(sample)
        self._suffix.append(number)
        self._offset.append(offset // BLOCK)
        self._size.append(size)
        if suffix in NUMBERS and 0 < size <= MOST_DIGITS + 1:
            value = _whole_number(read(offset, size))
            if value is not None:
                self._numbers.setdefault(suffix, {})[sample] = value

    def index(self, state: FileState) -> TarIndex:
        """The samples of the members that were taken."""
        sample = np.array(self._sample, np.int64)
        order = np.argsort(sample, kind="stable")
        size = np.array(self._size, "<u8")[order]
        suffix = np.array(self._suffix, "<u4")[order]
        wide = len(size) > 0 and int(size.max()) >= 2**32
        many = len(self._suffix_ids) > 2**16
        suffixes = tuple(self._suffix_ids)
        arrays = {
            "size": size if wide else size.astype("<u4"),
            "offset": np.array(self._offset, "<u4")[order],
            "first": _starts(np.bincount(sample, minlength=len(self._keys))),
            "key_end": _starts([len(key) for key in self._keys]),
            "suffix": suffix if many else suffix.astype("<u2"),
            "keys": np.frombuffer(b"".join(self._keys), np.uint8),
        }
        numbers = tuple(self._numbers)
        arrays["number"] = np.full((len(numbers), len(self._keys)), NO_NUMBER, "<i8")
        for row, values in zip(arrays["number"], self._numbers.values()):
            row[list(values)] = list(values.values())
        digest = _digest([suffixes, numbers, sorted(self._left_out.items())], arrays)
        return TarIndex(state, suffixes, numbers, self._left_out, digest, **arrays)


def _whole_number(content: bytes) -> int | None:
    """Value of decimal digits; None where they are something else, or too many."""
    digits = content.strip()
    if not digits.removeprefix(b"-").isdigit() or len(digits) >= MOST_DIGITS:
        return None
    return int(digits)


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member's name, as webdataset splits it; no suffix where the last part has
    no dot, or begins with it."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    if not stem:
        return name, ""
    return f"{folder}{slash}{stem}", suffix.lower()


def _is_metadata(name: str) -> bool:
    """Whether webdataset skips a member: its first part is `__SOMETHING__`."""
    first = name.partition("/")[0]
    return len(first) >= 4 and first.startswith("__") and first.endswith("__")


def _starts(lengths: np.ndarray | list[int]) -> np.ndarray:
    """Lengths -> where each begins, and where the last ends. Raises DataError beyond 4 GiB of
    names."""
    starts = np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))])
    if starts[-1] >= 2**32:
        raise DataError("a shard has more names than an index can hold; write smaller shards")
    return starts.astype("<u4")


def _digest(lists: Sequence[object], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, *lists]).encode())
    for name in _ARRAYS:
        digest.update(arrays[name].dtype.str.encode())
        digest.update(np.ascontiguousarray(arrays[name]))
    return digest.hexdigest()


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
