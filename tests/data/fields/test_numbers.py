"""Classes, groups, figures and arrays of a record."""

import hashlib
import unicodedata

import numpy as np
import pytest
from data_samples import FIRST_CLASS, FakeSource, noise, record, row_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvl.config import ConfigError
from jaxvl.data.classes import ClassSet
from jaxvl.data.fields.numbers import Array, Group, Label, Number, hash_of, same_text
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Column

COLUMNS = {
    "class_label": Column("class", classes=ClassSet({"en": ("a", "b", "c")})),
    "id": Column("int"),
    "width": Column("float"),
    "text": Column("text"),
    "texts": Column("texts"),
    "image": Column("image"),
    "features": Column("array"),
}
SOURCE = FakeSource(1, columns=COLUMNS)


def value(field, found):
    """What the row holds for a record whose column holds `found`."""
    row = row_of(field, {} if found is None else {field.column: found}, source=SOURCE)
    return None if row is None else row["x"]


# --------------------------------------------------------------------------------------------------
# Labels


@pytest.mark.parametrize("found", [0, 2, -1, 2**31 - 1, -(2**31), np.int64(7)])
def test_a_label_is_the_number(found):
    label = value(Label("id"), found)
    assert label == found and label.dtype == np.int32


@pytest.mark.parametrize("found", [2**31, -(2**31) - 1, 2**70])
def test_a_label_of_more_than_32_bits_is_a_bad_record(found):
    with pytest.raises(
        BadRecord, match=f"class is no number of 32 bits: column 'id' holds {found}"
    ):
        value(Label("id"), found)


@pytest.mark.parametrize("found", ["seven", 1.5, float("nan"), float("inf"), [1], b"1"])
def test_a_class_that_is_no_whole_number_is_a_bad_record(found):
    with pytest.raises(BadRecord, match="class is no whole number: column 'id' holds"):
        value(Label("id"), found)


@pytest.mark.parametrize("found", [1.5, float("nan"), [1], ["a", b"b"], {}])
def test_a_group_that_is_no_number_and_no_text_is_a_bad_record(found):
    with pytest.raises(BadRecord, match="group is no number and no text: column 'id' holds"):
        value(Group("id"), found)


def test_a_whole_number_as_a_float_is_one():
    assert (
        value(Label("id"), 3.0) == value(Group("id"), np.float32(3.0)) == 3
    )  # as tables with missing values hold integers


def test_labels_know_their_classes():
    assert Label().classes(SOURCE) == 3 and Label("id").classes(SOURCE) is None
    assert value(Label(), 2) == 2 and value(Label(), None) is None


# --------------------------------------------------------------------------------------------------
# Groups


def blake(data):
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "little", signed=True)


@pytest.mark.parametrize("found", [0, 5, -3, 2**31 - 1, -(2**31), np.int32(9), np.uint8(3)])
def test_a_group_of_a_number_is_the_number(found):
    assert value(Group("id"), found) == found and value(Group("class_label"), found) == found


def test_larger_numbers_are_hashed_apart():
    found = [value(Group("id"), 2**31 + i).item() for i in range(1000)]
    assert len(set(found)) == 1000 and min(found) < 0 < max(found)


SAME = [
    ("A red Square", "a  red\tsquare "),
    ("Straße", "STRASSE"),
    ("ＡＢＣ 日本", "abc　日本"),  # wide letters, and the wide space
    ("caf\u00e9", "cafe\u0301"),
    ("\ufb01sh", "fish"),
    ("two\nlines", "two lines"),
    ("ΣΊΣΥΦΟΣ", "σίσυφος"),
    ("a\u00a0b", "A b"),
]


@pytest.mark.parametrize("one, other", SAME)
def test_texts_equal_up_to_case_width_and_spacing_are_one_group(one, other):
    assert value(Group(), one) == value(Group(), other)
    assert value(Group("texts"), [one, "x"]) == value(Group("texts"), [other, "X"])


@pytest.mark.parametrize(
    "one, other",
    [("red square", "redsquare"), ("a cat", "a cat."), ("cafe", "café"), ("", "x"), ("a b", "b a")],
)
def test_other_texts_are_other_groups(one, other):
    assert value(Group(), one) != value(Group(), other)


def test_the_hash_is_blake2b_of_the_text():
    """So that equal texts of two runs, hosts and versions are equal."""
    assert value(Group(), "A  Red Square") == blake(b"a red square")
    assert value(Group("texts"), ["A", "b  C"]) == blake(b"a\0b c")
    assert value(Group(), "A  Red Square").dtype == np.int32


def test_lists_are_in_order_and_apart():
    lists = [["a", "b"], ["b", "a"], ["a b"], ["ab"], ["a", "b", ""]]
    assert len({value(Group("texts"), found).item() for found in lists}) == len(lists)


def test_pictures_are_grouped_by_their_bytes():
    one = record(0)["image"]
    other = record(1)["image"]
    assert value(Group("image"), one) == value(Group("image"), bytes(one)) == blake(one)
    assert value(Group("image"), one) != value(Group("image"), other)
    assert value(Group("image"), b"ABC") != value(Group("image"), b"abc")  # not as texts are


def test_a_surrogate_alone_is_a_text_as_well():
    assert value(Group(), "a \ud800") != value(Group(), "a \ud801")


@settings(max_examples=100, deadline=None)
@given(st.text(), st.sampled_from([" ", "\t", "\n", "\u3000"]))
def test_casing_and_spacing_of_any_text_change_nothing(text, space):
    spaced = space + space.join(text.split()) + space
    assert hash_of(text) == hash_of(spaced)
    assert same_text(same_text(text)) == same_text(text)
    assert same_text(unicodedata.normalize("NFD", text)) == same_text(text)


def test_few_texts_of_many_share_a_number():
    found = np.array([hash_of(f"caption number {i}") for i in range(20_000)])
    pairs = 20_000**2 / 2 / 2**32  # 0.05 expected by chance
    assert len(found) - len(np.unique(found)) <= 2 + 10 * pairs
    assert abs((found < 0).mean() - 0.5) < 0.02


# --------------------------------------------------------------------------------------------------
# Figures and arrays


@pytest.mark.parametrize(
    "found, expected",
    [(1.5, 1.5), (3, 3.0), (np.float64(1e-3), 1e-3), (-0.0, 0.0), (2**24 + 1, 2**24)],
)
def test_a_figure_is_a_float32(found, expected):
    for column in ("width", "id"):
        row = value(Number(column), found)
        assert row == np.float32(expected) and row.dtype == np.float32


@pytest.mark.parametrize("found", [float("nan"), float("inf"), -np.inf, 1e39, 10**400])
def test_a_figure_that_is_not_finite_is_a_bad_record(found):
    with pytest.raises(BadRecord, match="number is not finite: column 'width' holds"):
        value(Number("width"), found)


@pytest.mark.parametrize("found", ["1.5", [1.0], b"1", 1 + 2j])
def test_a_figure_that_is_no_number_is_a_bad_record(found):
    with pytest.raises(BadRecord, match="column 'width' holds"):
        value(Number("width"), found)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int16, np.uint8, bool])
def test_an_array_is_float32(dtype):
    given_ = noise(0, 2, 3).astype(dtype)
    row = value(Array("features", (2, 3)), given_)
    np.testing.assert_array_equal(row, given_.astype(np.float32))
    assert row.dtype == np.float32
    assert value(Array("features", (2, 3)), given_.tolist()).tolist() == row.tolist()


BAD_ARRAYS = [
    np.zeros((3, 2)),
    np.zeros(6),
    np.zeros((1, 2, 3)),
    np.array(5.0),
    np.array([["a", "b", "c"]] * 2),
    np.zeros((2, 3), complex),
    np.array([[None] * 3] * 2),
    [[1, 2, 3], [4, 5]],
]


@pytest.mark.parametrize(
    "found",
    BAD_ARRAYS,
    ids=lambda found: str(np.shape(found)) if isinstance(found, np.ndarray) else "ragged",
)
def test_an_array_of_another_shape_or_kind_is_a_bad_record(found):
    with pytest.raises(BadRecord, match=r"array has another shape: column 'features' holds"):
        value(Array("features", (2, 3)), found)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_array_with_values_that_are_not_finite_is_a_bad_record(bad):
    found = np.zeros((2, 3))
    found[1, 2] = bad
    with pytest.raises(BadRecord, match="array is not finite: column 'features'"):
        value(Array("features", (2, 3)), found)


def test_the_row_keeps_no_hold_of_the_record():
    found = np.ones((2, 3), np.float32)
    row = value(Array("features", (2, 3)), found)
    found[:] = 7
    assert (row == 1).all()


def test_what_is_absent_is_none():
    for field in (Label("id"), Group(), Number("width"), Array("features", (2, 3))):
        assert value(field, None) is None
        assert (
            field.needs(SOURCE) == [(field.column,)]
            and field.inputs("x") == {}
            and field.draws == 0
        )


KINDS = [
    (Label("text"), "column: 'text' of fake holds text; must be class or int"),
    (Label("width"), "column: 'width' of fake holds float; must be class or int"),
    (
        Group("features"),
        "column: 'features' of fake holds array; must be class or int or text or texts or image",
    ),
    (Number("image"), "column: 'image' of fake holds image; must be float or int or class"),
    (Array("width", (2,)), "column: 'width' of fake holds float; must be array"),
    (
        Array("featrues", (2,)),
        r"column: 'featrues' is no column of fake; did you mean 'features'\? \(columns: class_label \(class\), id \(int\)",
    ),
    (Label("name/*"), r"column: 'name/\*' is no column of fake"),
]


@pytest.mark.parametrize("field, message", KINDS)
def test_columns_of_other_kinds_are_refused(field, message):
    with pytest.raises(ConfigError, match=message):
        value(field, None)


@pytest.mark.parametrize("shape", [(), (0,), (3, -1)])
def test_shapes_that_cannot_be(shape):
    with pytest.raises(ConfigError, match="shape: .* must be sizes >= 1"):
        Array("features", shape)


def test_one_column_may_be_label_and_group():
    given_ = {"class_label": FIRST_CLASS}
    assert (
        row_of(Label(), given_, source=SOURCE)["x"]
        == row_of(Group("class_label"), given_, source=SOURCE)["x"]
        == FIRST_CLASS
    )
