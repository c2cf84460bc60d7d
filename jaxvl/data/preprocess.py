"""From an encoded picture to model input. The figures travel in the checkpoint: a model is useless with other ones."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxvl.config import Pixels, Range, check
from jaxvl.data.records import BadRecord

MAX_PIXELS = 50_000_000  # a larger picture in a data set is damage or malice; it is skipped and counted
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
      resize: what evaluation sees of a picture that is no square: its `centre`, or all of it, `squash`ed (SigLIP).
      scale_to: side to which it is scaled before the centre S x S is cut from that; None: S, nothing is cut (ALIGN: 346 for 289).
      interpolation: of the scaling.
    """

    image_size: Pixels = 224
    mean: tuple[Level, Level, Level] = (0.5, 0.5, 0.5)
    std: tuple[Spread, Spread, Spread] = (0.5, 0.5, 0.5)
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    resize: Literal["centre", "squash"] = "centre"
    scale_to: Pixels | None = None
    interpolation: Interpolation = "bicubic"

    def __post_init__(self):
        check(self.image_size >= 1, "image_size", f"{self.image_size!r} must be >= 1 pixel")
        check(min(self.std) > 0, "std", f"{self.std!r} must be > 0")
        check(min(self.background) >= 0 and max(self.background) <= 1, "background", f"{self.background!r} must be in [0, 1]")
        side = self.scale_to
        check(side is None or side >= self.image_size, "scale_to", f"{side!r} must be >= the image_size of {self.image_size}, or None")

    def normalise(self, image: jax.Array) -> jax.Array:
        """float32 [..., 3] in 0..1 -> float32 [..., 3] as models see it."""
        return (image - jnp.asarray(self.mean, jnp.float32)) * (1 / jnp.asarray(self.std, jnp.float32))

    def decode(self, data: bytes) -> np.ndarray:
        """An encoded picture -> uint8 [S, S, 3], or [S, S, 4] where it has transparency. Raises BadRecord."""
        scale_to = self.scale_to or self.image_size
        picture = open_picture(data, scale_to)
        width, height = picture.size
        seen = (width, height) if self.resize == "squash" else (min(width, height),) * 2
        seen = [n * self.image_size / scale_to for n in seen]
        left, top = (width - seen[0]) / 2, (height - seen[1]) / 2
        return fit(picture, self.image_size, (left, top, left + seen[0], top + seen[1]), self.interpolation)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Preprocess:
        values = json.loads(text)
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def decode(data: bytes, size: int) -> np.ndarray:
    """Decodes, scales the shorter side to `size` and keeps the centre: uint8 [size, size, 3 or 4].

    Raises:
      BadRecord: not a picture, cut short, or one too large to be honest.
    """
    return fit(open_picture(data, size), size)


def open_picture(data: bytes, size: int | None = None) -> Image.Image:
    """A decoded picture: `RGB`, or `RGBa` (premultiplied, so that scaling lets no hidden colour bleed into edges).

    Args:
      size: what it will be scaled to; lets a JPEG be decoded at a fraction of its size where that is enough.

    Raises:
      BadRecord: as `decode`.
    """
    try:
        picture = Image.open(io.BytesIO(data))
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise BadRecord("image is too large", f"{width} x {height} pixels; at most {MAX_PIXELS:,} are decoded")
        if size is not None:
            picture.draft("RGB", (size, size))
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            return picture.convert("RGBA").convert("RGBa")
        return picture.convert("RGB")
    except BadRecord:
        raise
    except Exception as error:  # Pillow raises many types for one broken file
        raise BadRecord("image cannot be decoded", f"{type(error).__name__}: {error}") from None


def fit(picture: Image.Image, size: int, box: Box | None = None, interpolation: Interpolation = "bicubic") -> np.ndarray:
    """The part `box` (None: the centre square) of `open_picture`'s result, scaled: uint8 [size, size, 3 or 4]."""
    if box is None:
        side = min(picture.size)
        left, top = ((n - side) / 2 for n in picture.size)
        box = (left, top, left + side, top + side)
    if picture.size != (size, size) or box != (0, 0, size, size):
        picture = picture.resize((size, size), Image.Resampling[interpolation.upper()], box=box, reducing_gap=2.0)
    return np.asarray(picture.convert("RGBA") if picture.mode == "RGBa" else picture)


def crop_box(width: int, height: int, area: tuple[float, float], ratio: tuple[float, float], draws: Sequence[float]) -> Box:
    """The box of a random crop (Szegedy et al. 2015: "inception crop").

    Args:
      width, height: of the picture, in pixels.
      area: smallest and largest share of the picture's area, drawn uniformly.
      ratio: smallest and largest width / height, drawn log-uniformly.
      draws: four uniform numbers in [0, 1). A crop that would not fit is narrowed, never drawn again, so that a row's
        crop depends on its own numbers only.
    """
    pixels = width * height * (area[0] + (area[1] - area[0]) * draws[0])
    aspect = ratio[0] * (ratio[1] / ratio[0]) ** draws[1]
    w, h = min(width, math.sqrt(pixels * aspect)), min(height, math.sqrt(pixels / aspect))
    left, top = draws[2] * (width - w), draws[3] * (height - h)
    return left, top, left + w, top + h
