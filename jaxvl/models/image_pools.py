"""CoCa's attentional poolers of an image (Yu et al. 2022, section 3.2): one whose tokens captions
are read from, and one for the contrastive loss.

They are the model's `caption_pooler` and `contrastive_pooler`, in one of two `LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
from flax import nnx

from jaxvl.models.captioner import Captioner
from jaxvl.models.captioner_config import CaptionerConfig
from jaxvl.nn.poolers import QueryPooler

# The encoder's tokens [B, P, D'] -> the memory [B, N, D] and what the image embedding is projected
# from [B, D].
Layout = Callable[[Captioner, jax.Array], tuple[jax.Array, jax.Array]]


def cascade(model: Captioner, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The contrastive pooler reads the caption pooler's tokens."""
    memory = model.caption_pooler(tokens)
    return memory, model.contrastive_pooler(memory)[:, 0]


def parallel(model: Captioner, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both poolers read the encoder's tokens."""
    return model.caption_pooler(tokens), model.contrastive_pooler(tokens)[:, 0]


LAYOUTS: Mapping[str, Layout] = {"cascade": cascade, "parallel": parallel}


def make_pooler(
    model: Captioner,
    config: CaptionerConfig,
    memory_width: int,
    rngs: nnx.Rngs,
    *,
    queries: int = 1,
    norm: bool = True,
) -> QueryPooler:
    """A pooler as wide as the model.

    Args:
      memory_width: of the tokens that it reads.
      norm: layer norm of the result.
    """
    return QueryPooler(
        queries,
        model.width,
        config.pooler_heads or config.sizes("unimodal").heads,
        memory_width=memory_width,
        norm=norm,
        rngs=rngs,
        dtype=model.dtype,
    )


def make_two_poolers(
    model: Captioner, config: CaptionerConfig, layout: str, rngs: nnx.Rngs, *, norm: bool = True
) -> tuple[QueryPooler, QueryPooler]:
    """The caption pooler and the contrastive pooler of a layout."""
    width = model.encoder.width
    caption = make_pooler(model, config, width, rngs, queries=config.queries, norm=norm)
    read = model.width if layout == "cascade" else width
    return caption, make_pooler(model, config, read, rngs, norm=norm)
