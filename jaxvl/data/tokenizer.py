"""The tokenizer of a model: texts to token ids and back.

The file and its rule travel in the checkpoint. The rule, the same for all: texts are cut to T
tokens and padded at the end with `pad_id`. Some put a token before a text ([CLS], CLIP's start);
all put one after it ([SEP], end of text). A text that is cut keeps its last special token.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence

import numpy as np
import sentencepiece
import tokenizers

from jaxvl.config import ConfigError, check
from jaxvl.data.cleaning import CLEANERS
from jaxvl.data.text_files import without_surrogates

Ids = Callable[[Sequence[str]], list[list[int]]]


class Tokenizer:
    """Texts to token ids. Two tokenizers with equal `to_json()` give equal ids. It is thread-safe
    and picklable.

    Attributes:
      kind: `unigram`, `sentencepiece` (a .model file), `wordpiece`, `json` (any other
        tokenizer.json) or `none`, which stands for one that was left behind.
      vocab_size: V, which is more than the tokens there are where a model's table has rows to
        spare.
      pad_id, eos_id: of padding and of the end of a text ([SEP] for WordPiece). cls_id: of the
        token before a text, or None.
      clean: a name of `cleaning.CLEANERS`, or None.
    """

    def __init__(
        self,
        kind: str,
        content: bytes,
        *,
        pad_id: int,
        eos_id: int | None,
        cls_id: int | None = None,
        vocab_size: int | None = None,
        clean: str | None = None,
    ):
        self.kind = kind
        self.content = content
        self.clean = clean
        self._rows = vocab_size
        self.pad_id = pad_id
        self.eos_id = eos_id
        self.cls_id = cls_id
        if kind == "none":
            tokens = vocab_size
            self._ids = _left_behind
            self._text = _left_behind
            self._id_of = _left_behind
        elif kind in ("unigram", "sentencepiece"):
            tokens = self._read_pieces()
        else:
            tokens = self._read_json()
        check(
            vocab_size is None or tokens <= vocab_size,
            "tokenizer",
            f"has {tokens} tokens, more than the model's table of {vocab_size} rows",
        )
        self.vocab_size = vocab_size or tokens

    def _read_pieces(self) -> int:
        """Sets up a SentencePiece model; returns the number of tokens."""
        model = sentencepiece.SentencePieceProcessor(model_proto=self.content)
        pieces = model.vocab_size()
        # Given a list, the library starts threads, which takes longer than a text.
        self._ids: Ids = lambda texts: [model.encode(text) for text in texts]
        self._text = lambda ids: model.decode([i for i in ids if i < pieces])
        self._id_of = lambda token: (
            model.piece_to_id(token)
            if model.id_to_piece(model.piece_to_id(token)) == token
            else None
        )
        return max(pieces, self.pad_id + 1, self.eos_id + 1)

    def _read_json(self) -> int:
        """Sets up a tokenizer.json; returns the number of tokens."""
        model = tokenizers.Tokenizer.from_buffer(self.content)
        model.no_truncation()
        model.no_padding()
        encode = model.encode_batch_fast  # for one text too: `encode` also computes offsets
        self._ids = lambda texts: [e.ids for e in encode(texts, add_special_tokens=False)]
        model.decoder = model.decoder or (
            tokenizers.decoders.WordPiece() if self.kind == "wordpiece" else None
        )
        word_end = getattr(model.model, "end_of_word_suffix", None) or "</w>"
        self._text = lambda ids: model.decode(ids, skip_special_tokens=True).replace(word_end, " ")
        self._id_of = model.token_to_id
        return 1 + max(model.get_vocab().values())

    def __reduce__(self) -> tuple[Callable[..., Tokenizer], tuple[dict[str, object]]]:
        return _restore, (self._values(),)

    @property
    def before(self) -> list[int]:
        """Special tokens before every text."""
        return [] if self.cls_id is None else [self.cls_id]

    def id_of(self, token: str) -> int | None:
        """Id of one token of the vocabulary, such as `[MASK]`; None where there is no such
        token."""
        return self._id_of(token)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, cleaned as `encode` cleans them, without special tokens; those of "a
        b" are those of "a", then those of "b"."""
        texts = list(texts) if self.clean is None else list(map(CLEANERS[self.clean], texts))
        try:
            return self._ids(texts)
        except Exception:  # half of a surrogate pair, which JSON can hold and UTF-8 cannot; libraries raise one type each
            whole = list(map(without_surrogates, texts))
            if whole == texts:
                raise
            return self._ids(whole)

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Token ids int32 [n, length]. Raises ValueError if `length` has no room for a word beside
        the special tokens."""
        before = self.before
        room = length - len(before) - 1
        if room < 1:
            raise ValueError(
                f"length {length} is too short for a {self.kind} tokenizer; must be >= "
                f"{len(before) + 2}"
            )
        end = [self.eos_id]
        padding = [self.pad_id] * length
        rows = [(before + ids[:room] + end + padding)[:length] for ids in self.ids(texts)]
        return np.array(rows, np.int32).reshape(len(rows), length)

    def decode(self, ids: np.ndarray) -> list[str]:
        """Texts of token ids int [n, length]: what stands before the first EOS, without special
        tokens."""
        out = []
        for row in np.asarray(ids).tolist():
            row = row[: row.index(self.eos_id)] if self.eos_id in row else row
            out.append(self._text([i for i in row if i not in (self.pad_id, self.cls_id)]).strip())
        return out

    def _values(self) -> dict[str, object]:
        """Everything that decides the ids."""
        values = {
            "kind": self.kind,
            "pad_id": self.pad_id,
            "eos_id": self.eos_id,
            "cls_id": self.cls_id,
        }
        values |= {
            k: v for k, v in (("vocab_size", self._rows), ("clean", self.clean)) if v is not None
        }
        return values | {"content": self.content}

    def to_json(self) -> str:
        """Everything that decides the ids, the file's content included."""
        values = self._values()
        return json.dumps(values | {"content": base64.b64encode(values["content"]).decode()})

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """The tokenizer of what `to_json` has written."""
        values = json.loads(text)
        return _restore(values | {"content": base64.b64decode(values["content"])})


def _restore(values: dict[str, object]) -> Tokenizer:
    values = dict(values)
    return Tokenizer(values.pop("kind"), values.pop("content"), **values)


def _left_behind(_) -> None:
    raise ConfigError(
        "tokenizer",
        "was left behind when these weights were converted (--tokenizer=none); convert again "
        "with its files",
    )
