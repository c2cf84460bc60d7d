"""Small pictures of records as PNG, for galleries."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Source

THUMBNAIL = 64  # pixels


class Thumbnails:
    """Small pictures of a source's records as PNG, as the model sees them: decoded, on the
    background.

    Args:
      source: of the records.
      preprocess: that of the model.
      column: of the pictures.
    """

    def __init__(self, source: Source, preprocess: Preprocess, column: str = "image"):
        self._source = source
        self._preprocess = preprocess
        self._column = column
        self._made: dict[int, bytes] = {}

    def __call__(self, i: int) -> bytes | None:
        """PNG of record `i`; None where it has no picture, or can no longer be read."""
        if i not in self._made:
            try:
                data = self._source.read(int(i), (self._column,)).get(self._column)
                if data is None:
                    return None
                pixels = self._preprocess.decode(data)
            except BadRecord:
                return None
            self._made[i] = png(flatten(pixels, self._preprocess.background), THUMBNAIL)
        return self._made[i]


def flatten(pixels: np.ndarray, background: Sequence[float]) -> np.ndarray:
    """uint8 [S, S, 3 or 4] on a background colour (0..1 per channel) -> uint8 [S, S, 3]."""
    if pixels.shape[-1] == 3:
        return pixels
    alpha = pixels[..., 3:].astype(np.float32) / 255
    return np.rint(
        pixels[..., :3] * alpha + 255 * np.asarray(background, np.float32) * (1 - alpha)
    ).astype(np.uint8)


def shrink(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] with at most `size` pixels a side."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def png(pixels: np.ndarray, size: int) -> bytes:
    """uint8 [H, W, 3] as PNG of at most `size` pixels a side."""
    out = io.BytesIO()
    Image.fromarray(shrink(pixels, size)).save(out, "PNG", optimize=True)
    return out.getvalue()
