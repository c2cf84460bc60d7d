"""Values in the encodings of MosaicML's MDS format.

Format: `streaming/base/format/mds/encodings.py` of MosaicML.
Numbers are little-endian. A list is u32 0, u32 n, n u32 sizes and the elements; an array is its
dtype (a byte), its shape (a byte `ndim << 2 | width`, then so many unsigned integers of `1 <<
width` bytes) and its values, of which the encoding's name may fix dtype and shape:
`ndarray:float32:3,224,224`. Nothing is unpickled.
"""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image

from jaxvl.data.sources.base import Kind

_NUMBERS = {
    "int": "<i8",
    "uint8": "<u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "int8": "<i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
}
_DTYPES = {
    8: "<u1",
    9: "<i1",
    16: "<u2",
    17: "<i2",
    18: "<f2",
    32: "<u4",
    33: "<i4",
    34: "<f4",
    64: "<u8",
    65: "<i8",
    66: "<f8",
}
_KINDS: dict[str, Kind] = {
    "jpeg": "image",
    "png": "image",
    "pil": "image",
    "list[jpeg]": "frames",
    "list[png]": "frames",
    "list[pil]": "frames",
    "jpeg_array": "frames",
    "jpegarray": "frames",
    "str": "text",
    "str_int": "int",
    "str_float": "float",
    "str_decimal": "float",
}
LARGEST_PIL = 2**28  # bytes of a picture that is kept as plain pixels
REFUSED = {"pkl": "is pickled, and unpickling may run code; write it as json, str or ndarray"}


def fixed_size(encoding: str) -> int | None:
    """Bytes of every value of an encoding, where all have the same."""
    if encoding in _NUMBERS:
        return np.dtype(_NUMBERS[encoding]).itemsize
    name, dtype, shape = _array_layout(encoding)
    if name == "ndarray" and dtype is not None and shape is not None:
        return dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    return None


def kind_of_encoding(encoding: str) -> Kind | None:
    """None of `bytes` and `json`, whose values tell it, and of encodings that are not read."""
    if encoding in _NUMBERS:
        return "float" if "float" in encoding else "int"
    return "array" if encoding.split(":")[0] == "ndarray" else _KINDS.get(encoding)


def is_known(encoding: str) -> bool:
    """Whether values of an encoding are read."""
    return kind_of_encoding(encoding) is not None or encoding in ("bytes", "json")


def decode(content: bytes, encoding: str) -> object:
    """A value. Raises ValueError where `content` is no whole one."""
    if encoding in ("jpeg", "png", "bytes"):
        return content
    if encoding == "str":
        return content.decode("utf-8")
    if encoding in _NUMBERS:
        return np.frombuffer(_exactly(content, fixed_size(encoding)), _NUMBERS[encoding])[0].item()
    if encoding == "str_int":
        return int(content)
    if encoding in ("str_float", "str_decimal"):
        return float(content)
    if encoding == "json":
        return _json(content)
    if encoding.split(":")[0] == "ndarray":
        return _array(content, encoding)
    if encoding == "pil":
        return _pixels(content)
    if encoding in ("jpeg_array", "jpegarray"):
        return _parts(content, 0)
    frames = _parts(content, 4)
    return [_pixels(frame) for frame in frames] if encoding == "list[pil]" else frames


def _json(content: bytes) -> object:
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError(str(error)) from None


def _exactly(content: bytes, size: int) -> bytes:
    if len(content) != size:
        raise ValueError(f"{len(content)} bytes, must be {size}")
    return content


def _parts(content: bytes, at: int) -> list[bytes]:
    """Elements of a list whose count begins at `at`."""
    head = content[at : at + 4]
    if len(head) < 4:
        raise ValueError("a list without a length")
    count = int.from_bytes(head, "little")
    first = at + 4 + 4 * count
    if first > len(content):
        raise ValueError(f"a list of {count:,} in {len(content):,} bytes")
    sizes = np.frombuffer(content, "<u4", count, at + 4).astype(np.int64)
    ends = first + np.cumsum(sizes)
    if count and ends[-1] > len(content):
        raise ValueError(f"elements of {int(sizes.sum()):,} bytes in {len(content):,}")
    return [content[end - size : end] for size, end in zip(sizes.tolist(), ends.tolist())]


def _array_layout(encoding: str) -> tuple[str, np.dtype | None, tuple[int, ...] | None]:
    """(name, dtype, shape) of `ndarray:DTYPE:SHAPE`. Raises ValueError."""
    name, *parts = encoding.split(":")
    if name != "ndarray":
        return name, None, None
    known = {np.dtype(of).name: np.dtype(of) for of in _DTYPES.values()}
    if len(parts) > 2 or (parts and parts[0] not in known):
        raise ValueError(f"{encoding!r} is no encoding of arrays")
    shape = tuple(int(size) for size in parts[1].split(",")) if len(parts) == 2 else None
    if shape is not None and min(shape) < 1:
        raise ValueError(f"{encoding!r} is no encoding of arrays")
    return name, known[parts[0]] if parts else None, shape


def _array(content: bytes, encoding: str) -> np.ndarray:
    _, dtype, shape = _array_layout(encoding)
    at = 0
    if dtype is None:
        if not content or content[0] not in _DTYPES:
            raise ValueError("an array of an unknown dtype")
        dtype = np.dtype(_DTYPES[content[0]])
        at = 1
    if shape is None:
        if len(content) <= at:
            raise ValueError("an array without a shape")
        rank = content[at] >> 2
        width = 1 << (content[at] & 3)
        head = _exactly(content[at + 1 : at + 1 + rank * width], rank * width)
        shape = tuple(np.frombuffer(head, f"<u{width}").tolist())
        at += 1 + rank * width
    count = 1
    for size in shape:
        count *= size
    _exactly(content[at:], count * dtype.itemsize)
    return np.frombuffer(content, dtype, count, at).reshape(shape)


def _pixels(content: bytes) -> bytes:
    """A picture that is kept as width, height, mode and pixels, as PNG, or TIFF where PNG has not
    its mode."""
    if len(content) < 12:
        raise ValueError("a picture without a size")
    width, height, length = np.frombuffer(content, "<u4", 3).tolist()
    mode = content[12 : 12 + length].decode("ascii")
    if len(content) > LARGEST_PIL or not 0 < width * height <= LARGEST_PIL:
        raise ValueError(f"a picture of {width} x {height}")
    picture = Image.frombytes(mode, (width, height), content[12 + length :])
    out = io.BytesIO()
    picture.save(
        out,
        "PNG" if mode in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA") else "TIFF",
        compress_level=1,
    )
    return out.getvalue()
