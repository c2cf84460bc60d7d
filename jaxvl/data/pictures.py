"""Encoded pictures, opened: upright, 8 bits a channel, RGB or premultiplied RGBA.

Whatever kind of file they come as.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from jaxvl.data import fast_pictures
from jaxvl.data.records import BadRecord

# Formats are named, so that no bytes from outside reach a reader that starts a program (EPS:
# Ghostscript) or takes almost anything for a picture (TGA).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "QOI", "AVIF")
Colour = tuple[float, float, float]
Decoded = Image.Image | np.ndarray  # see `decode_picture`
MAX_PIXELS = (
    50_000_000  # a larger picture in a data set is damage or malice; it is skipped and counted
)
# as JPEG; Pillow's boxes are float32, which cannot tell the pixels of a much longer side apart
MAX_SIDE = 65_535
# of a progressive JPEG: encoders write about 10; a small file of thousands takes an hour to decode
MAX_SCANS = 100
CANNOT_BE_DECODED = "image cannot be decoded"
TOO_LARGE = "image is too large"
NO_RANGE = "image has no range of values"
CAUSES = (CANNOT_BE_DECODED, TOO_LARGE, NO_RANGE)

ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE_IS_ZERO = 0  # of TIFF's PhotometricInterpretation

# Damaged metadata and large pictures are met by the million in crawled data. What matters of them
# is in the counts of skipped records, and `catch_warnings` around each picture is not safe in
# threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


@contextlib.contextmanager
def bad_pictures() -> Iterator[None]:
    """Whatever Pillow raises for one broken file becomes a BadRecord."""
    try:
        yield
    except BadRecord:
        raise
    except Image.DecompressionBombError as error:
        raise BadRecord(TOO_LARGE, str(error)) from None
    except UnidentifiedImageError:
        raise BadRecord(CANNOT_BE_DECODED, f"it is none of {', '.join(FORMATS)}") from None
    except Exception as error:
        raise BadRecord(CANNOT_BE_DECODED, f"{type(error).__name__}: {error}") from None


def open_picture(
    data: bytes, at_least: int | None = None, background: Colour | None = None
) -> Image.Image:
    """`decode_picture`'s result as a Pillow image: `RGB`, or `RGBa` where it is transparent. Raises
    BadRecord."""
    decoded = decode_picture(data, at_least, background)
    return (
        fast_pictures.as_image(decoded).convert("RGB")
        if isinstance(decoded, np.ndarray)
        else decoded
    )


def decode_picture(
    data: bytes, at_least: int | None = None, background: Colour | None = None
) -> Decoded:
    """A decoded picture, the first of an animation.

    It is a Pillow image in `RGB`, or in `RGBa` where it is transparent; `RGBa` is premultiplied, so
    that scaling lets no hidden colour bleed into edges. It is an array uint8 [H, W, 4], opaque,
    where simplejpeg has decoded it. The picture is turned as its EXIF or XMP orientation says.
    Values of 16 bits become their upper 8.

    Args:
      data: the file's bytes, in one of `FORMATS`.
      at_least: smallest side that is needed, in pixels. A JPEG is then decoded at 1/2, 1/4 or 1/8
        of its size where that is enough, which is faster, but not what decoding and scaling gives;
        and by simplejpeg where that is installed, whose pixels are Pillow's. None: at its own size,
        by Pillow.
      background: colour on which transparent pictures are put, 0..1 per channel. None: they stay
        transparent.

    Raises:
      BadRecord: not a picture, cut short, one too large to be honest, or one whose values have no
        defined range (float or 32-bit integer).
    """
    with bad_pictures():
        if at_least is not None and (decoded := _plain_jpeg(data, at_least)) is not None:
            return decoded
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(*picture.size)
        if picture.format in ("JPEG", "MPO"):
            _check_scans(data)
            if at_least is not None:
                picture.draft("RGB", (at_least, at_least))
                decoded = (
                    fast_pictures.decode_jpeg(data, *picture.size)
                    if picture.mode in ("RGB", "L")
                    else None
                )
                if decoded is not None:
                    return _upright_array(decoded, _orientation(picture))
        picture.load()
        if picture.format == "PNG" and "transparency" in picture.info:
            _mend_transparent_colour(picture, data)
        return _upright(_in_rgb(picture, background), _orientation(picture))


def _plain_jpeg(data: bytes, at_least: int) -> np.ndarray | None:
    """uint8 [H, W, 4] of a JPEG that Pillow need not look at, which takes longer than scaling a
    small one. Raises BadRecord."""
    size = fast_pictures.plain_size(data)
    if size is None:
        return None
    _check_size(*size)
    _check_scans(data)
    return fast_pictures.decode_jpeg(data, *fast_pictures.reduced(*size, at_least))


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    turned = ORIENTATION.get(orientation)
    return picture if turned is None else picture.transpose(turned)


def _upright_array(pixels: np.ndarray, orientation: int) -> np.ndarray:
    return (
        np.array(_upright(fast_pictures.as_image(pixels), orientation))
        if orientation in ORIENTATION
        else pixels
    )


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height of a picture as it is seen, from its header. Raises BadRecord."""
    with bad_pictures():
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = picture.size
        return (height, width) if _orientation(picture) >= 5 else (width, height)


def _check_size(width: int, height: int) -> None:
    if not width or not height:
        raise BadRecord(CANNOT_BE_DECODED, f"{width} x {height} pixels")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        at_most = f"at most {MAX_PIXELS:,} are decoded, and {MAX_SIDE:,} a side"
        raise BadRecord(TOO_LARGE, f"{width} x {height} pixels; {at_most}")


def _check_scans(data: bytes) -> None:
    values = np.frombuffer(data, np.uint8)
    scans = np.count_nonzero(
        (values[:-1] == fast_pictures.MARKER) & (values[1:] == fast_pictures.SCAN)
    )  # a quarter of the time of `bytes.count`
    if scans > MAX_SCANS:
        raise BadRecord(TOO_LARGE, f"a JPEG of {scans} scans; at most {MAX_SCANS} are decoded")


def _orientation(picture: Image.Image) -> int:
    """EXIF's number, 1 (upright) to 8; 1 where it cannot be read, for damaged metadata loses no
    picture."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 (Pillow raises many types for one broken file)
        return 1


def _in_rgb(picture: Image.Image, background: Colour | None) -> Image.Image:
    """`RGB` or `RGBa` of a loaded picture of any mode."""
    if picture.mode.startswith(("I", "F")):
        picture = _eight_bits(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    if background is None:
        return picture.convert("RGBa")
    colour = tuple(round(255 * value) for value in background)
    return Image.alpha_composite(Image.new("RGBA", picture.size, (*colour, 255)), picture).convert(
        "RGB"
    )


def _eight_bits(picture: Image.Image) -> Image.Image:
    """`L` or `LA` of a grey picture with more than 8 bits. Raises BadRecord where the range of its
    values is not defined."""
    tags = getattr(picture, "tag_v2", {})  # of a TIFF
    bits = 16 if picture.mode.startswith("I;16") else None
    if bits and ExifTags.Base.BitsPerSample in tags:
        bits = tags[ExifTags.Base.BitsPerSample][0]
    if picture.mode == "I" and picture.format in ("PNG", "PPM"):  # Pillow scales these to 16 bits
        bits = 16
    if bits is None:
        raise BadRecord(
            NO_RANGE,
            f"{picture.format} of mode {picture.mode}; must be of at most 16 bits, unsigned",
        )
    values = np.asarray(picture)
    upper = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == WHITE_IS_ZERO:
        upper = 255 - upper
    grey = Image.fromarray(upper)
    if "transparency" in picture.info:  # one value; Pillow itself compares 8 of its bits
        opaque = values != picture.info["transparency"]
        grey.putalpha(Image.fromarray(np.where(opaque, np.uint8(255), np.uint8(0))))
    return grey


def _mend_transparent_colour(picture: Image.Image, data: bytes) -> None:
    """A PNG's one transparent colour, which Pillow leaves in the file's bit depth, becomes one of
    the picture's own values."""
    # IHDR comes first
    colour = picture.info["transparency"]
    depth = data[24]
    if picture.mode == "RGB" and depth == 16:
        picture.info["transparency"] = tuple(value >> 8 for value in colour)
    if picture.mode == "L" and depth < 8:
        picture.info["transparency"] = colour * 255 // (2**depth - 1)
