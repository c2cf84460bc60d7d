"""Fusion of two sequences by cross-attention: whether a pair belongs together, and which words are
hidden (ALBEF, Li et al. 2021, arXiv 2107.07651, section 3.1; IRRA, Jiang and Ye 2023, arXiv
2303.12501, section 3.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Depth, Hidden, VocabularySize, Width, check
from jaxvl.config import Heads as HeadCount
from jaxvl.models.base import Encoded, InputSpec, check_rates
from jaxvl.models.heads import HEADS
from jaxvl.models.heads.base import Head, HeadConfig
from jaxvl.nn.activations import ACTIVATIONS, Activation
from jaxvl.nn.attention import Attention
from jaxvl.nn.linear import Linear, normal
from jaxvl.nn.norms import LayerNorm
from jaxvl.nn.transformer import Sizes, StackOptions, Transformer


@HEADS.register("fusion")
@dataclasses.dataclass(frozen=True)
class FusionConfig(HeadConfig):
    """The tokens of a text pass transformer layers that attend to the tokens of an image.

    Layers are pre-norm (the release: BERT's, which are post-norm). With `matching` the first token
    of the fused text stands for the pair: a text needs a first token that sees the others, so its
    encoder must not be causal.

    Negatives are pairs of the text with another image, and of the image with another text, that a
    hook `hard_negatives` has drawn. In a batch without them (evaluation, a teacher) there are the
    positives alone.

    Outputs, `LABEL` being the head's key:
      LABEL: float32 [B, D], the fused first token; LABEL/matching: float32 [B, P, 2], logits of "no
        match" and "match" of each row's pair, P = 1, and of its negatives where there are any, P =
        3: (text, other image), (other text, image). Both with `matching`.
      LABEL/words: float32 [B, T, V], logits of the words of a text with hidden tokens. With
        `words`.

    Attributes:
      reads: the text, which asks, and the image, which is attended to.
      matching: whether there is a classifier of pairs.
      negatives: label of the hook that draws negatives, or None. With `entries="rows"` the model
        needs the views `LABEL/image` and `LABEL/text` of that label.
      entries: as of the hook: `index` takes the tokens of other rows of this call, `rows` those of
        the views, which pass through microbatches.
      words: the view with the hidden tokens (`masked_text`), or None.
      vocab_size: V of `words`, at least the tokenizer's.
      cross: `every` layer attends to itself and to the image (ALBEF), or one attention to the image
        `first`, without a residual, and layers that attend to the text alone (IRRA).
      depth, heads: of the layers (ALBEF: 6 and 12; IRRA: 4 and 8).
      hidden: width of their perceptrons; None: four times the text's width.
      dropout: on the output of each branch (the release of ALBEF: 0.1).
      activation: of the perceptrons and of the words' head.
    """

    reads: tuple[str, ...] = ("text", "image")
    matching: bool = True
    negatives: str | None = None
    entries: Literal["index", "rows"] = "index"
    words: str | None = None
    vocab_size: VocabularySize | None = None
    cross: Literal["every", "first"] = "every"
    depth: Depth = 6
    heads: HeadCount = 12
    hidden: Hidden | None = None
    dropout: float = 0.0
    activation: Activation = "gelu"

    together: ClassVar[bool] = True

    def __post_init__(self):
        check_rates(self, "dropout")
        check(len(self.reads) == 2, "reads", f"{self.reads!r} must be a text and an image")
        check(
            self.matching or self.words is not None,
            "matching",
            "is False and words is None; the head must have one of them",
        )
        check(
            self.matching or self.negatives is None,
            "negatives",
            f"{self.negatives!r} are for matching, which is False; must be None",
        )
        check(
            (self.words is None) == (self.vocab_size is None),
            "vocab_size",
            f"{self.vocab_size!r} does not go with words={self.words!r}; give both or neither",
        )

    @property
    def views(self) -> tuple[str, ...]:
        """The views with the image and the text of the negatives."""
        if self.negatives is None or self.entries == "index":
            return ()
        return (f"{self.negatives}/image", f"{self.negatives}/text")

    @property
    def sources(self) -> tuple[str, ...]:
        words = () if self.words is None else (self.words,)
        return (*self.reads, *words, *self.views)

    @property
    def required(self) -> tuple[str, ...]:
        return self.reads if self.matching else (self.reads[1], self.words)

    def check_inputs(self, inputs: InputSpec) -> None:
        """Raises ConfigError where the vocabulary is larger than the head's."""
        check(
            self.vocab_size is None or self.vocab_size >= inputs.vocab_size,
            "vocab_size",
            f"{self.vocab_size!r} must be at least {inputs.vocab_size}, the tokenizer's",
        )

    def widths(self, inputs: Mapping[str, int]) -> dict[str, Width]:
        width = inputs[self.reads[0]]
        check(
            width % self.heads == 0, "heads", f"{self.heads!r} must divide the text's width {width}"
        )
        return {"": width} if self.matching else {}

    def build(
        self, inputs: Mapping[str, int], rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> Head:
        return Fusion(self, *(inputs[name] for name in self.reads), rngs=rngs, dtype=dtype)


class Fusion(Head):
    """See `FusionConfig`.

    Args:
      width: D of the text's tokens. memory_width: of the image's.
    """

    def __init__(
        self,
        config: FusionConfig,
        width: int,
        memory_width: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        sizes = Sizes(width, config.depth, config.heads, config.hidden or 4 * width)
        options = StackOptions(activation=config.activation, dropout=config.dropout)
        every = config.cross == "every"
        self.transformer = Transformer(
            sizes, options, memory_width=memory_width if every else None, rngs=rngs, dtype=dtype
        )
        cross = dict(memory_width=memory_width, rngs=rngs, dtype=dtype)
        self.cross = None if every else Attention(width, config.heads, **cross)
        self.text_norm = None if every else LayerNorm(width, dtype=dtype)
        self.memory_norm = None if every else LayerNorm(memory_width, dtype=dtype)
        self.norm = LayerNorm(width, dtype=dtype)
        self.matching = (
            Linear(width, 2, axes=("embed", "classes"), init=normal(0.02), rngs=rngs, dtype=dtype)
            if config.matching
            else None
        )
        self.words = (
            None
            if config.vocab_size is None
            else Words(width, config.vocab_size, config.activation, rngs=rngs, dtype=dtype)
        )
        self.config = config

    def __call__(
        self,
        encoded: Mapping[str, Encoded],
        batch: Mapping[str, jax.Array],
        *,
        train: bool,
        key: jax.Array | None,
        progress: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """See `FusionConfig`."""
        del progress
        config = self.config
        keys = (None, None) if key is None else jax.random.split(key)
        image = encoded[config.reads[1]]
        outputs = {}
        if self.matching is not None:
            texts, images = self._pairs(encoded, batch)
            first = self.fuse(_rows(texts), _rows(images), train=train, key=keys[0])[:, 0]
            first = first.reshape(len(image.tokens), len(texts), -1)
            outputs[""] = first[:, 0].astype(jnp.float32)
            outputs["matching"] = self.matching(first).astype(jnp.float32)
        if config.words in encoded:
            fused = self.fuse(encoded[config.words], image, train=train, key=keys[1])
            outputs["words"] = self.words(fused)
        return outputs

    def _pairs(
        self, encoded: Mapping[str, Encoded], batch: Mapping[str, jax.Array]
    ) -> tuple[list[Encoded], list[Encoded]]:
        """Texts, and the image that each attends to: of the pairs, and of the negatives."""
        text, image = (encoded[name] for name in self.config.reads)
        label = self.config.negatives
        if label is None:
            return [text], [image]
        if self.config.entries == "rows":
            if any(view not in encoded for view in self.config.views):
                return [text], [image]
            other_image, other_text = (encoded[view] for view in self.config.views)
        else:
            if f"{label}/image_index" not in batch:
                return [text], [image]
            other_image = _taken(image, batch[f"{label}/image_index"])
            other_text = _taken(text, batch[f"{label}/text_index"])
        return [text, text, other_text], [image, other_image, image]

    def fuse(
        self, text: Encoded, memory: Encoded, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """The text's tokens after the layers [B, T, D]."""
        x = text.tokens
        seen = dict(mask=text.mask, train=train, key=key)
        if self.cross is None:
            seen |= dict(memory=memory.tokens, memory_mask=memory.mask)
        else:
            known = self.memory_norm(memory.tokens)
            x = self.cross(self.text_norm(x), known, mask=memory.mask, train=train)
        return self.norm(self.transformer(x, **seen))


class Words(nnx.Module):
    """A word for each token, as BERT has it: linear map, activation, norm, linear map to the
    vocabulary (of its own weights; the release of ALBEF shares them with the word embeddings).

    Args:
      width, vocab_size: D and V.
    """

    def __init__(
        self,
        width: int,
        vocab_size: int,
        activation: Activation,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        options = dict(init=normal(0.02), rngs=rngs, dtype=dtype)
        self.dense = Linear(width, width, axes=("embed", "mlp"), **options)
        self.norm = LayerNorm(width, dtype=dtype)
        self.out = Linear(width, vocab_size, axes=("embed", "vocab"), **options)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> float32 [B, T, V]."""
        x = self.norm(ACTIVATIONS[self.activation](self.dense(x)))
        return self.out(x).astype(jnp.float32)


def _taken(value: Encoded, index: jax.Array) -> Encoded:
    """The tokens of other rows, int [B]."""
    mask = None if value.mask is None else value.mask[index]
    return Encoded(value.pooled[index], value.tokens[index], mask)


def _rows(values: Sequence[Encoded]) -> Encoded:
    """Several sequences of each row as rows of their own, side by side, so that none leaves its
    device."""
    joined = lambda arrays: jnp.stack(arrays, 1).reshape(-1, *arrays[0].shape[1:])
    mask = None if values[0].mask is None else joined([value.mask for value in values])
    pooled = joined([value.pooled for value in values])
    tokens = joined([value.tokens for value in values])
    return Encoded(pooled, tokens, mask)
