"""The tokenizer of a run: one that is named, or one trained on the run's own texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Annotated, Literal

import tokenizers

from jaxvl import paths
from jaxvl.config import ConfigError, PathText, Range, VocabularySize, check, nearest, to_path
from jaxvl.data import text_files, token_files, unigram, wordpiece
from jaxvl.data.cleaning import CLEANERS
from jaxvl.data.token_folder import TokenizerFolder
from jaxvl.data.tokenizer import Tokenizer
from jaxvl.data.unigram import EOS, PAD, UNKNOWN, train_unigram

Sample = Annotated[int, Range(1, 1_000_000_000)]  # texts

__all__ = [
    "EOS",
    "PAD",
    "UNKNOWN",
    "Tokenizer",
    "TokenizerConfig",
    "make_tokenizer",
    "train_unigram",
]


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer.

    Attributes:
      kind: what it is:
        unigram        trained (Kudo 2018) on texts of the tasks' own data
        clip           CLIP's byte pairs, 49,408 tokens, as open_clip reads texts
        siglip         a SentencePiece model, texts in lower case and without punctuation, padded
                       with the end token, as SigLIP
        t5             a SentencePiece model with T5's ids: padding 0, end 1
        sentencepiece  any SentencePiece model that has an end token
        wordpiece      BERT's vocab.txt, or a tokenizer.json of that kind
        json           any tokenizer.json, or a folder of a Hugging Face tokenizer
      path: the file, local or remote; for `json` also a folder. None for `unigram`; for `clip` None
        is the file that open_clip carries.
      vocab_size: of a vocabulary to be trained, special tokens included; few texts may give a
        smaller one.
      lowercase: whether `unigram` and a vocab.txt ignore case; None: a vocab.txt does what the
        tokenizer_config.json beside it says, and where that says nothing, case is ignored.
      clean: what is done to a text first, a name of `cleaning.CLEANERS`; None: what the kind does.
      sample: texts that a vocabulary is trained on, drawn by seed.
    """

    kind: Literal["unigram", "clip", "siglip", "t5", "sentencepiece", "wordpiece", "json"] = (
        "unigram"
    )
    path: PathText | None = None
    vocab_size: VocabularySize = 16000
    lowercase: bool | None = None
    clean: str | None = None
    sample: Sample = 2_000_000

    def __post_init__(self):
        known = (
            f"{self.clean!r} is not known{nearest(self.clean, list(CLEANERS))} (one of "
            f"{', '.join(CLEANERS)})"
        )
        check(self.clean is None or self.clean in CLEANERS, "clean", known)
        if self.kind == "unigram":
            check(
                self.path is None,
                "path",
                f"{self.path!r}: a unigram vocabulary is trained, not read; choose kind "
                f"wordpiece or sentencepiece",
            )
            check(
                self.clean is None,
                "clean",
                f"{self.clean!r}: a unigram vocabulary has its own; leave it out",
            )
            check(self.vocab_size >= 16, "vocab_size", f"{self.vocab_size!r} must be >= 16")
            check(self.sample >= 1, "sample", f"{self.sample!r} must be >= 1")
            return
        check(
            self.path is not None or self.kind == "clip",
            "path",
            f"is required for kind {self.kind!r}",
        )
        if self.path is not None:
            path = to_path(self.path, "path")
            found = paths.is_file(path) or (self.kind == "json" and paths.is_folder(path))
            check(found, "path", f"no file {self.path!r}")


def make_tokenizer(
    config: TokenizerConfig, texts: Iterable[str] = (), origin: str = ""
) -> Tokenizer:
    """The tokenizer of a config.

    Args:
      texts: what a `unigram` vocabulary is trained on: captions of the training data, nothing else
        (`text_sample.sample_texts`).
      origin: says which `texts` these are (`text_sample.sample_origin`); the trained vocabulary is
        kept in the cache folder under it. Empty: trained anew every time.

    Raises:
      ConfigError: a file that is not what its kind says, or lacks a special token; too few texts
        for the vocabulary; something that is not installed.
    """
    if config.kind == "unigram":
        lowercase = config.lowercase is not False
        key = (
            {
                "vocab_size": config.vocab_size,
                "lowercase": lowercase,
                "longest": unigram.LONGEST,
                "origin": origin,
            }
            if origin
            else None
        )
        return Tokenizer(
            "unigram",
            unigram.trained(texts, config.vocab_size, lowercase=lowercase, key=key),
            pad_id=0,
            eos_id=1,
        )
    try:
        tokenizer = _read(config)
        tokenizer.ids(["a"])  # raises where a library that cleans texts is not installed
    except ConfigError as error:
        raise (error if error.key.startswith("tokenizer") else error.under("tokenizer")) from None
    except Exception as error:  # both libraries raise bare Exceptions
        raise ConfigError(
            "tokenizer.path",
            f"{config.path!r} is not a {config.kind} file ({type(error).__name__}: {error})",
        ) from None
    return tokenizer


def _read(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of a file."""
    path = None if config.path is None else paths.as_path(config.path)
    if config.kind == "clip":
        return token_files.read_clip(path, clean=config.clean or "open_clip_lower")
    if config.kind == "siglip":
        return token_files.read_pieces(path, pad="</s>", clean=config.clean or "siglip")
    if config.kind == "json":
        return token_files.read_json(path, clean=config.clean)
    if config.kind == "wordpiece":
        return _wordpiece(config, path)
    tokenizer = token_files.read_pieces(path, clean=config.clean)
    ids = (tokenizer.pad_id, tokenizer.eos_id)
    check(
        config.kind != "t5" or ids == (0, 1),
        "tokenizer.path",
        f"{config.path!r} has padding and end {ids}; T5's are (0, 1)",
    )
    return tokenizer


def _wordpiece(config: TokenizerConfig, path: paths.Path) -> Tokenizer:
    content = paths.read_bytes(path)
    settings = TokenizerFolder.read(path.parent).settings
    options = wordpiece.read_options(settings)
    if path.suffix == ".json":
        content = text_files.decode(content).encode()
        model = tokenizers.Tokenizer.from_buffer(content)
        if wordpiece.is_bert(settings.get("tokenizer_class")):
            model = wordpiece.with_options(model, options)
            content = model.to_str().encode()
    else:
        if config.lowercase is not None:
            options = dataclasses.replace(options, lowercase=config.lowercase)
        model = wordpiece.bert_tokenizer(wordpiece.read_vocabulary(content), options)
        content = model.to_str().encode()
    ids = {token: model.token_to_id(token) for token in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")}
    missing = [token for token, i in ids.items() if i is None]
    check(
        not missing,
        "tokenizer.path",
        f"{config.path!r} has no {', '.join(missing)}; it is not a BERT vocabulary",
    )
    return Tokenizer(
        "wordpiece",
        content,
        pad_id=ids["[PAD]"],
        eos_id=ids["[SEP]"],
        cls_id=ids["[CLS]"],
        clean=config.clean,
    )
