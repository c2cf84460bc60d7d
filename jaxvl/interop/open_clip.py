"""Folders of open_clip: CLIP, SigLIP and CoCa, to and from.

They have `open_clip_config.json` beside the weights.
The configurations and tables are in `open_clip_dual.py`, `timm_vit.py` and `open_clip_coca.py`.
"""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvl.aliases import Json
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.tokenizers import Tokenizer
from jaxvl.interop import open_clip_coca as coca
from jaxvl.interop import open_clip_dual as dual
from jaxvl.interop.bundle import (
    Bundle,
    Section,
    built,
    refusing,
    rounding_note,
    same_model,
    shapes_of,
    without_limit,
)
from jaxvl.interop.files import read_json, read_weights, write_json, write_safetensors
from jaxvl.interop.hf_files import CLIP_MEAN, CLIP_STD
from jaxvl.interop.mapping import ConversionError, StateDict, read_arrays, write_arrays
from jaxvl.interop.tokens import (
    clip_tokenizer,
    find_tokenizer,
    read_tokenizer,
    with_tokens,
    write_tokenizer,
)
from jaxvl.models import InputSpec
from jaxvl.models.base import ModelConfig

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth",
    "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
# Buffers, and the numbers that OpenAI's files have beside the weights.
SPARE = ("*attn_mask", "input_resolution", "context_length", "vocab_size")
RESIZE = {"shortest": "centre", "squash": "squash"}
HOLDS_TOKENIZER = True  # whether the tokenizer lies beside the weights


def load(path: pathlib.Path, tokenizer: str | None = None) -> Bundle:
    """A model from a folder as open_clip's `push_to_hf_hub` and `local-dir:` have it.

    Args:
      tokenizer: a folder with the tokenizer's files; None: the model's own; `none`: the tokenizer
        is left behind.

    Raises:
      ConversionError: see the command `jaxvl.convert`.
    """
    config = read_json(path / CONFIG)
    section = Section(config).section("model_cfg", None)
    model, inputs = read_config(section)
    preprocess = _read_preprocess(
        Section(config.get("preprocess_cfg") or {}, "preprocess_cfg"), inputs.image_size
    )
    text = section.section("text_cfg")
    found = find_tokenizer(tokenizer, lambda folder: _tokenizer(text, folder, path, inputs))
    if found is not None and model.registered_name == "open_clip_coca":
        with refusing("model_cfg"):
            model, inputs = coca.config_of(
                section.values, start_id=_start(found), eos_id=found.eos_id
            )
        _check_padding(model, inputs, found)
    arrays = read_state(read_weights(path, WEIGHTS), model, inputs, section.values)
    return Bundle(
        without_limit(model, arrays),
        with_tokens(model, inputs, found),
        arrays,
        found,
        preprocess,
        {"open_clip": config},
    )


def read_config(section: Section) -> tuple[ModelConfig, InputSpec]:
    """Our model and inputs of a `model_cfg`. Raises ConversionError for what cannot be
    represented."""
    if "multimodal_cfg" not in section:
        return dual.read(section)
    last = (
        section.section("text_cfg").size("vocab_size", 49408) - 1
    )  # CLIP's vocabulary ends with start and end
    with refusing("model_cfg"):
        return coca.config_of(section.values, start_id=last - 1, eos_id=last)


def read_state(
    state: StateDict, model: ModelConfig, inputs: InputSpec, model_cfg: Mapping[str, Json]
) -> dict[str, np.ndarray]:
    """Our arrays, from either of their layouts (text tower under `text.` or not); see
    `mapping.read_arrays`."""
    shapes = shapes_of(built(model, inputs))
    if model.registered_name == "open_clip_coca":
        return coca.from_open_clip(state, model, shapes)
    return read_arrays(dict(dual.table(model, model_cfg, dual.layout(state))), state, shapes, SPARE)


def write_state(bundle: Bundle, model_cfg: Mapping[str, Json]) -> dict[str, np.ndarray]:
    """Their state dict, as the model that they build from `model_cfg` has it."""
    if bundle.model.registered_name == "open_clip_coca":
        return coca.to_open_clip(bundle.arrays, bundle.model)
    return write_arrays(
        dict(dual.table(bundle.model, model_cfg, "text." if model_cfg.get("custom_text") else "")),
        bundle.arrays,
    )


def save(bundle: Bundle, path: pathlib.Path) -> tuple[str, ...]:
    """Writes a folder that open_clip reads as `local-dir:PATH`; returns what is to be told.

    Raises:
      ConversionError: a model or preprocessing without a counterpart.
    """
    config = config_of(bundle)
    model_cfg = config["model_cfg"]
    state = write_state(bundle, model_cfg)
    path.mkdir(parents=True, exist_ok=True)
    notes = _write_tokenizer(bundle, path, model_cfg["text_cfg"]) + rounding_note(
        bundle.preprocess, "even", "open_clip"
    )
    write_json(path / CONFIG, config)
    write_safetensors(path / WEIGHTS[0], state)
    return notes


def config_of(bundle: Bundle) -> dict[str, Json]:
    """The contents of open_clip_config.json: those that the model came with where they still say
    the same, else new ones."""
    origin = copy.deepcopy(bundle.origin.get("open_clip"))
    model_cfg = None
    if origin is not None:
        same, inputs = read_config(Section(origin["model_cfg"], "model_cfg"))
        sizes = ("image_size", "vocab_size", "text_length")
        if same_model(same, bundle.model) and all(
            getattr(inputs, s) == getattr(bundle.inputs, s) for s in sizes
        ):
            model_cfg = origin["model_cfg"]
    if model_cfg is None:
        model_cfg = _new_config(bundle)
    return {"model_cfg": model_cfg, "preprocess_cfg": _write_preprocess(bundle.preprocess)}


def _new_config(bundle: Bundle) -> dict[str, Json]:
    name = bundle.model.registered_name
    if name == "open_clip_coca":
        return coca.model_cfg_of(bundle.model, bundle.inputs)
    if name != "dual_encoder" or (
        bundle.model.image.registered_name,
        bundle.model.text.registered_name,
    ) != ("vit", "text_transformer"):
        raise ConversionError(
            f"model: {name!r} has no counterpart in open_clip (dual_encoder of vit and "
            f"text_transformer, and open_clip_coca have)"
        )
    return dual.write(bundle.model, bundle.inputs)


# --------------------------------------------------------------------------------------------------
# Tokenizer and preprocessing


def _tokenizer(
    text: Section, folder: pathlib.Path | None, path: pathlib.Path, inputs: InputSpec
) -> Tokenizer:
    """`folder`: where its files lie; None: in the model's own folder, or in open_clip's wheel where
    the model names none."""
    named = "hf_tokenizer_name" in text
    options = text.section("tokenizer_kwargs")
    text.only("tokenizer_mode", (None, ""), "")
    if not named:
        options.known("clean")
        clean = options.only("clean", ("lower", "whitespace", "canonicalize"), "lower")
        return (
            read_tokenizer(folder, inputs)
            if folder is not None
            else clip_tokenizer(inputs, f"open_clip_{clean}")
        )
    options.known("clean", "strip_sep_token")
    clean = options.only("clean", ("lower", "whitespace", "canonicalize"), "whitespace")
    return read_tokenizer(
        folder or path,
        inputs,
        clean=f"open_clip_{clean}",
        no_separator=bool(options.get("strip_sep_token", False)),
    )


def _start(tokenizer: Tokenizer) -> int:
    if tokenizer.cls_id is None:
        raise ConversionError(
            "tokenizer: puts no token before a text, from which open_clip's CoCa writes"
        )
    return tokenizer.cls_id


def _check_padding(model: ModelConfig, inputs: InputSpec, tokenizer: Tokenizer) -> None:
    """Their model takes a token for padding by its id in `text_cfg`, whatever the tokenizer pads
    with."""
    if model.text_pool == "class" and tokenizer.pad_id != inputs.pad_id:
        raise ConversionError(f"text_cfg.pad_id: {inputs.pad_id} is what the model masks, but the tokenizer pads with {tokenizer.pad_id}; "
                              "must be the same (or --tokenizer=none)")  # fmt: skip
    if tokenizer.pad_id == tokenizer.eos_id:
        raise ConversionError(
            f"tokenizer: pads with its EOS, {tokenizer.eos_id}, so that no caption would be "
            f"seen to end (or --tokenizer=none)"
        )


def _write_tokenizer(
    bundle: Bundle, path: pathlib.Path, text_cfg: dict[str, Any]
) -> tuple[str, ...]:
    """Writes the files and says in `text_cfg` where they are; nothing for CLIP's own vocabulary,
    which open_clip carries."""
    tokenizer = bundle.tokenizer
    if tokenizer is None:
        return ("no tokenizer is written",)
    own = None
    if (
        (tokenizer.clean or "").startswith("open_clip")
        and tokenizer.vocab_size >= 49408
        and tokenizer.kind == "json"
    ):
        own = clip_tokenizer(bundle.inputs, tokenizer.clean)
    if own is not None and own.to_json() == tokenizer.to_json():
        text_cfg.pop("hf_tokenizer_name", None)
        if tokenizer.clean != "open_clip_lower":
            text_cfg["tokenizer_kwargs"] = {"clean": tokenizer.clean.removeprefix("open_clip_")}
        return ()
    clean = (tokenizer.clean or "").removeprefix("open_clip_")
    if clean in ("lower", "whitespace", "canonicalize") and clean != tokenizer.clean:
        text_cfg["tokenizer_kwargs"] = {**text_cfg.get("tokenizer_kwargs", {}), "clean": clean}
        tokenizer = copy.copy(tokenizer)
        tokenizer.clean = None  # open_clip does it
    else:
        text_cfg.pop("tokenizer_kwargs", None)
    text_cfg.setdefault(
        "hf_tokenizer_name", "local"
    )  # any name: open_clip looks in the folder itself
    return write_tokenizer(tokenizer, path, bundle.inputs.text_length)


def _read_preprocess(section: Section, image_size: int) -> Preprocess:
    section.known("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")
    if section.size("size", image_size) != image_size:
        raise section.refuse("size", f"but the model's pictures are {image_size} pixels a side")
    section.only("mode", ("RGB",), "RGB")
    resize = section.only("resize_mode", RESIZE, "shortest")
    with refusing("preprocess_cfg"):
        return Preprocess(
            image_size, section.numbers("mean", CLIP_MEAN), section.numbers("std", CLIP_STD), resize=resize,
            interpolation=section.only("interpolation", ("bicubic", "bilinear"), "bicubic"),
            crop_rounding="even" if resize == "centre" else "down",
        )  # fmt: skip


def _write_preprocess(preprocess: Preprocess) -> dict[str, Json]:
    if preprocess.scale_to not in (None, preprocess.image_size):
        raise ConversionError(
            f"preprocess.scale_to: {preprocess.scale_to} has no counterpart in open_clip, "
            f"which scales to the size it cuts"
        )
    if preprocess.interpolation not in ("bicubic", "bilinear"):
        raise ConversionError(
            f"preprocess.interpolation: {preprocess.interpolation!r} has no counterpart in "
            f"open_clip (bicubic, bilinear)"
        )
    mode = next(theirs for theirs, ours in RESIZE.items() if ours == preprocess.resize)
    return {
        "size": preprocess.image_size, "mean": list(preprocess.mean), "std": list(preprocess.std),
        "interpolation": preprocess.interpolation, "resize_mode": mode,
    }  # fmt: skip
