"""Hooks: what a step does before its gradient is taken, without one; one file each, chosen by name.

    c.teachers = dict(momentum=dict(source="ema", decay=0.995))
    c.tasks.pairs.before = dict(momentum=dict(name="teach", teacher="momentum"))

A hook is a registered frozen dataclass that extends `Before`. What it finds is in the batch as
`LABEL/NAME`, for the model and for objectives; LABEL is its key in the config. A hook runs after
those whose findings it reads, and sees what they have found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax

from jaxvl.aliases import Arrays, Leaf, Tree
from jaxvl.config import Registry

BEFORE = Registry("hook", __name__)

Prepare = Callable[[Arrays], dict[str, jax.Array]]


class BoundModel(Protocol):
    """A model with its weights, as in evaluation: no dropout, statistics kept.

    Attributes:
      pad_id, eos_id: of the tokenizer.
    """

    pad_id: int
    eos_id: int | None

    def outputs(self, inputs: Arrays) -> dict[str, jax.Array]:
        """The named outputs of the model's call."""

    def apply(self, *args: Tree, method: str, **options: Tree) -> Tree:
        """The result of one of the model's methods, such as `encode_image`."""

    def generate(
        self, image: jax.Array, length: int, keys: jax.Array | None = None, **how: Leaf
    ) -> tuple[jax.Array, jax.Array]:
        """Captions of pictures [B, S, S, C]: int32 [B, T], and which tokens were chosen freely,
        bool [B, T].

        Sampled with keys [B], greedy without; how: options of `models.generate.Generation`.
        """


class Models(Protocol):
    """The weights that a hook may use.

    Attributes:
      student: the model that is trained, with its present weights.
    """

    student: BoundModel

    def __getitem__(self, teacher: str) -> BoundModel:
        """A teacher, by its key in the config's `teachers`."""


class Before:
    """Base of hooks.

    Attributes:
      teachers: keys of the config's `teachers` that `rows` reads.
      reads: batch entries that it needs, of the loader or of other hooks (`LABEL/NAME`).
    """

    teachers: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()

    def check_microbatches(self, count: int) -> None:
        """Raises ConfigError where what the hook finds is of no use to a model that runs on `count`
        parts of the batch."""

    def rows(self, models: Models, inputs: Arrays, keys: jax.Array) -> dict[str, jax.Array]:
        """Arrays [b, ...] of some rows of the batch, in as many chunks as the encoders run in.

        Args:
          inputs: model inputs of these rows, pictures prepared; and what earlier hooks have found.
          keys: [b], one of each row: the same on every mesh, host count and number of chunks.
        """
        del models, inputs, keys
        return {}

    def whole(self, batch: Arrays, key: jax.Array) -> dict[str, jax.Array]:
        """Arrays [B, ...] from the whole batch, once a step.

        Args:
          batch: as the loader gives it; and what `rows` and earlier hooks have found.
        """
        del batch, key
        return {}

    def inputs(
        self, label: str, inputs: Arrays, rows: Arrays, prepare: Prepare
    ) -> dict[str, jax.Array]:
        """Other model inputs of some rows, such as mixed or dropped ones.

        Args:
          label: the hook's key in the config, before the names of what it has found.
          inputs: model inputs of these rows.
          rows: the same rows as the loader gives them; and what hooks have found.
          prepare: rows as the loader gives them -> model inputs.
        """
        del label, rows, prepare
        return dict(inputs)
