"""CoCa, the contrastive captioner (Yu et al. 2022, arXiv 2205.01917): both losses from one forward
pass.

image -> encoder -> caption pooler (N queries) ------------------------------+
                         |  cascade (or, in parallel, the encoder's tokens)  |
                         v                                                   v
                    contrastive pooler -> image embedding       cross-attention of every layer
                                                                             |
[start] w1 … wT [CLS] -> unimodal layers, causal ---- tokens ----> multimodal layers, causal -> w1 … wT, EOS
                               | [CLS], which sees the whole text
                               v
                         text embedding

That is the paper's form. open_clip's models differ in many small ways, each of which is an option
(`poolers` and what follows it in `CoCaConfig`); `presets.coca_open_clip` has them together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvl.config import ConfigError, Depth, Heads, Hidden, Range, Scale, TokenId, Width, check
from jaxvl.models import IMAGE_ENCODERS, MODELS
from jaxvl.models.base import (
    Capabilities,
    EncoderConfig,
    InputSpec,
    Model,
    ModelConfig,
    check_rates,
)
from jaxvl.models.vit import ViTConfig
from jaxvl.nn.gradients import clip_with_gradient
from jaxvl.nn.linear import Embedding, Linear, normal
from jaxvl.nn.mlp import Activation
from jaxvl.nn.norms import LayerNorm, l2_normalize
from jaxvl.nn.poolers import QueryPooler, eos
from jaxvl.nn.transformer import Block, Cross, Remat, Sizes, StackOptions, Transformer
from jaxvl.nn.vocabulary import VocabularyHead

# Width, heads, hidden, layers of either half of the decoder (table 1 of the paper).
VARIANTS: Mapping[str, tuple[int, int, int, int]] = {
    "base": (768, 12, 3072, 12),
    "large": (1024, 16, 4096, 12),
    "2b": (1408, 16, 5632, 18),
}


@MODELS.register("coca")
@dataclasses.dataclass(frozen=True)
class CoCaConfig(ModelConfig):
    """CoCa.

    Attributes:
      image: image encoder by name; its tokens are read, not its pooled output (the paper: B/18 at
        288 pixels).
      variant: size of the text decoder: base, large, 2b.
      width, heads, hidden: of the decoder, instead of the variant's.
      unimodal, multimodal: layers of its two halves, instead of the variant's.
      queries: tokens of the image that the caption is read from.
      pooler_heads: of both poolers; None: as the decoder.
      poolers: `cascade`: the contrastive pooler reads the caption pooler's tokens (the paper's
        default); `parallel`: both read the encoder's; `shared`: one pooler, whose first token is
        the image's and the other N - 1 are the caption's (open_clip's released models); `none`: the
        encoder's class token and patches (open_clip's coca_base).
      pooler_norm: layer norm of what poolers give.
      cross: place of the attention to the image in a layer, see `nn.transformer.StackOptions`.
      start_id: the token that begins every text, from which captions are written; None: texts have
        none, and a learned vector is put before them.
      text_pool: text embedding from an appended [CLS], `class`, or from the EOS token, `eos` (as in
        CLIP; the final norm is then that of all tokens, and captions read them normalised).
      late_mask: the mask of padding stands one place late, so that [CLS] sees the first token of
        padding, and itself only in a text without any. A slip that all released weights of
        open_clip were trained with.
      tied: the vocabulary head shares the word embedding (the published sizes of base and large
        count them apart).
      embed_dim: width of the embedding space; None: the decoder's.
      init_scale, max_scale: of the cosine, as in `dual_encoder`.
      activation, dropout, drop_path, scan, remat: of the decoder, see
        `nn.transformer.StackOptions`.
    """

    image: Annotated[Any, IMAGE_ENCODERS] = ViTConfig(variant="B/16", pool="mean")
    variant: str = "base"
    width: Width | None = None
    heads: Heads | None = None
    hidden: Hidden | None = None
    unimodal: Depth | None = None
    multimodal: Depth | None = None
    queries: Annotated[int, Range(1, 65_536)] = 256
    pooler_heads: Heads | None = None
    poolers: Literal["cascade", "parallel", "shared", "none"] = "cascade"
    pooler_norm: bool = True
    cross: Cross = "between"
    start_id: TokenId | None = None
    text_pool: Literal["class", "eos"] = "class"
    late_mask: bool = False
    tied: bool = False
    embed_dim: Width | None = None
    init_scale: Scale = 1 / 0.07
    max_scale: Scale | None = 100.0
    activation: Activation = "gelu"
    dropout: float = 0.0
    drop_path: float = 0.0
    scan: bool = True
    remat: Remat = "none"

    training_fields: ClassVar[frozenset[str]] = frozenset({"max_scale", "init_scale"})

    def __post_init__(self):
        check(
            self.variant in VARIANTS,
            "variant",
            f"{self.variant!r} is not a known variant (known: {', '.join(VARIANTS)})",
        )
        check_rates(self, "dropout", "drop_path")
        check(
            not self.image.routed,
            "image.moe",
            "the losses of its layers would be lost: 'coca' does not report them",
        )
        for half in (self.sizes("unimodal"), self.sizes("multimodal")):
            check(half.depth >= 1, "unimodal", "both halves of the decoder need at least one layer")
            check(
                half.width % half.heads == 0,
                "heads",
                f"{half.heads} must divide the width of {half.width}",
            )
        least = 1 + (self.poolers == "shared")
        check(self.queries >= least, "queries", f"{self.queries!r} must be >= {least}")
        check(
            self.poolers != "none" or self.image.class_token,
            "poolers",
            "'none' needs an image encoder with a class token (a vit with pool='cls')",
        )
        check(
            not self.late_mask or self.text_pool == "class",
            "late_mask",
            "is of [CLS], which text_pool='eos' has not",
        )
        heads = self.pooler_heads or self.sizes("unimodal").heads
        check(
            self.sizes("unimodal").width % heads == 0,
            "pooler_heads",
            f"{heads} must divide the width of {self.sizes('unimodal').width}",
        )
        check(self.init_scale > 0, "init_scale", f"{self.init_scale!r} must be > 0")

    def sizes(self, half: Literal["unimodal", "multimodal"]) -> Sizes:
        width, heads, hidden, depth = VARIANTS[self.variant]
        given = getattr(self, half)
        width, ratio = self.width or width, hidden / width
        return Sizes(
            width,
            depth if given is None else given,
            self.heads or heads,
            self.hidden or round(ratio * width),
        )

    def options(self) -> StackOptions:
        return StackOptions(
            activation=self.activation,
            eps=1e-5,
            dropout=self.dropout,
            hidden_dropout=self.dropout,
            drop_path=self.drop_path,
            scan=self.scan,
            remat=self.remat,
            cross=self.cross,
        )

    @property
    def encoders(self) -> Mapping[str, EncoderConfig]:
        return {"image": self.image}

    def capabilities(self, inputs: InputSpec | None = None) -> Capabilities:
        return Capabilities(generates=True, start_id=self.start_id)

    def check_inputs(self, inputs: InputSpec) -> None:
        """Raises ConfigError where the image encoder cannot take such images, or no token ends a
        caption."""
        try:
            self.image.check_inputs(inputs)
        except ConfigError as error:
            raise error.under("image") from None
        check(
            inputs.eos_id is not None,
            "name",
            "'coca' needs a tokenizer with an EOS token, which ends a caption",
        )
        check(
            inputs.eos_id != inputs.pad_id,
            "name",
            f"'coca' needs a tokenizer that pads with another token than its EOS ({inputs.eos_id})",
        )
        start = self.start_id
        special = (inputs.pad_id, inputs.eos_id)
        check(
            start is None or (0 <= start < inputs.vocab_size and start not in special),
            "start_id",
            f"{start!r} must be a token (below {inputs.vocab_size}) that is neither padding "
            f"nor EOS",
        )

    def build(self, inputs: InputSpec, rngs: nnx.Rngs, dtype: Any = jnp.float32) -> CoCa:
        return CoCa(self, inputs, rngs=rngs, dtype=dtype)


def own_form(config: CoCaConfig) -> None:
    """For variants of the paper's form. Raises ConfigError for the options of open_clip's."""
    for name, value in (
        ("start_id", None),
        ("text_pool", "class"),
        ("late_mask", False),
        ("cross", "between"),
    ):
        given = getattr(config, name)
        check(given == value, name, f"{given!r} is of open_clip's form; must be {value!r} here")


class CoCa(Model):
    """See the top of this file.

    Args:
      config: see `CoCaConfig`. inputs: fixes vocabulary, text length, padding and EOS.
    """

    block: ClassVar[Any] = Block  # a multimodal layer

    def __init__(
        self, config: CoCaConfig, inputs: InputSpec, *, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ):
        sizes = config.sizes("unimodal")
        width = config.sizes("unimodal").width
        embed = config.embed_dim or width
        self.poolers = config.poolers
        options = dict(rngs=rngs, dtype=dtype)

        def token() -> nnx.Param:
            return nnx.Param(normal(0.01)(rngs.params(), (width,), jnp.float32), axes=("norm",))

        def projection(width: int) -> Linear:
            return Linear(
                width,
                embed,
                axes=("embed", "joint"),
                bias=False,
                init=normal(width**-0.5),
                **options,
            )

        self.encoder = config.image.build(inputs, rngs, dtype)
        read = (
            width if config.poolers != "none" else self.encoder.width
        )  # width of what captions are read from

        def pool(queries: int, memory_width: int) -> QueryPooler:
            heads = config.pooler_heads or sizes.heads
            return QueryPooler(
                queries, width, heads, memory_width=memory_width, norm=config.pooler_norm, **options
            )

        twice = config.poolers in ("cascade", "parallel")
        cascade = config.poolers == "cascade"
        self.caption_pooler = (
            pool(config.queries, self.encoder.width) if config.poolers != "none" else None
        )
        self.contrastive_pooler = (
            pool(1, width if cascade else self.encoder.width) if twice else None
        )
        self.image_projection = projection(read)
        self.text_projection = projection(width)
        self.words = Embedding(inputs.vocab_size, width, rngs=rngs, dtype=dtype)
        self.start_id = config.start_id
        learned_start = config.start_id is None
        with_class = config.text_pool == "class"
        rows = learned_start + inputs.text_length + with_class
        positions = normal(0.01)(rngs.params(), (rows, width), jnp.float32)
        self.positions = nnx.Param(positions, axes=("length", "embed"))
        self.start_token = token() if learned_start else None
        self.class_token = token() if with_class else None
        self.unimodal = Transformer(sizes, config.options(), **options)
        self.text_norm = LayerNorm(width, eps=1e-5, dtype=dtype)
        self.norm_between = not with_class
        self.multimodal = Transformer(
            config.sizes("multimodal"),
            config.options(),
            memory_width=read,
            block=self.block,
            **options,
        )
        self.norm = LayerNorm(width, eps=1e-5, dtype=dtype)
        self.head = VocabularyHead(width, inputs.vocab_size, tied=config.tied, **options)
        self.log_scale = nnx.Param(jnp.float32(math.log(config.init_scale)), axes=())
        self.most = None if config.max_scale is None else math.log(config.max_scale)
        self.pad_id = inputs.pad_id
        self.eos_id = inputs.eos_id
        self.late_mask = config.late_mask
        self.width = width
        self.dtype = dtype

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("image", "text")

    def encoder_paths(self) -> dict[str, str]:
        return {"image": "encoder"}

    # ----------------------------------------------------------------------------------------------
    # Image

    @jax.named_scope("image")
    def memory(
        self, image: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """image [B, S, S, C] -> what captions are read from [B, N, D], and the image embedding,
        unit rows float32 [B, E]."""
        encoded = self.encoder(image, train=train and "image" not in self.frozen, key=key)
        if self.poolers == "none":
            memory = encoded.tokens[:, 1:]
            pooled = encoded.tokens[:, 0]
        else:
            memory = self.caption_pooler(encoded.tokens)
            if self.poolers == "shared":
                memory, pooled = memory[:, 1:], memory[:, 0]
            else:
                pooled = self.contrastive_pooler(
                    memory if self.poolers == "cascade" else encoded.tokens
                )[:, 0]
        return memory, l2_normalize(self.image_projection(pooled))

    def encode_image(
        self, image: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """image float [B, S, S, C], normalised -> unit rows float32 [B, E]."""
        return self.memory(image, train=train, key=key)[1]

    # ----------------------------------------------------------------------------------------------
    # Text

    @jax.named_scope("text")
    def _read(
        self, text: jax.Array, *, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """text int [B, T] -> tokens [B, T (+ 1: the learned start, first), D] and the text
        embedding, unit rows float32 [B, E]."""
        b, t = text.shape

        def broadcast(token):
            return jnp.broadcast_to(token[...].astype(self.dtype), (b, 1, self.width))

        x = self.words(text)
        mask = text != self.pad_id
        always = jnp.ones((b, 1), bool)
        if self.start_token is not None:
            x = jnp.concatenate([broadcast(self.start_token), x], 1)
            mask = jnp.concatenate([always, mask], 1)
        positions = self.positions[: x.shape[1]]
        if self.class_token is None:  # no token sees the padding, which comes after it
            x = self.text_norm(
                self.unimodal(x + positions.astype(self.dtype), causal=True, train=train, key=key)
            )
            return x, l2_normalize(self.text_projection(eos(x[:, -t:], text, self.eos_id)))
        x = jnp.concatenate([x, broadcast(self.class_token)], 1)
        mask = jnp.concatenate([mask, always], 1)
        # [CLS] has the last row of the table whatever the length of the text.
        positions = jnp.concatenate([positions, self.positions[-1:]]).astype(self.dtype)
        mask = jnp.roll(mask, 1, axis=1) if self.late_mask else mask
        x = self.unimodal(x + positions, mask=mask, causal=True, train=train, key=key)
        return x[:, :-1], l2_normalize(self.text_projection(self.text_norm(x[:, -1])))

    def encode_text(
        self, text: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """text int [B, T] -> unit rows float32 [B, E]."""
        return self._read(text, train=train, key=key)[1]

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        *,
        train: bool = False,
        key: jax.Array | None = None,
        progress: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Embeds a batch and reads its texts as captions, in one pass.

        Args:
          batch: image float [B, S, S, C], normalised; text int [B, T], ended by EOS, then padding;
            maybe `captions/sampled` int [B, T], captions of the model's own.
          train, key, progress: as for `Model`.

        Returns:
          image, text: unit rows, float32 [B, E]; log_scale: float32 []; caption_lse,
            caption_target, caption_mean: float32 [B, T] and
          caption_correct: bool [B, T], of the logits of each token given those before it
            (`VocabularyHead.scores`); caption_weight:
          float32 [B, T], 1 where a token is not padding. With `start_id` these are T - 1: nothing
          is before the start. With `captions/sampled` also sampled_log_p: float32 [B, T], of each of its
          tokens.
        """
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        text = batch["text"]
        scale = self.log_scale[...]
        memory, image = self.memory(batch["image"], train=train, key=keys[0])
        targets = text if self.start_id is None else text[:, 1:]
        scores, embedding = self._score(text, targets, memory, train=train, keys=keys[1:])
        out = {
            "image": image,
            "text": embedding,
            "log_scale": scale if self.most is None else clip_with_gradient(scale, self.most),
            "caption_weight": (targets != self.pad_id).astype(jnp.float32),
            **{f"caption_{k}": v for k, v in scores.items()},
        }
        if "captions/sampled" in batch:
            sampled = batch["captions/sampled"]
            scores, _ = self._score(sampled, sampled, memory, train=train, keys=keys[1:])
            out["sampled_log_p"] = scores["target"] - scores["lse"]
        return out

    def _score(
        self,
        text: jax.Array,
        targets: jax.Array,
        memory: jax.Array,
        *,
        train: bool = False,
        keys: Sequence[Any] = (None, None),
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """`VocabularyHead.scores` of targets int [B, T'], the first of which follows the start,
        given text int [B, T]; its embedding."""
        tokens, embedding = self._read(text, train=train, key=keys[0])
        with jax.named_scope("captioner"):
            x = self.norm(
                self.multimodal(
                    tokens[:, : targets.shape[1]], memory, causal=True, train=train, key=keys[1]
                )
            )
            return self.head.scores(x, self.words, targets), embedding

    def image_tokens(self, image: jax.Array) -> jax.Array:
        """image [B, S, S, C] -> the encoder's tokens [B, P, D], which both poolers start from."""
        return self.encoder(image).tokens

    def caption_scores(self, memory: jax.Array, text: jax.Array) -> dict[str, jax.Array]:
        """As in `__call__`, without the prefix: what a cross-entropy needs of text int [B, T] under
        the image that `memory` is of."""
        return self._score(text, text if self.start_id is None else text[:, 1:], memory)[0]

    def caption_logits(
        self,
        image: jax.Array,
        text: jax.Array,
        *,
        memory: jax.Array | None = None,
        position: jax.Array | None = None,
    ) -> jax.Array:
        """float32 [B, T + 1, V]: of the token after [start], after the first of text int [B, T],
        and so on.

        With `start_id`, which the text begins with: [B, T, V]. `memory`: of the image, where it is
        known already, instead of it; `position`: only the logits there, [B, V].
        """
        tokens, _ = self._read(text, train=False, key=None)
        x = self.multimodal(
            tokens, self.memory(image)[0] if memory is None else memory, causal=True
        )
        return self.head.logits(self.norm(x if position is None else x[:, position]), self.words)

    # ----------------------------------------------------------------------------------------------
    # Token by token

    def start(self, image: jax.Array, length: int) -> tuple[Any, Any]:
        """Before the first token of captions of up to `length` tokens: what grows with them, and
        what does not.

        The first: keys and values [B, T, H, K] by half and layer; the second: weights by layer, and
        the image's keys and values.
        """
        memory = self.memory(image)[0]
        halves = (self.unimodal, self.multimodal)
        layers = [half.layers() for half in halves]
        return [half.start(len(image), length) for half in halves], (
            layers,
            self.multimodal.remember(layers[1], memory),
        )

    def step(
        self, known: Any, fixed: Any, token: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Logits of the next token, float32 [B, V], after the last one, int [B], at `position` (0:
        the start, `token` is not read).

        Several captions of an image stand next to each other: B is a multiple of the images that
        `fixed` was made of.
        """
        layers, memory = fixed
        if self.start_token is None:
            x = self.words(jnp.where(position == 0, self.start_id, token))
        else:
            x = jnp.where(
                position == 0, self.start_token[...].astype(self.dtype), self.words(token)
            )
        x = (x + self.positions[...][position].astype(self.dtype))[:, None]
        x, own = self.unimodal.step(layers[0], x, known[0], position)
        x = self.text_norm(x) if self.norm_between else x
        x, cross = self.multimodal.step(layers[1], x, known[1], position, memory)
        return self.head.logits(self.norm(x[:, 0]), self.words), [own, cross]
