"""Class texts dealt to the rows of a batch, so that each is encoded once a step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxvl.before import BEFORE, Arrays, Before
from jaxvl.config import check


@BEFORE.register("class_texts")
@dataclasses.dataclass(frozen=True)
class DealtClassTexts(Before):
    """Each of B rows gets N = ceil(C / B) of the C class texts, in order; not from a paper.

    The model's rows are independent of each other, so a step that ran the texts beside every row
    would encode them B times. The model reads them as a view of its texts:
    `c.model.views = {"classes/text": "text"}`, under the hook's label `classes`.

    It finds, under its label:
      text: int32 [B, N, T].
      number: int32 [B, N], their classes; -1 where a text has been dealt already.

    Attributes:
      entry: batch entry of the texts [B, C, T], from the field `class_texts`.
    """

    entry: str = "class_texts"

    def whole(self, batch: Arrays, key: jax.Array) -> dict[str, jax.Array]:
        del key
        numbers = f"{self.entry}_class"
        check(
            self.entry in batch and numbers in batch,
            "entry",
            f"{self.entry!r} is not in the batch with {numbers!r}; must be a field 'class_texts' "
            f"(there are: {', '.join(sorted(batch))})",
        )
        rows, count, _ = batch[self.entry].shape
        each = -(-count // rows)
        place = jnp.arange(rows * each).reshape(rows, each)
        own = jnp.arange(rows)[:, None]  # each row takes from its own copy: nothing is sent
        found = batch[numbers][own, place % count]
        return {
            "text": batch[self.entry][own, place % count],
            "number": jnp.where(place < count, found, -1),
        }
