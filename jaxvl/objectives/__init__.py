"""Objectives: pure functions of the encoders' outputs, one file each, chosen by name.

An objective is a registered frozen dataclass with

    reads        names of the model outputs it needs
    batch_keys   names of the batch entries it needs
    init_aux()   its state between steps (a queue, prototypes …), `()` if it has none
    __call__(outputs, batch, aux, key) -> (Loss, aux)

where it reads the pictures of the batch, or outputs as large as they

    per_row(outputs, inputs)   -> arrays [B, ...] that it then finds in its outputs. It is called on
                               the model inputs of some rows of the batch, as they are encoded;
                               `batch` of `__call__` has no `image` and no `video`

where its options do not go with any data

    check_data(data)   raises ConfigError, given the task's `DataConfig`

and, where it has the model write before the gradient is taken,

    judge                             what reads images and texts for it: `initial`, `ema`, or a
                                      workdir
    init_aux(width)                   width of the judge's embeddings
    rollout(actor, batch, aux, keys)  -> arrays [B, ...] that model and objective then find in the
    batch; rows draw from their own key

An objective knows nothing of models, optimisers or meshes: the outputs are those of the whole
batch, wherever they lie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax

from jaxvl.config import Registry

OBJECTIVES = Registry("objective", __name__)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Loss:
    """What an objective gives back.

    Attributes:
      value: Float[""], to be minimised.
      metrics: name -> Float[""], for the log only.
    """

    value: jax.Array
    metrics: dict[str, jax.Array] = dataclasses.field(default_factory=dict)


class Actor(Protocol):
    """What a `rollout` works with, on the rows of its batch.

    Attributes:
      pad_id, eos_id: of the tokenizer.
    """

    pad_id: int
    eos_id: int

    def write(self, keys: jax.Array | None = None, **how: Any) -> tuple[jax.Array, jax.Array]:
        """Captions of the model that is trained: int32 [B, T], and which tokens were chosen freely,
        bool [B, T].

        Sampled with keys [B], greedy without; how: options of `models.generate.Generation`.
        """

    def encode_image(self) -> jax.Array:
        """The judge's embeddings of the batch's images, float32 [B, E]."""

    def encode_text(self, tokens: jax.Array) -> jax.Array:
        """The judge's embeddings of texts int32 [B, T], float32 [B, E]."""


class Objective(Protocol):
    """See the top of this file."""

    @property
    def reads(self) -> tuple[str, ...]: ...

    @property
    def batch_keys(self) -> tuple[str, ...]: ...

    def init_aux(self) -> Any: ...

    def __call__(
        self,
        outputs: Mapping[str, jax.Array],
        batch: Mapping[str, jax.Array],
        aux: Any,
        key: jax.Array,
    ) -> tuple[Loss, Any]: ...
