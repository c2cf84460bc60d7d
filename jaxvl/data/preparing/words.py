"""Normalised texts, their words, and their uni- and bigrams."""

from __future__ import annotations

import hashlib
import re
import unicodedata

# A word is a run of letters and digits, which an apostrophe may join. Chinese and Japanese write no
# spaces: each character is one.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:['\u2019][^\W{_UNSPACED}]+)*")
LONGEST_READ = 100_000  # characters of a text whose words are counted; a megabyte is no caption


def normalized(text: str) -> str:
    """The text by which two are equal: NFKC, without case, one space between words."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_key(text: str) -> bytes:
    """16 bytes, equal for equal normalised texts."""
    return hashlib.blake2b(
        normalized(text).encode("utf-8", "surrogatepass"), digest_size=16
    ).digest()


def words(text: str) -> list[str]:
    """Unigrams of a text, in order."""
    return _WORD.findall(normalized(text[:LONGEST_READ]))


def grams(text: str) -> list[str]:
    """Unigrams and bigrams of a text, in order; the words of a bigram are parted by a space."""
    found = words(text)
    pairs = [f"{first} {second}" for first, second in zip(found, found[1:])]
    return found + pairs
