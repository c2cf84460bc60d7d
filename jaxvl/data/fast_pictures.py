"""Decoding JPEGs and scaling pictures by faster libraries than Pillow, where they are installed; for training only.

simplejpeg decodes by libjpeg-turbo, as Pillow does, but straight into one array; its pixels are Pillow's own. cykooz-resizer scales
by the filters of Pillow with SSE4, AVX2 or Neon instructions; its pixels differ from Pillow's by rounding, 0.3 of 255 on average.
Both let other threads run meanwhile. What they cannot do, or refuse, is left to Pillow, which says what is wrong with a file.
"""

from __future__ import annotations

import threading

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None
try:
    import cykooz_resizer
except ImportError:
    cykooz_resizer = None

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
SCRATCH = 8_000_000  # bytes that a thread keeps to decode into
_THREAD = threading.local()


def decode_jpeg(data: bytes, picture: Image.Image) -> Image.Image | None:
    """`RGB` of a JPEG that Pillow has opened but not loaded, at the size that its `draft` gave it; None: Pillow has to decode it."""
    if simplejpeg is None or picture.mode not in ("RGB", "L"):
        return None
    width, height = picture.size
    # The array is given, so that no other header in the file can ask for more memory than Pillow's checks have let through.
    pixels = _scratch(3 * width * height).reshape(height, width, 3)
    try:
        found = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, buffer=pixels)
    except (ValueError, MemoryError):  # it also raises where libjpeg only warns
        return None
    return Image.fromarray(pixels) if found.shape == pixels.shape else None  # a copy


def _scratch(n: int) -> np.ndarray:
    """uint8 [n] of memory, the same each time in a thread: fresh memory costs a fault for each of its pages."""
    if n > SCRATCH:
        return np.empty(n, np.uint8)
    found = getattr(_THREAD, "scratch", None)
    if found is None:
        found = _THREAD.scratch = np.empty(SCRATCH, np.uint8)
    return found[:n]


def resize(picture: Image.Image, size: int, box: Box, interpolation: str) -> Image.Image | None:
    """The part `box` of an `RGB` or `RGBa` picture, scaled to `size` x `size`; None: Pillow has to scale it."""
    if cykooz_resizer is None or interpolation not in _resizer().filters:
        return None
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if left + width > picture.width:  # by rounding; boxes end at the picture's edge at most
        width = np.nextafter(width, 0)
    if top + height > picture.height:
        height = np.nextafter(height, 0)
    resizer, out = _resizer(), Image.new(picture.mode, (size, size))
    crop = cykooz_resizer.CropBox(left, top, float(width), float(height))
    options = cykooz_resizer.ResizeOptions(resize_alg=resizer.filters[interpolation], crop_box=crop, use_alpha=False)
    resizer.resizer.resize_pil(picture, out, options)
    return out


class _Resizer:
    """One thread's own, for it keeps memory between pictures."""

    def __init__(self):
        kinds = cykooz_resizer.FilterType
        filters = {"bilinear": kinds.bilinear, "bicubic": kinds.catmull_rom, "lanczos": kinds.lanczos3}
        self.filters = {name: cykooz_resizer.ResizeAlg.convolution(kind) for name, kind in filters.items()}
        self.resizer = cykooz_resizer.Resizer()


def _resizer() -> _Resizer:
    found = getattr(_THREAD, "resizer", None)
    if found is None:
        found = _THREAD.resizer = _Resizer()
    return found
