"""Faster libraries than Pillow to decode and scale pictures; for training only.

simplejpeg decodes by libjpeg-turbo, as Pillow does, but straight into one array; its pixels are
Pillow's own. cykooz-resizer scales by the filters of Pillow with SSE4, AVX2 or Neon instructions;
its pixels differ from Pillow's by rounding, 0.3 of 255 on average. Both let other threads run
meanwhile. What they cannot do, or refuse, is left to Pillow, which says what is wrong with a file.

Between the two a picture is an array uint8 [H, W, 4], its fourth channel 255, which is scaled into
a row of a batch without a copy.
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
# Pillow's mode of four channels by themselves, none of them an alpha: the one that Pillow maps
# without a copy and the resizer takes.
FOUR_CHANNELS = "CMYK"
_THREAD = threading.local()

# Markers of JPEG, after MARKER (ITU-T T.81, table B.1).
START = b"\xff\xd8"
MARKER = 0xFF
SCAN = 0xDA
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
PLAIN = (0xC4, 0xDB, 0xDD, 0xFE)  # tables of both kinds, restart interval, comment
# How contents begin, and their least bytes (Pillow refuses some that are shorter): JFIF, a colour
# profile, Adobe.
APPLICATION = {0xE0: (b"", 12), 0xE2: (b"ICC_PROFILE\0", 14), 0xEE: (b"", 12)}


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG of 8 bits, in colour or grey, whose header says nothing else that
    matters: no orientation, no second picture. None: Pillow has to look at it."""
    if data[: len(START)] != START:
        return None
    size = None
    at = len(START)
    while at + 4 <= len(data) and data[at] == MARKER:
        kind = data[at + 1]
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        content = data[at + 4 : at + 2 + length]
        if kind == SCAN:
            return size
        if kind in FRAMES and size is None:
            size = _frame_size(content)
            if size is None:
                return None
        elif length < 2 or not (kind in PLAIN or _says_nothing(kind, content)):
            return None
        at += 2 + length
    return None


def _says_nothing(kind: int, content: bytes) -> bool:
    """Whether an application's segment is of a kind that Pillow need not see."""
    beginning, least = APPLICATION.get(kind, (b"", 1 << 16))
    return len(content) >= least and content[: len(beginning)] == beginning


def _frame_size(content: bytes) -> tuple[int, int] | None:
    """Width and height, of a frame header of 8 bits with 1 or 3 channels."""
    if (
        len(content) < 6
        or content[0] != 8
        or content[5] not in (1, 3)
        or len(content) != 6 + 3 * content[5]
    ):
        return None
    return int.from_bytes(content[3:5], "big"), int.from_bytes(content[1:3], "big")


def reduced(width: int, height: int, at_least: int) -> tuple[int, int]:
    """Width and height of a JPEG at the smallest of 1, 1/2, 1/4 and 1/8 of its size that has
    `at_least` pixels a side, as Pillow's `draft` chooses it."""
    times = min(width // at_least, height // at_least)
    factor = next((factor for factor in (8, 4, 2) if factor <= times), 1)
    return -(-width // factor), -(-height // factor)


def decode_jpeg(data: bytes, width: int, height: int) -> np.ndarray | None:
    """uint8 [H, W, 4] of a JPEG in colour or grey, opaque; None: Pillow has to decode it.

    Args:
      data: the file.
      width, height: in pixels, of the file or of 1/2, 1/4 or 1/8 of it, rounded up.
    """
    if simplejpeg is None:
        return None
    # The array is given, so that no other header in the file can ask for more memory than the
    # checks of its size have let through.
    pixels = np.empty((height, width, 4), np.uint8)
    try:
        found = simplejpeg.decode_jpeg(
            data, "RGBA", min_height=height, min_width=width, buffer=pixels
        )
    except (ValueError, MemoryError):  # it also raises where libjpeg only warns
        return None
    return pixels if found.shape == pixels.shape else None


def resize(picture: Image.Image, size: int, box: Box, interpolation: str) -> Image.Image | None:
    """The part `box` of an `RGB` or `RGBa` picture, scaled to `size` x `size`; None: Pillow has to
    scale it."""
    if cykooz_resizer is None or interpolation not in _resizer().options:
        return None
    out = Image.new(picture.mode, (size, size))
    _resizer().resize(picture, out, box, interpolation)
    return out


def resize_into(out: np.ndarray, pixels: np.ndarray, box: Box, interpolation: str) -> bool:
    """Scales the part `box` of uint8 [H, W, 4] into uint8 [S, S, 4], each channel by itself; False:
    Pillow has to scale it."""
    if (
        cykooz_resizer is None
        or interpolation not in _resizer().options
        or not out.flags.c_contiguous
    ):
        return False
    _resizer().resize(
        as_image(pixels, FOUR_CHANNELS), as_image(out, FOUR_CHANNELS), box, interpolation
    )
    return True


def as_image(pixels: np.ndarray, mode: str = "RGBX") -> Image.Image:
    """A Pillow image that shares the memory of uint8 [H, W, 4], in one of Pillow's modes of four
    channels."""
    height, width, _ = pixels.shape
    return Image.frombuffer(mode, (width, height), pixels, "raw", mode, 0, 1)


class _Resizer:
    """One thread's own, for it keeps memory between pictures."""

    def __init__(self):
        kinds = cykooz_resizer.FilterType
        filters = {
            "bilinear": kinds.bilinear,
            "bicubic": kinds.catmull_rom,
            "lanczos": kinds.lanczos3,
        }
        convolution = cykooz_resizer.ResizeAlg.convolution
        self.options = {
            name: cykooz_resizer.ResizeOptions(convolution(kind), use_alpha=False)
            for name, kind in filters.items()
        }
        self._resizer = cykooz_resizer.Resizer()

    def resize(self, picture: Image.Image, out: Image.Image, box: Box, interpolation: str) -> None:
        """Scales the part `box` of a picture into another of the same mode."""
        left, top, right, bottom = box
        width = right - left
        height = bottom - top
        if left + width > picture.width:  # by rounding; boxes end at the picture's edge at most
            width = np.nextafter(width, 0)
        if top + height > picture.height:
            height = np.nextafter(height, 0)
        options = self.options[interpolation]
        options.crop_box = cykooz_resizer.CropBox(left, top, float(width), float(height))
        self._resizer.resize_pil(picture, out, options)


def _resizer() -> _Resizer:
    found = getattr(_THREAD, "resizer", None)
    if found is None:
        found = _THREAD.resizer = _Resizer()
    return found
