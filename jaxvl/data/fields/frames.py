"""Frames of a clip."""

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
from jaxvl.data.preprocess import Preprocess, with_alpha
from jaxvl.data.sources.base import Record, Source


@FIELDS.register("frames")
@dataclasses.dataclass(frozen=True)
class Frames(Field):
    """Fills NAME uint8 [B, F, S, S, 4]; float32 [B, F, S, S, 3], all frames of a clip augmented
    alike, in the step.

    A clip that is too short holds its last frame.

    Attributes:
      column: of lists of encoded pictures.
      size: side S in pixels.
      frames: F.
      stride: every how many stored frames one is taken.
      random: start anywhere that leaves room for all frames; False: with the first.
      augment: what is done to training clips, on the devices.
      fast_decode: see `picture.Picture`.
    """

    column: str = "frames"
    size: Pixels = 224
    frames: Annotated[int, Range(1, 65_536)] = 16
    stride: Annotated[int, Range(1, 65_536)] = 1
    random: bool = True
    augment: Augment = Augment()
    fast_decode: bool = True

    draws: ClassVar[int] = 1

    def __post_init__(self):
        for name in ("size", "frames", "stride"):
            check(getattr(self, name) >= 1, name, f"{getattr(self, name)!r} must be >= 1")

    def arrays(self, name: str) -> dict[str, RowShape]:
        """See `Field`."""
        return {name: RowShape((self.frames, self.size, self.size, 4), np.uint8)}

    def inputs(self, name: str) -> dict[str, str]:
        """See `Field`."""
        return {name: "video"}

    def needs(self, source: Source) -> list[tuple[str, ...]]:
        """See `Field`."""
        return [tuple(match(source, self.column, ("frames",), "column"))]

    def reader(self, name: str, source: Source, context: Context) -> FramesReader:
        """See `Field`."""
        match(source, self.column, ("frames",), "column")
        return FramesReader(name, self, context.preprocess.at(self.size))

    def choose(self, length: int, draw: float) -> np.ndarray:
        """Numbers of the frames, int [F], of a clip of `length` frames."""
        room = max(length - (self.frames - 1) * self.stride, 1)
        start = int(draw * room) if self.random else 0
        return np.minimum(start + self.stride * np.arange(self.frames), length - 1)

    def on_device(self, name: str, batch: Batch, keys: jax.Array, preprocess: Preprocess) -> Batch:
        """See `Field`."""

        def seen(pixels: jax.Array) -> jax.Array:
            return preprocess.normalise(augment(pixels, keys, self.augment, preprocess.background))

        return {name: jax.vmap(seen, in_axes=1, out_axes=1)(batch[name])}

    def compiled(self) -> Json:
        """See `Field`."""
        return to_dict(self.augment)


class FramesReader:
    """The host half of `Frames`; see `base.Reader`."""

    def __init__(self, name: str, config: Frames, preprocess: Preprocess):
        self._name = name
        self._config = config
        self._preprocess = preprocess
        self.columns = (config.column,)
        self.key = ("frames", config.column, preprocess, config.fast_decode)

    def load(self, record: Record) -> np.ndarray | None:
        """All stored frames, uint8 [n, S, S, 4], so that a broken one is met whatever is asked for.
        Raises BadRecord."""
        encoded = record.get(self._config.column)
        if not encoded:
            return None
        size = self._config.size
        out = np.empty((len(encoded), size, size, 4), np.uint8)
        for frame, data in zip(out, encoded):
            with_alpha(frame, self._preprocess.decode(data, fast=self._config.fast_decode))
        return out

    def write(self, out: HostArrays, row: int, value: np.ndarray, draws: Sequence[float]) -> None:
        """See `base.Reader`."""
        out[self._name][row] = value[self._config.choose(len(value), draws[0])]
