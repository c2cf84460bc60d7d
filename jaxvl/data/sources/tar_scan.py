"""The members of a tar file by its headers: one pass, nothing is unpacked.

Formats: ustar of POSIX.1-1988, pax of POSIX.1-2001, GNU long names (GNU tar manual, "Basic Tar
  Format"). What is no plain
file with a usable name is left out by a cause; only a file that does not begin as a tar is an
error.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

from jaxvl.data.records import DataError
from jaxvl.data.sources.other_formats import other_format

BLOCK = 512  # bytes; headers and data begin at multiples of it
MOST_EXTENDED = 2**20  # bytes of a long name or of pax records

CUT_SHORT = "member is cut short"
DAMAGED = "damaged header"
AFTER_END = "content after the end mark"
NO_END = "no end mark"
LINK = "link"
DEVICE = "device"
SPARSE = "sparse member"
UNKNOWN_TYPE = "member of unknown type"
UNSAFE_NAME = "unsafe name"

_REGULAR = (b"0", b"\0", b"7")
_ZEROS = bytes(BLOCK)
_PAX_RECORD = re.compile(rb"(\d{1,20}) ([^=\n]+)=")
Read = Callable[[int, int], bytes]


class _Damaged(ValueError):
    """A header that is none."""


class _Pages:
    """A file as large pieces, of which the last is kept.

    Args:
      read: (start, size) -> bytes.
      size: of the file.
      piece: bytes that are read at a time.
    """

    def __init__(self, read: Read, size: int, piece: int):
        self._read = read
        self._size = size
        self._piece = piece
        self._data = b""
        self._start = 0

    def get(self, start: int, size: int) -> bytes:
        """Fewer bytes where the file ends before."""
        at = start - self._start
        if at < 0 or at + size > len(self._data):
            wanted = min(max(size, self._piece), self._size - start)
            self._data = self._read(start, max(wanted, 0))
            self._start = start
            at = 0
        return self._data[at : at + size]


class Scan:
    """One pass over the headers of a tar file.

    Args:
      name: of the file, for messages.
      read: (start, size) -> bytes; fewer where the file ends.
      size: bytes of the file.
      add: takes name, offset and size of a member that is a plain file, in order, and what reads
        (offset, size).
      leave_out: takes cause and name of what is left out.
      piece: bytes that are read at a time.
    """

    def __init__(
        self,
        name: str,
        read: Read,
        size: int,
        add: Callable[[str, int, int, Read], None],
        leave_out: Callable[[str, str], None],
        piece: int = 2**18,
    ):
        self._name = name
        self._size = size
        self._add = add
        self._leave_out = leave_out
        self._pages = _Pages(read, size, piece)
        self._position = 0
        self._global: dict[str, str] = {}  # pax records of all members
        self._pending: dict[str, str] = {}  # of the next one; a GNU long name is "path" as well
        self._cut = False

    def run(self) -> None:
        """Raises DataError where the file is no tar at all."""
        if self._size == 0:
            raise DataError(f"{self._name}: is empty (0 bytes)")
        while True:
            start = self._position
            header = self._pages.get(start, BLOCK)
            if len(header) < BLOCK:
                if start == 0:
                    raise DataError(f"{self._name}: {_what_it_is(header)}")
                if not self._cut:
                    self._leave_out(CUT_SHORT if header else NO_END, f"byte {start}")
                return
            if header == _ZEROS:
                self._after_end(start)
                return
            try:
                self._member(header)
            except _Damaged as error:
                if start == 0:
                    raise DataError(f"{self._name}: {_what_it_is(header)}") from None
                self._leave_out(DAMAGED, f"byte {start} ({error})")
                return

    def _member(self, header: bytes) -> None:
        """Takes a header; the position is behind its data afterwards."""
        _check_sum(header)
        kind = header[156:157]
        size = _number(header[124:136])
        data = self._position + BLOCK
        if kind in (b"x", b"X", b"g", b"L", b"K"):
            self._extended(kind, data, size)
            self._position = min(data + _padded(size), self._size)
            return
        about = {**self._global, **self._pending} if self._global else self._pending
        self._pending = {}
        name = about.get("path") or _name(header, kind)
        if about.get("size"):
            size = _decimal(about["size"])
        if kind == b"\0" and name.endswith("/"):
            kind = b"5"
        # Headers of links, devices and folders may give a size, but no data follows.
        self._position = (
            data if kind in (b"1", b"2", b"3", b"4", b"5", b"6") else data + _padded(size)
        )
        cause = _why_left_out(kind, name, about)
        if cause is None and data + size > self._size:
            cause = CUT_SHORT
            self._cut = True
        if cause is not None:
            self._leave_out(cause, name)
        elif kind != b"5":
            self._add(name, data, size, self._pages.get)
        if kind == b"S":
            self._skip_sparse_maps(header, data, size)
        self._position = min(self._position, self._size)

    def _extended(self, kind: bytes, data: int, size: int) -> None:
        """A long name, or pax records, of the next member or of all."""
        if size > MOST_EXTENDED:
            raise _Damaged(f"a long name of {size:,} bytes")
        content = self._pages.get(data, size)
        if len(content) < size:
            self._leave_out(CUT_SHORT, f"byte {data}")
            self._cut = True
            return
        if kind == b"L":
            self._pending["path"] = _text(content)
        elif kind == b"g":
            self._global.update(_pax_records(content))
        elif kind != b"K":
            self._pending.update(_pax_records(content))

    def _skip_sparse_maps(self, header: bytes, data: int, size: int) -> None:
        """Old GNU sparse members: blocks of the map stand between header and data, each says
        whether one more follows."""
        more = header[482]
        blocks = 0
        while more:
            block = self._pages.get(data + blocks * BLOCK, BLOCK)
            if len(block) < BLOCK:
                break
            more = block[504]
            blocks += 1
        self._position = data + blocks * BLOCK + _padded(size)

    def _after_end(self, start: int) -> None:
        """Two blocks of zeros end a tar; a second tar behind it, which tar programs do not see
        either, is said."""
        while start < self._size:
            block = self._pages.get(start, BLOCK)
            if not block:
                return
            if block.count(0) != len(block):
                self._leave_out(AFTER_END, f"byte {start}")
                return
            start += len(block)


def _why_left_out(kind: bytes, name: str, about: dict[str, str]) -> str | None:
    """Cause, or None for a plain file or a folder."""
    if kind == b"5":
        return None
    if kind in (b"1", b"2"):
        return LINK
    if kind in (b"3", b"4", b"6"):
        return DEVICE
    if kind == b"S" or any(key.startswith("GNU.sparse.") for key in about):
        return SPARSE
    if kind not in _REGULAR:
        return UNKNOWN_TYPE
    if not name or name.startswith("/") or "\0" in name or ".." in name.split("/"):
        return UNSAFE_NAME
    return None


def _name(header: bytes, kind: bytes) -> str:
    name = _text(header[0:100])
    if (
        header[257:263] == b"ustar\0" and header[345] and kind != b"S"
    ):  # GNU keeps times where POSIX has a prefix
        name = f"{_text(header[345:500])}/{name}"
    return name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _check_sum(header: bytes) -> None:
    """Raises _Damaged where the sum of the bytes is not what the header says. Some old programs
    summed signed bytes."""
    stored = _number(header[148:156])
    # Adler-32's low half is 1 + the sum of the bytes, modulo 65521: the sum in C.
    low = zlib.adler32(header[156:], zlib.adler32(header[:148])) & 0xFFFF
    if low == (stored - 8 * 32 + 1) % 65521:
        return
    signed = (
        sum(byte - 256 if byte > 127 else byte for byte in header[:148] + header[156:]) + 8 * 32
    )
    if signed != stored:
        raise _Damaged("its checksum is wrong")


def _number(field: bytes) -> int:
    """Octal digits, or a binary number (GNU) where the first bit is set. Raises _Damaged."""
    if field[0] & 0x80:
        if field[0] == 0xFF:
            raise _Damaged("a negative number")
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if not digits:
        return 0
    try:
        number = int(digits, 8)
    except ValueError:
        raise _Damaged("a number that is none") from None
    if number < 0:
        raise _Damaged("a negative number")
    return number


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise _Damaged("a size that is no number")
    return int(text)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _pax_records(content: bytes) -> dict[str, str]:
    """Records `LENGTH KEY=VALUE\\n`, where LENGTH is that of the whole record. Raises _Damaged."""
    records = {}
    at = 0
    while at < len(content) and content[at] != 0:
        match = _PAX_RECORD.match(content, at)
        if match is None:
            raise _Damaged("a pax record that is none")
        end = at + int(match[1])
        if end > len(content) or end <= match.end() - 1 or content[end - 1 : end] != b"\n":
            raise _Damaged("a pax record that is none")
        key = match[2].decode("utf-8", "surrogateescape")
        value = content[match.end() : end - 1].decode("utf-8", "surrogateescape")
        records[key] = value.rstrip("/") if key == "path" else value
        at = end
    return records


def _what_it_is(header: bytes) -> str:
    return other_format(header) or f"is not a tar file (it begins with {header[:16]!r})"
