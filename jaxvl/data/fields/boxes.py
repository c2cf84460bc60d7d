"""A picture with boxes that follow its augmentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvl.aliases import HostArrays, Json
from jaxvl.config import Range
from jaxvl.data.augment import affine
from jaxvl.data.fields import FIELDS
from jaxvl.data.fields.base import Batch, Context, RowShape, match
from jaxvl.data.fields.picture import Picture, PictureReader
from jaxvl.data.pictures import Decoded, upright_size
from jaxvl.data.preprocess import Box, Preprocess, crop_box, sides
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Record, Source


@FIELDS.register("picture_with_boxes")
@dataclasses.dataclass(frozen=True)
class PictureWithBoxes(Picture):
    """Fills NAME as `Picture` does, NAME_boxes float32 [B, N, 4] and NAME_boxes_mask bool [B, N].

    A box is (left, top, right, bottom) in 0 … 1 of the picture that the model sees: boxes are
    moved, turned and cut as the picture is. A turned box becomes the smallest upright one around
    it. Boxes of which less than `least` is left to be seen are masked.

    Attributes:
      boxes: column of arrays [n, 4]; records may lack it.
      boxes_in: what a record's boxes are measured in: pixels of the upright picture, or shares of
        its sides.
      corners: whether a record's boxes are (left, top, right, bottom), or (left, top, width,
        height) as COCO has them.
      max_boxes: N; a record's further boxes are left out.
      least: share of a box's area, in 0 … 1.
    """

    boxes: str = "boxes"
    boxes_in: Literal["pixels", "shares"] = "pixels"
    corners: Literal["both", "size"] = "both"
    max_boxes: Annotated[int, Range(1, 65_536)] = 16
    least: Annotated[float, Range(0.0, 1.0)] = 0.2

    def arrays(self, name: str) -> dict[str, RowShape]:
        """See `Field`."""
        more = {
            f"{name}_boxes": RowShape((self.max_boxes, 4), np.float32),
            f"{name}_boxes_mask": RowShape((self.max_boxes,), np.bool_),
        }
        return super().arrays(name) | more

    def reader(self, name: str, source: Source, context: Context) -> BoxesReader:
        """See `Field`."""
        match(source, self.column, ("image",), "column")
        match(source, self.boxes, ("array",), "boxes")
        return BoxesReader(name, self, context.preprocess.at(self.size))

    def on_device(self, name: str, batch: Batch, keys: jax.Array, preprocess: Preprocess) -> Batch:
        """See `Field`."""
        seen = super().on_device(name, batch, keys, preprocess)
        boxes = batch[f"{name}_boxes"]
        moved = move(boxes, affine(keys, self.augment)) if self.augment.moves else boxes
        cut = jnp.clip(moved, 0.0, 1.0)
        left = _area(cut) / jnp.maximum(_area(moved), 1e-12)
        mask = batch[f"{name}_boxes_mask"] & (left >= self.least) & (_area(cut) > 0)
        return seen | {
            f"{name}_boxes": jnp.where(mask[..., None], cut, 0.0),
            f"{name}_boxes_mask": mask,
        }

    def compiled(self) -> Json:
        """See `Field`."""
        return [super().compiled(), self.least]


def move(boxes: jax.Array, maps: jax.Array) -> jax.Array:
    """Boxes of the old picture in the new one, float32 [B, N, 4].

    Args:
      boxes: [B, N, 4] in 0 … 1.
      maps: [B, 2, 3], as `augment.affine` gives them.
    """
    turn = maps[:, :, :2]
    shift = maps[:, :, 2]
    left, top, right, bottom = jnp.moveaxis(boxes * 2 - 1, -1, 0)
    x = jnp.stack([left, right, left, right], -1)
    y = jnp.stack([top, top, bottom, bottom], -1)
    corners = jnp.stack([x, y], -1) - shift[:, None, None]  # [B, N, 4, 2]
    new = jnp.einsum("bij,bnkj->bnki", jnp.linalg.inv(turn), corners)
    low = new.min(2)
    high = new.max(2)
    return (jnp.concatenate([low, high], -1) + 1) / 2


def _area(boxes: jax.Array) -> jax.Array:
    left, top, right, bottom = jnp.moveaxis(boxes, -1, 0)
    return jnp.maximum(right - left, 0) * jnp.maximum(bottom - top, 0)


class _Boxed(NamedTuple):
    """A picture, its size upright in pixels, and its boxes as shares of its sides, float32 [n,
    4]."""

    picture: Decoded
    size: tuple[int, int]
    boxes: np.ndarray


class BoxesReader:
    """The host half of `PictureWithBoxes`; see `base.Reader`."""

    def __init__(self, name: str, config: PictureWithBoxes, preprocess: Preprocess):
        self._name = name
        self._config = config
        self._preprocess = preprocess
        self._picture = PictureReader(name, config, preprocess)
        self.columns = (config.column, config.boxes)
        self.key = ("boxes", config.boxes, config.boxes_in, config.corners, self._picture.key)

    def load(self, record: Record) -> _Boxed | None:
        """The picture and its boxes. Raises BadRecord."""
        picture = self._picture.load(record)
        if picture is None:
            return None
        size = upright_size(record[self._config.column])
        return _Boxed(picture, size, self._shares(record.get(self._config.boxes), size))

    def _shares(self, given: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
        boxes = np.zeros((0, 4), np.float32) if given is None else np.array(given, np.float32)
        if boxes.size == 0:
            return boxes.reshape(0, 4)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
            raise BadRecord(
                "boxes are no boxes",
                f"column {self._config.boxes!r} holds {boxes.shape}; must be finite [n, 4]",
            )
        if self._config.corners == "size":
            boxes[:, 2:] += boxes[:, :2]
        if self._config.boxes_in == "pixels":
            boxes /= np.array([*size, *size], np.float32)
        return boxes

    def write(self, out: HostArrays, row: int, value: _Boxed, draws: Sequence[float]) -> None:
        """See `base.Reader`."""
        config = self._config
        self._picture.write(out, row, value.picture, draws)
        left, top, right, bottom = self._kept(value, draws)
        boxes = value.boxes[: config.max_boxes]
        seen = (boxes - [left, top, left, top]) / [
            right - left,
            bottom - top,
            right - left,
            bottom - top,
        ]
        out[f"{self._name}_boxes"][row, : len(boxes)] = seen
        out[f"{self._name}_boxes_mask"][row, : len(boxes)] = True

    def _kept(self, value: _Boxed, draws: Sequence[float]) -> Box:
        """The part of the picture that is in the row, in shares of its sides."""
        if not self._picture.whole:
            width, height = value.size
            box = self._preprocess.visible(width, height)
        else:
            width, height = sides(value.picture)
            box = crop_box(width, height, self._config.crop, self._config.crop_ratio, draws)
        return box[0] / width, box[1] / height, box[2] / width, box[3] / height
