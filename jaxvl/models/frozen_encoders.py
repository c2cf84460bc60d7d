"""Encoders whose features were computed before, and heads that map them into one space."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import ConfigError, Scale, Width, check
from jaxvl.data.audio import Spectrogram
from jaxvl.models import HEADS, IMAGE_ENCODERS, MODELS, TEXT_ENCODERS
from jaxvl.models.base import Capabilities, Encoded, EncoderConfig, InputSpec, Model, ModelConfig
from jaxvl.models.heads import HeadConfig, Heads
from jaxvl.models.heads.token_projector import TokenProjectorConfig
from jaxvl.models.text import TextTransformerConfig
from jaxvl.models.two_tower import SIDES
from jaxvl.models.vit import ViTConfig
from jaxvl.nn import poolers
from jaxvl.nn.gradients import clip_with_gradient
from jaxvl.nn.norms import l2_normalize

PARTS = ("pooled", "tokens", "mask")  # batch entries NAME_PART of an input's features
SOUND = "waveform"
# Input -> modality, in the names of outputs; any other is called as the input.
MODALITY = {"image": "vision", "text": "text", SOUND: "audio"}


@MODELS.register("frozen_encoders")
@dataclasses.dataclass(frozen=True)
class FrozenEncodersConfig(ModelConfig):
    """An image and a text encoder, and a head `joint` whose outputs are the embeddings.

    A batch gives an input as it is, or its features: NAME_pooled float [B, D], NAME_tokens float
    [B, T, D] and NAME_mask [B, T], nonzero where a token is none of padding. One of the first two
    is enough: the mean of the tokens stands for the vector, the vector for the only token. The job
    `cache_features` makes such columns, the field `array` reads them, and no picture is decoded.
    Evaluators give pictures and texts.

    `optim.freeze=r"^(image|text)/encoder/"` keeps the encoders as they are, and `start` takes them
    from other runs.

    A further input is known by its features alone, or a sound by its log-mel spectrogram, whose
    frames are its tokens.

    Attributes:
      image, text: encoders by name, with their options.
      features: further input -> width of its features.
      log_mel: makes the features of `waveform` [B, W]; None: the model hears none.
      heads: label -> head by name, with its options; see `models.heads`. The head `joint` reads all
        inputs by their names, and makes one row of each; alone it is a `token_projector`.
      init_scale: initial factor of the cosine; it is learned, and stored as its logarithm.
      max_scale: largest factor, or None for no limit.
    """

    image: Annotated[EncoderConfig, IMAGE_ENCODERS] = ViTConfig()
    text: Annotated[EncoderConfig, TEXT_ENCODERS] = TextTransformerConfig()
    features: dict[str, Width] = dataclasses.field(default_factory=dict)
    log_mel: Spectrogram | None = None
    heads: dict[str, Annotated[HeadConfig, HEADS]] = dataclasses.field(
        default_factory=lambda: {"joint": TokenProjectorConfig(reads=SIDES)}
    )
    init_scale: Scale = 1 / 0.07
    max_scale: Scale | None = 100.0

    training_fields: ClassVar[frozenset[str]] = frozenset({"max_scale", "init_scale"})

    def __post_init__(self):
        check(self.init_scale > 0, "init_scale", f"{self.init_scale!r} must be > 0")
        check(
            self.max_scale is None or self.max_scale >= self.init_scale,
            "max_scale",
            f"{self.max_scale!r} is below init_scale = {self.init_scale:g}",
        )
        for name in self.features:
            key = f"features.{name}"
            check(name.isidentifier(), key, "must be letters, digits and underscores")
            check(
                name not in (*SIDES, SOUND),
                key,
                "is an input of the model already; choose another name",
            )
        heads = Heads(self.heads, self.input_widths)
        heads.check(reserved=("log_scale",))
        check(
            "joint" in self.heads, "heads", "must have a head 'joint', which makes the embeddings"
        )
        widths = heads.all_widths()
        missing = [name for name in self.input_widths if f"joint/{name}" not in widths]
        problem = (
            f"gives no output of {missing}; must read {tuple(self.input_widths)}, by their names"
        )
        check(not missing, "heads.joint.reads", problem)

    @property
    def input_widths(self) -> dict[str, int]:
        """Input -> width of its features."""
        heard = {} if self.log_mel is None else {SOUND: self.log_mel.bins}
        return {side: e.features for side, e in self.encoders.items()} | heard | self.features

    @property
    def encoders(self) -> Mapping[str, EncoderConfig]:
        return {"image": self.image, "text": self.text}

    def capabilities(self, inputs: InputSpec | None = None) -> Capabilities:
        counts = {label: head.class_count for label, head in self.heads.items()}
        return Capabilities(classes={label: n for label, n in counts.items() if n is not None})

    def check_inputs(self, inputs: InputSpec) -> None:
        """Raises ConfigError where an encoder or a head cannot take such inputs."""
        parts = {**self.encoders, **{f"heads.{label}": h for label, h in self.heads.items()}}
        for key, part in parts.items():
            try:
                part.check_inputs(inputs)
            except ConfigError as error:
                raise error.under(key) from None

    def build(
        self, inputs: InputSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> FrozenEncoders:
        return FrozenEncoders(self, inputs, rngs=rngs, dtype=dtype)


class Frozen(nnx.Module):
    """An encoder at the path that it has in a two-tower model."""

    def __init__(self, encoder: nnx.Module):
        self.encoder = encoder


class FrozenEncoders(Model):
    """See `FrozenEncodersConfig`."""

    def __init__(
        self, config: FrozenEncodersConfig, inputs: InputSpec, *, rngs: nnx.Rngs, dtype: DTypeLike
    ):
        self.image = Frozen(config.image.build(inputs, rngs, dtype))
        self.text = Frozen(config.text.build(inputs, rngs, dtype))
        self.names = tuple(config.input_widths)
        self.log_mel = config.log_mel
        self.most = None if config.max_scale is None else math.log(config.max_scale)
        start = jnp.float32(math.log(config.init_scale))
        self.log_scale = nnx.Param(start, axes=(), bounds=(None, self.most))
        self.plan = Heads(config.heads, config.input_widths)
        self.heads = self.plan.build(rngs, dtype)
        self.dtype = dtype

    @property
    def inputs(self) -> tuple[str, ...]:
        return SIDES if self.log_mel is None else (*SIDES, SOUND)

    def encoder_paths(self) -> dict[str, str]:
        return {side: f"{side}/encoder" for side in SIDES}

    def encode(
        self, name: str, x: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> Encoded:
        if name == SOUND:
            return self._heard(x, None)
        encoder = self.image.encoder if name == "image" else self.text.encoder
        return encoder(x, train=train and name not in self.frozen, key=key)

    def _heard(self, waveform: jax.Array, length: jax.Array | None) -> Encoded:
        """waveform int16 or float [B, W], length int [B] -> frames [B, L, F] and their mean."""
        frames, real = self.log_mel(waveform, length)
        mean = poolers.mean(frames, real)
        return Encoded(mean.astype(self.dtype), frames.astype(self.dtype), real)

    def encode_image(
        self, image: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """image float [B, S, S, C], normalised -> unit rows float32 [B, E]."""
        return self({"image": image}, train=train, key=key)["image"]

    def encode_text(
        self, text: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """text int [B, T] -> unit rows float32 [B, E]."""
        return self({"text": text}, train=train, key=key)["text"]

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        *,
        train: bool = False,
        key: jax.Array | None = None,
        progress: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Embeds whatever of its inputs a batch has, from features where they are there.

        Returns:
          Each input by its name: unit rows, float32 [B, E]; log_scale: float32 []; outputs of the
          heads by their labels. Of inputs A and B, one of which is neither picture nor text, the
          same by the names that `nce` and `cross_modal_retrieval` read: `A>B`, `B>A` and
          `log_scale/A-B`, with vision, text and audio for image, text and waveform.

        Raises:
          ValueError: the batch has no input.
        """
        keys = [None] * len(self.names) if key is None else jax.random.split(key, len(self.names))
        encoded = {}
        for name, own in zip(self.names, keys):
            cached = features_of(name, batch, self.dtype)
            if cached is not None:
                encoded[name] = cached
            elif name == SOUND and name in batch:
                encoded[name] = self._heard(batch[name], batch.get(f"{name}_length"))
            elif name in batch and name in SIDES:
                with jax.named_scope(name):
                    encoded[name] = self.encode(name, batch[name], train=train, key=own)
        if not encoded:
            raise ValueError(f"batch: has none of the inputs {', '.join(self.names)}")
        found = self.plan.run(self.heads, encoded, batch, train=train, key=key, progress=progress)
        rows = {name: l2_normalize(found[f"joint/{name}"]) for name in encoded}
        scale = self.log_scale[...]
        scale = scale if self.most is None else clip_with_gradient(scale, self.most)
        return {**found, **rows, **pairs_of(rows, scale), "log_scale": scale}


def pairs_of(rows: Mapping[str, jax.Array], scale: jax.Array) -> dict[str, jax.Array]:
    """Rows of inputs by pairs, one of which is neither picture nor text; see `FrozenEncoders`."""
    outputs = {}
    for a, b in itertools.permutations(rows, 2):
        if {a, b} != set(SIDES):
            names = [MODALITY.get(name, name) for name in (a, b)]
            outputs[">".join(names)] = rows[a]
            outputs[f"log_scale/{'-'.join(names)}"] = scale
    return outputs


def features_of(name: str, batch: Mapping[str, jax.Array], dtype: DTypeLike) -> Encoded | None:
    """The features of an input that a batch has; None where it has none."""
    pooled, tokens, mask = (batch.get(f"{name}_{part}") for part in PARTS)
    if pooled is None and tokens is None:
        return None
    mask = None if mask is None else mask != 0
    if pooled is None:
        pooled = poolers.mean(tokens, mask)
    if tokens is None:
        tokens = pooled[:, None]
        mask = None
    return Encoded(pooled.astype(dtype), tokens.astype(dtype), mask)
