"""Folders of Hugging Face transformers (CLIP, SigLIP, SigLIP 2, ALIGN), to and from.

The configurations and tables are in `hf_dual.py` and `hf_align.py`, the preprocessor's files in
`hf_files.py`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxvl.aliases import Json
from jaxvl.interop import hf_align, hf_dual, hf_files
from jaxvl.interop.bundle import (
    Bundle,
    Section,
    built,
    rounding_note,
    same_model,
    shapes_of,
    without_limit,
)
from jaxvl.interop.files import read_json, read_weights, write_json, write_safetensors
from jaxvl.interop.mapping import ConversionError, Entries, StateDict, read_arrays, write_arrays
from jaxvl.interop.tokens import find_tokenizer, read_tokenizer, with_tokens, write_tokenizer
from jaxvl.models import InputSpec
from jaxvl.models.base import ModelConfig

HOLDS_TOKENIZER = True  # whether the tokenizer lies beside the weights
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
BUFFERS = (
    "*position_ids",
    "*num_batches_tracked",
    "*token_type_ids",
)  # of their modules; they hold nothing that was learned


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type` of theirs.

    Attributes:
      read: their configuration to (ours, inputs); write: back.
      table: of a configuration of ours.
      spare: patterns of tensors that have no place in ours.
    """

    read: Callable[[Section], tuple[Any, InputSpec]]
    write: Callable[[Any, InputSpec], dict[str, Any]]
    table: Callable[[Any], Entries]
    spare: tuple[str, ...] = ()


FAMILIES = {
    "clip": Family(hf_dual.read_clip, hf_dual.write_clip, hf_dual.clip_table),
    "siglip": Family(hf_dual.read_siglip, hf_dual.write_siglip, hf_dual.siglip_table),
    "siglip2": Family(hf_dual.read_siglip, hf_dual.write_siglip2, hf_dual.siglip2_table),
    "align": Family(
        hf_align.read_align, hf_align.write_align, hf_align.align_table, ("text_model.pooler.*",)
    ),
}


def load(path: pathlib.Path, tokenizer: str | None = None) -> Bundle:
    """A model from a folder as `save_pretrained` writes it.

    Args:
      tokenizer: a folder with the tokenizer's files; None: the model's own; `none`: the tokenizer
        is left behind.

    Raises:
      ConversionError: see the command `jaxvl.convert`.
    """
    config = Section(read_json(path / "config.json"))
    kind = _model_type(config)
    found = find_tokenizer(
        tokenizer, lambda folder: read_tokenizer(folder or path, FAMILIES[kind].read(config)[1])
    )
    config = hf_dual.with_one_eos(config, None if found is None else found.eos_id)
    model, inputs = FAMILIES[kind].read(config)
    preprocess, notes = hf_files.read_preprocess(path, inputs.image_size, kind, model.image.patch)
    arrays = read(read_weights(path, WEIGHTS), kind, model, inputs)
    return Bundle(
        without_limit(model, arrays),
        with_tokens(model, inputs, found),
        arrays,
        found,
        preprocess,
        {"hf": dict(config.values)},
        notes,
    )


def _model_type(config: Section) -> str:
    if config.get("model_type", None) not in FAMILIES:
        raise config.refuse("model_type", f"can be taken over as {', '.join(FAMILIES)} only")
    return config.get("model_type")


def read(
    state: StateDict, model_type: str, model: ModelConfig, inputs: InputSpec
) -> dict[str, np.ndarray]:
    """Our arrays from their state dict; see `mapping.read_arrays`."""
    family = FAMILIES[model_type]
    return read_arrays(
        dict(family.table(model)), state, shapes_of(built(model, inputs)), BUFFERS + family.spare
    )


def model_type(bundle: Bundle) -> str:
    """Which of theirs the model becomes: that which it came from, else by its shape."""
    model = bundle.model
    origin = bundle.origin.get("hf", {}).get("model_type")
    name = model.registered_name
    towers = tuple(
        model.encoders[side].registered_name if side in model.encoders else "none"
        for side in ("image", "text")
    )
    if name == "align" and towers == ("efficientnet", "bert"):
        return "align"
    if name != "dual_encoder" or towers != ("vit", "text_transformer"):
        raise ConversionError(
            f"model: {name!r} of {' and '.join(towers)} has no counterpart in transformers "
            f"(those of clip, siglip, align have)"
        )
    siglip = "siglip2" if origin == "siglip2" else "siglip"
    return siglip if model.init_bias is not None else "clip"


def save(bundle: Bundle, path: pathlib.Path) -> tuple[str, ...]:
    """Writes a folder that `from_pretrained` reads; returns what is to be told.

    Raises:
      ConversionError: a model, tokenizer or preprocessing without a counterpart.
    """
    kind = model_type(bundle)
    config = config_of(bundle)
    state = write_arrays(dict(FAMILIES[kind].table(bundle.model)), bundle.arrays)
    if kind == "align":
        state |= hf_align.unused(bundle.model, state)
    path.mkdir(parents=True, exist_ok=True)
    notes = (
        write_tokenizer(bundle.tokenizer, path, bundle.inputs.text_length)
        if bundle.tokenizer
        else ("no tokenizer is written",)
    )
    notes += rounding_note(bundle.preprocess, "down", "transformers")
    patch = bundle.model.image.patch if kind == "siglip2" else None
    write_json(path / "preprocessor_config.json", hf_files.preprocessor(bundle.preprocess, patch))
    write_json(path / "config.json", config)
    write_safetensors(path / WEIGHTS[0], state)
    return notes + (
        ("text_model.pooler, which AlignModel carries and never uses, is written as zeros",)
        if kind == "align"
        else ()
    )


def config_of(bundle: Bundle) -> dict[str, Json]:
    """Their configuration: the one that the model came with where it still says the same, else a
    new one."""
    kind = model_type(bundle)
    origin = bundle.origin.get("hf")
    config = FAMILIES[kind].write(bundle.model, bundle.inputs)
    if origin is not None and origin.get("model_type") == kind:
        same, inputs = FAMILIES[kind].read(Section(origin))
        sizes = ("image_size", "vocab_size", "text_length")
        if same_model(same, bundle.model) and all(
            getattr(inputs, s) == getattr(bundle.inputs, s) for s in sizes
        ):
            config = {key: value for key, value in origin.items() if key != "dtype"}
    return {**config, "torch_dtype": "float32"}
