"""Texts as they are shown: never long, and without control characters."""

from __future__ import annotations

import re

LONGEST = 300  # characters of a caption or a name
# Control characters but tab and newline, halves of surrogate pairs, and what turns the direction of
# all that follows.
_ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202d\u202e]")


def brief(text: str, most: int = LONGEST) -> str:
    """At most `most` characters of a text, … where it was cut, and the replacement character for
    each that acts.

    Reads no more than that of it, however long it is. So whatever measures, wraps or escapes the
    result is quick.
    """
    start = text[: most + 1]
    if len(start) > most:
        start = start[: most - 1] + "…"
    return _ACTS.sub("\ufffd", start)
