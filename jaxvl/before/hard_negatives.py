"""Hard negatives drawn from the whole batch, for heads that read single pairs."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxvl.before import BEFORE, Arrays, Before, Prepare
from jaxvl.config import Scale, check
from jaxvl.data.config import POSITION
from jaxvl.kernels.contrastive import draw_negatives


@BEFORE.register("hard_negatives")
@dataclasses.dataclass(frozen=True)
class HardNegatives(Before):
    """Draws for every row another row's image and text, likelier the more similar (ALBEF, Li et al.
    2021, arXiv 2107.07651, section 3.2: p proportional to the contrastive softmax).

    The embeddings come from an earlier hook, as `teach` puts them into the batch.

    It finds, all under its label:
      image_index, text_index: int32 [B], the row whose image, or text, is drawn for each row.
      image, text: the raw image and text of these rows; only with `entries="rows"`. The model may
        read them as views: `c.model.views = {"negatives/image": "image", …}`.

    A batch in which all rows are of one group has no negatives: its rows get themselves, and
    has_image, has_text: bool [B] are False.

    Attributes:
      embeddings: batch entries of image and text embeddings [B, D], unit rows.
      scale: of the cosine (ALBEF: 1 / 0.07).
      group: batch entry of ids; rows with one id are no negatives of each other. None: a row is
        excluded from its own negatives only.
      entries: `index` gives the places alone, for a model that has the whole batch in one call;
        `rows` also copies the entries, for a task that runs in microbatches.
      image, text: batch entries that are copied.
    """

    embeddings: tuple[str, str] = ("momentum/image", "momentum/text")
    scale: Scale = 1 / 0.07
    group: str | None = "group_id"
    entries: Literal["index", "rows"] = "index"
    image: str = "image"
    text: str = "text"

    def __post_init__(self):
        check(self.scale > 0, "scale", f"{self.scale!r} must be > 0")

    @property
    def reads(self) -> tuple[str, ...]:
        return self.embeddings if self.group is None else (*self.embeddings, self.group)

    def check_microbatches(self, count: int) -> None:
        check(
            count == 1 or self.entries == "rows",
            "entries",
            f"{self.entries!r} gives places in the whole batch, of which {count} microbatches have "
            f"a part each; must be 'rows'",
        )

    def whole(self, batch: Arrays, key: jax.Array) -> dict[str, jax.Array]:
        image, text = (batch[name] for name in self.embeddings)
        own = jnp.arange(len(image), dtype=jnp.int32)
        group = own if self.group is None else batch[self.group].reshape(-1)
        text_index, image_index = draw_negatives(image, text, self.scale, group, key)
        found = {
            "has_image": image_index >= 0,
            "has_text": text_index >= 0,
            "image_index": jnp.where(image_index >= 0, image_index, own),
            "text_index": jnp.where(text_index >= 0, text_index, own),
        }
        if self.entries == "rows":
            found["image"] = batch[self.image][found["image_index"]]
            found["image_position"] = batch[POSITION][found["image_index"]]
            found["text"] = batch[self.text][found["text_index"]]
        return found

    def inputs(
        self, label: str, inputs: Arrays, rows: Arrays, prepare: Prepare
    ) -> dict[str, jax.Array]:
        """The negatives' pictures are prepared as in their own rows."""
        if self.entries == "index":
            return dict(inputs)
        others = {
            **rows,
            self.image: rows[f"{label}/image"],
            POSITION: rows[f"{label}/image_position"],
        }
        return {**inputs, f"{label}/image": prepare(others)[self.image]}
