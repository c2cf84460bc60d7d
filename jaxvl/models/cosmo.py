"""COSMO (Wang et al. 2024, arXiv 2401.00849): a decoder of several images and texts a row.

It is contrasted halfway up.

images 1 … K -> encoder -> resampler (N queries each) -> latents -------------+
                                      |                                       |
                 contrastive pooler -> K image embeddings      each token sees those of the
                                                               last image before it
                                                                              |
                                                                              v
[start] a b  [start] c d e  … -> unimodal layers, causal -- tokens --> multimodal layers, causal,
                                      |                                gated cross-attention
         a learned query reads each text -> K text embeddings                 |
                                                                              v
                                                                   a b E  c d e E  …

A text's first token is predicted from [start], the others from the token before; E, the end of the
text, is predicted and never read. Rows are those of `data.packing`; a row of one image and one text
is that of `coca`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.models import MODELS
from jaxvl.models.base import Capabilities, InputSpec
from jaxvl.models.captioner import Captioner
from jaxvl.models.coca import CoCaConfig
from jaxvl.models.image_pools import LAYOUTS, make_pooler, make_two_poolers
from jaxvl.nn.gated import GatedBlock
from jaxvl.nn.random import split


@MODELS.register("cosmo")
@dataclasses.dataclass(frozen=True)
class CosmoConfig(CoCaConfig):
    """COSMO. The options are CoCa's: the `unimodal` layers read text alone (the paper's split is
    not known to us), the `multimodal` ones above them have gated cross-attention to the `queries`
    latents of an image. And

    Attributes:
      across: a token sees the texts before its own in the row, and positions run along the row;
        False: it sees its own only, and positions start anew with each text, so that a row of K is
        K rows of one.
    """

    across: bool = True

    def capabilities(self, inputs: InputSpec | None = None) -> Capabilities:
        return dataclasses.replace(super().capabilities(inputs), interleaved=True)

    def build(self, inputs: InputSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> Cosmo:
        return Cosmo(self, inputs, rngs=rngs, dtype=dtype)


class Cosmo(Captioner):
    """See the top of this file.

    Args:
      config: see `CosmoConfig`. inputs: `text_length` is that of a whole row.
    """

    block: ClassVar[Any] = GatedBlock

    def __init__(
        self,
        config: CosmoConfig,
        inputs: InputSpec,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        super().__init__(config, inputs, rngs=rngs, dtype=dtype)
        self.text_pooler = make_pooler(self, config, self.width, rngs)
        self.across = config.across

    def build_poolers(self, config: CosmoConfig, rngs: nnx.Rngs) -> int:
        self.poolers = config.poolers
        poolers = make_two_poolers(self, config, config.poolers, rngs)
        self.caption_pooler, self.contrastive_pooler = poolers
        return self.width

    def pool_image(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        return LAYOUTS[self.poolers](self, tokens)

    def build_text(self, config: CosmoConfig, inputs: InputSpec, rngs: nnx.Rngs) -> None:
        # Two rows more than are read, as in checkpoints that began as CoCa's table.
        self.positions = self.make_positions(inputs.text_length + 2, rngs)
        self.start_token = self.make_token(rngs)

    def _rows(
        self, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """image [B, K, S, S, C], text, segment int [B, R] and weight float32 [B, R] of a batch of
        either kind."""
        image = batch["image"]
        text = batch["text"]
        if image.ndim == 5:
            return image, text, batch["segment"], batch["weight"]
        there = text != self.pad_id
        return image[:, None], text, there.astype(jnp.int32), there.astype(jnp.float32)

    @jax.named_scope("text")
    def _tokens(
        self,
        text: jax.Array,
        segment: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """What the unimodal layers make of [start] and each text but its end: int [B, R] and int
        [B, R] -> [B, R, D]."""
        before = jnp.pad(segment, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
        first = segment != before
        x = jnp.where(
            first[..., None],
            self.start_token[...].astype(self.dtype),
            self.words(jnp.roll(text, 1, axis=1)),
        )
        place = jnp.arange(text.shape[1])
        mask = None
        if not self.across:
            place = place - jax.lax.cummax(jnp.where(first, place, 0), axis=1)
            mask = segment[:, :, None] == segment[:, None, :]
        x = x + jnp.take(self.positions[...], place, axis=0).astype(self.dtype)
        return self.unimodal(x, mask=mask, causal=True, train=train, key=key)

    def _pool(self, tokens: jax.Array, segment: jax.Array, count: int) -> jax.Array:
        """[B, R, D] -> what the text embeddings are projected from [B, K, D], of texts 1 … K =
        `count`."""
        own = segment[:, None, :] == jnp.arange(1, count + 1)[:, None]
        return self.text_pooler(tokens, own)

    def read_text(
        self, text: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """text int [B, T], one a row -> tokens [B, T, D], the learned start first; and
        what the text embedding is projected from [B, D]."""
        segment = (text != self.pad_id).astype(jnp.int32)
        tokens = self._tokens(text, segment, train=train, key=key)
        return tokens, self._pool(tokens, segment, 1)[:, 0]

    def text_mask(self, text: jax.Array) -> jax.Array:
        return text != self.pad_id

    def embed_last(self, token: jax.Array, position: jax.Array) -> jax.Array:
        start = self.start_token[...].astype(self.dtype)
        return jnp.where(position == 0, start, self.words(token))

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        *,
        train: bool = False,
        key: jax.Array | None = None,
        progress: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Embeds the images and texts of a batch and reads the texts as captions, in one pass.

        Args:
          batch: image float [B, K, S, S, C], normalised; text, segment int [B, R]; weight float [B,
            R] (`data.packing`). Or rows of one: image [B, S, S, C], text [B, T].
          train, key, progress: as for CoCa.

        Returns:
          image, text: unit rows, float32 [B, K, E]; the rest as CoCa's, along the row.
        """
        keys = split(key, 3)
        images, text, segment, weight = self._rows(batch)
        b, k = images.shape[:2]
        latents, image = self.memory(
            images.reshape(b * k, *images.shape[2:]), train=train, key=keys[0]
        )
        tokens = self._tokens(text, segment, train=train, key=keys[1])
        x = self._read_images(
            tokens, latents.reshape(b, -1, self.width), segment, k, train=train, key=keys[2]
        )
        scores = self.head.scores(self.norm(x), self.words, text)
        return {
            "image": image.reshape(b, k, -1),
            "text": self.embed_text(self._pool(tokens, segment, k)),
            "log_scale": self.scale(),
            "caption_weight": weight,
            **{f"caption_{name}": v for name, v in scores.items()},
        }

    @jax.named_scope("captioner")
    def _read_images(
        self,
        tokens,
        latents,
        segment,
        count: int,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The multimodal layers: tokens [B, R, D], latents [B, K N, D] of K = `count` images -> [B,
        R, D].

        A token of segment k sees the latents of image k, the last one before it; one of segment 0
        sees none.
        """
        of = jnp.repeat(jnp.arange(1, count + 1), latents.shape[1] // count)
        seen = segment[:, :, None] == of
        mask = None if self.across else segment[:, :, None] == segment[:, None, :]
        return self.multimodal(
            tokens, latents, mask=mask, memory_mask=seen, causal=True, train=train, key=key
        )

    def score(
        self,
        text: jax.Array,
        targets: jax.Array,
        memory: jax.Array,
        *,
        train: bool = False,
        keys: Sequence[jax.Array | None] = (None, None),
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """As every captioner's, of one image and one text."""
        segment = (text != self.pad_id).astype(jnp.int32)
        tokens, pooled = self.read_text(text, train=train, key=keys[0])
        x = self._read_images(tokens, memory, segment, 1, train=train, key=keys[1])
        return self.head.scores(self.norm(x), self.words, targets), self.embed_text(pooled)

    def caption_logits(
        self,
        image: jax.Array,
        text: jax.Array,
        *,
        memory: jax.Array | None = None,
        position: jax.Array | None = None,
    ) -> jax.Array:
        """As CoCa's, of one image and one text: float32 [B, T + 1, V]."""
        text = jnp.pad(text, ((0, 0), (0, 1)))  # a place for what comes after the last token
        segment = jnp.ones_like(text)
        x = self._read_images(
            self._tokens(text, segment),
            self.memory(image)[0] if memory is None else memory,
            segment,
            1,
        )
        return self.head.logits(self.norm(x if position is None else x[:, position]), self.words)
