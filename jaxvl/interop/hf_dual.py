"""transformers' CLIP, SigLIP and SigLIP 2 as `dual_encoder`: configurations and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvl.aliases import Json
from jaxvl.interop.bundle import Section, model_of
from jaxvl.interop.dual import must_be, sizes_fields, text_node, vit_node
from jaxvl.interop.mapping import (
    CONVOLUTION,
    LEADING,
    ONE,
    ConversionError,
    Entries,
    Form,
    Source,
    attention,
    linear,
    multihead_attention,
    norm,
)
from jaxvl.models import InputSpec
from jaxvl.models.dual_encoder import DualEncoderConfig
from jaxvl.nn.transformer import Sizes

# Their names of activations; the first of ours' is written.
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu", "silu": "swish", "swish": "swish", "relu": "relu",
}  # fmt: skip
# what configurations of before transformers 4.31 say; their model then takes the largest token id
ARGMAX_EOS = 2

_CLIP_TEXT = dict(
    hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8
)
_BASE = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)


def activation_name(ours: str) -> str:
    return next(theirs for theirs, name in ACTIVATIONS.items() if name == ours)


def _sizes(section: Section, defaults: Mapping[str, int]) -> Sizes:
    width, hidden, depth, heads = (section.size(key, default) for key, default in defaults.items())
    return Sizes(width, depth, heads, hidden)


def _tower(section: Section, activation: str, eps: float) -> dict[str, Json]:
    return dict(
        activation=section.only("hidden_act", ACTIVATIONS, activation),
        eps=section.number("layer_norm_eps", eps),
    )


def read_clip(config: Section) -> tuple[DualEncoderConfig, InputSpec]:
    """Of a `CLIPConfig`'s JSON. Raises ConversionError for what cannot be represented."""
    text, vision = (config.section(_section_name(config, key)) for key in ("text", "vision"))
    positions = text.size("max_position_embeddings", 77)
    vocabulary = text.size("vocab_size", 49408)
    eos = text.tokens("eos_token_id", 49407)[0]
    image = vit_node(
        _sizes(vision, _BASE), vision.size("patch_size", 32), vision.size("image_size", 224)
    )
    model = model_of(dict(
        name="dual_encoder",
        image=dict(**image, pool="cls", pre_norm=True, patch_bias=False, **_tower(vision, "quick_gelu", 1e-5)),
        text=dict(
            **text_node(_sizes(text, _CLIP_TEXT), positions), causal=True, pool="argmax" if eos == ARGMAX_EOS else "eos",
            **_tower(text, "quick_gelu", 1e-5),
        ),
        embed_dim=config.size("projection_dim", 512),
    ))  # fmt: skip
    vision.only("num_channels", (3,), 3)
    eos = vocabulary - 1 if eos == ARGMAX_EOS else eos
    if eos >= vocabulary:
        raise text.refuse("eos_token_id", f"must be below the vocabulary's {vocabulary}")
    return model, InputSpec(
        vision.size("image_size", 224), positions, vocabulary, text.token("pad_token_id", 1), eos
    )


def _section_name(config: Section, key: str) -> str:
    """Of the tower `key`.

    Configurations of 2022 have both names; in transformers the one with `_dict` wins with all its
    values, be they its defaults.
    """
    return f"{key}_config_dict" if f"{key}_config_dict" in config else f"{key}_config"


def with_one_eos(config: Section, eos_id: int | None) -> Section:
    """The configuration with one `eos_token_id` where its text tower lists several, with which
    CLIPModel cannot run.

    Args:
      eos_id: the token that the tokenizer ends a text with; taken where the list has it. Otherwise
        its first one is.
    """
    name = _section_name(config, "text")
    text = config.section(name)
    if not isinstance(text.values.get("eos_token_id"), (list, tuple)):
        return config
    listed = text.tokens("eos_token_id")
    chosen = eos_id if eos_id in listed else listed[0]
    return Section({**config.values, name: {**text.values, "eos_token_id": chosen}}, config.where)


def write_clip(model: DualEncoderConfig, inputs: InputSpec) -> dict[str, Json]:
    """A `CLIPConfig`'s JSON. Raises ConversionError where CLIPModel has no counterpart."""
    must_be("CLIPModel", model, {
        "image.pool": ("cls",), "image.pre_norm": (True,), "image.patch_bias": (False,), "image.positions": ("learned",),
        "image.qk_norm": (False,), "text.causal": (True,), "text.pool": ("eos", "argmax"), "text.qk_norm": (False,),
        "projections": ("both",), "projection_bias": (False,), "init_bias": (None,),
    })  # fmt: skip
    width = model.embed_dim or model.image.features
    eos = ARGMAX_EOS if model.text.pool == "argmax" else inputs.eos_id
    if model.text.pool == "eos" and eos == ARGMAX_EOS:
        raise ConversionError(
            f"tokenizer.eos_id: {eos} means something else to CLIPModel (the largest id of a "
            f"text); use pool 'argmax'"
        )
    return {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": width,
        "logit_scale_init_value": math.log(model.init_scale),
        "text_config": {
            "model_type": "clip_text_model", **_written(model.text), "projection_dim": width, "vocab_size": inputs.vocab_size,
            "max_position_embeddings": model.text.positions or inputs.text_length, "eos_token_id": eos, "pad_token_id": inputs.pad_id,
            # A token that transformers only reports; it must be one of the vocabulary.
            "bos_token_id": max(0, inputs.vocab_size - 2),
        },
        "vision_config": {
            "model_type": "clip_vision_model", **_written(model.image), "projection_dim": width, "image_size": inputs.image_size,
            "patch_size": model.image.patch, "num_channels": 3,
        },
    }  # fmt: skip


def read_siglip(config: Section) -> tuple[DualEncoderConfig, InputSpec]:
    """Of a `SiglipConfig`'s or `Siglip2Config`'s JSON. Raises ConversionError for what cannot be
    represented."""
    text = config.section("text_config")
    vision = config.section("vision_config")
    patch = vision.size("patch_size", 16)
    sizes = _sizes(vision, _BASE)
    image_size = (
        _side(vision, patch)
        if config.get("model_type") == "siglip2"
        else vision.size("image_size", 224)
    )
    positions = text.size("max_position_embeddings", 64)
    vocabulary = text.size("vocab_size", 32000)
    text_sizes = _sizes(text, _BASE)
    if text.size("projection_size", text_sizes.width) != sizes.width:
        raise text.refuse(
            "projection_size",
            f"must be the vision tower's hidden_size of {sizes.width}, which the texts are "
            f"compared with",
        )
    vision.only("vision_use_head", (True,), True)
    vision.only("num_channels", (3,), 3)
    model = model_of(dict(
        name="dual_encoder",
        image=dict(**vit_node(sizes, patch, image_size), pool="map", **_tower(vision, "gelu_pytorch_tanh", 1e-6)),
        text=dict(**text_node(text_sizes, positions), mask_padding=False, pool="last", **_tower(text, "gelu_pytorch_tanh", 1e-6)),
        projections="text", projection_bias=True, init_scale=10.0, init_bias=-10.0, max_scale=None,
    ))  # fmt: skip
    return model, InputSpec(image_size, positions, vocabulary, text.token("pad_token_id", 1), None)


def _side(vision: Section, patch: int) -> int:
    patches = vision.size("num_patches", 256)
    if math.isqrt(patches) ** 2 != patches:
        raise vision.refuse("num_patches", "must be a square number (one picture of a fixed size)")
    return math.isqrt(patches) * patch


def write_siglip(model: DualEncoderConfig, inputs: InputSpec) -> dict[str, Json]:
    """A `SiglipConfig`'s JSON. Raises ConversionError where SiglipModel has no counterpart."""
    must_be("SiglipModel", model, {
        "image.pool": ("map",), "image.pre_norm": (False,), "image.patch_bias": (True,), "image.positions": ("learned",),
        "image.qk_norm": (False,), "text.causal": (False,), "text.mask_padding": (False,), "text.pool": ("last",), "text.qk_norm": (False,),
        "projections": ("text",), "projection_bias": (True,),
    })  # fmt: skip
    return {
        "architectures": ["SiglipModel"], "model_type": "siglip",
        "text_config": {
            "model_type": "siglip_text_model", **_written(model.text), "projection_size": model.image.features,
            "vocab_size": inputs.vocab_size, "max_position_embeddings": model.text.positions or inputs.text_length,
            "pad_token_id": inputs.pad_id, "bos_token_id": None, "eos_token_id": inputs.eos_id,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", **_written(model.image), "image_size": inputs.image_size, "patch_size": model.image.patch,
            "num_channels": 3,
        },
    }  # fmt: skip


def write_siglip2(model: DualEncoderConfig, inputs: InputSpec) -> dict[str, Json]:
    """A `Siglip2Config`'s JSON: as `write_siglip`, with a number of patches for the picture's
    size."""
    config = write_siglip(model, inputs)
    config["vision_config"].pop("image_size")
    config["vision_config"] |= {
        "model_type": "siglip2_vision_model",
        "num_patches": (inputs.image_size // model.image.patch) ** 2,
    }
    config["text_config"]["model_type"] = "siglip2_text_model"
    return {**config, "architectures": ["Siglip2Model"], "model_type": "siglip2"}


def _written(tower: Any) -> dict[str, Json]:
    width, hidden, depth, heads = sizes_fields(tower.sizes)
    return {
        "hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": depth, "num_attention_heads": heads,
        "hidden_act": activation_name(tower.activation), "layer_norm_eps": tower.eps,
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------
# Tables


def clip_table(config: DualEncoderConfig) -> Entries:
    """`CLIPModel`, of a configuration in the shape of `presets.clip`."""
    image = "image/encoder"
    text = "text/encoder"
    yield f"{image}/class_token", Source("vision_model.embeddings.class_embedding")
    yield (
        f"{image}/patches/kernel",
        Source("vision_model.embeddings.patch_embedding.weight", CONVOLUTION),
    )
    yield f"{image}/positions", Source("vision_model.embeddings.position_embedding.weight")
    yield from norm(f"{image}/pre_norm", "vision_model.pre_layrnorm")
    yield from _layers(image, "vision_model", config.image.sizes)
    yield from norm(f"{image}/norm", "vision_model.post_layernorm")
    yield from linear("image/projection", "visual_projection", bias=False)
    yield from _text_embeddings(text, "text_model.embeddings")
    yield from _layers(text, "text_model", config.text.sizes)
    yield from norm(f"{text}/norm", "text_model.final_layer_norm")
    yield from linear("text/projection", "text_projection", bias=False)
    yield "log_scale", Source("logit_scale")


def siglip_table(config: DualEncoderConfig, patches: Form = CONVOLUTION) -> Entries:
    """`SiglipModel`, of a configuration in the shape of `presets.siglip`; `patches`: layout of the
    patch embedding."""
    image = "image/encoder"
    text = "text/encoder"
    sizes = config.image.sizes
    yield (
        f"{image}/patches/kernel",
        Source("vision_model.embeddings.patch_embedding.weight", patches),
    )
    yield f"{image}/patches/bias", Source("vision_model.embeddings.patch_embedding.bias")
    yield f"{image}/positions", Source("vision_model.embeddings.position_embedding.weight")
    yield from _layers(image, "vision_model", sizes)
    yield from norm(f"{image}/norm", "vision_model.post_layernorm")
    yield from _map_pooler(f"{image}/pooler", "vision_model.head", sizes)
    yield from _text_embeddings(text, "text_model.embeddings")
    yield from _layers(text, "text_model", config.text.sizes)
    yield from norm(f"{text}/norm", "text_model.final_layer_norm")
    yield from linear("text/projection", "text_model.head")
    yield "log_scale", Source("logit_scale", ONE)
    yield "logit_bias", Source("logit_bias", ONE)


def siglip2_table(config: DualEncoderConfig) -> Entries:
    """`Siglip2Model`, whose patches come cut and flattened: its patch embedding is a `Linear` over
    [rows, columns, channels]."""
    patch = config.image.patch

    def read(x: np.ndarray) -> np.ndarray:
        return x.T.reshape(patch, patch, -1, len(x))

    yield from siglip_table(config, Form(read, lambda x: x.reshape(-1, x.shape[-1]).T))


def _layers(ours: str, theirs: str, sizes: Sizes) -> Entries:
    """The pre-norm encoder layers."""
    ours = f"{ours}/transformer/blocks"
    theirs = f"{theirs}.encoder.layers.{{i}}"
    n = sizes.depth
    names = {
        part: f"{theirs}.self_attn.{short}_proj"
        for part, short in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out"))
    }
    yield from attention(f"{ours}/attention", names, sizes.heads, n)
    yield from norm(f"{ours}/attention_norm", f"{theirs}.layer_norm1", n)
    yield from norm(f"{ours}/mlp_norm", f"{theirs}.layer_norm2", n)
    yield from linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1", n)
    yield from linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2", n)


def _text_embeddings(ours: str, theirs: str) -> Entries:
    yield f"{ours}/words/embedding", Source(f"{theirs}.token_embedding.weight")
    yield f"{ours}/positions", Source(f"{theirs}.position_embedding.weight")


def _map_pooler(ours: str, theirs: str, sizes: Sizes) -> Entries:
    yield f"{ours}/query", Source(f"{theirs}.probe", LEADING)
    yield from multihead_attention(f"{ours}/attention", f"{theirs}.attention", sizes.heads)
    yield from norm(f"{ours}/norm", f"{theirs}.layernorm")
    yield from linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1")
    yield from linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2")
