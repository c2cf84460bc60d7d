"""BERT's WordPiece vocabularies, read as transformers' `BertTokenizer` reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import tokenizers

from jaxvl.aliases import Json
from jaxvl.config import check
from jaxvl.data.text_files import read_lines

# Unicode's white space. `str.isspace` also has U+001C to U+001F, which the tokenizers library
# keeps.
_SPACES = "".join(map(chr, range(0x2000, 0x200B)))  # of various widths
_WHITE_SPACE = f"\t\n\x0b\x0c\r \x85\xa0\u1680{_SPACES}\u2028\u2029\u202f\u205f\u3000"

# `BertTokenizer` and the classes of transformers that read a vocabulary in the same way, without
# their `Fast`.
_CLASSES = frozenset(
    {
        "BertTokenizer",
        "ConvBertTokenizer",
        "DistilBertTokenizer",
        "ElectraTokenizer",
        "LayoutLMTokenizer",
        "LxmertTokenizer",
        "MobileBertTokenizer",
        "SqueezeBertTokenizer",
    }
)


@dataclasses.dataclass(frozen=True)
class BertOptions:
    """What is done to a text before its words are looked up.

    Attributes:
      lowercase: case is ignored.
      strip_accents: accents are removed; None: where `lowercase` is true.
      split_chinese: each Chinese character is a word.
    """

    lowercase: bool = True
    strip_accents: bool | None = None
    split_chinese: bool = True


def is_bert(tokenizer_class: Json) -> bool:
    """Whether a `tokenizer_class` of transformers is BERT's.

    Such a class takes the words alone from a tokenizer.json, and `BertOptions` from
    tokenizer_config.json.
    """
    return isinstance(tokenizer_class, str) and tokenizer_class.removesuffix("Fast") in _CLASSES


def read_options(settings: Mapping[str, Json]) -> BertOptions:
    """The options of a tokenizer_config.json. Raises ConfigError for a value of another kind."""
    keys = {
        "lowercase": "do_lower_case",
        "strip_accents": "strip_accents",
        "split_chinese": "tokenize_chinese_chars",
    }
    values = {}
    for name, key in keys.items():
        value = settings.get(key, getattr(BertOptions, name))
        optional = name == "strip_accents" and value is None
        valid = "true, false or null" if name == "strip_accents" else "true or false"
        check(
            isinstance(value, bool) or optional,
            f"tokenizer_config.json.{key}",
            f"{value!r} must be {valid}",
        )
        values[name] = value
    return BertOptions(**values)


def read_vocabulary(content: bytes) -> dict[str, int]:
    """Words of a vocab.txt -> their ids. A word's id is the number of its line. Raises
    UnicodeDecodeError."""
    words = [line.rstrip(_WHITE_SPACE) for line in read_lines(content)]
    while words and not words[-1]:
        words.pop()  # blank lines at the end are no words
    return {word: i for i, word in enumerate(words)}


def bert_tokenizer(
    vocabulary: Mapping[str, int], options: BertOptions, unknown: str = "[UNK]"
) -> tokenizers.Tokenizer:
    """BERT's tokenizer of these words, without special tokens."""
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(dict(vocabulary), unk_token=unknown))
    model.normalizer = tokenizers.normalizers.BertNormalizer(
        lowercase=options.lowercase,
        strip_accents=options.strip_accents,
        handle_chinese_chars=options.split_chinese,
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return model


def with_options(
    model: tokenizers.Tokenizer, options: BertOptions, unknown: str = "[UNK]"
) -> tokenizers.Tokenizer:
    """The words and added tokens of a tokenizer.json, with these options instead of the file's own.

    A file that is not of WordPiece is returned as it is.
    """
    if not isinstance(model.model, tokenizers.models.WordPiece):
        return model
    out = bert_tokenizer(model.get_vocab(with_added_tokens=False), options, unknown)
    for _, token in sorted(model.get_added_tokens_decoder().items()):
        if token.special:
            out.add_special_tokens([token])
        else:
            out.add_tokens([token])
    return out
