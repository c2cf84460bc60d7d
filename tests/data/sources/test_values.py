"""What values of others are taken for, against Pillow's and numpy's own writers."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from jaxvl.data.records import BadRecord
from jaxvl.data.sources.values import (
    as_value,
    common_kind,
    embedded,
    kind_of,
    list_in_text,
    media_kind,
)


@pytest.mark.parametrize(
    "format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"]
)
def test_pictures_are_known_by_their_first_bytes(format):
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (1, 2, 3)).save(out, format)
    assert media_kind(out.getvalue()) == "image"
    if format in ("JPEG", "PNG", "WEBP", "GIF"):
        text = base64.b64encode(out.getvalue()).decode()
        assert (
            embedded(text) == out.getvalue()
            and embedded(f"data:image/x;base64,{text}") == out.getvalue()
        )


@pytest.mark.parametrize(
    "content",
    [b"", b"BMW cars", b"RIFF1234AVI ", b"<svg/>", b"<html>", b"\x80\x04pickle", bytes(100)],
)
def test_other_bytes_are_no_pictures(content):
    assert media_kind(content) is None


@pytest.mark.parametrize(
    "value, kind",
    [
        ("a", "text"),
        (b"fLaC", "audio"),
        (True, "int"),
        (3, "int"),
        (np.int8(3), "int"),
        (0.5, "float"),
        (np.float32(1), "float"),
        (np.ones(2), "array"),
        (["a", None], "texts"),
        ([1, 2.5], "array"),
        ([[1], [2]], "array"),
        ([[1], [2, 3]], None),
        ([b"\xff\xd8\xff"], "frames"),
        ([], None),
        (None, None),
        ({"a": 1}, None),
        (["a", 1], None),
    ],
)
def test_kinds_of_values(value, kind):
    assert kind_of(value) == kind


@pytest.mark.parametrize(
    "kinds, kind",
    [
        (["text", None, "text"], "text"),
        (["text", "texts"], "texts"),
        (["int", "float"], "float"),
        (["int", "array"], "array"),
        (["image", "frames"], "frames"),
        (["text", "text", "float"], "text"),
        (["text", "int"], None),
        ([], None),
        ([None], None),
    ],
)
def test_kinds_of_columns(kinds, kind):
    assert common_kind(kinds) == kind


@pytest.mark.parametrize(
    "text, texts",
    [
        ('["a", "b"]', ["a", "b"]),
        ("['a', \"it's\"]", ["a", "it's"]),
        (' ["ü"] ', ["ü"]),
        ("[a]", None),
        ("[]", None),
        ("[1, 2]", None),
        ("a", None),
        ("[__import__('os').getpid()]", None),
        ("[" * 10_000 + "]" * 10_000, None),
    ],
)
def test_lists_in_texts(text, texts):
    assert list_in_text(text) == texts


@pytest.mark.parametrize(
    "value, kind",
    [
        (3, "image"),
        ({}, "text"),
        (True, "text"),
        ("a", "int"),
        (0.5, "int"),
        (b"\xff", "text"),
        ([b"a", "b"], "frames"),
        ("a", "array"),
        ([["a"]], "array"),
        ("\ud800", "text"),
        (["a", 1.5j], "texts"),
    ],
)
def test_values_of_another_kind_are_bad_records(value, kind):
    with pytest.raises(BadRecord):
        as_value(value, kind, "here")


def test_values_of_another_type():
    assert (
        as_value("7", "int", "") == 7
        and as_value(b" 8 ", "class", "") == 8
        and as_value("0.5", "float", "") == 0.5
    )
    assert (
        as_value(3.0, "int", "") == 3
        and as_value(np.array([4]), "int", "") == 4
        and as_value(4, "text", "") == "4"
    )
    assert as_value("a", "texts", "") == ["a"] and as_value(["a", None, b"b"], "texts", "") == [
        "a",
        "b",
    ]
    assert as_value(bytearray(b"x"), "image", "") == b"x" and as_value(
        [1, 2], "array", ""
    ).tolist() == [1, 2]
