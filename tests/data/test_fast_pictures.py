"""The faster libraries against Pillow: the same pictures, the same refusals."""

import concurrent.futures
import io
import math

import numpy as np
import pytest
from data_samples import encoded
from PIL import Image

from jaxvl.data import fast_pictures
from jaxvl.data.pictures import CAUSES, TOO_LARGE, open_picture
from jaxvl.data.preprocess import Preprocess, as_array, crop_box, fit, smallest_part
from jaxvl.data.records import BadRecord

pytest.importorskip("simplejpeg")
pytest.importorskip("cykooz_resizer")
WIDTH, HEIGHT = 250, 190


def photo(seed, width=WIDTH, height=HEIGHT):
    """uint8 [H, W, 3] with the spectrum of a photo: smooth, with edges of every size."""
    rng, squared = np.random.default_rng(seed), np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None] ** 2
    squared[0, 0] = 1
    layers = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / squared**0.55, (height, width)) for _ in range(3)]
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
    Image.fromarray(photo(0)).save(out, "MPO", save_all=True, append_images=[Image.fromarray(photo(1))])
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
        assert (fast_pictures.decode_jpeg(data, opened) is None) == (name in UNKNOWN_TO_SIMPLEJPEG)
    ours, theirs = open_picture(data, at_least), by_pillow(open_picture, data, at_least)
    assert ours.mode == theirs.mode == "RGB"
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
    picture, resampling = open_picture(encoded(pixels)), Image.Resampling[interpolation.upper()]
    assert picture.mode == ("RGB" if channels == 3 else "RGBa")
    for draws in np.random.default_rng(0).random((12, 4)).tolist():
        box = crop_box(WIDTH, HEIGHT, (0.03, 1.0), (1 / 2, 2), draws)
        ours = fast_pictures.resize(picture, 64, box, interpolation)
        exact = picture.resize((64, 64), resampling, box=box)
        assert ours.mode == picture.mode and ours.size == (64, 64)
        difference = np.frombuffer(ours.tobytes(), np.uint8).astype(int) - np.frombuffer(exact.tobytes(), np.uint8)
        assert np.abs(difference).mean() < 0.5 and abs(difference.mean()) < 0.2 and np.abs(difference).max() <= 8
        np.testing.assert_array_equal(fit(picture, 64, box, interpolation, fast=True), as_array(ours))


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
        ours = np.abs(preprocess.decode(data, fast=True) - exact).mean()
        theirs = np.abs(by_pillow(preprocess.decode, data, fast=True) - exact).mean()
        if size == 120:  # no fraction of the picture is enough
            assert 0 < ours < 0.5
        assert ours < theirs + 0.5


@pytest.mark.parametrize(
    "area, ratio", [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.9, 1.0), (0.75, 1.2)), ((0.3, 0.5), (1.0, 1.0)), ((1.0, 1.0), (2.0, 3.0))]
)
def test_no_random_part_has_fewer_pixels_than_asked_for(area, ratio):
    """Of a JPEG that is decoded at a fraction of its size; and a smaller fraction would be too small for some part."""
    size, smallest = 32, smallest_part(area, ratio)
    for width, height in ((1200, 900), (500, 1700), (260, 240)):
        picture = Preprocess(size).open(jpeg(np.zeros((height, width, 3), np.uint8)), fast=True, smallest=smallest)
        draws = np.random.default_rng(0).random((4000, 4)).tolist()
        boxes = [crop_box(*picture.size, area, ratio, row) for row in draws]
        sides = [min(right - left, bottom - top) for left, top, right, bottom in boxes]
        fraction = picture.width / width
        assert min(sides) >= min(size, smallest * min(width, height)) - 1
        assert fraction < 0.126 or smallest * min(picture.size) / 2 < size + 1
    assert Preprocess(size).open(FILES["colour"], fast=True).size == Preprocess(size).open(FILES["colour"], fast=True, smallest=1.0).size


def test_boxes_that_end_at_the_edge():
    picture, draws = open_picture(encoded(photo(4))), np.random.default_rng(1)
    for left, top in draws.random((300, 2)) * 150:
        box = (left, top, left + (WIDTH - left), top + (HEIGHT - top))
        box = tuple(min(value, end) for value, end in zip(box, (WIDTH, HEIGHT, WIDTH, HEIGHT)))
        assert fast_pictures.resize(picture, 8, box, "bicubic").size == (8, 8)
    beyond = (math.nextafter(WIDTH / 3, 0), 0.1, WIDTH, HEIGHT)
    assert fast_pictures.resize(picture, 8, beyond, "bicubic") is not None


@pytest.mark.parametrize("kind", [dict(), dict(progressive=True), dict(restart_marker_rows=1)])
def test_damaged_files_have_the_same_outcome(kind, by_pillow):
    whole, rng = jpeg(photo(5, 90, 70), **kind), np.random.default_rng(0)
    refused = 0
    for i in range(150):
        data = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            data[at] = rng.choice([0, 0xFF, 0xD9, 0xDA, rng.integers(256)])
        data = bytes(data[: rng.integers(len(whole))] if i % 3 == 0 else data)
        ours, theirs = outcome(open_picture, data, 24), by_pillow(outcome, open_picture, data, 24)
        assert type(ours) is type(theirs)
        np.testing.assert_array_equal(ours, theirs)
        refused += isinstance(ours, str)
    assert 0 < refused < 150


def test_bombs_are_refused_before_anything_is_decoded(monkeypatch):
    import simplejpeg

    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)  # calling it would be a TypeError, and so "cannot be decoded"
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
            for got, expected in zip(pool.map(lambda data: Preprocess(48).decode(data, fast=True), files), wanted):
                np.testing.assert_array_equal(got, expected)


def test_a_picture_is_its_own_when_the_next_is_decoded():
    first = open_picture(FILES["colour"], 180)
    before = np.asarray(first).copy()
    open_picture(jpeg(photo(9)), 180)
    np.testing.assert_array_equal(np.asarray(first), before)
