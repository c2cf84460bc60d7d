"""Published shapes, as config nodes: `c.model = presets.clip("B/32")`."""

from __future__ import annotations

import json
from collections.abc import Collection

from jaxvl import paths
from jaxvl.aliases import Leaf
from jaxvl.config import check, nearest, to_path
from jaxvl.models.open_clip_coca import renamed

# Width, layers and heads of the text tower beside each image size, and the embedding space.
_CLIP_TEXT = {"S": ("S", 384), "B": ("M", 512), "L": ("B", 768)}

# Image encoder beside each size of the decoder.
_COCA_IMAGE = {"base": "B/18", "large": "L/18", "2b": "g/18"}
# Image encoder, width and heads of the decoder, embedding space, and what captions read.
_COCA_OPEN_CLIP = {
    "ViT-B-32": ("B/32", 512, 8, 512, dict(poolers="shared", pooler_heads=8)),
    "ViT-L-14": ("L/14", 768, 12, 768, dict(poolers="shared", pooler_heads=8)),
    "base": ("B/18", 768, 12, 512, dict(poolers="none")),
}


def saved(workdir: str) -> dict[str, Leaf]:
    """The model of a run's workdir, or of one that `jaxvl.convert` made: what a run with
    `start` has.

    Options of earlier versions are in today's terms; their `lock` is left out, `optim.freeze`
    stands for it.

    Raises OSError where there is none.
    """
    folder = to_path(workdir, "presets.saved")
    model = json.loads(paths.read_text(folder / "config.json"))["model"]
    model.pop("lock", None)
    return renamed(model)


def align(image: str = "b7", text: str = "base", embed_dim: int | None = None) -> dict[str, Leaf]:
    """ALIGN: EfficientNet `image` and BERT `text`."""
    return dict(
        name="align",
        image=dict(name="efficientnet", variant=image),
        text=dict(name="bert", variant=text),
        embed_dim=embed_dim,
    )


def clip(variant: str = "B/32", activation: str = "quick_gelu") -> dict[str, Leaf]:
    """OpenAI's CLIP: `B/32`, `B/16` or `L/14`, texts of 77 tokens; and OpenCLIP's small ones,
    `S/32` and `S/16`.

    Args:
      activation: `quick_gelu` as OpenAI's weights have it; OpenCLIP trains with `gelu`.

    Raises:
      ConfigError: another image size.
    """
    size, slash, _ = variant.partition("/")
    sizes = ", ".join(_CLIP_TEXT)
    check(
        size in _CLIP_TEXT and bool(slash),
        "variant",
        f"{variant!r} must be a size and a patch side, as 'B/32' (sizes: {sizes})",
    )
    text, embed_dim = _CLIP_TEXT[size]
    shared = dict(activation=activation, eps=1e-5)
    return dict(
        name="dual_encoder",
        image=dict(
            name="vit", variant=variant, pool="cls", pre_norm=True, patch_bias=False, **shared
        ),
        text=dict(
            name="text_transformer", variant=text, causal=True, pool="eos", positions=77, **shared
        ),
        embed_dim=embed_dim,
    )


def siglip(variant: str = "B/16") -> dict[str, Leaf]:
    """SigLIP: towers of one size, texts of 64 tokens, sigmoid loss with a bias."""
    return dict(
        name="dual_encoder",
        image=dict(name="vit", variant=variant, pool="map"),
        text=dict(
            name="text_transformer",
            variant=variant.partition("/")[0],
            mask_padding=False,
            pool="last",
            positions=64,
        ),
        projections="text",
        projection_bias=True,
        init_scale=10.0,
        init_bias=-10.0,
        max_scale=None,
    )


def coca(variant: str = "base") -> dict[str, Leaf]:
    """CoCa as in table 1 of its paper: `base`, `large` or `2b`, images of 288 pixels.

    Raises:
      ConfigError: another variant.
    """
    _check_known(variant, _COCA_IMAGE)
    return dict(
        name="coca",
        image=dict(name="vit", variant=_COCA_IMAGE[variant], pool="mean"),
        variant=variant,
    )


def coca_open_clip(variant: str = "ViT-B-32") -> dict[str, Leaf]:
    """open_clip's `coca_ViT-B-32`, `coca_ViT-L-14` (images of 224 pixels) and `coca_base` (288
    pixels), texts of 76 tokens from CLIP's tokenizer; of another tokenizer, `start_id` has to be
    set.

    Raises:
      ConfigError: another variant.
    """
    _check_known(variant, _COCA_OPEN_CLIP)
    image, width, heads, embed_dim, form = _COCA_OPEN_CLIP[variant]
    return dict(
        name="open_clip_coca",
        image=dict(
            name="vit",
            variant=image,
            pool="cls",
            patch_bias=False,
            pre_norm=True,
            post_norm=form["poolers"] == "none",
            activation="gelu",
            eps=1e-5,
        ),
        width=width,
        heads=heads,
        hidden=4 * width,
        unimodal=12,
        multimodal=12,
        cross="after",
        start_id=49406,
        late_mask=True,
        embed_dim=embed_dim,
        **form,
    )


def _check_known(variant: str, known: Collection[str]) -> None:
    check(
        variant in known,
        "variant",
        f"{variant!r} is not known{nearest(variant, list(known))} (known: {', '.join(known)})",
    )
