"""From an encoded picture to model input. The figures travel in the checkpoint.

A model is useless with other ones.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxvl.config import Pixels, Range, check
from jaxvl.data import fast_pictures
from jaxvl.data.pictures import MAX_PIXELS, Decoded, bad_pictures, decode_picture

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Level = Annotated[float, Range(-1e3, 1e3)]
Spread = Annotated[float, Range(1e-6, 1e3)]
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Size and scaling of pictures.

    Attributes:
      image_size: side S in pixels, of evaluation and export; tasks may train at another.
      mean, std: per channel, of values in 0..1: a model sees `(value - mean) / std`.
      background: colour in 0..1 behind transparent pictures.
      flatten: put transparent pictures on `background` before they are scaled, as transformers
        does. False: after that, so that training can put other colours behind them.
      resize: what is seen of a picture that is no square, in evaluation and where training cuts no
        random part: its `centre`, or all of it, `squash`ed (SigLIP).
      scale_to: side to which it is scaled before the centre S x S is cut from that; None: S,
        nothing is cut (ALIGN: 346 for 289).
      interpolation: of the scaling.
      crop_rounding: where the centre begins that cannot be cut in the middle: half a pixel `down`
        (transformers), or at the `even` one (torchvision, open_clip).
    """

    image_size: Pixels = 224
    mean: tuple[Level, Level, Level] = (0.5, 0.5, 0.5)
    std: tuple[Spread, Spread, Spread] = (0.5, 0.5, 0.5)
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    resize: Literal["centre", "squash"] = "centre"
    scale_to: Pixels | None = None
    interpolation: Interpolation = "bicubic"
    crop_rounding: Literal["down", "even"] = "down"
    flatten: bool = False

    def __post_init__(self):
        check(self.image_size >= 1, "image_size", f"{self.image_size!r} must be >= 1 pixel")
        check(min(self.std) > 0, "std", f"{self.std!r} must be > 0")
        check(
            min(self.background) >= 0 and max(self.background) <= 1,
            "background",
            f"{self.background!r} must be in [0, 1]",
        )
        side = self.scale_to
        check(
            side is None or side >= self.image_size,
            "scale_to",
            f"{side!r} must be >= the image_size of {self.image_size}, or None",
        )

    def normalise(self, image: jax.Array) -> jax.Array:
        """float32 [..., 3] in 0..1 -> float32 [..., 3] as models see it."""
        return (image - jnp.asarray(self.mean, jnp.float32)) * (
            1 / jnp.asarray(self.std, jnp.float32)
        )

    def at(self, size: int) -> Preprocess:
        """The same for pictures of another side; what is cut off them stays in proportion."""
        scale_to = self.scale_to and round(self.scale_to * size / self.image_size)
        return dataclasses.replace(self, image_size=size, scale_to=scale_to)

    def open(self, data: bytes, *, fast: bool = False, smallest: float = 1.0) -> Decoded:
        """An encoded picture, decoded but not scaled, see `pictures.decode_picture`.

        Args:
          data: the file's bytes.
          fast: decode a JPEG at a fraction of its size, where that is enough for what `decode`
            makes of it.
          smallest: share of the shorter side that the smallest part has which is cut out of it, see
            `smallest_part`; with `fast`, the fraction is one at which that part still has S pixels.

        Raises:
          BadRecord: as `pictures.decode_picture`.
        """
        at_least = math.ceil((self.scale_to or self.image_size) / smallest) if fast else None
        return decode_picture(data, at_least, background=self.background if self.flatten else None)

    def decode(self, data: bytes, *, fast: bool = False) -> np.ndarray:
        """An encoded picture -> uint8 [S, S, 3], or [S, S, 4] where it has transparency that is not
        flattened.

        Args:
          data: the file's bytes.
          fast: decode a JPEG at a fraction of its size where that is enough, and scale as `fit`
            does. Pixels then differ by 1 to 6 of 255 on average from what evaluation sees; by 0.3
            where no fraction is enough and cykooz-resizer is installed. A JPEG may have a fourth
            channel, of 255.

        Raises:
          BadRecord: as `pictures.decode_picture`.
        """
        with bad_pictures():
            picture = self.open(data, fast=fast)
            across, down = sides(picture)
            width, height = self.scaled(across, down)
            left = self._offset(width)
            top = self._offset(height)
            box = (left, top, left + self.image_size, top + self.image_size)
            if not fast and width * height <= MAX_PIXELS:
                whole = picture.resize(
                    (width, height), Image.Resampling[self.interpolation.upper()]
                )
                return as_array(whole.crop(box))
            # The same but for rounding, and nothing is scaled that is cut off again: faster, and
            # needed for extreme ratios.
            across /= width
            down /= height
            box = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
            return fit(picture, self.image_size, box, self.interpolation, fast=fast)

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height, whole pixels, to which a picture of so many pixels is scaled before the
        centre is cut from it."""
        side = self.scale_to or self.image_size
        if self.resize == "squash":
            return side, side
        shorter = min(width, height)
        return int(side * width / shorter), int(side * height / shorter)

    def visible(self, width: int, height: int) -> Box:
        """The part of a picture of so many pixels that `decode` keeps."""
        across, down = self.scaled(width, height)
        left = self._offset(across)
        top = self._offset(down)
        right = left + self.image_size
        bottom = top + self.image_size
        return (
            left * width / across,
            top * height / down,
            right * width / across,
            bottom * height / down,
        )

    def _offset(self, length: int) -> int:
        """Pixels before the centre S of so many."""
        spare = length - self.image_size
        return spare // 2 if self.crop_rounding == "down" else round(spare / 2)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Preprocess:
        values = json.loads(text)
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def sides(picture: Decoded) -> tuple[int, int]:
    """Width and height in pixels."""
    return picture.shape[1::-1] if isinstance(picture, np.ndarray) else picture.size


def fit(
    picture: Decoded, size: int, box: Box, interpolation: Interpolation, *, fast: bool = False
) -> np.ndarray:
    """The part `box` of `decode_picture`'s result, scaled: uint8 [size, size, 3], or [size, size,
    4] of one with four channels.

    Args:
      picture: `RGB`, `RGBa` or uint8 [H, W, 4].
      size: side in pixels.
      box: what is kept; pixels around it count at its edges, as where the whole picture is scaled
        first and then cut.
      interpolation: of the scaling.
      fast: scale by cykooz-resizer, which differs from Pillow by rounding; where it is not
        installed, scale down by more than 2 in two steps, the first by averages.
    """
    if isinstance(picture, np.ndarray):
        out = np.empty((size, size, 4), np.uint8)
        if fast and fast_pictures.resize_into(out, picture, box, interpolation):
            return out
        picture = fast_pictures.as_image(picture)
    if picture.size == (size, size) and box == (0, 0, size, size):
        return as_array(picture)
    if fast and (scaled := fast_pictures.resize(picture, size, box, interpolation)) is not None:
        return as_array(scaled)
    gap = 2.0 if fast else None
    picture = picture.resize(
        (size, size), Image.Resampling[interpolation.upper()], box=box, reducing_gap=gap
    )
    return as_array(picture)


def fit_into(
    out: np.ndarray, picture: Decoded, box: Box, interpolation: Interpolation, *, fast: bool = False
) -> None:
    """Writes what `fit` gives into uint8 [S, S, 4]; without transparency it is opaque."""
    straight = fast and isinstance(picture, np.ndarray)
    if not (straight and fast_pictures.resize_into(out, picture, box, interpolation)):
        with_alpha(out, fit(picture, len(out), box, interpolation, fast=fast))


def with_alpha(out: np.ndarray, pixels: np.ndarray) -> None:
    """Writes uint8 [S, S, 3 or 4] into [S, S, 4]; without transparency it is opaque."""
    if pixels.shape[-1] == 3:
        pixels = np.asarray(
            Image.fromarray(pixels).convert("RGBA")
        )  # three times as fast as assigning three channels of four
    out[...] = pixels


def as_array(picture: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] of a picture in `RGB`, [H, W, 4] of one in `RGBX`, or in `RGBa`, its colours
    no longer premultiplied."""
    return np.asarray(picture.convert("RGBA") if picture.mode == "RGBa" else picture)


def smallest_part(area: tuple[float, float], ratio: tuple[float, float]) -> float:
    """Shortest side of any part that `crop_box` gives, as a share of the picture's shorter side."""
    return min(1.0, math.sqrt(area[0] * min(ratio[0], 1 / ratio[1])))


def crop_box(
    width: int,
    height: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    draws: Sequence[float],
) -> Box:
    """The box of a random crop (Szegedy et al. 2015: "inception crop").

    Args:
      width, height: of the picture, in pixels.
      area: smallest and largest share of the picture's area, drawn uniformly.
      ratio: smallest and largest width / height, drawn log-uniformly.
      draws: four uniform numbers in [0, 1). A crop that would not fit is narrowed, never drawn
        again, so that a row's crop depends on its own numbers only.
    """
    pixels = width * height * (area[0] + (area[1] - area[0]) * draws[0])
    aspect = ratio[0] * (ratio[1] / ratio[0]) ** draws[1]
    w = min(width, math.sqrt(pixels * aspect))
    h = min(height, math.sqrt(pixels / aspect))
    left = draws[2] * (width - w)
    top = draws[3] * (height - h)
    return left, top, left + w, top + h
