"""Two encoders with a shared embedding space: what ALIGN, CLIP and SigLIP have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvl.config import ConfigError
from jaxvl.models.base import Encoded, EncoderConfig, InputSpec, Model
from jaxvl.nn.gradients import clip_with_gradient
from jaxvl.nn.linear import Linear, normal
from jaxvl.nn.norms import l2_normalize


def check_towers(image: EncoderConfig, text: EncoderConfig, inputs: InputSpec) -> None:
    """`check_inputs` of both encoder configurations, errors under `image` and `text`."""
    for key, config in (("image", image), ("text", text)):
        try:
            config.check_inputs(inputs)
        except ConfigError as error:
            raise error.under(key) from None


class Tower(nnx.Module):
    """An encoder, and a linear map of its pooled output where the embedding space asks for one.

    Args:
      encoder: gives `Encoded`, has `width`.
      embed_dim: D of the embedding space.
      project: whether to map; without, the encoder's width must be `embed_dim`.
      bias: of the map.
    """

    def __init__(
        self,
        encoder,
        embed_dim: int,
        *,
        project: bool,
        bias: bool,
        rngs: nnx.Rngs,
        dtype: Any,
    ):
        self.encoder = encoder
        options = dict(
            axes=("embed", "joint"),
            bias=bias,
            init=normal(encoder.width**-0.5),
            rngs=rngs,
            dtype=dtype,
        )
        self.projection = Linear(encoder.width, embed_dim, **options) if project else None

    def embed(self, pooled: jax.Array) -> jax.Array:
        """The encoder's pooled output -> unit rows, float32 [B, D]."""
        return l2_normalize(pooled if self.projection is None else self.projection(pooled))


def merge_router_stats(*routings: dict[str, jax.Array] | None) -> dict[str, jax.Array]:
    """What MoE layers of several encoders report, as one: losses [B] summed, health [B, L, …] of
    all layers in a row.

    Figures that not all encoders with such layers have, or in another shape (other numbers of
    experts), are left out of the health.
    """
    given = [r for r in routings if r]
    out = {}
    for name in dict.fromkeys(name for r in given for name in r):
        values = [r[name] for r in given if name in r]
        if name.startswith("moe/loss/"):
            out[name] = sum(values[1:], values[0])
        elif len(values) == len(given) and len({v.shape[2:] for v in values}) == 1:
            out[name] = jnp.concatenate(values, axis=1)
    return out


class TwoTower(Model):
    """An image tower, a text tower, a log-scale and, where given, a bias of the logits.

    The loss's logits are `exp(log_scale) · image · textᵀ + logit_bias`; ALIGN's temperature is
    `exp(-log_scale)`.

    Args:
      image, text: towers.
      log_scale: initial value. most: largest value, or None.
      logit_bias: initial value, or None for a model without.
    """

    def __init__(
        self,
        image: Tower,
        text: Tower,
        *,
        log_scale: float,
        most: float | None,
        logit_bias: float | None = None,
    ):
        self.image = image
        self.text = text
        self.most = most
        self.log_scale = nnx.Param(jnp.float32(log_scale), axes=())
        self.logit_bias = (
            None if logit_bias is None else nnx.Param(jnp.float32(logit_bias), axes=())
        )

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("image", "text")

    def encoder_paths(self) -> dict[str, str]:
        return {"image": "image/encoder", "text": "text/encoder"}

    def encode(
        self, name: str, x: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> Encoded:
        tower = {"image": self.image, "text": self.text}[name]
        return tower.encoder(x, train=train and name not in self.frozen, key=key)

    def encode_image(
        self, image: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """image float [B, S, S, C], normalised -> unit rows float32 [B, D]."""
        return self.image.embed(self.encode("image", image, train=train, key=key).pooled)

    def encode_text(
        self, text: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """text int [B, T] -> unit rows float32 [B, D]."""
        return self.text.embed(self.encode("text", text, train=train, key=key).pooled)

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        *,
        train: bool = False,
        key: jax.Array | None = None,
        progress: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Embeds a batch.

        Args:
          batch: image float [B, S, S, C], normalised; text int [B, T].
          train, key, progress: as for `Model`.

        Returns:
          image, text: unit rows, float32 [B, D]; log_scale: float32 []; logit_bias: float32 []
            where the model has one; moe/…: of
          towers with MoE layers, what the objective `routing` reads.
        """
        image_key, text_key = (None, None) if key is None else jax.random.split(key)
        scale = self.log_scale[...]
        with jax.named_scope("image"):
            image = self.encode("image", batch["image"], train=train, key=image_key)
        with jax.named_scope("text"):
            text = self.encode("text", batch["text"], train=train, key=text_key)
        outputs = {
            "image": self.image.embed(image.pooled),
            "text": self.text.embed(text.pooled),
            **merge_router_stats(image.routing, text.routing),
            "log_scale": scale if self.most is None else clip_with_gradient(scale, self.most),
        }
        return (
            outputs if self.logit_bias is None else {**outputs, "logit_bias": self.logit_bias[...]}
        )
