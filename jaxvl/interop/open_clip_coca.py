"""open_clip's `CoCa`: its configuration, and where its tensors are in `open_clip_coca`; both
ways.

open_clip's models have fewer choices than ours and others than the paper's; `config_of` says which
of ours makes them, and `models.presets.coca_open_clip` has the published ones. Texts must be padded
to `text_length`, as open_clip's tokenizers do. Nothing here imports torch or open_clip.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvl.aliases import Json
from jaxvl.interop.bundle import Section
from jaxvl.interop.mapping import (
    CONVOLUTION,
    SAME,
    ConversionError,
    Entries,
    Source,
    StateDict,
    heads_bias,
    heads_in,
    heads_out,
    linear,
    multihead_attention,
    norm,
    read_arrays,
    write_arrays,
)
from jaxvl.models import InputSpec
from jaxvl.models.base import SIZES
from jaxvl.models.open_clip_coca import OpenClipCoCaConfig
from jaxvl.models.vit import ViTConfig
from jaxvl.nn.transformer import Sizes

BUFFERS = ("*attn_mask",)
# of CLIP's tokenizer, which all of open_clip's CoCa models but the RoBERTa one read
START = 49406
END = 49407


def from_open_clip(
    state: StateDict, config: OpenClipCoCaConfig, shapes: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """Our arrays from their state dict; see `mapping.read_arrays`.

    The names of the text encoder may lack their `text.`, as in checkpoints from before open_clip 2.
    """
    return read_arrays(table(config, state), state, shapes, spare=BUFFERS)


def to_open_clip(arrays: StateDict, config: OpenClipCoCaConfig) -> dict[str, np.ndarray]:
    """Their state dict, as today's open_clip names it, from our arrays."""
    return write_arrays(table(config), arrays)


def table(config: OpenClipCoCaConfig, names: Iterable[str] = ()) -> dict[str, Source]:
    """Our path -> `Source`, with their names as they are today, or as they are in a state dict's
    `names`.

    Raises:
      ConversionError: a configuration that open_clip has no counterpart of.
    """
    _check_counterpart(config)
    flat = "positional_embedding" in set(names)

    def named(source: Source) -> Source:
        return (
            dataclasses.replace(source, name=source.name.removeprefix("text.")) if flat else source
        )

    return {path: named(source) for path, source in _table(config)}


# --------------------------------------------------------------------------------------------------
# Tensors


def _table(config: OpenClipCoCaConfig) -> Entries:
    image = "encoder"
    image_sizes = config.image.sizes
    heads = config.pooler_heads or config.sizes("unimodal").heads
    yield f"{image}/class_token", Source("visual.class_embedding")
    yield f"{image}/patches/kernel", Source("visual.conv1.weight", CONVOLUTION)
    yield f"{image}/positions", Source("visual.positional_embedding")
    if config.image.pre_norm:
        yield from norm(f"{image}/pre_norm", "visual.ln_pre")
    yield from _layers(
        f"{image}/transformer/blocks", "visual.transformer.resblocks.{i}", image_sizes
    )
    # One norm, which stands behind the pooler where there is but one, and behind the encoder
    # otherwise.
    yield from norm(
        "caption_pooler/norm" if config.poolers == "shared" else f"{image}/norm", "visual.ln_post"
    )
    width = config.sizes("unimodal").width
    if config.poolers != "none":
        yield from _pooler(
            "caption_pooler", "visual.attn_pool", heads, same=image_sizes.width == width
        )
    if config.poolers in ("cascade", "parallel"):
        yield from _pooler(
            "contrastive_pooler",
            "visual.attn_pool_contrastive",
            heads,
            same=image_sizes.width == width,
        )
    yield "image_projection/kernel", Source("visual.proj")
    yield "words/embedding", Source("text.token_embedding.weight")
    yield "positions", Source("text.positional_embedding")
    if config.text_pool == "class":
        yield "class_token", Source("text.cls_emb")
    yield from _layers(
        "unimodal/blocks", "text.transformer.resblocks.{i}", config.sizes("unimodal")
    )
    yield from norm("text_norm", "text.ln_final")
    yield "text_projection/kernel", Source("text.text_projection")
    sizes = config.sizes("multimodal")
    yield from _layers("multimodal/blocks", "text_decoder.resblocks.{i}", sizes)
    yield from _layers(
        "multimodal/blocks",
        "text_decoder.cross_attn.{i}",
        sizes,
        ("cross", "cross_norm", "cross_mlp", "cross_mlp_norm"),
    )
    yield from norm(
        "multimodal/blocks/memory_norm", "text_decoder.cross_attn.{i}.ln_1_kv", sizes.depth
    )
    yield from norm("norm", "text_decoder.ln_final")
    yield "head/out/kernel", Source("text_decoder.text_projection")
    yield "log_scale", Source("logit_scale")


def _layers(
    ours: str,
    theirs: str,
    sizes: Sizes,
    parts: Sequence[str] = ("attention", "attention_norm", "mlp", "mlp_norm"),
) -> Entries:
    """Their residual attention blocks; `parts`: what ours call their `attn`, `ln_1`, `mlp`,
    `ln_2`."""
    attention, attention_norm, mlp, mlp_norm = (f"{ours}/{part}" for part in parts)
    yield from multihead_attention(attention, f"{theirs}.attn", sizes.heads, sizes.depth)
    yield from norm(attention_norm, f"{theirs}.ln_1", sizes.depth)
    yield from linear(f"{mlp}/up", f"{theirs}.mlp.c_fc", sizes.depth)
    yield from linear(f"{mlp}/down", f"{theirs}.mlp.c_proj", sizes.depth)
    yield from norm(mlp_norm, f"{theirs}.ln_2", sizes.depth)


def _pooler(ours: str, theirs: str, heads: int, *, same: bool) -> Entries:
    """`AttentionalPooler`; same: what it reads is as wide as its result, for which torch has one
    matrix of three parts."""
    yield f"{ours}/query", Source(f"{theirs}.query")
    yield from norm(f"{ours}/query_norm", f"{theirs}.ln_q")
    yield from norm(f"{ours}/memory_norm", f"{theirs}.ln_k")
    if same:
        yield from multihead_attention(f"{ours}/attention", f"{theirs}.attn", heads)
        return
    for i, part in enumerate(("query", "key", "value")):
        yield (
            f"{ours}/attention/{part}/kernel",
            Source(f"{theirs}.attn.{part[0]}_proj_weight", heads_out(heads)),
        )
        yield (
            f"{ours}/attention/{part}/bias",
            Source(f"{theirs}.attn.in_proj_bias", heads_bias(heads), part=(i, 3)),
        )
    yield f"{ours}/attention/out/kernel", Source(f"{theirs}.attn.out_proj.weight", heads_in(heads))
    yield f"{ours}/attention/out/bias", Source(f"{theirs}.attn.out_proj.bias", SAME)


# --------------------------------------------------------------------------------------------------
# Configuration

# What is read of each part of `model_cfg`, with open_clip's defaults.
_READ = dict(
    vision_cfg=dict(
        layers=12, width=768, head_width=64, mlp_ratio=4.0, patch_size=16, image_size=224, attentional_pool=False,
        attn_pooler_queries=256, attn_pooler_heads=8, no_ln_pre=False,
    ),
    text_cfg=dict(
        layers=12, width=512, heads=8, context_length=77, vocab_size=49408, embed_cls=False, pad_id=0, eos_id=2, pool_type="argmax"
    ),
    multimodal_cfg=dict(layers=12, width=512, heads=8),
)  # fmt: skip
_TOP = (
    "embed_dim",
    "init_logit_scale",
    "init_logit_bias",
    "quick_gelu",
    "custom_text",
    "cast_dtype",
    "output_dict",
    "nonscalar_logit_scale",
)
# What must be as it is by default.
_BLOCK = dict(
    ls_init_value=None, act_kwargs=None, norm_kwargs=None, qk_norm=False, scaled_cosine_attn=False, scale_heads=False,
    scale_attn_inner=False, scale_attn=False, scale_fc=False,
)  # fmt: skip
_FIXED = dict(
    vision_cfg=dict(
        _BLOCK,
        timm_model_name=None,
        patch_dropout=0.0,
        pos_embed_type="learnable",
        pool_type="tok",
        final_ln_after_pool=False,
    ),
    text_cfg=dict(
        _BLOCK,
        hf_model_name=None,
        mlp_ratio=4.0,
        no_causal_mask=False,
        proj_type="linear",
        proj_bias=False,
    ),
    multimodal_cfg=dict(ls_init_value=None),
)
# What changes nothing here: the tokenizer, and what other choices than the fixed ones would read.
# Their decoder reads little of its part.
_TOKENIZER = ("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs")
_OTHER_ENCODER = ("output_tokens", "block_type", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "timm_model_pretrained",
                  "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path")  # fmt: skip
_UNREAD = dict(
    vision_cfg=_OTHER_ENCODER,
    text_cfg=(*_OTHER_ENCODER, *_TOKENIZER, "final_ln_after_pool"),
    multimodal_cfg=(
        "context_length",
        "vocab_size",
        "mlp_ratio",
        "dim_head",
        "n_queries",
        "attn_pooler_heads",
        "output_tokens",
    ),
)


def config_of(
    model_cfg: Mapping[str, Json], *, start_id: int = START, eos_id: int = END
) -> tuple[OpenClipCoCaConfig, InputSpec]:
    """Our configuration and inputs of a model of theirs.

    Args:
      model_cfg: as in `model_configs/coca_*.json`, or under that key in a hub repository's
        `open_clip_config.json`.
      start_id, eos_id: of the tokenizer; the defaults are CLIP's.

    Raises:
      ConversionError: a choice that ours has no counterpart of (another encoder of images or texts,
        layer scale, …).
    """
    for part in _READ:
        if part not in model_cfg:
            raise ConversionError(f"{part}: missing; open_clip's CoCa has {', '.join(_READ)}")
        _check_part(part, model_cfg[part])
    top = Section(model_cfg)
    top.known(*_READ, *_TOP)
    embed_dim = top.size("embed_dim")
    init_scale = math.exp(top.number("init_logit_scale")) if "init_logit_scale" in top else 1 / 0.07
    if model_cfg.get("init_logit_bias") is not None:
        raise ConversionError(
            f"init_logit_bias: {model_cfg['init_logit_bias']!r} has no counterpart in coca; "
            f"must be None"
        )
    vision, text, multimodal = (
        _READ[part] | {k: v for k, v in model_cfg[part].items() if k in _READ[part]}
        for part in _READ
    )
    for name in ("width", "heads"):
        if text[name] != multimodal[name]:
            raise ConversionError(
                f"multimodal_cfg.{name}: {multimodal[name]}; must be that of text_cfg, {text[name]}"
            )
    for name in ("layers", "image_size", "patch_size"):
        if not isinstance(vision[name], int):
            raise ConversionError(f"vision_cfg.{name}: {vision[name]!r} must be one number")
    if not text["embed_cls"]:
        needed = {"argmax": text["vocab_size"] - 1, "eos": text["eos_id"]}.get(text["pool_type"])
        if eos_id != needed:
            raise ConversionError(
                f"text_cfg.pool_type: {text['pool_type']!r} does not read the EOS token, {eos_id}"
            )
    pooling = {True: "shared", False: "none"}.get(
        vision["attentional_pool"], vision["attentional_pool"]
    )
    activation = "quick_gelu" if model_cfg.get("quick_gelu") else "gelu"
    pooled = (
        {}
        if pooling == "none"
        else dict(queries=vision["attn_pooler_queries"], pooler_heads=vision["attn_pooler_heads"])
    )
    config = OpenClipCoCaConfig(
        image=_vit(vision, activation, post_norm=pooling != "shared"), width=text["width"], heads=text["heads"], hidden=4 * text["width"],
        unimodal=text["layers"], multimodal=multimodal["layers"], poolers=pooling, pooler_norm=pooling in ("shared", "none"), cross="after",
        start_id=start_id, text_pool="class" if text["embed_cls"] else "eos", late_mask=text["embed_cls"],
        embed_dim=embed_dim, activation=activation, init_scale=init_scale, **pooled,
    )  # fmt: skip
    _check_counterpart(config)
    inputs = InputSpec(
        vision["image_size"], text["context_length"], text["vocab_size"], text["pad_id"], eos_id
    )
    config.check_inputs(inputs)
    return config, inputs


def model_cfg_of(config: OpenClipCoCaConfig, inputs: InputSpec) -> dict[str, Json]:
    """Their `model_cfg`, the inverse of `config_of`; what is ours alone (dropout, scan, remat,
    `max_scale`) has no place in it.

    Raises:
      ConversionError: a configuration that open_clip has no counterpart of.
    """
    _check_counterpart(config)
    image = config.image.sizes
    text = config.sizes("unimodal")
    multimodal = config.sizes("multimodal")
    ratio = image.hidden / image.width
    ratio = (
        ratio if int(image.width * ratio) == image.hidden else (image.hidden + 0.5) / image.width
    )  # theirs is rounded down
    length = dict(context_length=inputs.text_length, vocab_size=inputs.vocab_size)
    vision = dict(
        image_size=inputs.image_size, layers=image.depth, width=image.width, head_width=image.width // image.heads,
        mlp_ratio=ratio, patch_size=config.image.patch, no_ln_pre=not config.image.pre_norm,
        attentional_pool={"shared": True, "none": False}.get(config.poolers, config.poolers), output_tokens=True,
    )  # fmt: skip
    if config.poolers != "none":
        vision |= dict(
            attn_pooler_queries=config.queries, attn_pooler_heads=config.pooler_heads or text.heads
        )
    pool = (
        dict(embed_cls=True)
        if config.text_pool == "class"
        else dict(pool_type="eos", eos_id=inputs.eos_id)
    )
    return dict(
        embed_dim=config.embed_dim or text.width, quick_gelu=config.activation == "quick_gelu",
        vision_cfg=vision,
        text_cfg=dict(
            length, layers=text.depth, width=text.width, heads=text.heads, pad_id=inputs.pad_id, output_tokens=True, **pool
        ),
        multimodal_cfg=dict(length, layers=multimodal.depth, width=multimodal.width, heads=multimodal.heads),
        custom_text=True, **({} if config.init_scale == 1 / 0.07 else dict(init_logit_scale=math.log(config.init_scale))),
    )  # fmt: skip


def _vit(vision: Mapping[str, Json], activation: str, *, post_norm: bool) -> ViTConfig:
    width = vision["width"]
    sizes = Sizes(
        width, vision["layers"], width // vision["head_width"], int(width * vision["mlp_ratio"])
    )
    name = next((name for name, known in SIZES.items() if known == sizes), None)
    given = {} if name else dataclasses.asdict(sizes)
    return ViTConfig(
        variant=f"{name or 'B'}/{vision['patch_size']}", pool="cls", patch_bias=False, pre_norm=not vision["no_ln_pre"], post_norm=post_norm,
        activation=activation, eps=1e-5, **given,
    )  # fmt: skip


def _check_part(part: str, given: Mapping[str, Json]) -> None:
    """Raises ConversionError for what is unknown, or not as it must be."""
    fixed = _FIXED[part]
    for name, value in given.items():
        if name in fixed and value != fixed[name]:
            raise ConversionError(
                f"{part}.{name}: {value!r} has no counterpart in coca; must be {fixed[name]!r}"
            )
        if name not in (*_READ[part], *fixed, *_UNREAD[part]):
            raise ConversionError(
                f"{part}.{name}: {value!r} is not known here; known are open_clip 3.3's"
            )
        if name in _READ[part]:
            _check_type(f"{part}.{name}", value, _READ[part][name])


def _check_type(key: str, value: Any, default: Any) -> None:
    """Raises ConversionError for a value of another kind than open_clip's default; lists of layers
    are refused later, by name."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key.endswith(("layers", "image_size", "patch_size")) and isinstance(value, (list, tuple)):
        return
    if key.endswith("attentional_pool"):
        right = isinstance(value, (bool, str))
        valid = "true, false or a name"
    elif isinstance(default, (bool, str)):
        right = isinstance(value, type(default))
        valid = "true or false" if isinstance(default, bool) else "a name"
    elif key.endswith("_id"):
        right = isinstance(value, int) and number and value >= 0
        valid = "the id of a token"
    elif isinstance(default, int):
        right = isinstance(value, int) and number and value >= 1
        valid = "a whole number >= 1"
    else:
        right = number and value > 0
        valid = "a number > 0"
    if not right:
        raise ConversionError(f"{key}: {value!r} must be {valid}")


def _check_counterpart(config: OpenClipCoCaConfig) -> None:
    """Raises ConversionError, naming the field, for what is not one of open_clip's forms."""
    if not isinstance(config, OpenClipCoCaConfig):
        raise ConversionError(
            f"model: {config.registered_name!r} has no counterpart in open_clip's CoCa; must be "
            f"'open_clip_coca'"
        )
    image = config.image
    width = config.sizes("unimodal").width
    embed = config.embed_dim or config.sizes("unimodal").width
    if not isinstance(image, ViTConfig):
        raise ConversionError(
            f"image: {image.registered_name!r} has no counterpart in open_clip's CoCa; must "
            f"be 'vit'"
        )
    shared = config.poolers == "shared"
    none = config.poolers == "none"
    theirs = {
        "image.pool": (image.pool, "cls"), "image.positions": (image.positions, "learned"), "image.patch_bias": (image.patch_bias, False),
        "image.eps": (image.eps, 1e-5), "image.qk_norm": (image.qk_norm, False), "image.activation": (image.activation, config.activation),
        "image.post_norm": (image.post_norm, not shared), "pooler_norm": (config.pooler_norm or none, shared or none),
        "cross": (config.cross, "after"), "late_mask": (config.late_mask, config.text_pool == "class"), "tied": (config.tied, False),
        "hidden": (config.sizes("unimodal").hidden, 4 * width), "embed_dim": (embed, embed if none else width),
        # Their norm behind the encoder is as wide as the embedding space where two poolers follow.
        "image.width": (image.sizes.width, image.sizes.width if shared else width),
    }  # fmt: skip
    for field, (ours, needed) in theirs.items():
        if ours != needed:
            raise ConversionError(
                f"{field}: {ours!r} has no counterpart in open_clip's CoCa; must be {needed!r}"
            )
    if config.activation not in ("gelu", "quick_gelu"):
        raise ConversionError(
            f"activation: {config.activation!r} has no counterpart in open_clip; must be "
            f"'gelu' or 'quick_gelu'"
        )
