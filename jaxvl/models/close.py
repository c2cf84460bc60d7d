"""CLOSE (Gu, Clark and Kembhavi 2023, arXiv 2211.09778): a captioner that learns from texts alone.

training   text -> text tower -> t, unit -> e = norm(t + w eps), eps ~ N(0, I) --+
generating image -> image tower -> v, unit -> e = v -----------------------------+
                                                                                v
                    k prefix tokens, a linear map of e -> encoder layers -> memory [B, k, D]
                                                                                |
           [start] w1 … wT -> causal layers, the upper ones with cross-attention to it -> w1 … EOS

The towers are those of a contrastive model, whose space both embeddings are of. They are frozen
(`optim.freeze`) and come from its run (`start`). Noise makes the decoder read a whole region around
t, so that v is in it too.

The release's decoder is T5 (its encoder reads the prefix), which is trained already; this one
begins anew unless `start` says otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import ConfigError, Depth, Range, check
from jaxvl.models import MODELS, TEXT_ENCODERS
from jaxvl.models.base import Encoded, EncoderConfig, InputSpec
from jaxvl.models.captioner import Captioner
from jaxvl.models.captioner_config import CaptionerConfig
from jaxvl.models.text import TextTransformerConfig
from jaxvl.models.two_tower import Tower
from jaxvl.nn.linear import Linear
from jaxvl.nn.norms import LayerNorm, l2_normalize
from jaxvl.nn.random import need_key, split
from jaxvl.nn.transformer import Transformer


@MODELS.register("close")
@dataclasses.dataclass(frozen=True)
class CloseConfig(CaptionerConfig):
    """CLOSE: the options of every captioner (`CaptionerConfig`), of which `queries` is the number k
    of prefix tokens (the paper: 4) and `pooler_heads` means nothing. And

    Attributes:
      text: text encoder by name. With `image`, `embed_dim` and a linear map of each side it is the
        `dual_encoder` of the same options, under the same paths `image/…` and `text/…`.
      noise: w; the release's defaults by task: 0.04 questions and answers, 0.08 entailment, 0.12
        single captions, 0.04 captions of which others are the input.
      condition: batch entry that the caption is read from in training: `text`, the caption itself;
        another entry of tokens int [B, T], such as another caption of the same picture; one of
        embeddings float [B, E] that were computed before, as the jobs `cache_features` and
        `text_to_image` give them; or `image`, which is the ceiling that the paper compares with,
        and has no noise.
      prefix_layers: layers of the encoder that reads the prefix; None: the variant's number of one
        half of the decoder (T5-base: 12).
    """

    text: Annotated[EncoderConfig, TEXT_ENCODERS] = TextTransformerConfig()
    queries: Annotated[int, Range(1, 65_536)] = 4
    noise: Annotated[float, Range(0.0, 1e3)] = 0.12
    condition: str = "text"
    prefix_layers: Depth | None = None

    training_fields: ClassVar[frozenset[str]] = CaptionerConfig.training_fields | {
        "noise",
        "condition",
    }

    def __post_init__(self):
        super().__post_init__()
        check(self.noise >= 0, "noise", f"{self.noise!r} must be >= 0")
        check(bool(self.condition), "condition", "is empty; must be an entry of the batch")
        unread = self.pooler_heads is None
        check(unread, "pooler_heads", f"{self.pooler_heads!r}: there are no poolers; must be None")
        check(
            not self.text.routed,
            "text.moe",
            f"the losses of its layers would be lost: {self.registered_name!r} does not report "
            f"them",
        )

    @property
    def encoders(self) -> Mapping[str, EncoderConfig]:
        return {"image": self.image, "text": self.text}

    def check_inputs(self, inputs: InputSpec) -> None:
        """Raises ConfigError as that of every captioner, and where the text encoder cannot take
        such texts."""
        super().check_inputs(inputs)
        try:
            self.text.check_inputs(inputs)
        except ConfigError as error:
            raise error.under("text") from None

    def build(self, inputs: InputSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> Close:
        return Close(self, inputs, rngs=rngs, dtype=dtype)


class Close(Captioner):
    """See the top of this file.

    Args:
      config: see `CloseConfig`. inputs: fixes vocabulary, text length, padding and EOS.
    """

    def build_towers(self, config: CloseConfig, inputs: InputSpec, rngs: nnx.Rngs) -> int:
        options = dict(rngs=rngs, dtype=self.dtype)
        width = config.embed_dim or config.image.features
        for side, encoder in config.encoders.items():
            built = encoder.build(inputs, rngs, self.dtype)
            setattr(self, side, Tower(built, width, project=True, bias=False, **options))
        shape = (config.queries, self.width)
        sizes = config.sizes("unimodal")
        sizes = dataclasses.replace(sizes, depth=config.prefix_layers or sizes.depth)
        self.prefix = Linear(width, shape, axes=("joint", "length", "embed"), **options)
        self.prefix_layers = Transformer(sizes, config.options(), **options)
        self.prefix_norm = LayerNorm(self.width, eps=1e-5, dtype=self.dtype)
        self.noise = config.noise
        self.condition = config.condition
        return self.width

    def build_text(self, config: CloseConfig, inputs: InputSpec, rngs: nnx.Rngs) -> None:
        self.positions = self.make_positions(inputs.text_length + 1, rngs)
        self.start_token = self.make_token(rngs)

    def encoder_paths(self) -> dict[str, str]:
        return {"image": "image/encoder", "text": "text/encoder"}

    def encode(
        self, name: str, x: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> Encoded:
        """As every model's: what the tower's encoder gives."""
        tower = self.image if name == "image" else self.text
        return tower.encoder(x, train=train and name not in self.frozen, key=key)

    def encode_image(
        self, image: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        return self.image.embed(self.encode("image", image, train=train, key=key).pooled)

    def embed_text(self, pooled: jax.Array) -> jax.Array:
        return self.text.embed(pooled)

    @jax.named_scope("text")
    def read_text(
        self, text: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """text int [B, T] -> tokens [B, T + 1, D], the learned start first; and what the text tower
        pools, [B, D']."""
        keys = split(key, 2)
        pooled = self.encode("text", text, train=train, key=keys[1]).pooled
        start = self.repeat_token(self.start_token, len(text))
        x = jnp.concatenate([start, self.words(text)], 1)
        x = x + self.positions[: x.shape[1]].astype(self.dtype)
        mask = jnp.pad(text != self.pad_id, ((0, 0), (1, 0)), constant_values=True)
        return self.unimodal(x, mask=mask, causal=True, train=train, key=keys[0]), pooled

    def embed_last(self, token: jax.Array, position: jax.Array) -> jax.Array:
        start = self.start_token[...].astype(self.dtype)
        return jnp.where(position == 0, start, self.words(token))

    @jax.named_scope("prefix")
    def read_prefix(
        self, embedding: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """float32 [B, E] -> what captions are read from, [B, k, D]."""
        return self.prefix_norm(self.prefix_layers(self.prefix(embedding), train=train, key=key))

    def memory(
        self, image: jax.Array, *, train: bool = False, key: jax.Array | None = None, **options: Any
    ) -> tuple[jax.Array, jax.Array]:
        """image [B, S, S, C] -> what captions are read from [B, k, D], and the image embedding,
        unit rows float32 [B, E]."""
        keys = split(key, 2)
        embedding = self.encode_image(image, train=train, key=keys[0], **options)
        return self.read_prefix(embedding, train=train, key=keys[1]), embedding

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        *,
        train: bool = False,
        key: jax.Array | None = None,
        progress: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Embeds what a batch has, and reads its texts as captions of its `condition`.

        Args:
          batch: maybe image float [B, S, S, C], normalised; maybe text int [B, T], ended by EOS,
            then padding; and what the config's `condition` names.
          train, key, progress: as for `Model`. Noise is drawn in training only.

        Returns:
          log_scale: float32 []; image, text: unit rows, float32 [B, E], of what there is. With a
          text and the condition also the caption_… that every captioner gives.
        """
        keys = split(key, 6)
        out = {"log_scale": self.scale()}
        if "image" in batch:
            out["image"] = self.encode_image(batch["image"], train=train, key=keys[0])
        if "text" in batch:
            text = batch["text"]
            tokens, pooled = self.read_text(text, train=train, key=keys[1])
            out["text"] = self.embed_text(pooled)
        if "text" not in batch or self.condition not in batch:
            return out
        embedding = out.get(self.condition)
        if embedding is None:
            embedding = self._embedding(batch[self.condition], train=train, key=keys[2])
        if train and self.condition != "image":
            embedding = add_noise(embedding, self.noise, keys[3])
        memory = self.read_prefix(embedding, train=train, key=keys[4])
        scores = self.score_tokens(tokens, text, memory, train=train, key=keys[5])
        out["caption_weight"] = (text != self.pad_id).astype(jnp.float32)
        return out | {f"caption_{name}": value for name, value in scores.items()}

    def _embedding(self, given: jax.Array, *, train: bool, key: jax.Array | None) -> jax.Array:
        """Tokens int [B, T], or embeddings float [B, E] as they are -> float32 [B, E]."""
        if jnp.issubdtype(given.dtype, jnp.integer):
            return self.encode_text(given, train=train, key=key)
        return given.astype(jnp.float32)


def add_noise(embedding: jax.Array, scale: float, key: jax.Array | None) -> jax.Array:
    """norm(x + w eps), eps ~ N(0, I): float32 [B, E], unit rows. Raises ValueError where there is
    noise but no key."""
    if not scale:
        return l2_normalize(embedding)
    drawn = jax.random.normal(need_key(key, "noise"), embedding.shape)
    return l2_normalize(embedding + scale * drawn)
