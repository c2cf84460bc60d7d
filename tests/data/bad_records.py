"""Bad and odd records as crawled data holds them, made by code: pictures and texts, each with what
has to come of it.

Pictures of `test_pictures.py` (modes, hostile bytes) are part of the corpus; those made here are
other kinds.
"""

import dataclasses
import gzip
import json
import struct
import zlib

import numpy as np
from data_samples import encoded, noise
from PIL import Image
from test_pictures import (
    GREY,
    HOSTILE,
    MODES,
    PALETTE,
    PHOTO,
    PROGRESSIVE,
    RANGELESS,
    RGB,
    chunk,
    exif,
    gif_of,
    png,
    saved,
    tiff,
)

from jaxvl.data.pictures import CANNOT_BE_DECODED, NO_RANGE, TOO_LARGE

S = 16
PILLOW = "as Pillow"  # outcome: the pixels that Pillow gives in RGB, upright
IF_PILLOW = "as Pillow, or a cause where it fails"
EITHER = "pixels or a cause"  # outcome: decoders differ in what of a damaged file they use


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of picture.

    Attributes:
      data: the file.
      outcome: a cause; PILLOW; IF_PILLOW; EITHER; or the pixels, uint8 [H, W, 3].
      limit: largest difference of a pixel.
    """

    data: object
    outcome: object
    limit: float = 0


SMALL = noise(1, S, S, 3)
COLOURS = Image.fromarray(noise(2, S, 24, 3))
BLOCKS = Image.fromarray(np.kron(noise(3, 8, 8, 3), np.ones((16, 16, 1), np.uint8)))
JPEG = saved(BLOCKS, "JPEG", quality=90)
PNG = encoded(SMALL)


def changed(data, old, new):
    assert old in data
    return data.replace(old, new, 1)


def cut(data, keep):
    return data[: int(len(data) * keep)]


def start_of_frame(jpeg, marker=0xC0):
    return jpeg.index(bytes([0xFF, marker]))


def with_frame(jpeg, at, value):
    """A JPEG with other bytes in its frame header; `at` from the marker."""
    begin = start_of_frame(jpeg) + at
    return jpeg[:begin] + value + jpeg[begin + len(value) :]


def interlaced_png():
    """All seven passes of Adam7, of a grey picture of 16 x 16."""
    values = noise(4, S, S)
    rows = b""
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in values[y::dy, x::dx])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", S, S, 8, GREY, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(
        b"IEND", b""
    ), np.repeat(values[..., None], 3, -1)


def bmp(bits, rows, width=S, height=S, compression=0, masks=b"", palette=b""):
    """A BMP of packed rows, without padding."""
    offset = 54 + len(masks) + len(palette)
    head = b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset)
    head += struct.pack(
        "<IiiHHIIiiII",
        40,
        width,
        height,
        1,
        bits,
        compression,
        len(rows),
        2835,
        2835,
        len(palette) // 4,
        0,
    )
    return head + masks + palette + rows


def box(kind, brand):
    """The first bytes of an ISO file (HEIF, MP4)."""
    return (
        struct.pack(">I4s4sI4s", 20, b"ftyp", brand, 0, kind)
        + struct.pack(">I4s", 8, b"mdat")
        + bytes(200)
    )


def riff_webp(width, height):
    """A WebP that says its canvas in an extended header and has no picture."""
    body = (
        b"WEBPVP8X"
        + struct.pack("<I", 10)
        + bytes(4)
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little")
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_frames(n):
    frames = [Image.fromarray(np.full((S, S), i % 250, np.uint8)) for i in range(n)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


def looping_tiff():
    """Its only directory names itself as the next one."""
    data = bytearray(tiff(bytes(S * S), (8,)))
    count = struct.unpack_from("<H", data, 8)[0]
    struct.pack_into("<I", data, 8 + 2 + 12 * count, 8)
    return bytes(data)


def tiff_tag(data, tag, value):
    """A TIFF with another value of a tag."""
    out = bytearray(data)
    for i in range(struct.unpack_from("<H", out, 8)[0]):
        at = 8 + 2 + 12 * i
        if struct.unpack_from("<H", out, at)[0] == tag:
            struct.pack_into("<I", out, at + 8, value)
    return bytes(out)


ADAM7, ADAM7_PIXELS = interlaced_png()
GREY_TIFF = tiff(noise(5, S, S).tobytes(), (8,))
GREY_TIFF_PIXELS = np.repeat(noise(5, S, S)[..., None], 3, -1)
WHITE = np.full((S, S, 3), 255, np.uint8)
PALETTE_BYTES = bytes(range(48))
PROFILE_OF_100_MB = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(10**8)))
TRUNCATED = {
    f"a {kind} without its last half": Kind(
        cut(encoded(noise(6, 64, 64, 3), kind), 0.5),
        IF_PILLOW if kind in ("GIF", "JPEG2000") else CANNOT_BE_DECODED,
    )
    for kind in ("WEBP", "GIF", "BMP", "TIFF", "AVIF", "QOI", "PPM", "JPEG2000")
}

# What servers and disks give for a picture.
NO_PICTURES = {
    "an error as JSON": b'{"error": {"code": 403, "message": "forbidden"}}',
    "an error of an object store": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "a page with a byte-order mark": b"\xef\xbb\xbf<!doctype html><title>Sign in</title>",
    "the word null": b"null",
    "a base64 text of a picture": b"data:image/png;base64,iVBORw0KGgo=",
    "an SVG in gzip": gzip.compress(b'<svg xmlns="http://www.w3.org/2000/svg"/>', mtime=0),
    "a picture in gzip": gzip.compress(PNG, mtime=0),
    "a PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "a HEIC": box(b"mif1", b"heic"),
    "an MP4": box(b"mp41", b"isom"),
    "a JPEG XL": b"\xff\x0a" + bytes(100),
    "a boxed JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100),
    "a Photoshop file": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, S, S, 8, 3) + bytes(2000),
    "a zip file": b"PK\3\4" + bytes(100),
    "a pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x02os\x94.",
    "a program": b"\x7fELF\x02\x01\x01" + bytes(100),
    "a lone marker of a JPEG": b"\xff\xd8\xff",
    "a signature of a PNG": PNG[:8],
    "an empty RIFF": b"RIFF\0\0\0\0WEBP",
}
# Formats that Pillow reads and a data set does not need: less code that bytes from outside reach.
NOT_READ = ("ICO", "TGA", "PCX", "DDS", "SGI", "ICNS")

PICTURES = {
    **{
        f"mode: {name}": Kind(data, EITHER) for name, (data, _, _) in MODES.items()
    },  # their pixels are checked there
    **{name: Kind(data, NO_RANGE) for name, data in RANGELESS.items()},
    **{name: Kind(data, cause or IF_PILLOW) for name, (data, cause) in HOSTILE.items()},
    **{name: Kind(data, CANNOT_BE_DECODED) for name, data in NO_PICTURES.items()},
    **{
        f"{kind}, a format that is not read": Kind(saved(BLOCKS, kind), CANNOT_BE_DECODED)
        for kind in NOT_READ
    },
    **TRUNCATED,
    "a text instead of bytes": Kind("image.jpg", CANNOT_BE_DECODED),
    "a dict instead of bytes": Kind({"bytes": PNG, "path": None}, CANNOT_BE_DECODED),
    "an interlaced PNG": Kind(ADAM7, ADAM7_PIXELS),
    "a PNG with a wrong checksum of its header": Kind(
        PNG[:29] + b"\0\0\0\0" + PNG[33:], CANNOT_BE_DECODED
    ),
    "a PNG without pixels": Kind(PNG[:33] + chunk(b"IEND", b""), CANNOT_BE_DECODED),
    "a PNG without its end": Kind(PNG[:-12], IF_PILLOW),
    "a PNG of a palette that is not there": Kind(png([bytes(S)] * S, 8, PALETTE), EITHER),
    "a PNG of entries beyond its palette": Kind(
        png([bytes([200] * S)] * S, 8, PALETTE, chunk(b"PLTE", PALETTE_BYTES)), IF_PILLOW
    ),
    "a PNG of an unknown kind of colour": Kind(png([bytes(S)] * S, 8, 5), CANNOT_BE_DECODED),
    "a PNG of an unknown critical chunk": Kind(
        png([bytes(3 * S)] * S, 8, RGB, chunk(b"ABCD", b"?")), IF_PILLOW
    ),
    "a PNG with a colour profile of 100 MB": Kind(
        png([bytes([255] * 3 * S)] * S, 8, RGB, PROFILE_OF_100_MB), IF_PILLOW
    ),
    "a PNG with too few rows": Kind(png([bytes(3 * S)] * 4, 8, RGB, size=(S, S)), IF_PILLOW),
    "a PNG with too many rows": Kind(png([bytes([255] * 3 * S)] * 40, 8, RGB, size=(S, S)), WHITE),
    "a PNG of 7,000 x 7,000 in 50 KB": Kind(
        png([bytes(875)] * 7000, 1, GREY, size=(7000, 7000)), IF_PILLOW
    ),
    "a PNG whose header says a negative width": Kind(
        png([bytes(S)], 8, GREY, size=(2**31, 1)), IF_PILLOW
    ),
    "a JPEG without its last bytes": Kind(JPEG[:-20], CANNOT_BE_DECODED),
    "a JPEG without its end marker": Kind(JPEG[:-2], EITHER),
    "a JPEG with garbage before it": Kind(b"\r\n\r\n" + JPEG, CANNOT_BE_DECODED),
    "a JPEG of no height": Kind(with_frame(JPEG, 5, b"\0\0"), CANNOT_BE_DECODED),
    "a JPEG that says 65,500 x 65,500": Kind(with_frame(JPEG, 5, b"\xff\xdc\xff\xdc"), TOO_LARGE),
    "a JPEG of 12 bits": Kind(with_frame(JPEG, 4, b"\x0c"), CANNOT_BE_DECODED),
    "a JPEG of five channels": Kind(with_frame(JPEG, 9, b"\x05"), CANNOT_BE_DECODED),
    "a lossless JPEG": Kind(changed(JPEG, b"\xff\xc0", b"\xff\xc3"), CANNOT_BE_DECODED),
    "a JPEG without its quantisation": Kind(
        JPEG.replace(b"\xff\xdb", b"\xff\xec"), CANNOT_BE_DECODED
    ),
    "a JPEG without its Huffman codes": Kind(JPEG.replace(b"\xff\xc4", b"\xff\xec"), EITHER),
    "a JPEG with flipped bytes in its scan": Kind(
        JPEG[:-300] + bytes(255 - b if b not in (0, 255) else b for b in JPEG[-300:-2]) + JPEG[-2:],
        EITHER,
    ),
    "a JPEG with restart markers": Kind(saved(BLOCKS, "JPEG", restart_marker_rows=1), PILLOW),
    "a JPEG of 4:4:4": Kind(saved(BLOCKS, "JPEG", subsampling=0), PILLOW),
    "a JPEG of 4:2:2, odd sides": Kind(
        saved(BLOCKS.crop((0, 0, 33, 17)), "JPEG", subsampling=1), PILLOW
    ),
    "an optimised progressive JPEG": Kind(
        saved(BLOCKS, "JPEG", progressive=True, optimize=True), PILLOW
    ),
    "a JPEG of grey": Kind(saved(BLOCKS.convert("L"), "JPEG"), PILLOW),
    "a JPEG with a comment of 60 KB": Kind(saved(BLOCKS, "JPEG", comment=b"x" * 60_000), PILLOW),
    "a JPEG with a broken colour profile": Kind(
        saved(BLOCKS, "JPEG", icc_profile=b"not a profile" * 100), PILLOW
    ),
    "a JPEG that lies on its side": Kind(saved(BLOCKS, "JPEG", exif=exif(6)), PILLOW),
    "a JPEG of 1 x 60,000": Kind(
        saved(Image.new("RGB", (1, 60_000), (9, 99, 199)), "JPEG"), PILLOW
    ),
    "a JPEG of 60,000 x 1": Kind(
        saved(Image.new("RGB", (60_000, 1), (9, 99, 199)), "JPEG"), PILLOW
    ),
    "a progressive JPEG of 90 scans": Kind(
        PROGRESSIVE[:-2] + PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2] * 80 + b"\xff\xd9",
        IF_PILLOW,
    ),
    "a JPEG after a JPEG": Kind(PHOTO + PHOTO, PILLOW),
    "a GIF of 300 frames": Kind(gif_frames(300), np.zeros((S, S, 3), np.uint8)),
    "a GIF without frames": Kind(b"GIF89a" + struct.pack("<HH", S, S) + b"\0\0\0;", IF_PILLOW),
    "a GIF that ends in its header": Kind(b"GIF89a\x10", CANNOT_BE_DECODED),
    "a GIF of a small canvas and a large frame": Kind(
        gif_of(1, 1).replace(struct.pack("<HHHH", 0, 0, 1, 1), struct.pack("<HHHH", 0, 0, 9, 9)),
        IF_PILLOW,
    ),
    "a palette picture with transparency": Kind(
        saved(BLOCKS.convert("P"), "GIF", transparency=3), IF_PILLOW
    ),
    "an animated WebP": Kind(
        saved(COLOURS, "WEBP", save_all=True, append_images=[COLOURS.transpose(0)], lossless=True),
        np.asarray(COLOURS),
    ),
    "a lossy WebP": Kind(saved(BLOCKS, "WEBP", quality=80), PILLOW),
    "a WebP that says 16,384 x 16,384": Kind(riff_webp(16_384, 16_384), IF_PILLOW),
    "an AVIF": Kind(saved(BLOCKS, "AVIF", quality=90), PILLOW),
    "an AVIF that ends in its header": Kind(saved(BLOCKS, "AVIF")[:40], CANNOT_BE_DECODED),
    "a BMP upside down": Kind(bmp(24, SMALL[..., ::-1].tobytes(), height=-S), SMALL),
    "a BMP of 8 bits without its palette": Kind(bmp(8, bytes(S * S)), IF_PILLOW),
    "a BMP of 16 bits": Kind(
        bmp(16, bytes([0, 0x7C]) * (S * S)), np.broadcast_to(np.uint8([255, 0, 0]), (S, S, 3)), 8
    ),
    "a BMP that says 60,000 x 60,000": Kind(bmp(24, bytes(100), 60_000, 60_000), TOO_LARGE),
    "a BMP of a run length that leaves it": Kind(
        bmp(8, b"\xff\1" * 300, compression=1, palette=bytes(1024)), IF_PILLOW
    ),
    "a TIFF whose directory names itself": Kind(looping_tiff(), IF_PILLOW),
    "a TIFF whose pixels lie behind its end": Kind(
        tiff_tag(GREY_TIFF, 273, 10**9), CANNOT_BE_DECODED
    ),
    "a TIFF that says 60,000 x 60,000": Kind(
        tiff_tag(tiff_tag(GREY_TIFF, 256, 60_000), 257, 60_000), TOO_LARGE
    ),
    "a TIFF of an unknown compression": Kind(tiff_tag(GREY_TIFF, 259, 999), CANNOT_BE_DECODED),
    "a TIFF in deflate": Kind(saved(BLOCKS, "TIFF", compression="tiff_deflate"), PILLOW),
    "a TIFF in LZW": Kind(saved(BLOCKS, "TIFF", compression="tiff_lzw"), PILLOW),
    "a plain TIFF": Kind(GREY_TIFF, GREY_TIFF_PIXELS),
    "a PPM in letters": Kind(
        b"P3\n# by hand\n2 1\n255\n255 0 0  0 0 255\n", np.uint8([[[255, 0, 0], [0, 0, 255]]])
    ),
    "a PBM": Kind(b"P4\n8 1\n\xaa", np.repeat(np.uint8([[0, 255] * 4])[..., None], 3, -1)),
    "a PPM of no values": Kind(b"P6\n2 2\n0\n" + bytes(12), CANNOT_BE_DECODED),
    "a PPM of a negative width": Kind(b"P6\n-2 2\n255\n" + bytes(12), CANNOT_BE_DECODED),
    "a PPM that says 10^9 x 1": Kind(b"P5\n1000000000 1\n255\n\0", TOO_LARGE),
    "a JPEG 2000": Kind(saved(BLOCKS, "JPEG2000"), PILLOW),
    "a QOI": Kind(saved(BLOCKS, "QOI"), np.asarray(BLOCKS)),
    "a QOI of no pixels": Kind(
        b"qoif" + struct.pack(">IIBB", 0, 0, 3, 0) + bytes(8), CANNOT_BE_DECODED
    ),
}


# --------------------------------------------------------------------------------------------------
# Texts: name -> (text, how many words it has at least)

TEXTS = {
    "empty": ("", 0),
    "spaces": (" \t\r\n\u00a0\u2003", 0),
    "None": ("None", 1),
    "null": ("null", 1),
    "NA": ("NA", 1),
    "nan": ("nan", 1),
    "NUL": ("a\0dog", 1),
    "only NULs": ("\0" * 100, 0),
    "control characters": ("a\x07\x1b[31m dog\x7f", 2),
    "a byte-order mark": ("\ufeffa dog", 2),
    "replacement characters": ("caf\ufffd \ufffd\ufffd", 1),
    "a lone surrogate": ("a \ud83d dog", 2),
    "a reversed pair of surrogates": ("\ude00\ud83d dog", 1),
    "noncharacters": ("a \uffff\ufdd0 dog", 2),
    "line separators": ("a\u2028dog\u2029and\u0085cat", 4),
    "right to left overrides": ("\u202ea dog\u202c", 2),
    "an emoji of many parts": ("\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", 0),
    "ten thousand accents on one letter": ("a" + "\u0301" * 10_000, 1),
    "a megabyte of one letter": ("a" * 2**20, 1),
    "a megabyte of words": ("dog " * 2**18, 1000),
    "a megabyte of Chinese": ("\u72d7" * 2**20, 1000),
    "a megabyte of combining marks": ("\u0301" * 2**20, 0),
    "a megabyte of entities": ("&amp;" * 200_000, 1),
    "a ligature of eighteen letters": ("\ufdfa" * 5000, 1),
    "HTML": ("<b>a dog</b><script>x()</script>", 2),
    "JSON": (json.dumps({"text": "a dog"}), 3),
    "a percent-encoded text": ("a%20dog%E2%80%99s", 1),
    "UTF-8 read as Latin-1": ("cafÃ© dâ€™or", 2),
    "special tokens": ("<pad> <eos> [CLS] </s> <|endoftext|>", 5),
    "a file name": ("IMG_20190405_123456.JPG", 1),
}
