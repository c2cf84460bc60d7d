"""Tokenizers of other libraries as ours, for a model of theirs; and back to their files."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxvl.data import token_files
from jaxvl.data.token_folder import TokenizerFolder
from jaxvl.data.tokenizer import Tokenizer
from jaxvl.interop.bundle import refusing
from jaxvl.interop.files import write_json
from jaxvl.interop.mapping import ConversionError
from jaxvl.models import InputSpec
from jaxvl.models.base import ModelConfig
from jaxvl.models.text import TextTransformerConfig

_ELSEWHERE = "give --tokenizer=FOLDER with its files, or --tokenizer=none to go on without"


def read_tokenizer(
    folder: pathlib.Path, inputs: InputSpec, *, clean: str | None = None, no_separator: bool = False
) -> Tokenizer:
    """The tokenizer of a folder, for a model with these inputs.

    Args:
      clean: done to texts first, instead of what the tokenizer's own class does.
      no_separator: the token after a text is written as 0 (open_clip's `strip_sep_token`).

    Raises:
      ConversionError: no tokenizer there, one that does not fit the model, or does what ours
        cannot.
    """
    with refusing("tokenizer"):
        files = TokenizerFolder.read(folder)
        if token_files.has_tokenizer(files):
            return token_files.read_folder(
                files, vocab_size=inputs.vocab_size, clean=clean, no_separator=no_separator
            )
    raise ConversionError(
        f"{folder}: has no tokenizer ({', '.join(token_files.FILES)}); {_ELSEWHERE}"
    )


def clip_tokenizer(inputs: InputSpec, clean: str = "open_clip_lower") -> Tokenizer:
    """CLIP's byte-pair vocabulary, from the file that the open_clip wheel carries; pads with 0 as
    open_clip does.

    Raises ConversionError where open_clip is not installed, or the model's vocabulary is another.
    """
    if importlib.util.find_spec("open_clip") is None:
        raise ConversionError(
            f"CLIP's vocabulary comes with open_clip, which is not installed; pip install "
            f"'jaxvl[interop]', or {_ELSEWHERE}"
        )
    with refusing("tokenizer"):
        return token_files.read_clip(vocab_size=inputs.vocab_size, clean=clean)


# --------------------------------------------------------------------------------------------------
# Back


def write_tokenizer(tokenizer: Tokenizer, folder: pathlib.Path, length: int) -> tuple[str, ...]:
    """Files that transformers' `AutoTokenizer` reads; returns what is to be told.

    Args:
      length: tokens of a text.
    """
    settings: dict[str, Any] = {
        "model_max_length": length,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.kind == "sentencepiece" and tokenizer.clean in ("siglip", "siglip_cased"):
        (folder / token_files.SENTENCEPIECE[0]).write_bytes(tokenizer.content)
        names = _names(tokenizer)
        write_json(folder / "tokenizer_config.json", settings | {
            "tokenizer_class": "SiglipTokenizer", "do_lower_case": tokenizer.clean == "siglip", "pad_token": names["pad_token"],
            "eos_token": names["eos_token"], "unk_token": names["unk_token"],
        })  # fmt: skip
        return ()
    model = (
        _unigram(tokenizer)
        if tokenizer.kind in ("unigram", "sentencepiece")
        else tokenizers.Tokenizer.from_buffer(tokenizer.content)
    )
    names = {
        part: model.id_to_token(i)
        for part, i in (("pad_token", tokenizer.pad_id), ("eos_token", tokenizer.eos_id))
    }
    if tokenizer.cls_id is not None:
        names["bos_token" if tokenizer.kind == "json" else "cls_token"] = model.id_to_token(
            tokenizer.cls_id
        )
    if None in names.values():
        raise ConversionError(
            f"tokenizer: has no word for its "
            f"{next(k for k, v in names.items() if v is None)}, which transformers asks for"
        )
    notes = _normalise(model, tokenizer.clean)
    start = [f"{model.id_to_token(tokenizer.cls_id)}:0"] if tokenizer.cls_id is not None else []
    end = model.id_to_token(tokenizer.eos_id)
    ids = sorted(
        {(model.id_to_token(i), i) for i in (tokenizer.cls_id, tokenizer.eos_id) if i is not None}
    )
    single = " ".join([*start, "$A:0", f"{end}:0"])
    model.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} $B:1 {end}:1", special_tokens=ids
    )
    (folder / "tokenizer.json").write_text(model.to_str(pretty=False), encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        settings | {"tokenizer_class": "PreTrainedTokenizerFast", **names},
    )
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
    model.normalizer = normalizers.Sequence(
        [*parts, *([model.normalizer] if model.normalizer else [])]
    )
    repaired = (
        "what open_clip repairs in a text (broken encodings, HTML entities) is not part of a "
        "tokenizer.json"
    )
    return (repaired,) if clean.startswith("open_clip") else ()


def _unigram(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """A SentencePiece unigram model as a tokenizer.json."""
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise ConversionError(
            f"a SentencePiece tokenizer is written with protobuf, which is not installed; pip "
            f"install 'jaxvl[interop]' ({error})"
        ) from None
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.content)
    if proto.trainer_spec.model_type != 1:
        raise ConversionError(
            "tokenizer: a SentencePiece model of byte pairs cannot be written as "
            "tokenizer.json; --tokenizer=none leaves it out"
        )
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    model = tokenizers.Tokenizer(
        models.Unigram(pieces, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback)
    )
    spaces = [normalizers.Replace(tokenizers.Regex(" {2,}"), " "), normalizers.Strip()]
    charsmap = proto.normalizer_spec.precompiled_charsmap
    model.normalizer = normalizers.Sequence(
        [*([normalizers.Precompiled(charsmap)] if charsmap else []), *spaces]
    )
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.decoder = decoders.Metaspace()
    special = [piece.piece for piece in proto.pieces if piece.type == 3]  # control
    model.add_special_tokens([s for s in special if s])
    return model


def without(inputs: InputSpec) -> Tokenizer:
    """Stands for a tokenizer that was left behind: it has the model's numbers, and refuses
    texts."""
    return Tokenizer(
        "none", b"", pad_id=inputs.pad_id, eos_id=inputs.eos_id, vocab_size=inputs.vocab_size
    )


def find_tokenizer(
    option: str | None, read: Callable[[pathlib.Path | None], Tokenizer]
) -> Tokenizer | None:
    """What the option `--tokenizer` says: `none` (None is returned), a folder, or None for `read`'s
    own place.

    Raises ConversionError for a folder that is not there.
    """
    if option == "none":
        return None
    if option is not None and not pathlib.Path(option).is_dir():
        raise ConversionError(
            f"--tokenizer: {option!r} must be a folder with a tokenizer's files, or none"
        )
    return read(None if option is None else pathlib.Path(option))


def with_tokens(model: ModelConfig, inputs: InputSpec, tokenizer: Tokenizer | None) -> InputSpec:
    """Inputs with the tokenizer's padding and EOS.

    Raises ConversionError where the model looks for another EOS than the tokenizer writes.
    """
    if tokenizer is None:
        return inputs
    text = model.encoders.get("text")
    pool = text.pool if isinstance(text, TextTransformerConfig) else None
    if pool == "eos" and tokenizer.eos_id != inputs.eos_id:
        raise ConversionError(
            f"tokenizer: ends a text with {tokenizer.eos_id}, but the model looks for "
            f"{inputs.eos_id}"
        )
    if pool == "argmax" and tokenizer.eos_id != tokenizer.vocab_size - 1:
        raise ConversionError(
            f"tokenizer: ends a text with {tokenizer.eos_id}, but the model looks for the "
            f"largest token, {tokenizer.vocab_size - 1}"
        )
    return dataclasses.replace(inputs, pad_id=tokenizer.pad_id, eos_id=tokenizer.eos_id)
