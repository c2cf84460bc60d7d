"""Encoded pictures of every kind: modes, orientation, damage and malice. Files that Pillow does not
write are made by hand."""

import io
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from data_samples import encoded, noise
from PIL import Image

from jaxvl.data import pictures
from jaxvl.data.pictures import CANNOT_BE_DECODED, NO_RANGE, TOO_LARGE, open_picture
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import BadRecord

S = 16
RAMP = (77 + 255 * np.arange(S * S, dtype=np.uint16)).reshape(S, S)  # upper and lower bits differ
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP.T], -1)
# PNG's colour types
GREY = 0
RGB = 2
PALETTE = 3
GREY_ALPHA = 4
RGBA = 6


def decode(data, size=S, **options):
    return Preprocess(size).decode(data, **options)


# --------------------------------------------------------------------------------------------------
# Files, byte by byte


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows, bits, colour, *extra, size=None):
    """A PNG of packed rows (bytes)."""
    width, height = size or (S, len(rows))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body + chunk(b"IEND", b"")


def png16(values, colour, *extra):
    return png([row.astype(">u2").tobytes() for row in values], 16, colour, *extra)


def packed(values, bits):
    """Rows of a PNG with less than 8 bits a value."""
    return [
        np.packbits(np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, -bits:]).tobytes()
        for row in values
    ]


def transparent(*values):
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def tiff(data, bits=(16,), photometric=1, sample_format=1, order="<", size=(S, S)):
    """A TIFF of one strip without compression."""
    tags = {
        256: size[0],
        257: size[1],
        258: bits,
        259: 1,
        262: photometric,
        273: 0,
        277: len(bits),
        278: size[1],
        279: len(data),
        339: sample_format,
    }
    more = struct.pack(f"{order}{len(bits)}H", *bits) if len(bits) > 1 else b""
    start = 8 + 2 + 12 * len(tags) + 4
    tags[273] = start + len(more)
    out = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    for tag, value in tags.items():
        if tag == 258 and more:
            out += struct.pack(order + "HHII", tag, 3, len(bits), start)
            continue
        value = value[0] if isinstance(value, tuple) else value
        out += struct.pack(order + "HHII", tag, 4, 1, value)
    return out + struct.pack(order + "I", 0) + more + data


def twelve_bits(values):
    """Two values in three bytes."""
    a, b = values.reshape(-1, 2).T.astype(int)
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], -1).astype(np.uint8).tobytes()


def saved(picture, kind, **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


# --------------------------------------------------------------------------------------------------
# Modes

HIGH = RAMP >> 8
INDEX = np.arange(S * S).reshape(S, S) // S  # 0 … 15


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, -1)


def without(values, gone):
    """RGBA: transparent where `gone`."""
    values = values if values.ndim == 3 else grey(values)
    return np.concatenate([values, np.where(gone, 0, 255)[..., None]], -1).astype(np.uint8)


def lab_to_rgb(lab):
    """sRGB of CIE L*a*b* under D50 (Bradford-adapted matrix, as Lindbloom gives it), 0..255."""
    lightness, a, b = np.moveaxis(lab.astype(np.float64), -1, 0)
    fy = (lightness + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.96422, 1.0, 0.82521]
    matrix = [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    linear = np.clip(xyz @ np.transpose(matrix), 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


LAB = np.stack(
    [np.full((S, S), 150), (INDEX - 8) * 2, (INDEX.T - 8) * 2], -1
)  # L* of 59, colours that sRGB has
CMYK = np.stack([INDEX * 17, INDEX.T * 17, np.zeros((S, S)), np.full((S, S), 51)], -1).astype(
    np.uint8
)
OF_CMYK = (255 - CMYK[..., :3].astype(float)) * (255 - 51) / 255
ALPHA16 = np.where(RAMP < 30000, 0, 65535).astype(np.uint16)

# name: (file, pixels, largest difference)
MODES = {
    "16-bit grey PNG": (png16(RAMP, GREY), grey(HIGH), 0),
    "16-bit grey PNG, one value transparent": (
        png16(RAMP, GREY, transparent(int(RAMP[3, 4]))),
        without(HIGH, RAMP[3, 4] == RAMP),
        0,
    ),
    "16-bit grey and alpha PNG": (
        png16(np.stack([RAMP, ALPHA16], -1), GREY_ALPHA),
        without(HIGH, ALPHA16 == 0),
        0,
    ),
    "16-bit RGB PNG": (png16(COLOURS, RGB), COLOURS >> 8, 0),
    "16-bit RGB PNG, one colour transparent": (
        png16(COLOURS, RGB, transparent(*COLOURS[3, 4].tolist())),
        without(COLOURS >> 8, (COLOURS[3, 4] == COLOURS).all(-1)),
        0,
    ),
    "16-bit RGBA PNG": (
        png16(np.concatenate([COLOURS, ALPHA16[..., None]], -1), RGBA),
        without(COLOURS >> 8, ALPHA16 == 0),
        0,
    ),
    "1-bit PNG": (png(packed(INDEX % 2, 1), 1, GREY), grey(INDEX % 2 * 255), 0),
    "1-bit PNG, one value transparent": (
        png(packed(INDEX % 2, 1), 1, GREY, transparent(1)),
        without(INDEX % 2 * 255, INDEX % 2 == 1),
        0,
    ),
    "2-bit PNG, one value transparent": (
        png(packed(INDEX % 4, 2), 2, GREY, transparent(3)),
        without(INDEX % 4 * 85, INDEX % 4 == 3),
        0,
    ),
    "4-bit PNG, one value transparent": (
        png(packed(INDEX, 4), 4, GREY, transparent(7)),
        without(INDEX * 17, INDEX == 7),
        0,
    ),
    "4-bit palette PNG, one entry transparent": (
        png(
            packed(INDEX, 4),
            4,
            PALETTE,
            chunk(b"PLTE", bytes(k * 16 for k in range(16) for _ in "RGB")),
            chunk(b"tRNS", b"\xff\xff\0"),
        ),
        without(INDEX * 16, INDEX == 2),
        0,
    ),
    "16-bit PGM": (b"P5 16 16 65535\n" + RAMP.astype(">u2").tobytes(), grey(HIGH), 0),
    "10-bit PGM": (b"P5 16 16 1023\n" + (RAMP >> 6).astype(">u2").tobytes(), grey(RAMP >> 8), 1),
    "16-bit PPM": (b"P6 16 16 65535\n" + COLOURS.astype(">u2").tobytes(), COLOURS >> 8, 1),
    "16-bit TIFF, little end first": (tiff(RAMP.astype("<u2").tobytes()), grey(HIGH), 0),
    "16-bit TIFF, big end first": (tiff(RAMP.astype(">u2").tobytes(), order=">"), grey(HIGH), 0),
    "16-bit TIFF, white is zero": (
        tiff(RAMP.astype("<u2").tobytes(), photometric=0),
        grey(255 - HIGH),
        0,
    ),
    "12-bit TIFF": (tiff(twelve_bits(RAMP >> 4), (12,)), grey(HIGH), 0),
    "8-bit TIFF, white is zero": (
        tiff(HIGH.astype(np.uint8).tobytes(), (8,), photometric=0),
        grey(255 - HIGH),
        0,
    ),
    "16-bit RGB TIFF": (
        tiff(COLOURS.astype("<u2").tobytes(), (16,) * 3, photometric=2),
        COLOURS >> 8,
        0,
    ),
    "L*a*b* TIFF": (
        tiff(LAB.astype(np.int8).view(np.uint8).tobytes(), (8,) * 3, photometric=8),
        lab_to_rgb(LAB * [100 / 255, 1, 1]),
        2,
    ),
    "CMYK TIFF": (tiff(CMYK.tobytes(), (8,) * 4, photometric=5), OF_CMYK, 1),
    "CMYK JPEG, inverted as Adobe's": (
        saved(Image.fromarray(CMYK, "CMYK"), "JPEG", quality=100, subsampling=0),
        OF_CMYK,
        6,
    ),
    "grey JPEG": (
        saved(Image.fromarray(HIGH.astype(np.uint8)), "JPEG", quality=100),
        grey(HIGH),
        3,
    ),
    "GIF": (saved(Image.fromarray(INDEX.astype(np.uint8) * 16), "GIF"), grey(INDEX * 16), 0),
    "BMP": (saved(Image.fromarray(noise(0, S, S, 3)), "BMP"), noise(0, S, S, 3), 0),
    "lossless WebP": (
        saved(Image.fromarray(noise(0, S, S, 3)), "WEBP", lossless=True),
        noise(0, S, S, 3),
        0,
    ),
}


@pytest.mark.parametrize("kind", MODES)
def test_a_picture_of_any_mode(kind):
    data, expected, limit = MODES[kind]
    got = decode(data).astype(float)
    assert got.shape == expected.shape
    if expected.shape[-1] == 4:  # what colour is not seen does not matter
        got[..., :3] *= got[..., 3:] > 0
        expected = expected * np.concatenate(
            [np.repeat(expected[..., 3:] > 0, 3, -1), np.ones((S, S, 1))], -1
        )
    assert np.abs(got - expected).max() <= limit


def test_the_mean_of_a_16_bit_ramp():
    ramp = np.arange(65536).reshape(256, 256)
    data = png([row.astype(">u2").tobytes() for row in ramp], 16, GREY, size=(256, 256))
    assert decode(data, 256).mean() == 127.5


FLOATS = RAMP.astype(np.float32) / 65535
RANGELESS = {
    "32-bit integer TIFF": tiff(RAMP.astype("<u4").tobytes(), (32,)),
    "32-bit signed TIFF": tiff(RAMP.astype("<i4").tobytes(), (32,), sample_format=2),
    "16-bit signed TIFF": tiff((RAMP // 2).astype("<i2").tobytes(), sample_format=2),
    "float TIFF": tiff(FLOATS.tobytes(), (32,), sample_format=3),
    "float PFM": b"Pf 16 16 -1.0\n" + FLOATS.tobytes(),
}


@pytest.mark.parametrize("kind", RANGELESS)
def test_values_without_a_defined_range_are_bad_records(kind):
    with pytest.raises(BadRecord, match="must be of at most 16 bits, unsigned") as caught:
        decode(RANGELESS[kind])
    assert caught.value.cause == NO_RANGE


def test_the_first_frame_of_an_animation():
    frames = [Image.fromarray(np.full((S, S, 3), value, np.uint8)) for value in (40, 200)]
    for kind, options in (
        ("GIF", {}),
        ("PNG", {}),
        ("WEBP", dict(lossless=True)),
        ("TIFF", {}),
        ("MPO", {}),
    ):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert Image.open(io.BytesIO(data)).n_frames == 2
        assert np.abs(decode(data)[..., :3].astype(int) - 40).max() <= 1, kind


# --------------------------------------------------------------------------------------------------
# Orientation

UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}  # of EXIF 2.32, 4.6.4.A: where the 0th row and column are seen
LYING = np.kron(
    noise(5, 2, 3, 3), np.ones((8, 8, 1), np.uint8)
)  # 16 x 24, blocks that a JPEG keeps
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def exif(orientation):
    out = Image.Exif()
    out[0x0112] = orientation
    return out


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(orientation):
    expected = UPRIGHT[orientation](LYING).astype(int)
    picture = Image.fromarray(LYING)
    head = exif(orientation)
    files = {
        "PNG": saved(picture, "PNG", exif=head),
        "WebP": saved(picture, "WEBP", exif=head, lossless=True, exact=True),
        "TIFF": saved(picture, "TIFF", tiffinfo={0x0112: orientation}),
        "JPEG": saved(picture, "JPEG", exif=head, quality=95, subsampling=0),
        "JPEG with XMP": saved(picture, "JPEG", xmp=XMP % orientation, quality=95, subsampling=0),
    }
    png_file = files["PNG"]
    at = png_file.index(b"eXIf") - 4
    end = at + 12 + struct.unpack(">I", png_file[at : at + 4])[0]
    files["PNG, EXIF after the pixels"] = (
        png_file[:at] + png_file[end:-12] + png_file[at:end] + png_file[-12:]
    )
    for kind, data in files.items():
        got = np.asarray(open_picture(data)).astype(int)
        assert got.shape == expected.shape, kind
        assert np.abs(got - expected).max() <= (12 if "JPEG" in kind else 0), kind


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_picture_that_is_decoded_smaller_is_upright_too(orientation):
    large = np.kron(LYING, np.ones((8, 8, 1), np.uint8))
    data = saved(Image.fromarray(large), "JPEG", exif=exif(orientation), quality=95)
    small = open_picture(data, at_least=16)
    expected = UPRIGHT[orientation](LYING)
    assert small.size == expected.shape[1::-1]
    assert np.abs(np.asarray(small).astype(int) - expected).mean() < 6
    cut = (small.height - 16) // 2, (small.width - 16) // 2
    seen = expected[cut[0] : cut[0] + 16, cut[1] : cut[1] + 16]
    assert np.abs(decode(data, 16, fast=True)[..., :3].astype(int) - seen).mean() < 6


def test_damaged_metadata_loses_no_picture():
    head = exif(6)
    head[0x010F], head[0x011A] = "make", 72.5
    whole = head.tobytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:n] for n in range(6, len(whole), 3)] + [
        b"Exif\0\0" + bytes(rng.integers(0, 256, 40).tolist()) for _ in range(10)
    ]
    for _ in range(60):
        one = bytearray(whole)
        for at in rng.integers(6, len(whole), 3):
            one[at] = rng.integers(0, 256)
        damaged.append(bytes(one))
    at = whole.index(b"\x01\x12\0\x03")  # orientation, a short
    for strange in (
        b"\x01\x12\0\x03\0\0\0\1\0\x63",
        b"\x01\x12\0\2\0\0\0\2" + b"6\0",
        b"\x01\x12\0\x0a\0\0\0\1\0\0",
        b"\x01\x12\0\3\0\0\0\2\0\6",
    ):
        damaged.append(whole[:at] + strange + whole[at + 10 :])
    picture = Image.fromarray(LYING)
    for one in damaged:
        for kind, options in (("JPEG", {}), ("PNG", {}), ("WEBP", dict(lossless=True))):
            got = open_picture(saved(picture, kind, exif=one, **options))
            assert sorted(got.size) == [16, 24]


# --------------------------------------------------------------------------------------------------
# Damage and malice

WIDE = png([bytes(20_000)], 8, GREY, size=(20_000, 1))
PHOTO = encoded(noise(0, 64, 48, 3), "JPEG")
PROGRESSIVE = encoded(noise(0, 64, 48, 3), "JPEG", progressive=True)
LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]


def gif_of(width, height):
    return (
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\x80\0\0"
        + bytes(6)
        + b","
        + struct.pack("<HHHH", 0, 0, 1, 1)
        + b"\0\2\2\x44\1\0;"
    )


# name: (file, cause of the bad record, or None for a picture)
HOSTILE = {
    "nothing": (b"", CANNOT_BE_DECODED),
    "no bytes at all": (None, CANNOT_BE_DECODED),
    "zeros": (bytes(1000), CANNOT_BE_DECODED),
    "a page": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", CANNOT_BE_DECODED),
    "SVG": (
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>',
        CANNOT_BE_DECODED,
    ),
    "PostScript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n",
        CANNOT_BE_DECODED,
    ),
    "a JPEG's first bytes": (PHOTO[:2], CANNOT_BE_DECODED),
    "a JPEG without its second half": (PHOTO[: len(PHOTO) // 2], CANNOT_BE_DECODED),
    "a PNG without its second half": (encoded(noise(0, 32, 32, 3))[:1500], CANNOT_BE_DECODED),
    "a PNG whose pixels are wrong": (
        encoded(noise(0, 32, 32, 3)).replace(b"IDAT", b"IDAT\7"),
        CANNOT_BE_DECODED,
    ),
    "a PNG of no width": (png([b""], 8, GREY, size=(0, 1)), CANNOT_BE_DECODED),
    "a PNG of 60,000 x 60,000": (png([bytes(9)], 8, GREY, size=(60_000, 60_000)), TOO_LARGE),
    "a PNG of 8,000 x 8,000": (png([bytes(9)], 8, GREY, size=(8_000, 8_000)), TOO_LARGE),
    "a PNG of 2,000,000 x 2": (png([bytes(9)], 8, GREY, size=(2_000_000, 2)), TOO_LARGE),
    "a GIF of 65,535 x 65,535": (gif_of(65_535, 65_535), TOO_LARGE),
    "a JPEG of 1,000 scans": (PROGRESSIVE[:-2] + LAST_SCAN * 1000 + b"\xff\xd9", TOO_LARGE),
    "text that unpacks to 100 MB": (
        png([bytes(16)] * 16, 8, GREY, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8)))),
        CANNOT_BE_DECODED,
    ),
    "a GIF of no height, but for its frame": (gif_of(9, 0), None),
    "one pixel": (png([b"\x55"], 8, GREY, size=(1, 1)), None),
    "20,000 x 1": (WIDE, None),
    "1 x 20,000": (png([b"\0"] * 20_000, 8, GREY, size=(1, 20_000)), None),
    "a progressive JPEG": (PROGRESSIVE, None),
    "a JPEG with bytes after it": (PHOTO + b"\xff\xd8\xff\xe0 more" * 20, None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_a_picture_or_a_bad_record_by_cause(name):
    data, cause = HOSTILE[name]
    began = time.process_time()
    for preprocess in (
        Preprocess(S),
        Preprocess(S, resize="squash", scale_to=20, interpolation="lanczos", flatten=True),
    ):
        for fast in (False, True):
            if cause is None:
                assert preprocess.decode(data, fast=fast)[..., :3].shape == (S, S, 3)
                continue
            with pytest.raises(BadRecord) as caught:
                preprocess.decode(data, fast=fast)
            assert caught.value.cause == cause
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "QOI", "AVIF", "PPM"]
)
def test_flipped_and_missing_bytes_are_a_picture_or_a_bad_record(kind):
    whole = encoded(noise(0, 24, 20, 3), kind)
    rng = np.random.default_rng(0)
    assert decode(whole).shape[:2] == (S, S)
    for i in range(60):
        data = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            data[at] = rng.choice([0, 127, 255, rng.integers(256)])
        try:
            decode(bytes(data[: rng.integers(len(whole))] if i % 3 == 0 else data))
        except BadRecord as error:
            assert error.cause in pictures.CAUSES


def test_damage_is_counted_not_printed():
    """In a process of its own: pytest keeps warnings to itself."""
    program = f"""
import io
from PIL import Image
from jaxvl.data.pictures import MAX_PIXELS
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import BadRecord
Image.MAX_IMAGE_PIXELS = 200  # warns of what follows
exif = Image.Exif()
exif[0x0112], exif[0x010F] = 6, "a maker's name"
for n in range(10, 60):
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "JPEG", exif=exif.tobytes()[:n])
    Preprocess({S}).decode(out.getvalue())
for data in (b"", b"RIFF    WEBPVP8 ", b"<svg/>"):
    try:
        Preprocess({S}).decode(data)
    except BadRecord:
        pass
"""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, check=True
    )
    said = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if "PIL" in line or "EXIF" in line or "bomb" in line
    ]
    assert said == []
