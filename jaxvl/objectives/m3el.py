"""Linking of mentions to entities by scores within and across modalities: M3EL."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxvl.aliases import Arrays
from jaxvl.config import Count, Scale, Weight, check
from jaxvl.kernels.contrastive import PairMask, Unpaired
from jaxvl.kernels.contrastive.reductions import CrossEntropy
from jaxvl.kernels.contrastive.scores import Asking, Dot, GlobalAndLocal, Told
from jaxvl.objectives import OBJECTIVES, Loss
from jaxvl.objectives.competing import competing
from jaxvl.objectives.streamed import StreamedObjective

Read = dict[str, Told | Asking | jax.Array]  # score -> what a record brings to it
SIDES = ("image", "text")
SCORES = ("image", "text", "text_to_image", "image_to_text")
# Score across modalities -> the side that asks.
ACROSS = {"text_to_image": "text", "image_to_text": "image"}


@OBJECTIVES.register("m3el")
@dataclasses.dataclass(frozen=True)
class MultiLevelMatching(StreamedObjective):
    """Mentions find their entities among those of the batch (M3EL, Hu et al. 2024, arXiv
    2412.10440; the release).

        s_T, s_V     within a modality: wholes with wholes, and with parts (`GlobalAndLocal`)
        s_TV, s_VT   across: c_i . c_j of a text with what it finds in its picture, of a picture
                     with what it finds in its text
        s            (s_T + s_V + s_TV + s_VT) / 4
        L            NCE(s) + NCE(s_T) + NCE(s_V) + NCE(s_TV) + NCE(s_VT) + w / 2 (C_T + C_V)

    NCE is the softmax cross-entropy of a mention over the entities, at exp(log_scale) (the release
    has none, and scores that are no cosines). C is the contrast whose negatives are of the same
    modality, of the other side and of the row's own; e entities, m mentions, k over other rows:

        C = -1/2 mean_i [ log (exp(e_i . m_i / t) / (sum_j exp(e_i . m_j / t)
                                                    + sum_k exp(r e_i . e_k / t))) + the same of m ]

    The release keeps each row itself among the k, with a logit of 0; here it is left out. Rows of
    one `group_id` do not compete, nor do they in C (`duplicates="mask"`, not from the paper).

    Reads what the head `entity_matching` gives; log_scale: Float[Array, ""]. Options:
    `StreamedObjective`; a block of b rows and columns holds b * b * T * T' products.

    Attributes:
      head: label of the head.
      same_modality: w, 1.
      temperature: t, 0.03.
      own_side: r, 0.8.
      implementation: of `contrastive_logsumexp`.
    """

    duplicates: Literal["diagonal", "positive", "mask"] = "mask"
    block: Count = 32
    head: str = "matching"
    same_modality: Weight = 1.0
    temperature: Scale = 0.03
    own_side: Weight = 0.8
    implementation: str | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        mention = of_record(f"{self.head}/mention", ("keys", "values"))
        entity = of_record(f"{self.head}/entity", ("wanted", "queries"))
        return (*mention, *entity, "log_scale")

    def __post_init__(self):
        super().__post_init__()
        known = self.duplicates != "positive"
        check(known, "duplicates", "'positive' is not for m3el; must be 'diagonal' or 'mask'")

    def __call__(self, outputs, batch, state, context):
        del context
        scale = jnp.exp(outputs["log_scale"])
        mention = as_mention(outputs, f"{self.head}/mention")
        entity = as_entity(outputs, f"{self.head}/entity")
        reduce = CrossEntropy(self.targets(batch))
        total = jnp.float32(0)
        metrics = {"scale": jax.lax.stop_gradient(scale)}
        for name, scores in (("all", SCORES), *((name, (name,)) for name in SCORES)):
            found = self.streamed(MeanScore(scores, scale), mention, entity, reduce)
            metrics[name] = found.loss("rows")
            total += metrics[name]
        if self.same_modality:
            ids = batch["group_id"].reshape(-1) if self.duplicates != "diagonal" else None
            pairs = [(entity[side].vector, mention[side].vector) for side in SIDES]
            metrics["same_modality"] = sum(self._contrast(*pair, ids) for pair in pairs) / 2
            total += self.same_modality * metrics["same_modality"]
        return Loss(total, metrics), state

    def _contrast(self, e: jax.Array, m: jax.Array, ids: jax.Array | None) -> jax.Array:
        """C of one modality, float32 []."""
        own = jnp.arange(len(e), dtype=jnp.int32)
        groups = own if ids is None else ids
        others = PairMask(Unpaired(), row_group=groups, col_group=groups, drop="same")
        log_scale = -jnp.log(jnp.float32(self.temperature))
        pair = jnp.sum(e * m, -1, dtype=jnp.float32) / self.temperature
        across = competing(e, m, log_scale, others, self.implementation)
        total = jnp.float32(0)
        for rows, of_others in zip((e, m), across):
            terms = [pair, of_others]
            if self.own_side:
                sharper = log_scale + jnp.log(jnp.float32(self.own_side))
                terms.append(competing(rows, rows, sharper, others, self.implementation)[0])
            total += 0.5 * jnp.mean(jax.nn.logsumexp(jnp.stack(terms), 0) - pair)
        return total


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MeanScore:
    """The mean of some of `SCORES`, of mentions as rows and entities as columns.

    Attributes:
      names: which.
      scale: factor.
    """

    names: tuple[str, ...] = dataclasses.field(default=SCORES, metadata=dict(static=True))
    scale: Any = 1.0

    def __call__(self, u: Read, v: Read) -> jax.Array:
        parts = [self._one(name)(u[name], v[name]) for name in self.names]
        return self.scale * sum(parts) / len(parts)

    def _one(self, name: str) -> Dot | GlobalAndLocal:
        return Dot() if name in ACROSS else GlobalAndLocal()


def of_record(prefix: str, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Names of outputs of the head."""
    each = ("", "_context", *(f"_{kind}" for kind in kinds))
    return tuple(f"{prefix}/{side}{kind}" for side in SIDES for kind in each)


def as_mention(outputs: Arrays, prefix: str) -> Read:
    """Outputs of a record as a mention's."""
    told = {side: Told(**_fields(outputs, f"{prefix}/{side}", Told)) for side in SIDES}
    return told | _across(outputs, prefix)


def as_entity(outputs: Arrays, prefix: str) -> Read:
    """Outputs of a record as an entity's."""
    asking = {side: Asking(**_fields(outputs, f"{prefix}/{side}", Asking)) for side in SIDES}
    return asking | _across(outputs, prefix)


def _fields(
    outputs: Arrays, name: str, kind: type[Told] | type[Asking]
) -> dict[str, jax.Array | None]:
    """Outputs by the fields of `kind`: `vector` is the output `name`, any other `name_FIELD`."""
    others = {field: outputs.get(f"{name}_{field}") for field in kind._fields if field != "vector"}
    return {"vector": outputs.get(name), **others}


def _across(outputs: Arrays, prefix: str) -> Read:
    return {name: outputs[f"{prefix}/{side}_context"] for name, side in ACROSS.items()}
