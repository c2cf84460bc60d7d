"""Objectives: pure functions of the encoders' outputs, one file each, chosen by name.

An objective is a registered frozen dataclass with

    reads        names of the model outputs it needs
    batch_keys   names of the batch entries it needs
    init_aux()   its state between steps (a queue, prototypes …), `()` if it has none
    __call__(outputs, batch, aux, key) -> (Loss, aux)

It knows nothing of models, optimisers or meshes: the outputs are those of the whole batch, wherever they lie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax

from jaxvl.config import Registry

OBJECTIVES = Registry("objective", load=[f"jaxvl.objectives.{name}" for name in ("align", "captioning", "clip", "masked_image", "siglip")])


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


class Objective(Protocol):
    """See the top of this file."""

    reads: ClassVar[tuple[str, ...]]
    batch_keys: ClassVar[tuple[str, ...]]

    def init_aux(self) -> Any: ...

    def __call__(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], aux: Any, key: jax.Array) -> tuple[Loss, Any]: ...
