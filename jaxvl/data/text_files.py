"""Text files that others wrote."""

from __future__ import annotations


def decode(content: bytes, errors: str = "strict") -> str:
    """UTF-8 text without its byte-order mark. Raises UnicodeDecodeError."""
    return content.decode("utf-8", errors).removeprefix("\ufeff")


def read_lines(content: bytes, errors: str = "strict") -> list[str]:
    r"""Lines of a UTF-8 text, without their ends. Raises UnicodeDecodeError.

    A line ends at `\n` or `\r\n` and nowhere else. `str.splitlines` also ends one at U+2028,
    U+0085, a form feed and others, which vocabularies and captions contain; Python's text mode also
    ends one at a lone `\r`.
    """
    lines = decode(content, errors).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def without_surrogates(text: str) -> str:
    r"""The text with U+FFFD for every lone surrogate, which JSON can hold (`"\ud83d"`) and UTF-8
    and tokenizers cannot."""
    return (
        text
        if text.isascii()
        else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )
