"""How other libraries clean a text before they tokenise it. Tokenizers name their rule."""

from __future__ import annotations

import html
import re
import string
from collections.abc import Callable, Mapping

from jaxvl.config import ConfigError

# characters of a text that is repaired; ftfy takes 35 us a line, seconds for a megabyte of short
# ones
LONGEST_REPAIRED = 20_000
_NESTED = re.compile("&(?:(?:amp|#38|#x26);){9,}", re.IGNORECASE)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _spaces(text: str) -> str:
    return " ".join(text.split())


def _repaired(text: str) -> str:
    """Broken encodings and HTML entities undone, as CLIP's code does it, of the first
    `LONGEST_REPAIRED` characters.

    ftfy undoes one level of an entity of an entity (`&amp;amp;amp;`) at a time and reads the whole
    text for each. So deep ones are made shallow first, which gives the same text.
    """
    try:
        import ftfy
    except ImportError:
        raise ConfigError(
            "tokenizer",
            "this one repairs texts with ftfy, which is not installed; pip install "
            "'jaxvl[interop]'",
        ) from None
    if text.isascii() and text.isprintable() and "&" not in text:
        return text[
            :LONGEST_REPAIRED
        ].strip()  # nothing to repair; ftfy takes most of the time that a tokenizer has
    text = _NESTED.sub("&" + 8 * "amp;", text[:LONGEST_REPAIRED])
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def canonical(text: str) -> str:
    """Lower case without punctuation; `_` parts words (big_vision, SigLIP)."""
    return _spaces(text.replace("_", " ").translate(_NO_PUNCTUATION).lower())


# open_clip's `clean` options, and the rules of transformers' SiglipTokenizer (which lets `_` join
# words) and Siglip2Tokenizer.
CLEANERS: Mapping[str, Callable[[str], str]] = {
    "open_clip_lower": lambda text: _spaces(_repaired(text)).lower(),
    "open_clip_whitespace": lambda text: _spaces(_repaired(text)),
    "open_clip_canonicalize": lambda text: canonical(_repaired(text)),
    "canonical": canonical,
    "siglip": lambda text: _spaces(text.lower().translate(_NO_PUNCTUATION)),
    "siglip_cased": lambda text: _spaces(text.translate(_NO_PUNCTUATION)),
    "lower": str.lower,
}
