"""A picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar

import jax
import numpy as np

from jaxvl.aliases import HostArrays, Json
from jaxvl.config import Pixels, Range, check, to_dict
from jaxvl.data.augment import Augment, augment
from jaxvl.data.fields import FIELDS
from jaxvl.data.fields.base import Batch, Context, Field, RowShape, match
from jaxvl.data.pictures import Decoded
from jaxvl.data.preprocess import Preprocess, crop_box, fit_into, sides, smallest_part, with_alpha
from jaxvl.data.sources.base import Record, Source

Ratio = Annotated[float, Range(0.01, 100.0)]  # width / height of a part of a picture


@FIELDS.register("picture")
@dataclasses.dataclass(frozen=True)
class Picture(Field):
    """Fills NAME uint8 [B, S, S, 4], premultiplied RGBA; float32 [B, S, S, 3], augmented and
    normalised, in the step.

    Two fields of one column are two views of a picture.

    Attributes:
      column: of encoded pictures.
      size: side S in pixels.
      augment: what is done to training pictures, on the devices.
      crop: smallest and largest share of a picture's area that is kept, a random part of it, cut on
        the host before scaling ((0.08, 1.0) for photos as in SimCLR). (1, 1): none is cut, and
        training sees what evaluation sees, as `preprocess` has it.
      crop_ratio: smallest and largest width / height of such a part.
      fast_decode: decode JPEGs by simplejpeg, at 1/2, 1/4 or 1/8 of their size where that is still
        large enough, and scale by cykooz-resizer. Large photos cost a fraction of the time. From
        evaluation's pixels, for which Pillow does both, these differ by 0.1 to 0.3 of 255 on
        average where a JPEG is decoded at its own size (at most 8), by 1 to 6 where at a fraction
        of it.
    """

    column: str = "image"
    size: Pixels = 224
    augment: Augment = Augment()
    crop: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
    fast_decode: bool = True

    draws: ClassVar[int] = 4

    def __post_init__(self):
        check(self.size >= 1, "size", f"{self.size!r} must be >= 1 pixel")
        smallest, largest = self.crop
        problem = f"{self.crop!r} must be a smallest and a largest share in (0, 1]"
        check(0 < smallest <= largest <= 1, "crop", problem)
        narrowest, widest = self.crop_ratio
        problem = f"{self.crop_ratio!r} must be a smallest and a largest width / height"
        check(0 < narrowest <= widest, "crop_ratio", problem)

    def arrays(self, name: str) -> dict[str, RowShape]:
        """See `Field`."""
        return {name: RowShape((self.size, self.size, 4), np.uint8)}

    def inputs(self, name: str) -> dict[str, str]:
        """See `Field`."""
        return {name: "image"}

    def needs(self, source: Source) -> list[tuple[str, ...]]:
        """See `Field`."""
        return [tuple(match(source, self.column, ("image",), "column"))]

    def reader(self, name: str, source: Source, context: Context) -> PictureReader:
        """See `Field`."""
        match(source, self.column, ("image",), "column")
        return PictureReader(name, self, context.preprocess.at(self.size))

    def on_device(self, name: str, batch: Batch, keys: jax.Array, preprocess: Preprocess) -> Batch:
        """See `Field`. An interleaved row has its pictures in [B, K, S, S, 4], and keys [B K]."""
        pixels = batch[name]
        flat = pixels.reshape(-1, *pixels.shape[-3:])
        seen = preprocess.normalise(augment(flat, keys, self.augment, preprocess.background))
        return {name: seen.reshape(*pixels.shape[:-1], 3)}

    def compiled(self) -> Json:
        """See `Field`."""
        return to_dict(self.augment)


class PictureReader:
    """The host half of `Picture`; see `base.Reader`.

    Attributes:
      whole: whether pictures are loaded whole, for each row has a part of its own.
    """

    def __init__(self, name: str, config: Picture, preprocess: Preprocess):
        self._name = name
        self._config = config
        self._preprocess = preprocess
        self.whole = config.crop != (1.0, 1.0)
        self.columns = (config.column,)
        self._smallest = smallest_part(config.crop, config.crop_ratio) if self.whole else 1.0
        decoded = (preprocess, self._smallest) if config.fast_decode or not self.whole else None
        self.key = ("picture", config.column, self.whole, decoded, config.fast_decode)

    def load(self, record: Record) -> Decoded | None:
        """The picture: scaled, or whole where a part is cut out of it for each row. Raises
        BadRecord."""
        data = record.get(self._config.column)
        if data is None:
            return None
        if self.whole:
            return self._preprocess.open(
                data, fast=self._config.fast_decode, smallest=self._smallest
            )
        return self._preprocess.decode(data, fast=self._config.fast_decode)

    def write(self, out: HostArrays, row: int, value: Decoded, draws: Sequence[float]) -> None:
        """See `base.Reader`."""
        config = self._config
        target = out[self._name][row]
        if not self.whole:
            with_alpha(target, value)
            return
        box = crop_box(*sides(value), config.crop, config.crop_ratio, draws)
        fit_into(target, value, box, self._preprocess.interpolation, fast=config.fast_decode)
