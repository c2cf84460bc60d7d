"""Vocabularies that are trained on the texts of a run: unigram (Kudo 2018), by SentencePiece."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping

import sentencepiece

from jaxvl import paths
from jaxvl.aliases import Json
from jaxvl.config import ConfigError, check
from jaxvl.data.folders import cache_folder

PAD = "<pad>"
EOS = "<eos>"
UNKNOWN = "<unk>"  # ids 0, 1, 2 of a trained vocabulary
# characters of a text that is trained on. SentencePiece leaves texts of more than 4,192 bytes out
LONGEST = 1000
COVERED = (
    0.9995  # share of the characters with a token of their own where there are too many of them
)


def train_unigram(texts: Iterable[str], vocab_size: int, *, lowercase: bool) -> bytes:
    """Trains a unigram vocabulary (Kudo 2018; NFKC, spaces as part of words) and returns its
    SentencePiece model.

    The same set of texts gives the same bytes in every process: hosts that train their own must
    read the same ids. Hence sorted texts, one thread, and SentencePiece's trainer (that of
    `tokenizers` differs from run to run).

    Texts are cut to `LONGEST` characters. Every character gets a token of its own, unless that
    would take half of the vocabulary or more; then those that make up `COVERED` of the texts do,
    and the others are read as unknown.

    Raises:
      ConfigError: no text, or more distinct characters than the vocabulary has room for.
    """
    texts = sorted({cut(t) for t in texts if t.strip()})
    out = io.BytesIO()
    check(bool(texts), "tokenizer.vocab_size", "there is no text to train the vocabulary on")
    found: set[str] = set()
    for text in texts:
        found.update(text.lower() if lowercase else text)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=out,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0 if len(found) < vocab_size / 2 else COVERED,
            normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece=PAD,
            eos_piece=EOS,
            unk_piece=UNKNOWN,
            shuffle_input_sentence=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(
            "tokenizer.vocab_size",
            f"{vocab_size!r} is too small for {len(texts)} texts with about {len(found)} "
            f"distinct characters ({error})",
        ) from None
    return out.getvalue()


def cut(text: str) -> str:
    """The part of a text that is trained on, as UTF-8 can hold it."""
    return text[:LONGEST].encode("utf-8", "replace").decode()


def trained(
    texts: Iterable[str], vocab_size: int, *, lowercase: bool, key: Mapping[str, Json] | None
) -> bytes:
    """As `train_unigram`, kept in the cache folder.

    Args:
      key: what decides the texts and how they are read. None: trained anew every time.
    """
    if key is None:
        return train_unigram(texts, vocab_size, lowercase=lowercase)
    name = _checksum(json.dumps([key, sentencepiece.__version__]).encode())
    folder = cache_folder() / "tokenizers"
    content = _kept(folder, name)
    if content is None:
        content = train_unigram(texts, vocab_size, lowercase=lowercase)
        _keep(folder, name, content)
    return content


def _keep(folder: paths.Path, name: str, content: bytes) -> None:
    """Writes a file whose name has the content's checksum."""
    paths.make_folder(folder)
    paths.write_bytes(folder / f"{name}-{_checksum(content)}.model", content)


def _kept(folder: paths.Path, name: str) -> bytes | None:
    """What was kept under a name; None where there is nothing, or a file that is not what was
    written."""
    for path in paths.list_folder(folder, f"{name}-*.model"):
        content = paths.read_bytes(path)
        if path.name == f"{name}-{_checksum(content)}.model":
            return content
    return None


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
