"""Tokenizers of other libraries, from their files.

tokenizer.json, SentencePiece models, CLIP's merges and BERT's vocab.txt.
Ids are those of the library that a tokenizer comes from. Each function raises ConfigError for a
file that is not what it should be, or does what ours cannot.
"""

from __future__ import annotations

import gzip
import importlib.util
import pathlib
import zlib
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxvl import paths
from jaxvl.config import ConfigError, check
from jaxvl.data import text_files, wordpiece
from jaxvl.data.token_folder import TokenizerFolder, read_object
from jaxvl.data.tokenizer import Tokenizer

SENTENCEPIECE = ("spiece.model", "tokenizer.model")
FILES = ("tokenizer.json", *SENTENCEPIECE, "vocab.json with merges.txt", "vocab.txt")
CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"
CLIP_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_MERGES = 49152 - 256 - 2
GZIP = b"\x1f\x8b"
# What transformers' tokenizer classes do to a text beyond what is in their files.
_CLASS_CLEANS = {"SiglipTokenizer": "siglip", "Siglip2Tokenizer": "lower"}
_BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_CLIP_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}


def read_folder(
    files: TokenizerFolder,
    *,
    vocab_size: int | None = None,
    clean: str | None = None,
    no_separator: bool = False,
) -> Tokenizer:
    """The tokenizer of a folder, as transformers' `AutoTokenizer` takes it.

    Args:
      vocab_size: rows of the model's table; None: as many as the tokens.
      clean: done to texts first, instead of what the tokenizer's own class does.
      no_separator: the token after a text is written as 0 (open_clip's `strip_sep_token`).
    """
    kind = files.tokenizer_class()
    side = files.settings.get("padding_side", "right")
    check(
        side == "right",
        "tokenizer",
        f"{files.path / 'tokenizer_config.json'}: padding_side: {side!r}; must be 'right'",
    )
    if clean is None:
        clean = _CLASS_CLEANS.get(kind)
        clean = (
            "siglip_cased"
            if clean == "siglip" and not files.settings.get("do_lower_case", True)
            else clean
        )
    options: dict[str, Any] = dict(vocab_size=vocab_size, clean=clean)
    has_json = files.has(files.json_name)
    pieces = any(files.has(name) for name in SENTENCEPIECE)
    if has_json and wordpiece.is_bert(kind):
        return _from_bert(files, options, no_separator)
    if has_json and not (kind == "SiglipTokenizer" and pieces):
        return _from_json(files, options, no_separator)
    if pieces:
        return _from_pieces(files, options)
    if files.has("vocab.json", "merges.txt"):
        return _from_merges(files, options)
    if files.has("vocab.txt"):
        return _from_bert(files, options, no_separator)
    raise ConfigError("tokenizer", f"{files.path}: has no tokenizer ({', '.join(FILES)})")


def has_tokenizer(files: TokenizerFolder) -> bool:
    """Whether `read_folder` finds one."""
    single = (files.json_name, *SENTENCEPIECE, "vocab.txt")
    return any(files.has(name) for name in single) or files.has("vocab.json", "merges.txt")


def read_json(path: paths.Path, *, clean: str | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer.json, whatever its name, or of a folder; settings are those
    beside the file."""
    if paths.is_folder(path):
        return read_folder(TokenizerFolder.read(path), clean=clean)
    folder = TokenizerFolder.read(path.parent)
    return read_folder(
        TokenizerFolder(folder.path, folder.settings, folder.special, path.name), clean=clean
    )


def _from_json(files: TokenizerFolder, options: dict[str, Any], no_separator: bool) -> Tokenizer:
    path = files.path / files.json_name
    model, content = files.tokenizer_json()
    padding = model.padding or {}
    model.no_padding()
    model.no_truncation()
    bare, whole = (model.encode("a", add_special_tokens=special).ids for special in (False, True))
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    before = whole[:start]
    after = whole[start + len(bare) :]
    if not after:  # some leave the end of a text to their class
        eos = files.special_token("eos_token")
        after = [model.token_to_id(eos)] if eos and files.settings.get("add_eos_token") else []
    counts = (
        f"puts {len(before)} tokens before a text and {len(after)} after it; can be taken over as "
        f"0 or 1, and 1"
    )
    check(len(before) <= 1 and len(after) == 1, "tokenizer", f"{path}: {counts}")
    name = files.special_token("pad_token")
    pad = model.token_to_id(name) if name is not None else padding.get("pad_id")
    lacking = f"pad_token: {name!r} is not one of its tokens" if name else "has no pad_token"
    check(pad is not None, "tokenizer", f"{path}: {lacking}")
    return Tokenizer(
        "json",
        content,
        pad_id=pad,
        eos_id=0 if no_separator else after[0],
        cls_id=before[0] if before else None,
        **options,
    )


def _from_bert(files: TokenizerFolder, options: dict[str, Any], no_separator: bool) -> Tokenizer:
    """As transformers' `BertTokenizer`: its special tokens stand for themselves in a text."""
    names = {name: files.special_token(name, default) for name, default in _BERT_TOKENS.items()}
    normal = wordpiece.read_options(files.settings)
    if files.has(files.json_name):
        model = wordpiece.with_options(files.tokenizer_json()[0], normal, names["unk_token"])
    else:
        model = wordpiece.bert_tokenizer(
            files.text("vocab.txt", wordpiece.read_vocabulary), normal, names["unk_token"]
        )
        files.add_tokens(model)
    ids = {name: model.token_to_id(token) for name, token in names.items()}
    lacking = [names[name] for name, i in ids.items() if i is None and name != "mask_token"]
    check(
        not lacking,
        "tokenizer",
        f"{files.path}: has no {', '.join(lacking)} among its words; it is not a BERT vocabulary",
    )
    model.add_special_tokens([names[name] for name, i in ids.items() if i is not None])
    content = model.to_str().encode()
    eos = 0 if no_separator else ids["sep_token"]
    return Tokenizer(
        "wordpiece",
        content,
        pad_id=ids["pad_token"],
        eos_id=eos,
        cls_id=ids["cls_token"],
        **options,
    )


def _from_pieces(files: TokenizerFolder, options: dict[str, Any]) -> Tokenizer:
    path = next(files.path / name for name in SENTENCEPIECE if files.has(name))
    pad = files.special_token("pad_token")
    if options["clean"] == "siglip" and pad is None:
        pad = "</s>"  # the default of SiglipTokenizer
    return read_pieces(path, pad=pad, **options)


def read_pieces(
    path: paths.Path,
    *,
    pad: str | None = None,
    vocab_size: int | None = None,
    clean: str | None = None,
) -> Tokenizer:
    """A SentencePiece model.

    Args:
      pad: the piece that pads; None: the model's own, or an id of its own after the others.
    """
    content = paths.read_bytes(path)
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
    except Exception as error:  # the library raises bare Exceptions
        raise ConfigError(
            "tokenizer", f"{path}: is not a sentencepiece file ({type(error).__name__}: {error})"
        ) from None
    eos = model.eos_id()
    pad_id = model.pad_id()
    check(eos >= 0, "tokenizer", f"{path}: the SentencePiece model has no end-of-sentence piece")
    if pad is not None:
        pad_id = model.piece_to_id(pad)
        check(
            model.id_to_piece(pad_id) == pad,
            "tokenizer",
            f"{path}: pad_token: {pad!r} is not one of its pieces",
        )
    pad_id = pad_id if pad_id >= 0 else model.vocab_size()
    return Tokenizer(
        "sentencepiece", content, pad_id=pad_id, eos_id=eos, vocab_size=vocab_size, clean=clean
    )


# --------------------------------------------------------------------------------------------------
# Byte pairs as CLIP has them


def _from_merges(files: TokenizerFolder, options: dict[str, Any]) -> Tokenizer:
    vocabulary = read_object(files.path / "vocab.json")
    lines = files.text("merges.txt", text_files.read_lines)
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    names = [files.special_token(name, default) for name, default in _CLIP_TOKENS.items()]
    lacking = [name for name in names if name not in vocabulary]
    check(
        not lacking,
        "tokenizer",
        f"{files.path / 'vocab.json'}: has no {lacking[0] if lacking else ''!r}",
    )
    normal = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    try:
        model = _byte_pairs(vocabulary, merges, names[:2], normal)
    except Exception as error:  # the library raises bare Exceptions, and TypeErrors
        problem = f"vocab.json and merges.txt do not fit together ({' '.join(str(error).split())})"
        raise ConfigError("tokenizer", f"{files.path}: {problem}") from None
    files.add_tokens(model)
    ids = [vocabulary[name] for name in names]
    return Tokenizer(
        "json", model.to_str().encode(), cls_id=ids[0], eos_id=ids[1], pad_id=ids[2], **options
    )


def _byte_pairs(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], special: list[str], normal: Any
) -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=special[1])
    )
    if normal is not None:
        model.normalizer = normal
    split = pre_tokenizers.Split(tokenizers.Regex(CLIP_PATTERN), behavior="removed", invert=True)
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(special)
    start, end = ((name, vocabulary[name]) for name in special)
    model.post_processor = processors.RobertaProcessing(
        end, start, trim_offsets=False, add_prefix_space=False
    )
    return model


def read_clip(
    path: paths.Path | None = None, *, vocab_size: int | None = None, clean: str = "open_clip_lower"
) -> Tokenizer:
    """CLIP's byte pairs: 49,408 tokens, a start and an end token around each text; pads with 0 as
    open_clip does.

    Args:
      path: OpenAI's `CLIP_FILE`, packed or not, or the merges.txt of a CLIP model; None: the one
        that the open_clip wheel carries.
    """
    path = clip_file() if path is None else path
    content = paths.read_bytes(path)
    try:
        content = gzip.decompress(content) if content.startswith(GZIP) else content
        lines = text_files.read_lines(content)[1 : CLIP_MERGES + 1]  # the first names the version
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(
            "tokenizer", f"{path}: is not a file of CLIP's merges ({type(error).__name__}: {error})"
        ) from None
    merges = [tuple(line.split(" ")) for line in lines]
    whole = len(merges) == CLIP_MERGES and all(len(pair) == 2 for pair in merges)
    check(
        whole,
        "tokenizer",
        f"{path}: is not a file of CLIP's merges (a line of version and {CLIP_MERGES:,} pairs "
        f"of words)",
    )
    characters = byte_characters()
    special = ["<start_of_text>", "<end_of_text>"]
    words = [
        *characters,
        *(c + "</w>" for c in characters),
        *("".join(m) for m in merges),
        *special,
    ]
    vocabulary = {word: i for i, word in enumerate(words)}
    try:
        made = _byte_pairs(vocabulary, merges, special, None).to_str().encode()
    except Exception as error:  # the library raises bare Exceptions
        raise ConfigError(
            "tokenizer",
            f"{path}: its merges do not follow from each other ({' '.join(str(error).split())})",
        ) from None
    ids = dict(pad_id=0, cls_id=vocabulary[special[0]], eos_id=vocabulary[special[1]])
    return Tokenizer("json", made, **ids, vocab_size=vocab_size, clean=clean)


def clip_file() -> pathlib.Path:
    """CLIP's merges, in the open_clip wheel. Raises ConfigError where it is not installed."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None:
        raise ConfigError(
            "tokenizer",
            "CLIP's vocabulary comes with open_clip, which is not installed; pip install "
            "'jaxvl[interop]', or "
            f"give the path of a {CLIP_FILE}",
        )
    return pathlib.Path(spec.origin).parent / CLIP_FILE


def byte_characters() -> list[str]:
    """The 256 characters that stand for bytes in GPT-2's and CLIP's vocabularies, in the order of
    their ids."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
