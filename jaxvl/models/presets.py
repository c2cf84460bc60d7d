"""Published shapes, as config nodes: `c.model = presets.clip("B/32")`."""

from __future__ import annotations

from typing import Any

# Width, layers and heads of the text tower beside each image size, and the embedding space.
_CLIP_TEXT = {"B": ("M", 512), "L": ("B", 768)}


def align(image: str = "b7", text: str = "base", embed_dim: int | None = None) -> dict[str, Any]:
    """ALIGN: EfficientNet `image` and BERT `text`."""
    return dict(name="align", image=dict(name="efficientnet", variant=image), text=dict(name="bert", variant=text), embed_dim=embed_dim)


def clip(variant: str = "B/32", activation: str = "quick_gelu") -> dict[str, Any]:
    """OpenAI's CLIP: `B/32`, `B/16` or `L/14`, texts of 77 tokens.

    Args:
      activation: `quick_gelu` as OpenAI's weights have it; OpenCLIP trains with `gelu`.

    Raises:
      KeyError: another image size.
    """
    text, embed_dim = _CLIP_TEXT[variant.partition("/")[0]]
    shared = dict(activation=activation, eps=1e-5)
    return dict(
        name="dual_encoder",
        image=dict(name="vit", variant=variant, pool="cls", pre_norm=True, patch_bias=False, **shared),
        text=dict(name="text_transformer", variant=text, causal=True, pool="eos", positions=77, **shared),
        embed_dim=embed_dim,
    )


def siglip(variant: str = "B/16") -> dict[str, Any]:
    """SigLIP: towers of one size, texts of 64 tokens, sigmoid loss with a bias."""
    return dict(
        name="dual_encoder",
        image=dict(name="vit", variant=variant, pool="map"),
        text=dict(name="text_transformer", variant=variant.partition("/")[0], mask_padding=False, pool="last", positions=64),
        projections="text",
        projection_bias=True,
        init_scale=10.0,
        init_bias=-10.0,
        max_scale=None,
    )
