"""Tokenizers of other libraries as ours, and back into their files.

A folder's tokenizer is one of: tokenizer.json, a SentencePiece model, CLIP's vocab.json and merges.txt, or BERT's vocab.txt.
"""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxvl.data import text_files, wordpiece
from jaxvl.data.tokenizers import Tokenizer, TokenizerConfig, make_tokenizer
from jaxvl.interop.bundle import refusing
from jaxvl.interop.files import read_json, write_json
from jaxvl.interop.mapping import ConversionError
from jaxvl.interop.token_folder import TokenizerFolder
from jaxvl.models import InputSpec

SENTENCEPIECE = ("spiece.model", "tokenizer.model")
FILES = ("tokenizer.json", *SENTENCEPIECE, "vocab.json with merges.txt", "vocab.txt")
CLIP_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_MERGES = 49152 - 256 - 2
# What transformers' tokenizer classes do to a text beyond what is in their files.
_CLASS_CLEANS = {"SiglipTokenizer": "siglip", "Siglip2Tokenizer": "lower"}
_BERT_TOKENS = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
_CLIP_TOKENS = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


def read_tokenizer(folder: pathlib.Path, inputs: InputSpec, *, clean: str | None = None, no_separator: bool = False) -> Tokenizer:
    """The tokenizer of a folder, for a model with these inputs.

    Args:
      clean: done to texts first, instead of what the tokenizer's own class does.
      no_separator: the token after a text is written as 0 (open_clip's `strip_sep_token`).

    Raises:
      ConversionError: no tokenizer there, one that does not fit the model, or does what ours cannot.
    """
    files = TokenizerFolder.read(folder)
    kind = files.tokenizer_class()
    if files.settings.get("padding_side", "right") != "right":
        raise ConversionError(f"{folder / 'tokenizer_config.json'}: padding_side: {files.settings['padding_side']!r}; must be 'right'")
    if clean is None:
        clean = _CLASS_CLEANS.get(kind)
        clean = "siglip_cased" if clean == "siglip" and not files.settings.get("do_lower_case", True) else clean
    options: dict[str, Any] = dict(vocab_size=inputs.vocab_size, clean=clean)
    pieces = any(files.has(name) for name in SENTENCEPIECE)
    with refusing("tokenizer"):
        if files.has("tokenizer.json") and wordpiece.is_bert(kind):
            return _from_bert(files, options, no_separator)
        if files.has("tokenizer.json") and not (kind == "SiglipTokenizer" and pieces):
            return _from_json(files, options, no_separator)
        if pieces:
            return _from_sentencepiece(files, options)
        if files.has("vocab.json", "merges.txt"):
            return _from_merges(files, options)
        if files.has("vocab.txt"):
            return _from_bert(files, options, no_separator)
    raise ConversionError(f"{folder}: has no tokenizer ({', '.join(FILES)}); give --tokenizer=FOLDER with its files, or "
                          "--tokenizer=none to go on without")  # fmt: skip


def _from_json(files: TokenizerFolder, options: dict[str, Any], no_separator: bool) -> Tokenizer:
    path = files.path / "tokenizer.json"
    model, content = files.tokenizer_json()
    padding = model.padding or {}
    model.no_padding()
    model.no_truncation()
    bare, whole = (model.encode("a", add_special_tokens=special).ids for special in (False, True))
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    before, after = whole[:start], whole[start + len(bare) :]
    if not after:  # some leave the end of a text to their class
        eos = files.special_token("eos_token")
        after = [model.token_to_id(eos)] if eos and files.settings.get("add_eos_token") else []
    if len(before) > 1 or len(after) != 1:
        raise ConversionError(
            f"{path}: puts {len(before)} tokens before a text and {len(after)} after it; can be taken over as 0 or 1, and 1"
        )
    name = files.special_token("pad_token")
    pad = model.token_to_id(name) if name is not None else padding.get("pad_id")
    if pad is None:
        raise ConversionError(f"{path}: pad_token: {name!r} is not one of its tokens" if name else f"{path}: has no pad_token")
    return Tokenizer("json", content, pad_id=pad, eos_id=0 if no_separator else after[0], cls_id=before[0] if before else None, **options)


def _from_bert(files: TokenizerFolder, options: dict[str, Any], no_separator: bool) -> Tokenizer:
    """As transformers' `BertTokenizer`: its special tokens stand for themselves in a text."""
    names = {name: files.special_token(name, default) for name, default in _BERT_TOKENS.items()}
    normal = wordpiece.read_options(files.settings)
    if files.has("tokenizer.json"):
        model = wordpiece.with_options(files.tokenizer_json()[0], normal, names["unk_token"])
    else:
        model = wordpiece.bert_tokenizer(files.text("vocab.txt", wordpiece.read_vocabulary), normal, names["unk_token"])
        files.add_tokens(model)
    ids = {name: model.token_to_id(token) for name, token in names.items()}
    lacking = [names[name] for name, i in ids.items() if i is None and name != "mask_token"]
    if lacking:
        raise ConversionError(f"{files.path}: has no {', '.join(lacking)} among its words; it is not a BERT vocabulary")
    model.add_special_tokens([names[name] for name, i in ids.items() if i is not None])
    content = model.to_str().encode()
    eos = 0 if no_separator else ids["sep_token"]
    return Tokenizer("wordpiece", content, pad_id=ids["pad_token"], eos_id=eos, cls_id=ids["cls_token"], **options)


def _from_sentencepiece(files: TokenizerFolder, options: dict[str, Any]) -> Tokenizer:
    path = next(files.path / name for name in SENTENCEPIECE if files.has(name))
    model = make_tokenizer(TokenizerConfig("sentencepiece", str(path)))
    pad = files.special_token("pad_token")
    if options["clean"] == "siglip" and pad is None:
        pad = "</s>"  # the default of SiglipTokenizer
    pad_id = model.pad_id
    if pad is not None:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_proto=model.content)
        pad_id = processor.piece_to_id(pad)
        if processor.id_to_piece(pad_id) != pad:
            raise ConversionError(f"{path}: pad_token: {pad!r} is not one of its pieces")
    return Tokenizer("sentencepiece", model.content, pad_id=pad_id, eos_id=model.eos_id, **options)


def _from_merges(files: TokenizerFolder, options: dict[str, Any]) -> Tokenizer:
    vocabulary = read_json(files.path / "vocab.json")
    lines = files.text("merges.txt", text_files.read_lines)
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    names = [files.special_token(name, default) for name, default in _CLIP_TOKENS.items()]
    lacking = [name for name in names if name not in vocabulary]
    if lacking:
        raise ConversionError(f"{files.path / 'vocab.json'}: has no {lacking[0]!r}")
    normal = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()])
    try:
        model = _byte_pairs(vocabulary, merges, names[:2], normal)
    except Exception as error:  # the library raises bare Exceptions, and TypeErrors
        raise ConversionError(f"{files.path}: vocab.json and merges.txt do not fit together ({' '.join(str(error).split())})") from None
    files.add_tokens(model)
    ids = [vocabulary[name] for name in names]
    return Tokenizer("json", model.to_str().encode(), cls_id=ids[0], eos_id=ids[1], pad_id=ids[2], **options)


def _byte_pairs(vocabulary: dict[str, int], merges: list[tuple[str, str]], special: list[str], normal: Any) -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=special[1]))
    if normal is not None:
        model.normalizer = normal
    split = pre_tokenizers.Split(tokenizers.Regex(CLIP_PATTERN), behavior="removed", invert=True)
    model.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(special)
    start, end = ((name, vocabulary[name]) for name in special)
    model.post_processor = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)
    return model


def clip_tokenizer(inputs: InputSpec, clean: str = "open_clip_lower") -> Tokenizer:
    """CLIP's byte-pair vocabulary, from the file that the open_clip wheel carries; pads with 0 as open_clip does.

    Raises ConversionError where open_clip is not installed, or the model's vocabulary is another.
    """
    spec = importlib.util.find_spec("open_clip")
    if spec is None:
        raise ConversionError("CLIP's vocabulary comes with open_clip, which is not installed; pip install 'jaxvl[interop]', or give "
                              "--tokenizer=FOLDER with its files, or --tokenizer=none")  # fmt: skip
    path = pathlib.Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = text_files.read_lines(gzip.decompress(path.read_bytes()))[1 : CLIP_MERGES + 1]
    merges = [tuple(line.split(" ")) for line in lines]
    characters = byte_characters()
    special = ["<start_of_text>", "<end_of_text>"]
    words = [*characters, *(c + "</w>" for c in characters), *("".join(m) for m in merges), *special]
    vocabulary = {word: i for i, word in enumerate(words)}
    content = _byte_pairs(vocabulary, merges, special, None).to_str().encode()
    with refusing("tokenizer"):
        ids = dict(pad_id=0, cls_id=vocabulary[special[0]], eos_id=vocabulary[special[1]])
        return Tokenizer("json", content, **ids, vocab_size=inputs.vocab_size, clean=clean)


def byte_characters() -> list[str]:
    """The 256 characters that stand for bytes in GPT-2's and CLIP's vocabularies, in the order of their ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


# ---------------------------------------------------------------------------------------------------------------------
# Back


def write_tokenizer(tokenizer: Tokenizer, folder: pathlib.Path, length: int) -> tuple[str, ...]:
    """Files that transformers' `AutoTokenizer` reads; returns what is to be told.

    Args:
      length: tokens of a text.
    """
    settings: dict[str, Any] = {"model_max_length": length, "padding_side": "right", "clean_up_tokenization_spaces": False}
    if tokenizer.kind == "sentencepiece" and tokenizer.clean in ("siglip", "siglip_cased"):
        (folder / SENTENCEPIECE[0]).write_bytes(tokenizer.content)
        names = _names(tokenizer)
        write_json(folder / "tokenizer_config.json", settings | {
            "tokenizer_class": "SiglipTokenizer", "do_lower_case": tokenizer.clean == "siglip", "pad_token": names["pad_token"],
            "eos_token": names["eos_token"], "unk_token": names["unk_token"],
        })  # fmt: skip
        return ()
    model = _unigram(tokenizer) if tokenizer.kind in ("unigram", "sentencepiece") else tokenizers.Tokenizer.from_buffer(tokenizer.content)
    names = {part: model.id_to_token(i) for part, i in (("pad_token", tokenizer.pad_id), ("eos_token", tokenizer.eos_id))}
    if tokenizer.cls_id is not None:
        names["bos_token" if tokenizer.kind == "json" else "cls_token"] = model.id_to_token(tokenizer.cls_id)
    if None in names.values():
        raise ConversionError(
            f"tokenizer: has no word for its {next(k for k, v in names.items() if v is None)}, which transformers asks for"
        )
    notes = _normalise(model, tokenizer.clean)
    start = [f"{model.id_to_token(tokenizer.cls_id)}:0"] if tokenizer.cls_id is not None else []
    end = model.id_to_token(tokenizer.eos_id)
    ids = sorted({(model.id_to_token(i), i) for i in (tokenizer.cls_id, tokenizer.eos_id) if i is not None})
    single = " ".join([*start, "$A:0", f"{end}:0"])
    model.post_processor = processors.TemplateProcessing(single=single, pair=f"{single} $B:1 {end}:1", special_tokens=ids)
    (folder / "tokenizer.json").write_text(model.to_str(pretty=False), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", settings | {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    return notes


def _names(tokenizer: Tokenizer) -> dict[str, str]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.content)
    ids = dict(pad_token=tokenizer.pad_id, eos_token=tokenizer.eos_id, unk_token=model.unk_id())
    return {name: model.id_to_piece(i) for name, i in ids.items()}


def _normalise(model: tokenizers.Tokenizer, clean: str | None) -> tuple[str, ...]:
    """Puts what `clean` does before a text is tokenised into the file, as far as it goes."""
    if clean is None:
        return ()
    parts = []
    if clean.endswith(("canonicalize", "canonical")):
        parts.append(normalizers.Replace("_", " "))
    if clean.endswith(("canonicalize", "canonical", "siglip", "siglip_cased")):
        parts.append(normalizers.Replace(tokenizers.Regex(r"[!-/:-@\[-`{-~]"), ""))
    if not clean.endswith(("whitespace", "cased")):
        parts.append(normalizers.Lowercase())
    if clean != "lower":
        parts += [normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Strip()]
    model.normalizer = normalizers.Sequence([*parts, *([model.normalizer] if model.normalizer else [])])
    repaired = "what open_clip repairs in a text (broken encodings, HTML entities) is not part of a tokenizer.json"
    return (repaired,) if clean.startswith("open_clip") else ()


def _unigram(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """A SentencePiece unigram model as a tokenizer.json."""
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise ConversionError(
            f"a SentencePiece tokenizer is written with protobuf, which is not installed; pip install 'jaxvl[interop]' ({error})"
        ) from None
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.content)
    if proto.trainer_spec.model_type != 1:
        raise ConversionError(
            "tokenizer: a SentencePiece model of byte pairs cannot be written as tokenizer.json; --tokenizer=none leaves it out"
        )
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    model = tokenizers.Tokenizer(models.Unigram(pieces, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback))
    spaces = [normalizers.Replace(tokenizers.Regex(" {2,}"), " "), normalizers.Strip()]
    charsmap = proto.normalizer_spec.precompiled_charsmap
    model.normalizer = normalizers.Sequence([*([normalizers.Precompiled(charsmap)] if charsmap else []), *spaces])
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.decoder = decoders.Metaspace()
    special = [piece.piece for piece in proto.pieces if piece.type == 3]  # control
    model.add_special_tokens([s for s in special if s])
    return model


def without(inputs: InputSpec) -> Tokenizer:
    """Stands for a tokenizer that was left behind: it has the model's numbers, and refuses texts."""
    return Tokenizer("none", b"", pad_id=inputs.pad_id, eos_id=inputs.eos_id, vocab_size=inputs.vocab_size)


def find_tokenizer(option: str | None, read: Callable[[pathlib.Path | None], Tokenizer]) -> Tokenizer | None:
    """What the option `--tokenizer` says: `none` (None is returned), a folder, or None for `read`'s own place.

    Raises ConversionError for a folder that is not there.
    """
    if option == "none":
        return None
    if option is not None and not pathlib.Path(option).is_dir():
        raise ConversionError(f"--tokenizer: {option!r} must be a folder with a tokenizer's files, or none")
    return read(None if option is None else pathlib.Path(option))


def with_tokens(model: Any, inputs: InputSpec, tokenizer: Tokenizer | None) -> InputSpec:
    """Inputs with the tokenizer's padding and EOS.

    Raises ConversionError where the model looks for another EOS than the tokenizer writes.
    """
    if tokenizer is None:
        return inputs
    pool = getattr(getattr(model, "text", None), "pool", None)
    if pool == "eos" and tokenizer.eos_id != inputs.eos_id:
        raise ConversionError(f"tokenizer: ends a text with {tokenizer.eos_id}, but the model looks for {inputs.eos_id}")
    if pool == "argmax" and tokenizer.eos_id != tokenizer.vocab_size - 1:
        raise ConversionError(
            f"tokenizer: ends a text with {tokenizer.eos_id}, but the model looks for the largest token, {tokenizer.vocab_size - 1}"
        )
    return dataclasses.replace(inputs, pad_id=tokenizer.pad_id, eos_id=tokenizer.eos_id)
