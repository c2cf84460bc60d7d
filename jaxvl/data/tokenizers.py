"""Tokenizers, through the `tokenizers` and `sentencepiece` libraries; the file and its rule travel in the checkpoint.

Rule, the same for all: texts are cut to T tokens and padded at the end with `pad_id`. WordPiece puts [CLS] before and
[SEP] after a text (BERT); the others put the end-of-text token after it. A text that is cut keeps its last special
token.

Tokenizers of other libraries (`jaxvl.convert`) keep their rule: kind `json` is any tokenizer.json, with the token before and after a
text that it has; `clean` is done to texts first; `none` stands for one that was left behind.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import sentencepiece
import tokenizers

from jaxvl import paths
from jaxvl.config import ConfigError, PathText, VocabularySize, check, to_path
from jaxvl.data import text_files, wordpiece
from jaxvl.data.cleaning import CLEANERS
from jaxvl.data.corpora.store import cache_folder

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"  # ids 0, 1, 2 of a trained vocabulary


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer.

    Attributes:
      kind: `unigram` is trained (Kudo 2018) on the texts of all tasks' splits; `wordpiece` reads BERT's
        vocab.txt or a tokenizer.json; `sentencepiece` reads a .model file.
      path: the file; for `unigram` None.
      vocab_size: of a vocabulary to be trained, special tokens included; few texts may give a smaller one.
      lowercase: whether `unigram` and a vocab.txt ignore case; None: a vocab.txt does what the
        tokenizer_config.json beside it says, and where that says nothing, case is ignored.
    """

    kind: Literal["unigram", "wordpiece", "sentencepiece"] = "unigram"
    path: PathText | None = None
    vocab_size: VocabularySize = 16000
    lowercase: bool | None = None

    def __post_init__(self):
        if self.kind == "unigram":
            check(
                self.path is None,
                "path",
                f"{self.path!r}: a unigram vocabulary is trained, not read; choose kind wordpiece or sentencepiece",
            )
            check(self.vocab_size >= 16, "vocab_size", f"{self.vocab_size!r} must be >= 16")
        else:
            check(self.path is not None, "path", f"is required for kind {self.kind!r}")
            check(paths.is_file(to_path(self.path, "path")), "path", f"no file {self.path!r}")


class Tokenizer:
    """Texts to token ids. Two tokenizers with equal `to_json()` give equal ids.

    Attributes:
      kind: as in the config, `json` or `none`. vocab_size: V, which is more than the tokens there are where a model's table has rows to
        spare. pad_id, eos_id: of padding and of the end of a text ([SEP] for WordPiece). cls_id: of the token before a text, or None.
      clean: a name of `cleaning.CLEANERS`, or None.
    """

    def __init__(
        self, kind: str, content: bytes, *, pad_id: int, eos_id: int | None, cls_id: int | None = None, vocab_size: int | None = None,
        clean: str | None = None,
    ):  # fmt: skip
        self.kind, self.content, self.clean, self._rows = kind, content, clean, vocab_size
        self.pad_id, self.eos_id, self.cls_id = pad_id, eos_id, cls_id
        if kind == "none":
            tokens, self._ids, self._text = vocab_size, _left_behind, _left_behind
        elif kind in ("unigram", "sentencepiece"):
            model = sentencepiece.SentencePieceProcessor(model_proto=content)
            tokens, self._ids = max(model.vocab_size(), pad_id + 1, eos_id + 1), model.encode
            pieces = model.vocab_size()
            self._text = lambda ids: model.decode([i for i in ids if i < pieces])
        else:
            model = tokenizers.Tokenizer.from_buffer(content)
            model.no_truncation()
            model.no_padding()
            tokens = 1 + max(model.get_vocab().values())
            self._ids = lambda texts: [e.ids for e in model.encode_batch_fast(texts, add_special_tokens=False)]
            model.decoder = model.decoder or (tokenizers.decoders.WordPiece() if kind == "wordpiece" else None)
            word_end = getattr(model.model, "end_of_word_suffix", None) or "</w>"
            self._text = lambda ids: model.decode(ids, skip_special_tokens=True).replace(word_end, " ")
        check(
            vocab_size is None or tokens <= vocab_size,
            "tokenizer",
            f"has {tokens} tokens, more than the model's table of {vocab_size} rows",
        )
        self.vocab_size = vocab_size or tokens

    @property
    def before(self) -> list[int]:
        """Special tokens before every text."""
        return [] if self.cls_id is None else [self.cls_id]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, cleaned as `encode` cleans them, without special tokens; those of "a b" are those of "a", then those of "b"."""
        texts = [text_files.without_surrogates(text) for text in texts]
        return self._ids(texts if self.clean is None else list(map(CLEANERS[self.clean], texts)))

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Token ids int32 [n, length]. Raises ValueError if `length` has no room for a word beside the special tokens."""
        before = self.before
        room = length - len(before) - 1
        if room < 1:
            raise ValueError(f"length {length} is too short for a {self.kind} tokenizer; must be >= {len(before) + 2}")
        out = np.full((len(texts), length), self.pad_id, np.int32)
        for row, ids in zip(out, self.ids(texts)):
            ids = [*before, *ids[:room], self.eos_id]
            row[: len(ids)] = ids
        return out

    def decode(self, ids: np.ndarray) -> list[str]:
        """Texts of token ids int [n, length]: what stands before the first EOS, without special tokens."""
        out = []
        for row in np.asarray(ids).tolist():
            row = row[: row.index(self.eos_id)] if self.eos_id in row else row
            out.append(self._text([i for i in row if i not in (self.pad_id, self.cls_id)]).strip())
        return out

    def to_json(self) -> str:
        """Everything that decides the ids, the file's content included."""
        special = {"pad_id": self.pad_id, "eos_id": self.eos_id, "cls_id": self.cls_id}
        special |= {k: v for k, v in (("vocab_size", self._rows), ("clean", self.clean)) if v is not None}
        return json.dumps({"kind": self.kind, **special, "content": base64.b64encode(self.content).decode()})

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        values = json.loads(text)
        return cls(values.pop("kind"), base64.b64decode(values.pop("content")), **values)


def _left_behind(_) -> None:
    raise ConfigError("tokenizer", "was left behind when these weights were converted (--tokenizer=none); convert again with its files")


def make_tokenizer(config: TokenizerConfig, texts: Iterable[str] = (), origin: str = "") -> Tokenizer:
    """The tokenizer of a config.

    Args:
      texts: what a `unigram` vocabulary is trained on: captions of the training split, nothing else.
      origin: says which `texts` these are (by the corpus's content, split and languages); the trained vocabulary is kept in the cache
        folder under it. Empty: trained anew every time.

    Raises:
      ConfigError: a file that is not what its kind says, or lacks a special token; too few texts for the vocabulary.
    """
    if config.kind == "unigram":
        return _trained(config, texts, origin)
    content = paths.read_bytes(paths.as_path(config.path))
    try:
        return _wordpiece(config, content) if config.kind == "wordpiece" else _sentencepiece(content)
    except ConfigError:
        raise
    except Exception as error:  # both libraries raise bare Exceptions
        raise ConfigError("tokenizer.path", f"{config.path!r} is not a {config.kind} file ({type(error).__name__}: {error})") from None


def _trained(config: TokenizerConfig, texts: Iterable[str], origin: str) -> Tokenizer:
    key = hashlib.sha256(json.dumps([dataclasses.asdict(config), origin, sentencepiece.__version__]).encode()).hexdigest()[:16]
    folder = cache_folder() / "tokenizers"
    content = _kept(folder, key) if origin else None
    if content is None:
        content = train_unigram(texts, config.vocab_size, lowercase=config.lowercase is not False)
        if origin:
            _keep(folder, key, content)
    return Tokenizer("unigram", content, pad_id=0, eos_id=1)


def _keep(folder: paths.Path, key: str, content: bytes) -> None:
    """Writes a file whose name has the content's checksum."""
    paths.make_folder(folder)
    paths.write_bytes(folder / f"{key}-{_checksum(content)}.model", content)


def _kept(folder: paths.Path, key: str) -> bytes | None:
    """What was kept under a key; None where there is nothing, or a file that is not what was written."""
    for path in paths.list_folder(folder, f"{key}-*.model"):
        content = paths.read_bytes(path)
        if path.name == f"{key}-{_checksum(content)}.model":
            return content
    return None


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def train_unigram(texts: Iterable[str], vocab_size: int, *, lowercase: bool) -> bytes:
    """Trains a unigram vocabulary (Kudo 2018; NFKC, spaces as part of words) and returns its SentencePiece model.

    The same set of texts gives the same bytes in every process: hosts that train their own must read the same ids.
    Hence sorted texts, one thread, and SentencePiece's trainer (that of `tokenizers` differs from run to run).

    Raises:
      ConfigError: no text, or more distinct characters than the vocabulary has room for.
    """
    texts, out = sorted({t for t in texts if t.strip()}), io.BytesIO()
    check(bool(texts), "tokenizer.vocab_size", "there is no text to train the vocabulary on")
    characters = len(set("".join(texts).lower() if lowercase else "".join(texts)))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=out, model_type="unigram", vocab_size=vocab_size, hard_vocab_limit=False,
            character_coverage=1.0, normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece=PAD, eos_piece=EOS, unk_piece=UNKNOWN,
            shuffle_input_sentence=False, num_threads=1, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise ConfigError(
            "tokenizer.vocab_size",
            f"{vocab_size!r} is too small for {len(texts)} texts with about {characters} distinct characters ({error})",
        ) from None
    return out.getvalue()


def _wordpiece(config: TokenizerConfig, content: bytes) -> Tokenizer:
    path = paths.as_path(config.path)
    settings = _settings(path.with_name("tokenizer_config.json"))
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
    check(not missing, "tokenizer.path", f"{config.path!r} has no {', '.join(missing)}; it is not a BERT vocabulary")
    return Tokenizer("wordpiece", content, pad_id=ids["[PAD]"], eos_id=ids["[SEP]"], cls_id=ids["[CLS]"])


def _settings(path: paths.Path) -> dict[str, Any]:
    """Of a tokenizer_config.json; empty where there is none."""
    if not paths.is_file(path):
        return {}
    try:
        values = json.loads(text_files.decode(paths.read_bytes(path)))
    except ValueError as error:
        raise ConfigError("tokenizer.path", f"{str(path)!r} is not JSON ({error})") from None
    check(isinstance(values, dict), "tokenizer.path", f"{str(path)!r} must hold a JSON object")
    return values


def _sentencepiece(content: bytes) -> Tokenizer:
    model = sentencepiece.SentencePieceProcessor(model_proto=content)
    eos = model.eos_id()
    check(eos >= 0, "tokenizer.path", "the SentencePiece model has no end-of-sentence piece")
    pad = model.pad_id()
    return Tokenizer("sentencepiece", content, pad_id=pad if pad >= 0 else model.vocab_size(), eos_id=eos)
