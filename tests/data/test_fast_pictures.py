"""The faster libraries against Pillow: the same pictures, the same refusals."""

import concurrent.futures
import io
import math

import numpy as np
import pytest
from data_samples import encoded
from PIL import Image

from jaxvl.data import fast_pictures
from jaxvl.data.pictures import CAUSES, TOO_LARGE, decode_picture, open_picture
from jaxvl.data.preprocess import (
    Preprocess,
    as_array,
    crop_box,
    fit,
    fit_into,
    sides,
    smallest_part,
)
from jaxvl.data.records import BadRecord

pytest.importorskip("simplejpeg")
pytest.importorskip("cykooz_resizer")
WIDTH = 250
HEIGHT = 190


def photo(seed, width=WIDTH, height=HEIGHT):
    """uint8 [H, W, 3] with the spectrum of a photo: smooth, with edges of every size."""
    rng = np.random.default_rng(seed)
    squared = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None] ** 2
    squared[0, 0] = 1
    layers = [
        np.fft.irfft2(
            np.fft.rfft2(rng.standard_normal((height, width))) / squared**0.55, (height, width)
        )
        for _ in range(3)
    ]
    mixed = np.stack([layers[0] + 0.35 * layer for layer in layers], -1)
    return np.clip((mixed - mixed.mean()) / mixed.std() * 55 + 120, 0, 255).astype(np.uint8)


def jpeg(pixels, **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", **{"quality": 90, **options})
    return out.getvalue()


def oriented(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def mpo():
    out = io.BytesIO()
    Image.fromarray(photo(0)).save(
        out, "MPO", save_all=True, append_images=[Image.fromarray(photo(1))]
    )
    return out.getvalue()


PIXELS = photo(0)
GREY = np.asarray(Image.fromarray(PIXELS).convert("L"))
CMYK = np.concatenate([255 - PIXELS, np.full((HEIGHT, WIDTH, 1), 20, np.uint8)], -1)


def cmyk():
    out = io.BytesIO()
    Image.fromarray(CMYK, "CMYK").save(out, "JPEG", quality=90)
    return out.getvalue()


FILES = {
    "colour": jpeg(PIXELS),
    "4:4:4": jpeg(PIXELS, subsampling=0),
    "4:2:2": jpeg(PIXELS, subsampling=1),
    "RGB kept": jpeg(PIXELS, keep_rgb=True),
    "grey": jpeg(GREY),
    "CMYK": cmyk(),
    "progressive": jpeg(PIXELS, progressive=True),
    "restart markers": jpeg(PIXELS, restart_marker_rows=1),
    "bytes after it": jpeg(PIXELS) + b"more",
    "MPO": mpo(),
    **{f"orientation {n}": jpeg(PIXELS, exif=oriented(n)) for n in range(1, 9)},
}
UNKNOWN_TO_SIMPLEJPEG = ("CMYK",)


@pytest.fixture
def by_pillow(monkeypatch):
    """A function that calls another one as if neither library were installed."""

    def call(work, *args, **options):
        with monkeypatch.context() as patch:
            patch.setattr(fast_pictures, "simplejpeg", None)
            patch.setattr(fast_pictures, "cykooz_resizer", None)
            return work(*args, **options)

    return call


def outcome(work, *args, **options):
    """What a function returns, as an array, or the cause of its BadRecord."""
    try:
        return np.asarray(work(*args, **options))
    except BadRecord as error:
        return error.cause


@pytest.mark.parametrize("at_least", [20, 60, 180])
@pytest.mark.parametrize("name", FILES)
def test_jpegs_are_decoded_to_the_pixels_of_pillow(name, at_least, by_pillow):
    data = FILES[name]
    with Image.open(io.BytesIO(data)) as opened:
        opened.draft("RGB", (at_least, at_least))
        size = opened.size
    assert isinstance(decode_picture(data, at_least), np.ndarray) == (
        name not in UNKNOWN_TO_SIMPLEJPEG
    )
    ours = open_picture(data, at_least)
    theirs = by_pillow(open_picture, data, at_least)
    assert ours.mode == theirs.mode == "RGB" and (
        ours.size == size or name.startswith("orientation")
    )
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_evaluation_asks_neither_library(by_pillow, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError

    wanted = by_pillow(Preprocess(64).decode, FILES["colour"])
    monkeypatch.setattr(fast_pictures, "decode_jpeg", refuse)
    monkeypatch.setattr(fast_pictures, "resize", refuse)
    np.testing.assert_array_equal(Preprocess(64).decode(FILES["colour"]), wanted)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_scaling_differs_from_pillow_by_rounding(interpolation, channels):
    pixels = photo(2) if channels == 3 else np.concatenate([photo(2), photo(3)[..., :1]], -1)
    picture = open_picture(encoded(pixels))
    resampling = Image.Resampling[interpolation.upper()]
    assert picture.mode == ("RGB" if channels == 3 else "RGBa")
    for draws in np.random.default_rng(0).random((12, 4)).tolist():
        box = crop_box(WIDTH, HEIGHT, (0.03, 1.0), (1 / 2, 2), draws)
        ours = fast_pictures.resize(picture, 64, box, interpolation)
        exact = picture.resize((64, 64), resampling, box=box)
        assert ours.mode == picture.mode and ours.size == (64, 64)
        difference = np.frombuffer(ours.tobytes(), np.uint8).astype(int) - np.frombuffer(
            exact.tobytes(), np.uint8
        )
        assert (
            np.abs(difference).mean() < 0.5
            and abs(difference.mean()) < 0.2
            and np.abs(difference).max() <= 8
        )
        np.testing.assert_array_equal(
            fit(picture, 64, box, interpolation, fast=True), as_array(ours)
        )


def test_what_is_not_faster_is_left_to_pillow(by_pillow):
    picture = open_picture(FILES["colour"])
    assert fast_pictures.resize(picture, 8, (0, 0, 50, 50), "nearest") is None
    ours = fit(picture, 8, (3, 5, 50, 60), "nearest", fast=True)
    np.testing.assert_array_equal(ours, by_pillow(fit, picture, 8, (3, 5, 50, 60), "nearest"))


@pytest.mark.parametrize("size", [40, 120])
def test_training_pictures_differ_from_evaluation_as_documented(size, by_pillow):
    preprocess = Preprocess(size)
    for seed in range(6):
        data = jpeg(photo(seed))
        exact = preprocess.decode(data).astype(int)
        ours = np.abs(preprocess.decode(data, fast=True)[..., :3] - exact).mean()
        theirs = np.abs(by_pillow(preprocess.decode, data, fast=True) - exact).mean()
        if size == 120:  # no fraction of the picture is enough
            assert 0 < ours < 0.5
        assert ours < theirs + 0.5


@pytest.mark.parametrize(
    "area, ratio",
    [
        ((0.08, 1.0), (3 / 4, 4 / 3)),
        ((0.9, 1.0), (0.75, 1.2)),
        ((0.3, 0.5), (1.0, 1.0)),
        ((1.0, 1.0), (2.0, 3.0)),
    ],
)
def test_no_random_part_has_fewer_pixels_than_asked_for(area, ratio):
    """Of a JPEG that is decoded at a fraction of its size; and a smaller fraction would be too
    small for some part."""
    size = 32
    smallest = smallest_part(area, ratio)
    for width, height in ((1200, 900), (500, 1700), (260, 240)):
        picture = Preprocess(size).open(
            jpeg(np.zeros((height, width, 3), np.uint8)), fast=True, smallest=smallest
        )
        draws = np.random.default_rng(0).random((4000, 4)).tolist()
        across, down = sides(picture)
        boxes = [crop_box(across, down, area, ratio, row) for row in draws]
        shortest = [min(right - left, bottom - top) for left, top, right, bottom in boxes]
        fraction = across / width
        assert min(shortest) >= min(size, smallest * min(width, height)) - 1
        assert fraction < 0.126 or smallest * min(across, down) / 2 < size + 1
    same = Preprocess(size).open(FILES["colour"], fast=True, smallest=1.0)
    assert sides(Preprocess(size).open(FILES["colour"], fast=True)) == sides(same)


def test_boxes_that_end_at_the_edge():
    picture = open_picture(encoded(photo(4)))
    draws = np.random.default_rng(1)
    for left, top in draws.random((300, 2)) * 150:
        box = (left, top, left + (WIDTH - left), top + (HEIGHT - top))
        box = tuple(min(value, end) for value, end in zip(box, (WIDTH, HEIGHT, WIDTH, HEIGHT)))
        assert fast_pictures.resize(picture, 8, box, "bicubic").size == (8, 8)
    beyond = (math.nextafter(WIDTH / 3, 0), 0.1, WIDTH, HEIGHT)
    assert fast_pictures.resize(picture, 8, beyond, "bicubic") is not None


@pytest.mark.parametrize("kind", [dict(), dict(progressive=True), dict(restart_marker_rows=1)])
def test_damaged_files_have_the_same_outcome(kind, by_pillow):
    whole = jpeg(photo(5, 90, 70), **kind)
    rng = np.random.default_rng(0)
    refused = 0
    for i in range(150):
        data = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            data[at] = rng.choice([0, 0xFF, 0xD9, 0xDA, rng.integers(256)])
        data = bytes(data[: rng.integers(len(whole))] if i % 3 == 0 else data)
        ours = outcome(open_picture, data, 24)
        theirs = by_pillow(outcome, open_picture, data, 24)
        assert type(ours) is type(theirs)
        np.testing.assert_array_equal(ours, theirs)
        refused += isinstance(ours, str)
    assert 0 < refused < 150


def test_bombs_are_refused_before_anything_is_decoded(monkeypatch):
    import simplejpeg

    monkeypatch.setattr(
        simplejpeg, "decode_jpeg", None
    )  # calling it would be a TypeError, and so "cannot be decoded"
    header = jpeg(np.zeros((8, 8, 3), np.uint8))
    at = header.index(b"\xff\xc0") + 5
    wide = header[:at] + b"\xff\xdc\xff\xdc" + header[at + 4 :]  # says 65,500 x 65,500 pixels
    scans = header + b"\xff\xda" * 200
    for data in (wide, scans):
        with pytest.raises(BadRecord) as caught:
            open_picture(data, 224)
        assert caught.value.cause == TOO_LARGE


def test_a_second_header_gets_no_memory(by_pillow):
    """Of two frame headers, Pillow's parser may see one and libjpeg the other."""
    data = jpeg(photo(6, 64, 48))
    at = data.index(b"\xff\xc0")
    length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    frame = bytearray(data[at : at + length])
    frame[5:9] = b"\x1f\x40\x1f\x40"  # 8,000 x 8,000
    for both in (bytes(frame) + data[at : at + length], data[at : at + length] + bytes(frame)):
        changed = data[:at] + both + data[at + length :]
        assert outcome(open_picture, changed, 16) == by_pillow(outcome, open_picture, changed, 16)
        assert outcome(open_picture, changed, 16) in CAUSES


def test_threads_do_not_mix_pictures():
    files = [jpeg(photo(seed, 120 + 8 * seed, 100)) for seed in range(8)]
    wanted = [Preprocess(48).decode(data, fast=True) for data in files]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, expected in zip(
                pool.map(lambda data: Preprocess(48).decode(data, fast=True), files), wanted
            ):
                np.testing.assert_array_equal(got, expected)


SUBSAMPLINGS = ["4:4:4", "4:2:2", "4:2:0", "4:4:0", "4:1:1"]


def test_a_picture_goes_straight_into_its_row(by_pillow):
    """The same pixels as by way of Pillow images; with other rows as they were, and opaque."""
    for name, data in FILES.items():
        exact = open_picture(data)
        picture = decode_picture(data, HEIGHT)
        for draws in np.random.default_rng(1).random((4, 4)).tolist():
            box = crop_box(*sides(picture), (0.3, 1.0), (3 / 4, 4 / 3), draws)
            rows = np.full((3, 32, 32, 4), 7, np.uint8)
            fit_into(rows[1], picture, box, "bicubic", fast=True)
            assert (rows[[0, 2]] == 7).all() and (rows[1, ..., 3] == 255).all()
            before = fit(open_picture(data, HEIGHT), 32, box, "bicubic", fast=True)
            np.testing.assert_array_equal(rows[1, ..., :3], before, err_msg=name)
            difference = np.abs(rows[1, ..., :3].astype(int) - fit(exact, 32, box, "bicubic"))
            assert difference.mean() < 0.5 and difference.max() <= 8, name
            by_pillow(fit_into, rows[1], picture, box, "bicubic", fast=True)
            assert np.abs(rows[1, ..., :3].astype(int) - before).mean() < 3, name


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [*SUBSAMPLINGS, "grey"])
def test_every_subsampling_and_odd_sizes_give_the_pixels_of_pillow(
    subsampling, progressive, by_pillow
):
    import simplejpeg

    for width, height in ((1, 1), (17, 8), (33, 47), (64, 63), (99, 16)):
        pixels = photo(3, width, height)
        if subsampling == "grey":
            data = jpeg(np.asarray(Image.fromarray(pixels).convert("L")), progressive=progressive)
        elif progressive:
            data = (
                jpeg(pixels, subsampling=subsampling, progressive=True)
                if subsampling in SUBSAMPLINGS[:3]
                else None
            )
        else:
            data = simplejpeg.encode_jpeg(
                pixels, quality=90, colorsubsampling=subsampling.replace(":", "")
            )
        if data is None:  # Pillow writes three subsamplings, simplejpeg writes nothing progressive
            continue
        assert fast_pictures.plain_size(data) == (width, height)
        for at_least in (1, 8, 16, 64):
            ours = decode_picture(data, at_least)
            theirs = by_pillow(open_picture, data, at_least)
            assert (ours[..., 3] == 255).all()
            np.testing.assert_array_equal(ours[..., :3], np.asarray(theirs))


def test_headers_that_pillow_has_to_see_are_left_to_it():
    assert fast_pictures.plain_size(FILES["colour"]) == (WIDTH, HEIGHT)
    for name in ("grey", "4:4:4", "RGB kept", "progressive", "restart markers", "bytes after it"):
        assert fast_pictures.plain_size(FILES[name]) == (WIDTH, HEIGHT), name
    for name in ("CMYK", "MPO", *(f"orientation {n}" for n in range(1, 9))):
        assert fast_pictures.plain_size(FILES[name]) is None, name
    assert fast_pictures.plain_size(jpeg(PIXELS, icc_profile=b"p" * 70_000)) == (WIDTH, HEIGHT)
    assert fast_pictures.plain_size(jpeg(PIXELS, comment=b"a comment")) == (WIDTH, HEIGHT)
    assert fast_pictures.plain_size(memoryview(jpeg(PIXELS, icc_profile=b"profile"))) == (
        WIDTH,
        HEIGHT,
    )
    assert fast_pictures.plain_size(jpeg(PIXELS, xmp=b"<x:xmpmeta/>")) is None
    for data in (
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        encoded(PIXELS),
        FILES["colour"][:100],
        b"\0" + FILES["colour"],
    ):
        assert fast_pictures.plain_size(data) is None


@pytest.mark.parametrize("name", ["colour", "grey", "progressive"])
def test_damaged_headers_have_the_same_outcome(name, by_pillow):
    whole = FILES[name]
    header = whole.index(b"\xff\xda") + 14
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.integers(2, header, rng.integers(1, 4)):
            data[at] = rng.choice([0, 1, 2, 0xFF, 0xC0, 0xDA, 0xE1, rng.integers(256)])
        ours = outcome(open_picture, bytes(data), 64)
        theirs = by_pillow(outcome, open_picture, bytes(data), 64)
        np.testing.assert_array_equal(ours, theirs)
        refused += isinstance(ours, str)
    assert 0 < refused < 300


@pytest.mark.parametrize("at_least", [1, 7, 20, 24, 100])
def test_the_fraction_is_that_of_pillow(at_least):
    for width, height in ((8, 9), (20, 40), (47, 48), (160, 161), (199, 801)):
        with Image.open(io.BytesIO(jpeg(np.zeros((height, width, 3), np.uint8)))) as opened:
            opened.draft("RGB", (at_least, at_least))
            assert fast_pictures.reduced(width, height, at_least) == opened.size


def test_a_picture_is_its_own_when_the_next_is_decoded():
    first = open_picture(FILES["colour"], 180)
    before = np.asarray(first).copy()
    open_picture(jpeg(photo(9)), 180)
    np.testing.assert_array_equal(np.asarray(first), before)
