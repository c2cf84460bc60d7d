"""The corpus of bad records: each kind gives its pixels or its cause, in bounded time and
memory."""

import io
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from bad_records import EITHER, IF_PILLOW, PICTURES, PILLOW, TEXTS
from data_samples import tokenizer
from PIL import Image, ImageOps

from jaxvl.data import pictures, text_files
from jaxvl.data.inspecting.texts import script, text_figures
from jaxvl.data.pictures import CAUSES, FORMATS, open_picture
from jaxvl.data.preparing.rows import NO_CAPTION, read_row
from jaxvl.data.preparing.words import grams, text_key, words
from jaxvl.data.records import BadRecord

SECONDS = 2.0  # of processor time, for any picture or text
GROWTH = 1024  # MiB of memory, for any picture


def test_the_corpus_is_large_enough():
    assert len(PICTURES) >= 60 and len(TEXTS) >= 25


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_gives_its_pixels_or_its_cause(name):
    kind = PICTURES[name]
    got, cause = decoded(kind.data)
    assert cause is None or cause in CAUSES
    expected = kind.outcome
    if isinstance(expected, str) and expected in (PILLOW, IF_PILLOW):
        expected = by_pillow(kind.data, must=expected == PILLOW)
    if isinstance(expected, str) and expected == EITHER:
        return
    if expected is None or isinstance(expected, str):
        assert cause == expected if expected else cause is not None
        return
    assert cause is None
    assert got.shape == expected.shape
    assert within(got, expected, kind.limit)


def within(got, expected, limit):
    """Whether no pixel differs by more than `limit`; large pictures are not copied."""
    return (
        np.array_equal(got, expected)
        if limit == 0
        else np.abs(got.astype(int) - expected).max() <= limit
    )


def decoded(data):
    """(pixels or None, cause or None), within `SECONDS`."""
    began = time.process_time()
    try:
        got = np.asarray(open_picture(data, background=(1.0, 1.0, 1.0)))
        cause = None
        assert got.dtype == np.uint8 and got.ndim == 3 and got.shape[-1] == 3
    except BadRecord as error:
        got = None
        cause = error.cause
        assert len(str(error)) < 1000
    assert time.process_time() - began < SECONDS
    return got, cause


def by_pillow(data, must):
    """Pixels on white, upright; None where Pillow fails."""
    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    except Exception:  # noqa: BLE001 (any of Pillow's)
        assert not must
        return None
    if picture.has_transparency_data:
        picture = Image.alpha_composite(
            Image.new("RGBA", picture.size, (255,) * 4), picture.convert("RGBA")
        )
    return np.asarray(picture.convert("RGB"))


def test_what_pillow_cannot_decode_is_no_picture():
    """Pillow is the oracle: a cause that says so is only given where Pillow fails, or for a format
    that is not read."""
    for name, kind in PICTURES.items():
        unreadable = isinstance(kind.outcome, str) and kind.outcome == pictures.CANNOT_BE_DECODED
        if not unreadable or not isinstance(kind.data, bytes):
            continue
        try:
            picture = Image.open(io.BytesIO(kind.data))
            picture.load()
        except Exception:  # noqa: BLE001 (any of Pillow's)
            continue
        assert picture.format not in FORMATS or 0 in picture.size, name


def test_decoding_is_bounded_in_memory(tmp_path):
    """In a process of its own, which counts its own peak for each picture: the peak never falls, so
    one that grows it is named."""
    data = {name: kind.data for name, kind in PICTURES.items()}
    (tmp_path / "pictures").write_bytes(pickle.dumps(data))
    program = f"""
import pickle, resource
from jaxvl.data.pictures import open_picture
from jaxvl.data.records import BadRecord
pictures = pickle.load(open({str(tmp_path / "pictures")!r}, "rb"))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
for name, data in pictures.items():
    try:
        open_picture(data, background=(1.0, 1.0, 1.0))
    except BadRecord:
        pass
    grown = peak() - before
    if grown > {GROWTH}:
        raise SystemExit(f"{{name}}: {{grown:.0f}} MiB")
print("most", grown)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_read_in_bounded_time(name):
    text, least = TEXTS[name]
    tokens = tokenizer()
    began = time.process_time()
    ids = tokens.encode([text], 16)
    assert ids.shape == (1, 16) and ids.min() >= 0 and ids.max() < tokens.vocab_size
    found = words(text)
    assert len(found) >= least
    assert len(grams(text)) == max(2 * len(found) - 1, 0)
    assert len(text_key(text)) == 16
    assert text_figures([text]).texts == 1 and script(text)
    assert time.process_time() - began < SECONDS


def test_texts_without_letters_are_no_captions():
    for name in ("empty", "spaces"):
        row = read_row(_Config, _Texts(TEXTS[name][0]), 7)
        assert (row.cause, row.position) == (NO_CAPTION, 7)
    for name in (
        "None",
        "null",
        "NA",
        "nan",
    ):  # texts as they stand; what to do with them is a filter's to say
        row = read_row(_Config, _Texts(TEXTS[name][0]), 7)
        assert [text for _, text in row.texts] == [name]


class _Config:
    image = "image"
    texts = ("text",)
    test_images = {}
    uid = "uid"

    class rules:
        uid_subset = test_distance = None


class _Texts:
    def __init__(self, text):
        self.text = text

    def read(self, position, columns):
        return {"image": PICTURES["an interlaced PNG"].data, "text": self.text}


@pytest.mark.parametrize(
    "content",
    [
        b"caf\xe9",
        b"\xff\xfe\x00",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf5\x80\x80\x80",
        b"dog \xe2\x82",
    ],
)
def test_bytes_that_are_no_utf8_are_said(content):
    with pytest.raises(UnicodeDecodeError):
        text_files.decode(content)
    assert "\ufffd" in text_files.decode(content, "replace")
