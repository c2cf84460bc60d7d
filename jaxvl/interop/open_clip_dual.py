"""open_clip's `CLIP` and `CustomTextCLIP` as `dual_encoder`: configurations and tables.

The image tower is open_clip's own ViT or one of timm's (`timm_vit.py`); the text tower is
open_clip's own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxvl.aliases import Json
from jaxvl.interop import timm_vit
from jaxvl.interop.bundle import Section, model_of
from jaxvl.interop.dual import must_be, text_node, vit_node
from jaxvl.interop.mapping import (
    CONVOLUTION,
    ONE,
    SAME,
    TRANSPOSED,
    ConversionError,
    Entries,
    Source,
    linear,
    multihead_attention,
    norm,
)
from jaxvl.models import InputSpec
from jaxvl.models.dual_encoder import DualEncoderConfig
from jaxvl.nn.transformer import Sizes

_BLOCK = dict(
    ls_init_value=None, block_type=None, qk_norm=False, scaled_cosine_attn=False, scale_heads=False, scale_attn_inner=False,
    scale_attn=False, scale_fc=False,
)  # fmt: skip
_TOP = (
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "quick_gelu",
    "custom_text",
    "init_logit_scale",
    "init_logit_bias",
    "nonscalar_logit_scale",
)
_VISION = ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout", "attentional_pool",
           "attn_pooler_queries", "attn_pooler_heads", "no_ln_pre", "pos_embed_type", "final_ln_after_pool", "pool_type", "output_tokens",
           "act_kwargs", "norm_kwargs", "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop",
           "timm_drop_path", *_BLOCK)  # fmt: skip
_TEXT = ("context_length", "vocab_size", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "width", "heads", "layers",
         "mlp_ratio", "embed_cls", "pad_id", "eos_id", "no_causal_mask", "final_ln_after_pool", "pool_type", "proj_bias", "proj_type",
         "output_tokens", "act_kwargs", "norm_kwargs", "hf_model_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type",
         *_BLOCK)  # fmt: skip


def read(config: Section) -> tuple[DualEncoderConfig, InputSpec]:
    """Of a `model_cfg`. Raises ConversionError for what cannot be represented."""
    config.known(*_TOP)
    vision = config.section("vision_cfg", None)
    text = config.section("text_cfg", None)
    vision.known(*_VISION)
    text.known(*_TEXT)
    embed_dim = config.size("embed_dim")
    quick = config.get("quick_gelu", False)
    image, image_size, projected = (_read_timm if "timm_model_name" in vision else _read_vision)(
        vision, quick
    )
    text_tower, inputs = _read_text(text, quick)
    projects = text.only("proj_type", {"linear": True, "none": False}, "linear")
    projections = {(True, True): "both", (False, True): "text", (False, False): "none"}.get(
        (projected is not None, projects)
    )
    if projections is None:
        raise text.refuse("proj_type", "must be 'linear' where the image is projected")
    biased = {
        b
        for b in (projected, bool(text.get("proj_bias", False)) if projects else None)
        if b is not None
    }
    if len(biased) > 1:
        raise text.refuse("proj_bias", f"must be {projected}, as for the image's projection")
    bias = config.get("init_logit_bias", None)
    scale = math.exp(config.number("init_logit_scale", math.log(1 / 0.07)))
    model = model_of(dict(
        name="dual_encoder", image=image, text=text_tower, projections=projections, projection_bias=bool(biased and biased.pop()),
        embed_dim=embed_dim, init_scale=scale, init_bias=None if bias is None else float(bias),
        max_scale=100.0 if bias is None and scale <= 100 else None,
    ))  # fmt: skip
    return model, dataclasses.replace(inputs, image_size=image_size)


def _activation(section: Section, quick: bool) -> str:
    if quick:
        section.only("act_kwargs", (None, {}), {})
        return "quick_gelu"
    given = section.section("act_kwargs")
    given.known("approximate")
    return given.only("approximate", {"none": "gelu", "tanh": "gelu_tanh"}, "none")


def _eps(section: Section) -> float:
    given = section.section("norm_kwargs")
    given.known("eps")
    return given.number("eps", 1e-5)


def _same_block(section: Section) -> None:
    for key, value in _BLOCK.items():
        section.only(key, (value, "default") if key == "block_type" else (value,), value)


def _read_vision(vision: Section, quick: bool) -> tuple[dict[str, Any], int, bool | None]:
    """(node, image size, bias of the projection or None where there is none) of open_clip's own
    ViT."""
    if isinstance(vision.get("layers", 12), (list, tuple)):
        raise vision.refuse("layers", "is a ResNet; only ViT towers can be taken over")
    _same_block(vision)
    vision.only("attentional_pool", (False,), False)
    vision.only(
        "pos_embed_type", ("learnable", "sin_cos_2d"), "learnable"
    )  # both are in the weights
    pool = vision.only("pool_type", {"tok": "cls", "avg": "cls_mean"}, "tok")
    if pool == "cls_mean":
        vision.only("final_ln_after_pool", (True,), False)
    width = vision.size("width", 768)
    head = vision.size("head_width", 64)
    side = vision.size("image_size", 224)
    patch = vision.size("patch_size", 16)
    sizes = Sizes(
        width,
        vision.size("layers", 12),
        width // head,
        int(width * vision.number("mlp_ratio", 4.0)),
    )
    node = dict(
        vit_node(sizes, patch, side), pool=pool, pre_norm=not vision.get("no_ln_pre", False), patch_bias=False,
        activation=_activation(vision, quick), eps=_eps(vision),
    )  # fmt: skip
    return node, side, False


def _read_timm(vision: Section, quick: bool) -> tuple[dict[str, Any], int, bool | None]:
    trunk = timm_vit.trunk(vision.get("timm_model_name"), vision.get("timm_pool", "avg"))
    if vision.size("image_size", 224) != trunk.image_size:
        raise vision.refuse(
            "image_size",
            f"timm builds {vision.get('timm_model_name')} for pictures of {trunk.image_size} "
            f"pixels",
        )
    proj = vision.only("timm_proj", ("linear", "none"), "linear")
    return (
        trunk.node,
        trunk.image_size,
        bool(vision.get("timm_proj_bias", False)) if proj == "linear" else None,
    )


def _read_text(text: Section, quick: bool) -> tuple[dict[str, Any], InputSpec]:
    if "hf_model_name" in text:
        raise text.refuse(
            "hf_model_name",
            "text towers of transformers cannot be taken over, only open_clip's own",
        )
    _same_block(text)
    text.only("embed_cls", (False,), False)
    pools = {"argmax": "argmax", "eos": "eos", "last": "last", "first": "cls"}
    pool = text.only("pool_type", pools, "argmax")
    causal = not text.get("no_causal_mask", False)
    width = text.size("width", 512)
    length = text.size("context_length", 77)
    sizes = Sizes(
        width,
        text.size("layers", 12),
        text.size("heads", 8),
        int(width * text.number("mlp_ratio", 4.0)),
    )
    vocabulary = text.size("vocab_size", 49408)
    pad = text.token("pad_id", 0)
    eos = {"eos": text.token("eos_id", 2), "argmax": vocabulary - 1}.get(pool)
    node = dict(
        text_node(sizes, length), causal=causal, pool=pool, mask_padding=causal and pool in ("argmax", "eos"),
        activation=_activation(text, quick), eps=_eps(text),
    )  # fmt: skip
    return node, InputSpec(224, length, vocabulary, pad, eos)


def write(model: DualEncoderConfig, inputs: InputSpec) -> dict[str, Json]:
    """A `model_cfg`. Raises ConversionError where open_clip has no counterpart."""
    timm = model.image.patch_bias
    must_be("open_clip", model, {
        "image.positions": ("learned",), "image.qk_norm": (False,), "image.post_norm": (True,), "text.qk_norm": (False,),
        "text.pool": ("argmax", "eos", "last", "cls"), "text.activation": ("gelu", "gelu_tanh", "quick_gelu"),
        "text.mask_padding": (True, False) if model.text.causal and model.text.pool in ("argmax", "eos") else (False,),
        "projections": ("text", "none") if timm else ("both",), "projection_bias": (True, False) if timm else (False,),
        "image.pool": ("map", "mean", "cls") if timm else ("cls", "cls_mean"),
    })  # fmt: skip
    if (model.embed_dim or model.image.features) != model.image.features and timm:
        raise ConversionError(
            f"model.embed_dim: {model.embed_dim} must be the image tower's "
            f"{model.image.features}, which is not projected"
        )
    quick = model.text.activation == "quick_gelu"
    if not timm and quick != (model.image.activation == "quick_gelu"):
        raise ConversionError(
            "model.image.activation: open_clip has quick_gelu in both towers or in none"
        )
    vision = (
        {
            "image_size": inputs.image_size, "timm_model_name": timm_vit.name_of(model.image, inputs.image_size),
            "timm_model_pretrained": False, "timm_pool": {"mean": "avg", "cls": "token"}.get(model.image.pool, model.image.pool),
            "timm_proj": "none",
        }
        if timm
        else _write_vision(model, inputs)
    )  # fmt: skip
    config = {
        "embed_dim": model.embed_dim or model.image.features,
        "vision_cfg": vision,
        "text_cfg": _write_text(model, inputs),
    }
    if quick:
        config["quick_gelu"] = True
    if model.init_bias is not None:
        config["init_logit_bias"] = model.init_bias
    if timm:
        config["custom_text"] = True
    return {**config, "init_logit_scale": math.log(model.init_scale)}


def _write_vision(model: DualEncoderConfig, inputs: InputSpec) -> dict[str, Json]:
    image = model.image
    sizes = model.image.sizes
    return {
        "image_size": inputs.image_size, "layers": sizes.depth, "width": sizes.width, "head_width": sizes.width // sizes.heads,
        "mlp_ratio": _ratio(sizes), "patch_size": image.patch, "no_ln_pre": not image.pre_norm,
        **({"pool_type": "avg", "final_ln_after_pool": True} if image.pool == "cls_mean" else {}), **_tower(image),
    }  # fmt: skip


def _write_text(model: DualEncoderConfig, inputs: InputSpec) -> dict[str, Json]:
    text = model.text
    sizes = model.text.sizes
    pool = "first" if text.pool == "cls" else text.pool
    return {
        "context_length": text.positions or inputs.text_length, "vocab_size": inputs.vocab_size, "width": sizes.width,
        "heads": sizes.heads, "layers": sizes.depth, "mlp_ratio": _ratio(sizes), "no_causal_mask": not text.causal, "pool_type": pool,
        **({"eos_id": inputs.eos_id} if pool == "eos" else {}), "pad_id": inputs.pad_id,
        **({"proj_type": "none"} if model.projections == "none" else {"proj_bias": model.projection_bias}), **_tower(text),
    }  # fmt: skip


def _tower(tower: Any) -> dict[str, Json]:
    tanh = {"act_kwargs": {"approximate": "tanh"}} if tower.activation == "gelu_tanh" else {}
    return tanh | ({"norm_kwargs": {"eps": tower.eps}} if tower.eps != 1e-5 else {})


def _ratio(sizes: Sizes) -> float:
    """`mlp_ratio`, so that theirs, `int(width · ratio)`, is the hidden size."""
    ratio = sizes.hidden / sizes.width
    return ratio if int(sizes.width * ratio) == sizes.hidden else (sizes.hidden + 0.5) / sizes.width


# --------------------------------------------------------------------------------------------------
# Tables


def layout(names: Iterable[str]) -> str:
    """Prefix of the text tower's tensors in a state dict: `text.` (`CustomTextCLIP`) or none
    (`CLIP`, and all of before 2022)."""
    return "text." if "text.token_embedding.weight" in set(names) else ""


def table(model: DualEncoderConfig, model_cfg: Mapping[str, Json], prefix: str) -> Entries:
    """`prefix`: see `layout`."""
    if model_cfg.get("vision_cfg", {}).get("timm_model_name"):
        yield from timm_vit.table(model.image, "image/encoder", "visual.trunk")
        if model.projections == "both":
            yield from linear("image/projection", "visual.head.proj", bias=model.projection_bias)
    else:
        yield from _vision(model)
    text = "text/encoder"
    sizes = model.text.sizes
    yield f"{text}/words/embedding", Source(f"{prefix}token_embedding.weight")
    yield f"{text}/positions", Source(f"{prefix}positional_embedding")
    yield from _layers(text, f"{prefix}transformer", sizes)
    yield from norm(f"{text}/norm", f"{prefix}ln_final")
    if model.projections != "none" and model.projection_bias:
        yield "text/projection/kernel", Source(f"{prefix}text_projection.weight", TRANSPOSED)
        yield "text/projection/bias", Source(f"{prefix}text_projection.bias")
    elif model.projections != "none":
        yield "text/projection/kernel", Source(f"{prefix}text_projection")
    scalar = ONE if model_cfg.get("nonscalar_logit_scale") else SAME
    yield "log_scale", Source("logit_scale", scalar)
    if model.init_bias is not None:
        yield "logit_bias", Source("logit_bias", scalar)


def _vision(model: DualEncoderConfig) -> Entries:
    image = "image/encoder"
    yield f"{image}/class_token", Source("visual.class_embedding")
    yield f"{image}/patches/kernel", Source("visual.conv1.weight", CONVOLUTION)
    yield f"{image}/positions", Source("visual.positional_embedding")
    if model.image.pre_norm:
        yield from norm(f"{image}/pre_norm", "visual.ln_pre")
    yield from _layers(image, "visual.transformer", model.image.sizes)
    yield from norm(f"{image}/norm", "visual.ln_post")
    yield "image/projection/kernel", Source("visual.proj")


def _layers(ours: str, theirs: str, sizes: Sizes) -> Entries:
    ours = f"{ours}/transformer/blocks"
    theirs = f"{theirs}.resblocks.{{i}}"
    n = sizes.depth
    yield from norm(f"{ours}/attention_norm", f"{theirs}.ln_1", n)
    yield from multihead_attention(f"{ours}/attention", f"{theirs}.attn", sizes.heads, n)
    yield from norm(f"{ours}/mlp_norm", f"{theirs}.ln_2", n)
    yield from linear(f"{ours}/mlp/up", f"{theirs}.mlp.c_fc", n)
    yield from linear(f"{ours}/mlp/down", f"{theirs}.mlp.c_proj", n)
