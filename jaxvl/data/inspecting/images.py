"""Figures of pictures."""

from __future__ import annotations

import collections
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxvl.data.pictures import FORMATS, bad_pictures, open_picture
from jaxvl.data.records import BadRecord

PERCENTILES = (0, 5, 50, 95, 100)
# what ALIGN's rules keep: a longer shorter side, a smaller aspect ratio
ALIGN_SIDE = 200
ALIGN_ASPECT = 3.0


@dataclasses.dataclass(frozen=True)
class Seen:
    """One picture: its format, Pillow's mode, size in pixels and in bytes."""

    format: str
    mode: str
    width: int
    height: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class ImageFigures:
    """Figures of the pictures of a column.

    Attributes:
      images: how many could be decoded.
      formats, modes: name -> share.
      width, height, shorter, bytes, aspect: at PERCENTILES; aspect: the longer side by the shorter.
      small, long: share of those that ALIGN's rules take away.
    """

    images: int
    formats: dict[str, float]
    modes: dict[str, float]
    width: tuple[float, ...]
    height: tuple[float, ...]
    shorter: tuple[float, ...]
    aspect: tuple[float, ...]
    bytes: tuple[float, ...]
    small: float
    long: float


def look(data: bytes) -> tuple[Seen, Image.Image]:
    """A picture's figures and its pixels, whole. Raises BadRecord."""
    if not isinstance(data, bytes):
        raise BadRecord("image cannot be decoded", f"it is of type {type(data).__name__}")
    with bad_pictures(), Image.open(io.BytesIO(data), formats=FORMATS) as head:
        form = head.format or "unknown"
        mode = head.mode
        width, height = head.size
    return Seen(form, mode, width, height, len(data)), open_picture(
        data, background=(1.0, 1.0, 1.0)
    )


def image_figures(seen: Sequence[Seen]) -> ImageFigures:
    """Figures of at least one picture."""
    width = np.array([one.width for one in seen])
    height = np.array([one.height for one in seen])
    shorter = np.minimum(width, height)
    aspect = np.maximum(width, height) / shorter
    return ImageFigures(
        images=len(seen),
        formats=_shares([one.format for one in seen]),
        modes=_shares([one.mode for one in seen]),
        width=_percentiles(width),
        height=_percentiles(height),
        shorter=_percentiles(shorter),
        aspect=_percentiles(aspect),
        bytes=_percentiles(np.array([one.bytes for one in seen])),
        small=float(np.mean(shorter <= ALIGN_SIDE)),
        long=float(np.mean(aspect >= ALIGN_ASPECT)),
    )


def _shares(names: Sequence[str]) -> dict[str, float]:
    return {name: n / len(names) for name, n in collections.Counter(names).most_common()}


def _percentiles(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in np.percentile(values, PERCENTILES))
