"""Any bytes as a picture, and any text as an option of a source: an answer or an error of ours,
soon and in bounded memory."""

import contextlib
import io
import resource
import time

import hypothesis
import numpy as np
import pytest
from bad_records import PICTURES
from hypothesis import strategies as st
from PIL import Image

from jaxvl.config import ConfigError, choose
from jaxvl.data.pictures import open_picture, upright_size
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.file_patterns import MOST_FILES, expand_braces
from jaxvl.data.sources.member_columns import parse_columns

MOST_MEMORY = 2**30  # bytes
MOST_SECONDS = 10  # of processor time


@contextlib.contextmanager
def bounded():
    """Time, and growth of the most memory that the process has had, stay within bounds."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    yield
    assert time.process_time() - start < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_MEMORY


# --------------------------------------------------------------------------------------------------
# Pictures


def _encoded():
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 4), np.uint8)
    for name, mode, options in (
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("WEBP", "RGBA", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {}),
        ("TIFF", "L", {"compression": "tiff_lzw"}),
        ("JPEG2000", "RGB", {}),
        ("PPM", "RGB", {}),
    ):
        out = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(out, name, **options)
        yield out.getvalue()


SEEDS = [
    *_encoded(),
    *(
        kind.data
        for kind in PICTURES.values()
        if isinstance(kind.data, bytes) and len(kind.data) < 2**16
    ),
]
EDITS = st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=16)), max_size=5)
OF_PICTURE = (st.integers(0, len(SEEDS) - 1), EDITS, st.integers(0, 2000))


def fuzz_picture(seed, edits, cut):
    data = bytearray(SEEDS[seed])
    for at, piece in edits:
        at %= len(data) + 1
        data[at : at + len(piece)] = piece
    data = bytes(data[: len(data) - cut % (len(data) + 1)])
    with bounded():
        for read in (
            open_picture,
            upright_size,
            lambda data: Preprocess().at(16).decode(data, fast=True),
        ):
            with contextlib.suppress(BadRecord):
                read(data)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(*OF_PICTURE)
def test_any_picture_is_decoded_or_a_bad_record(seed, edits, cut):
    fuzz_picture(seed, edits, cut)


@pytest.mark.slow
@hypothesis.settings(max_examples=5_000, deadline=None)
@hypothesis.given(*OF_PICTURE)
def test_any_picture_is_decoded_or_a_bad_record_for_long(seed, edits, cut):
    fuzz_picture(seed, edits, cut)


# --------------------------------------------------------------------------------------------------
# Options

PIECES = st.sampled_from(
    [
        "{",
        "}",
        ",",
        "..",
        "::",
        "0",
        "00",
        "9",
        "99999",
        "a",
        "z",
        "-",
        "/",
        "//",
        ".",
        "*",
        "?",
        "[",
        "]",
        "\\",
        "\0",
        "\n",
        "é",
        "\ud800",
        "~",
    ]
    + [
        "s3://",
        "gs://",
        "http://",
        "file:",
        "pipe:",
        "x.tar",
        "__key__",
        "json",
        ":",
        ";",
        "jpg",
        "txt",
        "pkl",
        " ",
        "%00",
        "$HOME",
    ]
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)
VALUES = st.one_of(
    TEXTS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.lists(TEXTS, max_size=2),
    st.dictionaries(TEXTS, TEXTS, max_size=2),
)
SOURCE_OPTIONS = {
    "webdataset": ("files", "columns", "optional", "kinds", "index"),
    "parquet": ("files", "columns", "kinds", "images", "cache"),
    "jsonl": ("files", "images", "columns", "kinds"),
    "csv": ("files", "delimiter", "quotes", "columns"),
    "array_record": ("files", "payload", "columns"),
    "folder": ("path", "classes", "columns", "kinds"),
    "mds": ("path", "columns", "kinds"),
    "energon": ("path", "split", "columns", "dataset_yaml"),
    "questions": ("folder", "split", "images"),
}
REMOTE = ("s3://", "gs://", "http://", "az://", "hf://")
OF_SOURCE = (st.sampled_from(sorted(SOURCE_OPTIONS)), st.lists(VALUES, min_size=5, max_size=5))


def fuzz_source(name, values, folder):
    node = {"name": name, **dict(zip(SOURCE_OPTIONS[name], values))}
    hypothesis.assume(not any(scheme in str(values) for scheme in REMOTE))
    with bounded(), contextlib.suppress(ConfigError, DataError), contextlib.chdir(folder):
        choose(SOURCES, node, "source").open(lambda line: None)


def fuzz_texts(text):
    with bounded():
        with contextlib.suppress(ConfigError):
            assert len(expand_braces(text, "files")) <= MOST_FILES
        with contextlib.suppress(ConfigError):
            parse_columns({"a": text}, {"a": "text"})


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return tmp_path_factory.mktemp("empty")


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(*OF_SOURCE)
def test_any_options_of_a_source_are_taken_or_refused(empty, name, values):
    fuzz_source(name, values, empty)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(TEXTS)
def test_any_text_of_a_pattern_is_taken_or_refused(text):
    fuzz_texts(text)


@pytest.mark.slow
@hypothesis.settings(max_examples=2_000, deadline=None)
@hypothesis.given(*OF_SOURCE)
def test_any_options_of_a_source_are_taken_or_refused_for_long(empty, name, values):
    fuzz_source(name, values, empty)


@pytest.mark.slow
@hypothesis.settings(max_examples=5_000, deadline=None)
@hypothesis.given(st.one_of(TEXTS, st.text(max_size=200)))
def test_any_text_of_a_pattern_is_taken_or_refused_for_long(text):
    fuzz_texts(text)


@pytest.mark.parametrize(
    "pattern",
    [
        "{" * 3000,
        "{" * 3000 + "}" * 3000,
        "{a," * 3000,
        "{a," * 3000 + "}" * 3000,
        "{0..99999}" * 3,
        "{" + "{0..199999}," * 40 + "a}",
        "a" * 10**6,
    ],
)
def test_deep_and_long_patterns_are_refused_soon(pattern):
    with bounded(), contextlib.suppress(ConfigError):
        expand_braces(pattern, "files")
