"""From an encoded picture to model input. The figures travel in the checkpoint: a model is useless with other ones."""

from __future__ import annotations

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxvl.config import check
from jaxvl.data.records import BadRecord

Image.MAX_IMAGE_PIXELS = 50_000_000  # a larger picture in a data set is damage or malice; it is skipped and counted


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Size and scaling of pictures.

    Attributes:
      image_size: side S in pixels, of evaluation and export; tasks may train at another.
      mean, std: per channel, of values in 0..1: a model sees `(value - mean) / std`.
      background: colour in 0..1 behind transparent pictures.
    """

    image_size: int = 224
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self):
        check(self.image_size >= 1, "image_size", f"{self.image_size!r} must be >= 1 pixel")
        check(min(self.std) > 0, "std", f"{self.std!r} must be > 0")
        check(0 <= min(self.background) and max(self.background) <= 1, "background", f"{self.background!r} must be in [0, 1]")

    def normalise(self, image: jax.Array) -> jax.Array:
        """float32 [..., 3] in 0..1 -> float32 [..., 3] as models see it."""
        return (image - jnp.asarray(self.mean, jnp.float32)) * (1 / jnp.asarray(self.std, jnp.float32))

    def decode(self, data: bytes) -> np.ndarray:
        """An encoded picture -> uint8 [S, S, 3], or [S, S, 4] where it has transparency. Raises BadRecord."""
        return decode(data, self.image_size)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Preprocess:
        values = json.loads(text)
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def decode(data: bytes, size: int) -> np.ndarray:
    """Decodes, scales the shorter side to `size` and crops the centre: uint8 [size, size, 3 or 4].

    Transparent pictures are scaled with premultiplied alpha, so that hidden colours do not bleed into edges.

    Raises:
      BadRecord: not a picture, or one too large to be honest.
    """
    try:
        picture = Image.open(io.BytesIO(data))
        transparent = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
        picture.draft("RGB", (size, size))  # JPEG decodes at a fraction of its size where that is enough
        picture = picture.convert("RGBA").convert("RGBa") if transparent else picture.convert("RGB")
        if picture.size != (size, size):
            scale = size / min(picture.size)
            whole = tuple(max(size, round(n * scale)) for n in picture.size)
            left, top = ((n - size) // 2 for n in whole)
            picture = picture.resize(whole, Image.Resampling.BICUBIC, reducing_gap=2.0).crop((left, top, left + size, top + size))
        return np.asarray(picture.convert("RGBA") if transparent else picture)
    except Exception as error:  # Pillow raises many types for one broken file
        raise BadRecord("image cannot be decoded", f"{type(error).__name__}: {error}") from None
