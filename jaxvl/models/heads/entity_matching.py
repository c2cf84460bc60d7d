"""What records of a picture and a text are matched by, whole and in parts, within a modality and
across (M3EL, Hu et al. 2024, arXiv 2412.10440)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Width, check
from jaxvl.models.base import Encoded
from jaxvl.models.heads import HEADS
from jaxvl.models.heads.base import Head, HeadConfig
from jaxvl.nn.linear import Linear
from jaxvl.nn.norms import LayerNorm, l2_normalize

SIDES = ("image", "text")


@HEADS.register("entity_matching")
@dataclasses.dataclass(frozen=True)
class EntityMatchingConfig(HeadConfig):
    """Vectors and tokens of mentions and of entities, each a picture and a text; the same
    parameters for both. The objective `m3el` and the evaluator `entity_linking` compare them.

    Of a record's side x (image or text) with the pooled vector g and the tokens h, o being the
    other side:
      LABEL/RECORD/x: unit rows float32 [B, E] of g; x_wanted: unit rows of another map of g.
      x_keys, x_values, x_queries: float32 [B, T, E] of h; x_mask: bool [B, T] where there is one.
      x_context: unit rows float32 [B, E] of LN(a tanh(w . a) + relu(M sum_t p_t b_t)), with a and b
        maps of g and of the other side's tokens, p_t = softmax_t(a . M b_t).
    RECORD is `mention` of what `reads` names and `entity` of what `entity` names.

    The release makes the same of the other side's tokens as well and pools both at several
    temperatures; that is left out. E is 96 there, the text's whole vector CLIP's own.

    Attributes:
      reads: image and text of the mention.
      entity: image and text of the entity, views of the model; the head runs without them too.
      dim: E.
    """

    reads: tuple[str, ...] = SIDES
    entity: tuple[str, ...] = ("image_2", "text_2")
    dim: Width = 96

    together: ClassVar[bool] = True

    def __post_init__(self):
        for name in ("reads", "entity"):
            value = vars(self)[name]
            check(len(value) == 2, name, f"{value!r} must be an image and a text")

    @property
    def sources(self) -> tuple[str, ...]:
        return (*self.reads, *self.entity)

    @property
    def required(self) -> tuple[str, ...]:
        return self.reads

    def build(
        self, inputs: Mapping[str, int], rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> Head:
        for mine, other in zip(self.reads, self.entity):
            same = inputs[mine] == inputs[other]
            check(same, "entity", f"{other!r} must be as wide as {mine!r}, of one encoder")
        return EntityMatching(self, inputs, rngs=rngs, dtype=dtype)


class Side(nnx.Module):
    """The maps of one modality.

    Args:
      width: D of the vector and tokens. dim: E.
    """

    def __init__(self, width: int, dim: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        linear = lambda: Linear(width, dim, axes=("embed", "joint"), rngs=rngs, dtype=dtype)
        self.whole = linear()
        self.wanted = linear()
        self.key = linear()
        self.value = linear()
        self.query = linear()
        self.across = linear()


class EntityMatching(Head):
    """See `EntityMatchingConfig`.

    Args:
      inputs: width of each input.
    """

    def __init__(
        self,
        config: EntityMatchingConfig,
        inputs: Mapping[str, int],
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        options = dict(rngs=rngs, dtype=dtype)
        self.image, self.text = (Side(inputs[n], config.dim, **options) for n in config.reads)
        self.gate = Linear(config.dim, 1, axes=("joint", "classes"), **options)
        self.relate = Linear(config.dim, config.dim, axes=("embed", "joint"), **options)
        self.norm = LayerNorm(config.dim, dtype=dtype)
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
        """See `EntityMatchingConfig`."""
        del batch, train, key, progress
        outputs = {}
        for record, names in (("mention", self.config.reads), ("entity", self.config.entity)):
            if all(name in encoded for name in names):
                of_record = self._record(*(encoded[name] for name in names))
                outputs |= {f"{record}/{name}": value for name, value in of_record.items()}
        return outputs

    def _record(self, image: Encoded, text: Encoded) -> dict[str, jax.Array]:
        outputs = {}
        given = {"image": (self.image, image), "text": (self.text, text)}
        for name, (maps, x) in given.items():
            outputs[name] = l2_normalize(maps.whole(x.pooled))
            outputs[f"{name}_wanted"] = l2_normalize(maps.wanted(x.pooled))
            kinds = {"keys": maps.key, "values": maps.value, "queries": maps.query}
            for kind, linear in kinds.items():
                outputs[f"{name}_{kind}"] = linear(x.tokens).astype(jnp.float32)
            if x.mask is not None:
                outputs[f"{name}_mask"] = x.mask
            other_maps, other = given["text" if name == "image" else "image"]
            whole = maps.across(x.pooled)
            outputs[f"{name}_context"] = self._context(
                whole, other_maps.across(other.tokens), other.mask
            )
        return outputs

    def _context(self, whole: jax.Array, tokens: jax.Array, mask: jax.Array | None) -> jax.Array:
        """What a side [B, E] finds in the other side's tokens [B, T, E], with itself."""
        logits = jnp.einsum("be,bte->bt", whole, self.relate(tokens)).astype(jnp.float32)
        if mask is not None:
            logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
        found = jnp.einsum("bt,bte->be", jax.nn.softmax(logits).astype(tokens.dtype), tokens)
        kept = whole * jnp.tanh(self.gate(whole))
        return l2_normalize(self.norm(kept + jax.nn.relu(self.relate(found))))
