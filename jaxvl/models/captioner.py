"""What CoCa and its variants share: a decoder whose lower layers read a text and whose upper layers
read an image as well, the scores of a caption, and decoding token by token.

image -> encoder -> poolers -> memory [B, N, D] -----------------+
                            -> image embedding                   v  cross-attention of every layer
text  -> unimodal layers, causal -> tokens [B, T', D] -> multimodal layers, causal -> next tokens
                                 -> text embedding

A model says what pools the image (`pool_image`), and how a text begins and is embedded
(`read_text`, `embed_last`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.models.base import Encoded, InputSpec, Model, drop_options
from jaxvl.models.captioner_config import CaptionerConfig
from jaxvl.nn.attention import KeyValue
from jaxvl.nn.gradients import clip_with_gradient
from jaxvl.nn.linear import Embedding, Linear, normal
from jaxvl.nn.norms import LayerNorm, l2_normalize
from jaxvl.nn.random import split
from jaxvl.nn.transformer import Block, Transformer
from jaxvl.nn.vocabulary import VocabularyHead


class CrossKV(NamedTuple):
    """What every token of a caption reads and none changes.

    Attributes:
      layers: weights by half and layer, cut out of the stacks.
      image: keys and values [B, N, H, K] of the image, by multimodal layer.
    """

    layers: list[list[nnx.State]]
    image: list[KeyValue]


class Captioner(Model):
    """See the top of this file. A model defines `build_poolers`, `pool_image`, `build_text`,
    `read_text` and `embed_last`.

    Args:
      config: see `CaptionerConfig`. inputs: fixes vocabulary, text length, padding and EOS.
    """

    block: ClassVar[type[nnx.Module]] = Block  # a multimodal layer

    def __init__(
        self,
        config: CaptionerConfig,
        inputs: InputSpec,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        sizes = config.sizes("unimodal")
        options = dict(rngs=rngs, dtype=dtype)
        self.width = sizes.width
        self.dtype = dtype
        self.pad_id = inputs.pad_id
        self.eos_id = inputs.eos_id
        memory_width = self.build_towers(config, inputs, rngs)
        self.words = Embedding(inputs.vocab_size, self.width, **options)
        self.build_text(config, inputs, rngs)
        self.unimodal = Transformer(sizes, config.options(), **options)
        self.multimodal = Transformer(
            config.sizes("multimodal"),
            config.options(),
            memory_width=memory_width,
            block=self.block,
            **options,
        )
        self.norm = LayerNorm(self.width, eps=1e-5, dtype=dtype)
        self.head = VocabularyHead(self.width, inputs.vocab_size, tied=config.tied, **options)
        self.most = None if config.max_scale is None else math.log(config.max_scale)
        start = jnp.float32(math.log(config.init_scale))
        self.log_scale = nnx.Param(start, axes=(), bounds=(None, self.most))

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("image", "text")

    def encoder_paths(self) -> dict[str, str]:
        return {"image": "encoder"}

    # ----------------------------------------------------------------------------------------------
    # What a model defines

    def build_towers(self, config: CaptionerConfig, inputs: InputSpec, rngs: nnx.Rngs) -> int:
        """Makes what embeds images and texts; gives the width of the memory."""
        embed = config.embed_dim or self.width
        options = dict(axes=("embed", "joint"), bias=False, rngs=rngs, dtype=self.dtype)

        def projection(width: int) -> Linear:
            return Linear(width, embed, init=normal(width**-0.5), **options)

        self.encoder = config.image.build(inputs, rngs, self.dtype)
        memory_width = self.build_poolers(config, rngs)
        self.image_projection = projection(memory_width)
        self.text_projection = projection(self.width)
        return memory_width

    def build_poolers(self, config: CaptionerConfig, rngs: nnx.Rngs) -> int:
        """Makes what `pool_image` needs; gives the width of the memory."""
        raise NotImplementedError

    def pool_image(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The encoder's tokens [B, P, D'] -> the memory [B, N, D] that captions are read from, and
        what the image embedding is projected from [B, D]."""
        raise NotImplementedError

    def build_text(self, config: CaptionerConfig, inputs: InputSpec, rngs: nnx.Rngs) -> None:
        """Makes `positions` and what else `read_text` needs beside words and layers."""
        raise NotImplementedError

    def read_text(
        self, text: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """text int [B, T] -> tokens that the multimodal layers read, of which the first stands
        before the first target, [B, T', D]; and what the text embedding is projected from,
        [B, D]."""
        raise NotImplementedError

    def embed_last(self, token: jax.Array, position: jax.Array) -> jax.Array:
        """The last token, int [B], or at `position` 0 the start -> [B, D] without its position."""
        raise NotImplementedError

    def finish_unimodal(self, x: jax.Array) -> jax.Array:
        """What becomes of the unimodal layers' output [B, 1, D] before the multimodal ones read
        it."""
        return x

    def text_mask(self, text: jax.Array) -> jax.Array:
        """bool [B, T'], of the tokens that `read_text` gives: False where they are padding."""
        mask = text != self.pad_id
        return jnp.concatenate([jnp.ones_like(mask[:, :1]), mask], axis=1)

    def targets(self, text: jax.Array) -> jax.Array:
        """The tokens of text int [B, T] that are predicted: all, as the start is not of them."""
        return text

    # ----------------------------------------------------------------------------------------------
    # Parts that several models make

    def make_positions(self, rows: int, rngs: nnx.Rngs) -> nnx.Param:
        table = normal(0.01)(rngs.params(), (rows, self.width), jnp.float32)
        return nnx.Param(table, axes=("length", "embed"))

    def make_token(self, rngs: nnx.Rngs) -> nnx.Param:
        return nnx.Param(normal(0.01)(rngs.params(), (self.width,), jnp.float32), axes=("norm",))

    def repeat_token(self, token: nnx.Param, rows: int) -> jax.Array:
        """[B, 1, D]."""
        return jnp.broadcast_to(token[...].astype(self.dtype), (rows, 1, self.width))

    # ----------------------------------------------------------------------------------------------
    # Whole inputs

    @jax.named_scope("image")
    def memory(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        **options: Any,
    ) -> tuple[jax.Array, jax.Array]:
        """image [B, S, S, C] -> what captions are read from [B, N, D], and the image embedding,
        unit rows float32 [B, E]; `options`: the encoder's own, see `drop_options`."""
        tokens = self.encode_tokens(image, train=train, key=key, **options)
        memory, pooled = self.pool_image(tokens)
        return memory, l2_normalize(self.image_projection(pooled))

    def encode_image(
        self, image: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """image float [B, S, S, C], normalised -> unit rows float32 [B, E]."""
        return self.memory(image, train=train, key=key)[1]

    def encode_text(
        self, text: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """text int [B, T] -> unit rows float32 [B, E]."""
        return self.embed_text(self.read_text(text, train=train, key=key)[1])

    def embed_text(self, pooled: jax.Array) -> jax.Array:
        """What `read_text` pools -> unit rows float32 [B, E]."""
        return l2_normalize(self.text_projection(pooled))

    def encode(
        self, name: str, x: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> Encoded:
        """As every model's. Of an image: the encoder's tokens, and what the image embedding is
        projected from. Of a text: what the multimodal layers read, and what the text embedding is
        projected from."""
        if name == "image":
            tokens = self.encode_tokens(x, train=train, key=key)
            return Encoded(self.pool_image(tokens)[1], tokens)
        tokens, pooled = self.read_text(x, train=train, key=key)
        return Encoded(pooled, tokens, self.text_mask(x))

    def encode_tokens(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        **options: Any,
    ) -> jax.Array:
        """image [B, S, S, C] -> the encoder's tokens [B, P, D], which the poolers start from."""
        train = train and "image" not in self.frozen
        return self.encoder(image, train=train, key=key, **options).tokens

    def scale(self) -> jax.Array:
        """log_scale, float32 [], within its limit."""
        scale = self.log_scale[...]
        return scale if self.most is None else clip_with_gradient(scale, self.most)

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        *,
        train: bool = False,
        key: jax.Array | None = None,
        progress: jax.Array | None = None,
        drop: dict[str, float] | None = None,
    ) -> dict[str, jax.Array]:
        """Embeds a batch and reads its texts as captions, in one pass.

        Args:
          batch: image float [B, S, S, C], normalised; text int [B, T], ended by EOS, then padding;
            maybe `captions/sampled` int [B, T], captions of the model's own; maybe `ROW_KEYS`.
          drop: input -> share of its tokens that is left out in training (FLIP), of an encoder
            that can (`EncoderConfig.drops_tokens`).
          train, key, progress: as for `Model`.

        Returns:
          image, text: unit rows, float32 [B, E]; log_scale: float32 []; caption_lse,
            caption_target, caption_mean: float32 [B, T] and caption_correct: bool [B, T], of the
            logits of each of `targets` given those before it (`VocabularyHead.scores`);
            caption_weight: float32 [B, T], 1 where a target is not padding. With `captions/sampled`
            also sampled_log_p: float32 [B, T], of each of its tokens.
        """
        keys = split(key, 3)
        text = batch["text"]
        options = drop_options(drop, "image", batch)
        memory, image = self.memory(batch["image"], train=train, key=keys[0], **options)
        targets = self.targets(text)
        scores, embedding = self.score(text, targets, memory, train=train, keys=keys[1:])
        out = {
            "image": image,
            "text": embedding,
            "log_scale": self.scale(),
            "caption_weight": (targets != self.pad_id).astype(jnp.float32),
            **{f"caption_{k}": v for k, v in scores.items()},
        }
        if "captions/sampled" in batch:
            sampled = batch["captions/sampled"]
            scores, _ = self.score(sampled, sampled, memory, train=train, keys=keys[1:])
            out["sampled_log_p"] = scores["target"] - scores["lse"]
        return out

    def score(
        self,
        text: jax.Array,
        targets: jax.Array,
        memory: jax.Array,
        *,
        train: bool = False,
        keys: Sequence[jax.Array | None] = (None, None),
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """`VocabularyHead.scores` of targets int [B, T'], the first of which follows the start,
        given text int [B, T]; the text's embedding."""
        tokens, pooled = self.read_text(text, train=train, key=keys[0])
        embedding = self.embed_text(pooled)
        return self.score_tokens(tokens, targets, memory, train=train, key=keys[1]), embedding

    @jax.named_scope("captioner")
    def score_tokens(
        self,
        tokens: jax.Array,
        targets: jax.Array,
        memory: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """As `score`, of tokens [B, T, D] as `read_text` gives them."""
        x = self.multimodal(
            tokens[:, : targets.shape[1]], memory, causal=True, train=train, key=key
        )
        return self.head.scores(self.norm(x), self.words, targets)

    def caption_scores(self, memory: jax.Array, text: jax.Array) -> dict[str, jax.Array]:
        """As in `__call__`, without the prefix: what a cross-entropy needs of text int [B, T] under
        the image that `memory` is of."""
        return self.score(text, self.targets(text), memory)[0]

    def caption_logits(
        self,
        image: jax.Array,
        text: jax.Array,
        *,
        memory: jax.Array | None = None,
        position: jax.Array | None = None,
    ) -> jax.Array:
        """float32 [B, T', V]: of the token after the start, after the first of `targets`, and so
        on.

        Args:
          memory: of the image, where it is known already, instead of it.
          position: only the logits there, [B, V].
        """
        tokens, _ = self.read_text(text)
        memory = self.memory(image)[0] if memory is None else memory
        x = self.multimodal(tokens, memory, causal=True)
        return self.head.logits(self.norm(x if position is None else x[:, position]), self.words)

    # ----------------------------------------------------------------------------------------------
    # Token by token

    def init_cache(self, batch: int, length: int) -> list[list[KeyValue]]:
        """Keys and values [B, T, H, K] of captions of up to T = `length` tokens, none of them
        known yet, by half and layer."""
        return [half.init_cache(batch, length) for half in (self.unimodal, self.multimodal)]

    def prefill(self, image: jax.Array, length: int) -> tuple[list[list[KeyValue]], CrossKV]:
        """image [B, S, S, C] -> the cache before the first token of captions of up to `length`
        tokens, and what all tokens read."""
        memory = self.memory(image)[0]
        layers = [half.layers() for half in (self.unimodal, self.multimodal)]
        cross_kv = CrossKV(layers, self.multimodal.project_kv(layers[1], memory))
        return self.init_cache(len(image), length), cross_kv

    def decode_step(
        self,
        kv_cache: list[list[KeyValue]],
        cross_kv: CrossKV,
        token: jax.Array,
        position: jax.Array,
    ) -> tuple[jax.Array, list[list[KeyValue]]]:
        """Logits of the next token, float32 [B, V], after the last one, int [B], at `position` (0:
        the start, `token` is not read); and the cache with the last one in it.

        Several captions of an image stand next to each other: B is a multiple of the images that
        `cross_kv` was made of.
        """
        x = self.embed_last(token, position)
        x = (x + self.positions[...][position].astype(self.dtype))[:, None]
        x, own = self.unimodal.decode_step(cross_kv.layers[0], x, kv_cache[0], position)
        x, cross = self.multimodal.decode_step(
            cross_kv.layers[1], self.finish_unimodal(x), kv_cache[1], position, cross_kv.image
        )
        return self.head.logits(self.norm(x[:, 0]), self.words), [own, cross]
