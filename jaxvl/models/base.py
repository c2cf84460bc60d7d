"""What encoders take and give, and the named sizes of transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax

from jaxvl.config import ConfigError, check, nearest
from jaxvl.nn.moe import Skills
from jaxvl.nn.transformer import Sizes


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """The inputs that a model is built for.

    Attributes:
      image_size: side S in pixels.
      text_length: tokens T.
      vocab_size: V.
      pad_id: token of padding, at the end of a text.
      eos_id: token that ends a text, or None where the tokenizer has none.
      channels: C of an image.
    """

    image_size: int
    text_length: int
    vocab_size: int
    pad_id: int = 0
    eos_id: int | None = None
    channels: int = 3


class Encoded(NamedTuple):
    """What an encoder gives.

    Attributes:
      pooled: [B, D], one vector per row.
      tokens: [B, T, D], the sequence before pooling (an image: patches or pixels in reading order).
      mask: bool [B, T], True where a token is not padding; None where there is no padding.
      routing: losses and health of MoE layers by row, see `nn.moe.MoeOutput.by_row`; None where
        there are no such layers.
    """

    pooled: jax.Array
    tokens: jax.Array
    mask: jax.Array | None = None
    routing: dict[str, jax.Array] | None = None


# Widths and depths of the ViT family (Dosovitskiy et al. 2021; Zhai et al. 2022; Alabdulmohsin et
# al. 2023 for So400m), used for texts as well.
SIZES: Mapping[str, Sizes] = {
    "Ti": Sizes(192, 12, 3, 768),
    "S": Sizes(384, 12, 6, 1536),
    "M": Sizes(512, 12, 8, 2048),
    "B": Sizes(768, 12, 12, 3072),
    "L": Sizes(1024, 24, 16, 4096),
    "So400m": Sizes(1152, 27, 16, 4304),
    "H": Sizes(1280, 32, 16, 5120),
    "g": Sizes(1408, 40, 16, 6144),
    "G": Sizes(1664, 48, 16, 8192),
}


def sizes_of(config: object, name: str, table: Mapping[str, Sizes], key: str = "variant") -> Sizes:
    """Sizes of the variant `name`, with those of `config`'s `width, depth, heads, hidden` that are
    not None instead.

    A width without `hidden` keeps the variant's ratio of the two.

    Raises:
      ConfigError: an unknown variant; heads that do not divide the width; a size < 1.
    """
    if name not in table:
        raise ConfigError(
            key,
            f"{name!r} is not a known variant{nearest(name, list(table))} (known: "
            f"{', '.join(table)})",
        )
    base = table[name]
    width = base.width if config.width is None else config.width
    hidden = round(base.hidden / base.width * width) if config.hidden is None else config.hidden
    depth = base.depth if config.depth is None else config.depth
    heads = base.heads if config.heads is None else config.heads
    for field, value in (("width", width), ("depth", depth), ("heads", heads), ("hidden", hidden)):
        check(value >= 1, field, f"{value!r} must be >= 1")
    check(width % heads == 0, "heads", f"{heads} must divide the width of {width}")
    return Sizes(width, depth, heads, hidden)


def check_rates(config: object, *names: str) -> None:
    """Raises ConfigError unless the named fields are probabilities in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        check(0 <= value < 1, name, f"{value!r} is a probability; must be in [0, 1)")


def check_moe(config: object, causal: bool = False) -> None:
    """Raises ConfigError where `config.moe` does not fit the layers, needs a call that names
    skills, or looks ahead in causal ones."""
    sizes = config.sizes
    moe = config.moe
    if moe is None:
        return
    try:
        moe.layers(sizes.depth)
    except ConfigError as error:
        raise error.under("moe") from None
    check(
        not isinstance(moe.router, Skills),
        "moe.router",
        "'skills' are named call by call, which this encoder does not do",
    )
    problem = moe.router.causal_problem() if causal else None
    check(problem is None, "moe.router", f"{problem}, but the layers are causal")
