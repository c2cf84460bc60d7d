"""What often lies under the name of another format, by its first bytes."""

from __future__ import annotations

_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "unzstd"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
}
_ZIP = b"PK\x03\x04"
_OTHERS = {
    b"version https://git-lfs.github.com": (
        "is a pointer of Git LFS, not the file itself; fetch that with `git lfs pull`"
    ),
    b"<": "is a web page",
    b"\xff\xfe": "is in UTF-16; write it in UTF-8",
    b"\xfe\xff": "is in UTF-16; write it in UTF-8",
}


def packed(head: bytes) -> str | None:
    """Half a sentence that says how a file is to be unpacked; None where it is not packed."""
    if head.startswith(_ZIP):
        return "is a zip file; unpack it with `unzip`"
    for magic, (how, tool) in _COMPRESSED.items():
        if head.startswith(magic):
            return (
                f"is compressed with {how}, so that it cannot be read in parts; unpack it with "
                f"`{tool}`"
            )
    return None


def other_format(head: bytes) -> str | None:
    """Half a sentence that says what a file is; None where that is not known."""
    head = head.lstrip()
    return packed(head) or next(
        (what for magic, what in _OTHERS.items() if head.startswith(magic)), None
    )
