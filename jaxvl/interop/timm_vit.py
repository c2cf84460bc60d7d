"""timm's vision transformers, the image tower of open_clip's SigLIP (`visual.trunk`)."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from jaxvl.interop.dual import vit_node
from jaxvl.interop.mapping import (
    CONVOLUTION,
    LEADING,
    ConversionError,
    Entries,
    Form,
    Source,
    heads_bias,
    heads_in,
    heads_out,
    linear,
    norm,
)
from jaxvl.interop.peers import peer
from jaxvl.models.vit import ViTConfig
from jaxvl.nn.transformer import Sizes

_SIZES = {
    "base": Sizes(768, 12, 12, 3072), "large": Sizes(1024, 24, 16, 4096), "so400m": Sizes(1152, 27, 16, 4304),
    "giantopt": Sizes(1536, 40, 16, 6144),
}  # fmt: skip
_NAME = re.compile(r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip(_gap)?_(\d+)")
_EPS = 1e-6  # timm's LayerNorm
_TOKEN = Form(lambda x: x[0, 0], lambda x: x[None, None])


@dataclasses.dataclass(frozen=True)
class Trunk:
    """What of a timm model decides what it computes.

    Attributes:
      node: of our image tower.
      image_size: side of the pictures in pixels.
    """

    node: dict[str, Any]
    image_size: int


def trunk(name: str, pool: str) -> Trunk:
    """The named model with global pool `pool` (empty: its own).

    timm's SigLIP models are known by their name; any other is asked of timm itself, which must be
    installed then.

    Raises:
      ConversionError: not a vision transformer that ours can be.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return _inspected(name, pool)
    size, patch, gap, side = match.groups()
    if pool not in ("", "avg" if gap else "map"):
        raise ConversionError(
            f"vision_cfg.timm_pool: {pool!r}; {name} is taken over with "
            f"{'avg' if gap else 'map'!r} only"
        )
    # SigLIP trained with the tanh form; timm has it in those that were added late.
    tanh = (
        size == "giantopt"
        or (size, patch) in (("so400m", "16"), ("base", "32"))
        or (size, side) == ("large", "512")
    )
    return _trunk(
        _SIZES[size],
        int(patch),
        int(side),
        "gelu_tanh" if tanh else "gelu",
        _EPS,
        "mean" if gap else "map",
    )


def _trunk(
    sizes: Sizes, patch: int, side: int, activation: str, eps: float, pool: str, **more: Any
) -> Trunk:
    return Trunk(
        dict(vit_node(sizes, patch, side), pool=pool, activation=activation, eps=eps, **more), side
    )


def _inspected(name: str, pool: str) -> Trunk:
    timm = peer("timm")
    torch = peer("torch")
    from timm.models.vision_transformer import VisionTransformer

    def refuse(what: str, value: Any, valid: str) -> ConversionError:
        return ConversionError(
            f"vision_cfg.timm_model_name: {name!r} has {what} {value!r}; can be taken over "
            f"with {valid} only"
        )

    try:
        with torch.device("meta"):
            model = timm.create_model(name, **({"global_pool": pool} if pool else {}))
    except Exception as error:  # timm raises bare RuntimeErrors for names it does not know
        raise ConversionError(
            f"vision_cfg.timm_model_name: {name!r} cannot be built by timm ({error})"
        ) from None
    if not isinstance(model, VisionTransformer):
        raise refuse("the type", type(model).__name__, "VisionTransformer")
    if not isinstance(model.patch_embed.proj, torch.nn.Conv2d):
        raise refuse(
            "the patch embedding", type(model.patch_embed.proj).__name__, "one convolution"
        )
    block = model.blocks[0]
    if type(block) is not timm.models.vision_transformer.Block:
        raise refuse("the block", type(block).__name__, "Block")
    activations = {
        torch.nn.GELU: "gelu",
        timm.layers.QuickGELU: "quick_gelu",
        timm.layers.GELUTanh: "gelu_tanh",
    }
    activation = activations.get(type(block.mlp.act))
    if activation is None:
        raise refuse("the activation", type(block.mlp.act).__name__, "GELU, GELUTanh and QuickGELU")
    activation = (
        "gelu_tanh" if getattr(block.mlp.act, "approximate", "none") == "tanh" else activation
    )
    pools = {("map", False): "map", ("avg", False): "mean", ("token", True): "cls"}
    pooled = (model.global_pool, model.cls_token is not None)
    if pooled not in pools or not isinstance(model.fc_norm, torch.nn.Identity):
        raise refuse(
            "the pool",
            model.global_pool,
            "map or avg (without class token and fc_norm) or token (with)",
        )
    side = model.patch_embed.img_size
    patch = model.patch_embed.patch_size
    if side is None or side[0] != side[1] or patch[0] != patch[1]:
        raise refuse("pictures of", side, "squares")
    sizes = Sizes(
        model.embed_dim, len(model.blocks), block.attn.num_heads, block.mlp.fc1.out_features
    )
    more = dict(
        patch_bias=model.patch_embed.proj.bias is not None,
        pre_norm=not isinstance(model.norm_pre, torch.nn.Identity),
    )
    return _trunk(sizes, patch[0], side[0], activation, block.norm1.eps, pools[pooled], **more)


def name_of(config: ViTConfig, image_size: int) -> str:
    """timm's name of an image tower. Raises ConversionError where timm has none like it."""
    for size in _SIZES:
        for gap in ("", "_gap"):
            name = f"vit_{size}_patch{config.patch}_siglip{gap}_{image_size}"
            known = trunk(name, "").node
            if ViTConfig(**{k: v for k, v in known.items() if k != "name"}) == _plain(config):
                return name
    raise ConversionError(
        f"model.image: {config.variant} of width {config.sizes.width} with pool "
        f"{config.pool!r} and {config.activation} at {image_size} "
        "pixels is none of timm's SigLIP models, and open_clip's own towers have a class "
        "token; --to hf:PATH has a place for it"
    )


def _plain(config: ViTConfig) -> ViTConfig:
    """Without what is set for training; sizes as `vit_node` writes them."""
    node = vit_node(config.sizes, config.patch, config.patch)
    given = {k: v for k, v in node.items() if k not in ("name", "uneven")}
    sizes = {"width": None, "depth": None, "heads": None, "hidden": None} | given
    return dataclasses.replace(
        config,
        **sizes,
        dropout=0.0,
        drop_path=0.0,
        scan=True,
        remat="none",
        attention="auto",
        quantize=None,
    )


def table(config: ViTConfig, ours: str, theirs: str) -> Entries:
    """timm's `VisionTransformer` with the prefix `theirs`."""
    sizes = config.sizes
    n = config.sizes.depth
    yield f"{ours}/patches/kernel", Source(f"{theirs}.patch_embed.proj.weight", CONVOLUTION)
    if config.patch_bias:
        yield f"{ours}/patches/bias", Source(f"{theirs}.patch_embed.proj.bias")
    yield f"{ours}/positions", Source(f"{theirs}.pos_embed", LEADING)
    if config.pool == "cls":
        yield f"{ours}/class_token", Source(f"{theirs}.cls_token", _TOKEN)
    if config.pre_norm:
        yield from norm(f"{ours}/pre_norm", f"{theirs}.norm_pre")
    block = f"{ours}/transformer/blocks"
    layer = f"{theirs}.blocks.{{i}}"
    yield from norm(f"{block}/attention_norm", f"{layer}.norm1", n)
    yield from _attention(
        f"{block}/attention", [(f"{layer}.attn.qkv", 3)], f"{layer}.attn.proj", sizes.heads, n
    )
    yield from norm(f"{block}/mlp_norm", f"{layer}.norm2", n)
    yield from linear(f"{block}/mlp/up", f"{layer}.mlp.fc1", n)
    yield from linear(f"{block}/mlp/down", f"{layer}.mlp.fc2", n)
    yield from norm(f"{ours}/norm", f"{theirs}.norm")
    if config.pool == "map":
        pooler = f"{ours}/pooler"
        head = f"{theirs}.attn_pool"
        yield f"{pooler}/query", Source(f"{head}.latent", LEADING)
        yield from _attention(
            f"{pooler}/attention",
            [(f"{head}.q", 1), (f"{head}.kv", 2)],
            f"{head}.proj",
            sizes.heads,
        )
        yield from norm(f"{pooler}/norm", f"{head}.norm")
        yield from linear(f"{pooler}/mlp/up", f"{head}.mlp.fc1")
        yield from linear(f"{pooler}/mlp/down", f"{head}.mlp.fc2")


def _attention(
    ours: str, theirs: list[tuple[str, int]], out: str, heads: int, layers: int = 0
) -> Entries:
    """`theirs`: the `Linear`s that queries, keys and values lie in, in order, each with the number
    of them."""
    places = [(name, (i, n) if n > 1 else None) for name, n in theirs for i in range(n)]
    for part, (name, third) in zip(("query", "key", "value"), places):
        yield f"{ours}/{part}/kernel", Source(f"{name}.weight", heads_out(heads), layers, third)
        yield f"{ours}/{part}/bias", Source(f"{name}.bias", heads_bias(heads), layers, third)
    yield f"{ours}/out/kernel", Source(f"{out}.weight", heads_in(heads), layers)
    yield f"{ours}/out/bias", Source(f"{out}.bias", layers=layers)
