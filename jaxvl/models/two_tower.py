"""Two encoders with a shared embedding space: what ALIGN, CLIP and SigLIP have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvl.config import ConfigError
from jaxvl.models.base import Encoded, InputSpec
from jaxvl.nn.linear import Linear, normal
from jaxvl.sharding import constrain

Side = Literal["none", "image", "text"]


def check_towers(image: Any, text: Any, inputs: InputSpec) -> None:
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
      locked: the encoder runs as in evaluation and gets no gradient.
    """

    def __init__(
        self,
        encoder,
        embed_dim: int,
        *,
        project: bool,
        bias: bool,
        locked: bool,
        rngs: nnx.Rngs,
        dtype: Any,
    ):
        self.encoder = encoder
        self.locked = locked
        options = dict(
            axes=("embed", "joint"),
            bias=bias,
            init=normal(encoder.width**-0.5),
            rngs=rngs,
            dtype=dtype,
        )
        self.projection = Linear(encoder.width, embed_dim, **options) if project else None

    def encode(self, x: jax.Array, *, train: bool, key: jax.Array | None) -> Encoded:
        """The encoder's own output."""
        encoded = self.encoder(x, train=train and not self.locked, key=key)
        return jax.tree.map(jax.lax.stop_gradient, encoded) if self.locked else encoded

    def embed(self, pooled: jax.Array) -> jax.Array:
        """The encoder's pooled output -> unit rows, float32 [B, D]."""
        return unit(pooled if self.projection is None else self.projection(pooled))

    def __call__(
        self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """Unit rows, float32 [B, D]."""
        return self.embed(self.encode(x, train=train, key=key).pooled)


def unit(x: jax.Array) -> jax.Array:
    """[B, …, D] scaled to length 1 along D, float32; a zero row stays zero."""
    x = constrain(x.astype(jnp.float32), "batch", *[None] * (x.ndim - 1))
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


@jax.custom_vjp
def bounded(x: jax.Array, most: float) -> jax.Array:
    """min(x, most). Beyond `most` only a gradient that leads back passes, so that a step too far is
    not a trap."""
    return jnp.minimum(x, most)


def _bounded_forward(x, most):
    return jnp.minimum(x, most), x > most


def _bounded_backward(beyond, gradient):
    return jnp.where(beyond & (gradient < 0), 0.0, gradient), None


bounded.defvjp(_bounded_forward, _bounded_backward)


def joined(*routings: dict[str, jax.Array] | None) -> dict[str, jax.Array]:
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


class TwoTower(nnx.Module):
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

    def encode_image(
        self, image: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """image float [B, S, S, C], normalised -> unit rows float32 [B, D]."""
        return self.image(image, train=train, key=key)

    def encode_text(
        self, text: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """text int [B, T] -> unit rows float32 [B, D]."""
        return self.text(text, train=train, key=key)

    def image_tokens(self, image: jax.Array) -> jax.Array:
        """image [B, S, S, C] -> the image encoder's tokens before pooling [B, P, D]."""
        return self.image.encode(image, train=False, key=None).tokens

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
          train: whether batch statistics and dropout are those of training.
          key: of dropout and drop-path; needed in training where a rate is > 0.

        Returns:
          image, text: unit rows, float32 [B, D]; log_scale: float32 []; logit_bias: float32 []
            where the model has one; moe/…: of
          towers with MoE layers, what the objective `routing` reads.
        """
        image_key, text_key = (None, None) if key is None else jax.random.split(key)
        scale = self.log_scale[...]
        with jax.named_scope("image"):
            image = self.image.encode(batch["image"], train=train, key=image_key)
        with jax.named_scope("text"):
            text = self.text.encode(batch["text"], train=train, key=text_key)
        outputs = {
            "image": self.image.embed(image.pooled),
            "text": self.text.embed(text.pooled),
            **joined(image.routing, text.routing),
            "log_scale": scale if self.most is None else bounded(scale, self.most),
        }
        return (
            outputs if self.logit_bias is None else {**outputs, "logit_bias": self.logit_bias[...]}
        )

    def locked(self, path: str) -> bool:
        """Whether the parameter at `path` ("image/encoder/…") is locked: no gradient reaches it, no
        optimiser may move it."""
        return any(
            tower.locked and path.startswith(f"{name}/encoder/")
            for name, tower in (("image", self.image), ("text", self.text))
        )
