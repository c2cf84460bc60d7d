"""Tars for tests: whole ones, and every kind of broken or odd one with what must come of it."""

import dataclasses
import gzip
import importlib
import io
import lzma
import pathlib
import tarfile

from jaxvl.data.sources import tar_index, tar_scan
from jaxvl.interop.peers import peer
from jaxvl.paths import FileState

PLAIN = [("a.jpg", b"A" * 700), ("a.txt", b"an a"), ("b.jpg", b"B" * 10), ("b.txt", b"a b")]
TWO = {"a": {"jpg": b"A" * 700, "txt": b"an a"}, "b": {"jpg": b"B" * 10, "txt": b"a b"}}


def open_clip_data():
    """open_clip's own data module."""
    peer("open_clip")  # with a torchvision that can be imported
    return importlib.import_module("open_clip_train.data")


def tar_bytes(members, format=tarfile.PAX_FORMAT, **options) -> bytes:
    """A tar of (name, content) pairs, or of TarInfos with content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, **options) as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def write_tar(path, members, **options) -> str:
    pathlib.Path(path).write_bytes(tar_bytes(members, **options))
    return str(path)


def special(name, kind, **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info, b""


def index_of(content: bytes, name="x.tar") -> tar_index.TarIndex:
    return tar_index.make_index(
        name, FileState(len(content), "1"), lambda start, size: content[start : start + size], 2**12
    )


def samples_of(content: bytes) -> list[tuple[str, dict[str, bytes]]]:
    """Key and members of every sample, read by the index."""
    index = index_of(content)
    found = []
    for i in range(len(index)):
        members = {
            suffix: content[offset : offset + size]
            for suffix, (offset, size) in index.members(i).items()
        }
        found.append((index.key(i), members))
    return found


@dataclasses.dataclass(frozen=True)
class Case:
    """An odd tar.

    Attributes:
      content: of the file.
      causes: cause -> members that are left out by it.
      samples: what is left, key -> suffixes.
      error: the DataError's text instead, where it is no tar.
    """

    content: bytes
    causes: dict = dataclasses.field(default_factory=dict)
    samples: dict = dataclasses.field(default_factory=dict)
    error: str = ""


BOTH = {"a": ["jpg", "txt"], "b": ["jpg", "txt"]}
_WHOLE = tar_bytes(PLAIN)
_HEADER_OF_B = 512 + 1024 + 512 + 512  # a.jpg takes two blocks of data, a.txt one


def _flipped(at: int, value: int) -> bytes:
    content = bytearray(_WHOLE)
    content[at] = value
    return bytes(content)


def _field(start: int, value: bytes, header: int = _HEADER_OF_B) -> bytes:
    """A field of one header replaced, with the checksum made right."""
    content = bytearray(_WHOLE)
    content[header + start : header + start + len(value)] = value
    content[header + 148 : header + 156] = b" " * 8
    total = sum(content[header : header + 512])
    content[header + 148 : header + 156] = b"%06o\0 " % total
    return bytes(content)


def _with(*members) -> bytes:
    return tar_bytes([*PLAIN[:2], *members, *PLAIN[2:]])


def _pax(record: bytes) -> bytes:
    """The plain tar with a pax header of these bytes before b.jpg."""
    info = tarfile.TarInfo("pax")
    info.type = b"x"
    info.size = len(record)
    extended = info.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-len(record) % 512)
    return _WHOLE[:_HEADER_OF_B] + extended + _WHOLE[_HEADER_OF_B:]


def cases() -> dict[str, Case]:
    link = special("l.jpg", tarfile.LNKTYPE, linkname="a.jpg")
    symlink = special("s.jpg", tarfile.SYMTYPE, linkname="/etc/passwd")
    first = {"a": ["jpg", "txt"]}
    end = len(_WHOLE.rstrip(b"\0"))
    data_end = _HEADER_OF_B + 512 * 4
    return {
        "empty file": Case(b"", error="is empty"),
        "zeros only": Case(bytes(10240)),
        "one block of zeros": Case(bytes(512)),
        "shorter than a block": Case(b"a.jpg", error="is not a tar file"),
        "noise": Case(bytes(range(1, 256)) * 8, error="is not a tar file"),
        "a web page": Case(b"<!DOCTYPE html><html>" + b" " * 600, error="is a web page"),
        "gzip": Case(gzip.compress(_WHOLE + bytes(range(256)) * 9), error="gunzip"),
        "xz": Case(lzma.compress(_WHOLE) + bytes(range(1, 256)) * 9, error="unxz"),
        "zstd": Case(b"\x28\xb5\x2f\xfd" + bytes(range(256)) * 9, error="unzstd"),
        "zip": Case(b"PK\x03\x04" + bytes(range(256)) * 9, error="zip"),
        "no end mark": Case(_WHOLE[:data_end], {tar_scan.NO_END: 1}, BOTH),
        "cut in data": Case(_WHOLE[: 512 + 300], {tar_scan.CUT_SHORT: 1}),
        "cut in a later member": Case(
            _WHOLE[: _HEADER_OF_B + 512 + 5], {tar_scan.CUT_SHORT: 1}, first
        ),
        "cut in a header": Case(_WHOLE[: _HEADER_OF_B + 100], {tar_scan.CUT_SHORT: 1}, first),
        "cut in the padding": Case(_WHOLE[:end], {tar_scan.NO_END: 1}, BOTH),
        "checksum of the first header": Case(_flipped(0, 66), error="is not a tar file"),
        "checksum of a later header": Case(
            _flipped(_HEADER_OF_B, 67), {tar_scan.DAMAGED: 1}, first
        ),
        "size is no number": Case(_field(124, b"12z45678901\0"), {tar_scan.DAMAGED: 1}, first),
        "size is negative": Case(_field(124, b"\xff" * 12), {tar_scan.DAMAGED: 1}, first),
        "size is huge": Case(_field(124, b"\x80" + b"\xff" * 11), {tar_scan.CUT_SHORT: 1}, first),
        "size in binary": Case(_field(124, b"\x80" + (10).to_bytes(11, "big")), {}, BOTH),
        "second tar behind it": Case(_WHOLE + _WHOLE, {tar_scan.AFTER_END: 1}, BOTH),
        "lone block of zeros": Case(
            _WHOLE[:_HEADER_OF_B] + bytes(512) + _WHOLE[_HEADER_OF_B:],
            {tar_scan.AFTER_END: 1},
            first,
        ),
        "zeros for a megabyte": Case(_WHOLE + bytes(2**20), {}, BOTH),
        "hard link": Case(_with(link), {tar_scan.LINK: 1}, BOTH),
        "symbolic link out of the folder": Case(_with(symlink), {tar_scan.LINK: 1}, BOTH),
        "character device": Case(
            _with(special("d.jpg", tarfile.CHRTYPE)), {tar_scan.DEVICE: 1}, BOTH
        ),
        "block device": Case(_with(special("d.jpg", tarfile.BLKTYPE)), {tar_scan.DEVICE: 1}, BOTH),
        "fifo": Case(_with(special("d.jpg", tarfile.FIFOTYPE)), {tar_scan.DEVICE: 1}, BOTH),
        "folder": Case(_with(special("folder.d", tarfile.DIRTYPE)), {}, BOTH),
        "unknown type": Case(
            _field(156, b"Z"), {tar_scan.UNKNOWN_TYPE: 1}, {**first, "b": ["txt"]}
        ),
        "old sparse member": Case(_field(156, b"S"), {tar_scan.SPARSE: 1}, {**first, "b": ["txt"]}),
        "pax sparse member": Case(
            _pax(b"26 GNU.sparse.realsize=10\n"), {tar_scan.SPARSE: 1}, {**first, "b": ["txt"]}
        ),
        "leads out of the folder": Case(
            _with(("../../etc/c.jpg", b"x")), {tar_scan.UNSAFE_NAME: 1}, BOTH
        ),
        "leads out in its middle": Case(
            _with(("x/../../c.jpg", b"x")), {tar_scan.UNSAFE_NAME: 1}, BOTH
        ),
        "absolute name": Case(_with(("/etc/c.jpg", b"x")), {tar_scan.UNSAFE_NAME: 1}, BOTH),
        "NUL in a pax name": Case(
            _pax(b"17 path=c\0d.jpg\x0a\n"[:16] + b"\n"),
            {tar_scan.UNSAFE_NAME: 1},
            {**first, "b": ["txt"]},
        ),
        "pax record without a length": Case(_pax(b"path=c.jpg\n"), {tar_scan.DAMAGED: 1}, first),
        "pax record that is too long": Case(
            _pax(b"99999 path=c.jpg\n"), {tar_scan.DAMAGED: 1}, first
        ),
        "pax size is no number": Case(_pax(b"11 size=ab\n"), {tar_scan.DAMAGED: 1}, first),
        "pax name": Case(_pax(b"14 path=b.png\n"), {}, {**first, "b": ["png", "txt"]}),
        "long name of 2 MiB": Case(
            _with(("c" * 2**21 + ".jpg", b"x")), {tar_scan.DAMAGED: 1}, first
        ),
        "name without a suffix": Case(_with(("README", b"x")), {tar_index.NO_SUFFIX: 1}, BOTH),
        "hidden file of macOS": Case(
            _with(("._a.jpg", b"x"), ("d/._b.jpg", b"x")), {tar_index.NO_SUFFIX: 2}, BOTH
        ),
        "metadata of the shard": Case(
            _with(("__meta__", b"x"), ("__info__/x.json", b"{}")), {}, BOTH
        ),
        "member of no bytes": Case(
            _with(("c.jpg", b"")), {}, {**first, "c": ["jpg"], "b": ["jpg", "txt"]}
        ),
        "name in Latin-1": Case(
            _with(("caf\udce9.jpg", b"x")), {}, {**first, "caf\udce9": ["jpg"], "b": ["jpg", "txt"]}
        ),
        "dot in the base name": Case(
            _with(("Photo 2.0 (clean).jpg", b"x")),
            {},
            {**first, "Photo 2": ["0 (clean).jpg"], "b": ["jpg", "txt"]},
        ),
        "old tar without a magic": Case(_field(257, bytes(8)), {}, BOTH),
    }
