"""Two encoders with a shared embedding space: what ALIGN, CLIP and SigLIP have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.aliases import Node
from jaxvl.config import ConfigError, check
from jaxvl.models import HEADS
from jaxvl.models.base import (
    Capabilities,
    Encoded,
    EncoderConfig,
    InputSpec,
    Model,
    ModelConfig,
    check_drop,
    drop_options,
)
from jaxvl.models.heads import HeadConfig, Heads
from jaxvl.nn.gradients import clip_with_gradient
from jaxvl.nn.linear import Linear, normal
from jaxvl.nn.norms import l2_normalize

if TYPE_CHECKING:
    from jaxvl.data.config import DataConfig

SIDES = ("image", "text")


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
        dtype: DTypeLike,
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


def several(encoded: Encoded, shape: tuple[int, int]) -> Encoded:
    """What an encoder gives of B N texts, as of B rows of N texts each: pooled [B, N, D], tokens
    [B, N, T, D], mask [B, N, T]; figures of MoE layers are means over a row's texts."""
    split = lambda x: x.reshape(*shape, *x.shape[1:])
    return Encoded(
        split(encoded.pooled),
        split(encoded.tokens),
        None if encoded.mask is None else split(encoded.mask),
        encoded.routing and {name: split(x).mean(1) for name, x in encoded.routing.items()},
    )


@dataclasses.dataclass(frozen=True)
class Logits:
    """How a model's embeddings become logits.

    Attributes:
      log_scale: initial value. least, most: its bounds, or None.
      bias: initial value, or None for a model without.
    """

    log_scale: float
    least: float | None = None
    most: float | None = None
    bias: float | None = None


class TwoTower(Model):
    """An image tower, a text tower, a log-scale and, where given, a bias of the logits; and heads.

    The loss's logits are `exp(log_scale) · image · textᵀ + logit_bias`; ALIGN's temperature is
    `exp(-log_scale)`.

    Args:
      image, text: towers.
      logits: scale and bias.
      views: further batch entry -> the tower that reads it.
      heads: label -> head.
    """

    def __init__(
        self,
        image: Tower,
        text: Tower,
        *,
        logits: Logits,
        views: Mapping[str, str] | None = None,
        heads: Mapping[str, HeadConfig] | None = None,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.image = image
        self.text = text
        self.least = logits.least
        self.most = logits.most
        bounds = (self.least, self.most)
        self.log_scale = nnx.Param(jnp.float32(logits.log_scale), axes=(), bounds=bounds)
        self.logit_bias = (
            None if logits.bias is None else nnx.Param(jnp.float32(logits.bias), axes=())
        )
        self.sides = Views(views or {})
        widths = {name: self._tower(name).encoder.width for name in self.inputs}
        self.plan = Heads(heads or {}, widths)
        self.heads = self.plan.build(rngs, dtype)

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("image", "text", *self.sides.views)

    def _tower(self, name: str) -> Tower:
        """The tower that reads the input `name`."""
        return self.image if self.sides[name] == "image" else self.text

    def encoder_paths(self) -> dict[str, str]:
        return {"image": "image/encoder", "text": "text/encoder"}

    def encode(
        self,
        name: str,
        x: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        **options: Any,
    ) -> Encoded:
        """As every model's; `options`: the encoder's own, see `drop_options`."""
        trains = train and self.sides[name] not in self.frozen
        encoder = self._tower(name).encoder
        if self.sides[name] == "text" and x.ndim == 3:
            rows = encoder(x.reshape(-1, x.shape[-1]), train=trains, key=key, **options)
            return several(rows, x.shape[:2])
        return encoder(x, train=trains, key=key, **options)

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
        drop: dict[str, float] | None = None,
    ) -> dict[str, jax.Array]:
        """Embeds whatever of its inputs a batch has.

        Args:
          batch: image float [B, S, S, C], normalised; text int [B, T], or [B, N, T] of rows of
            several texts; views like the input whose tower reads them; and what heads read of it.
          train, key, progress: as for `Model`.
          drop: input -> share of its tokens that is left out in training (FLIP, CLIPA), of
            encoders that can (`EncoderConfig.drops_tokens`).

        Returns:
          image, text and each view: unit rows, float32 [B, D], of several texts [B, N, D];
          log_scale: float32 []; logit_bias: float32 [] where the model has one; moe/…: of towers
          with MoE layers, what the objective `routing` reads; outputs of the heads whose inputs
          are there, by their labels.

        Raises:
          ValueError: the batch has no input.
        """
        given = [name for name in self.inputs if name in batch]
        if not given:
            raise ValueError(f"batch: has none of the inputs {', '.join(self.inputs)}")
        scale = self.log_scale[...]
        keys = self._keys(key)
        encoded = {}
        for name in given:
            with jax.named_scope(name):
                options = drop_options(drop, name, batch)
                encoded[name] = self.encode(
                    name, batch[name], train=train, key=keys[name], **options
                )
        outputs = {name: self._tower(name).embed(e.pooled) for name, e in encoded.items()}
        outputs |= merge_router_stats(*(e.routing for e in encoded.values()))
        scale = scale if self.most is None else clip_with_gradient(scale, self.most)
        scale = scale if self.least is None else -clip_with_gradient(-scale, -self.least)
        outputs["log_scale"] = scale
        if self.logit_bias is not None:
            outputs["logit_bias"] = self.logit_bias[...]
        return outputs | self.plan.run(
            self.heads, encoded, batch, train=train, key=key, progress=progress
        )

    def _keys(self, key: jax.Array | None) -> dict[str, jax.Array | None]:
        """Input -> its own key."""
        if key is None:
            return dict.fromkeys(self.inputs)
        keys = dict(zip(("image", "text"), jax.random.split(key)))
        for i, name in enumerate(self.sides.views, start=2):
            keys[name] = jax.random.fold_in(key, i)
        return keys


@dataclasses.dataclass(frozen=True)
class Views:
    """Which tower reads which input.

    Attributes:
      views: further batch entry -> `image` or `text`.
    """

    views: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        """The tower of an input. Raises KeyError for what is none."""
        return name if name in SIDES else self.views[name]

    def check(self) -> None:
        """Raises ConfigError at `views.NAME` for one that is no tower's, or is named like one."""
        for name, side in self.views.items():
            key = f"views.{name}"
            check(side in SIDES, key, f"{side!r} must be one of {', '.join(SIDES)}")
            check(name not in SIDES, key, "is an input of the model already; choose another name")


@dataclasses.dataclass(frozen=True)
class TwoTowerConfig(ModelConfig):
    """Base class of the configurations of models with two towers, `image` and `text`.

    Attributes:
      views: further batch entry -> the tower that reads it, as `dict(image_2="image")`.
      heads: label -> head by name, with its options; see `models.heads`.
    """

    views: dict[str, str] = dataclasses.field(default_factory=dict, kw_only=True)
    heads: dict[str, Annotated[HeadConfig, HEADS]] = dataclasses.field(
        default_factory=dict, kw_only=True
    )

    def __post_init__(self):
        sides = Views(self.views)
        sides.check()
        widths = {side: encoder.features for side, encoder in self.encoders.items()}
        inputs = {name: widths[sides[name]] for name in (*SIDES, *self.views)}
        Heads(self.heads, inputs).check(reserved=("log_scale", "logit_bias"))

    @property
    def encoders(self) -> Mapping[str, EncoderConfig]:
        return {"image": self.image, "text": self.text}

    def capabilities(self, inputs: InputSpec | None = None) -> Capabilities:
        counts = {label: head.class_count for label, head in self.heads.items()}
        classes = {label: n for label, n in counts.items() if n is not None}
        return Capabilities(multi_instance=True, classes=classes)

    def check_task(self, data: DataConfig, encode: Node) -> None:
        """Raises ConfigError where a task drops tokens of an encoder that cannot."""
        views = {view: self.encoders[side] for view, side in self.views.items()}
        check_drop(encode, {**self.encoders, **views})

    def check_inputs(self, inputs: InputSpec) -> None:
        """Raises ConfigError where an encoder or a head cannot take such inputs."""
        for side, encoder in self.encoders.items():
            try:
                encoder.check_inputs(inputs)
            except ConfigError as error:
                raise error.under(side) from None
        for label, head in self.heads.items():
            try:
                head.check_inputs(inputs)
            except ConfigError as error:
                raise error.under(f"heads.{label}") from None
