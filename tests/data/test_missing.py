"""Records that lack a field, whether the source knows it or only reading tells."""

import dataclasses

import numpy as np
import pytest
from data_samples import COLUMNS, FIRST_CLASS, FakeConfig, FakeSource, record, tokenizer

from jaxvl.data.batches import Batches
from jaxvl.data.config import DataConfig, ReaderConfig
from jaxvl.data.fields.caption import Caption
from jaxvl.data.fields.frames import Frames
from jaxvl.data.fields.numbers import Group, Label, Number
from jaxvl.data.fields.picture import Picture
from jaxvl.data.samplers.in_order import InOrder
from jaxvl.data.sources.base import Column
from jaxvl.data.tokenizers import Tokenizer

N = 8
B = 8
S = 10
T = 12
COLUMNS_HERE = {
    **COLUMNS,
    "frames": Column("frames", optional=True),
    "name/en": Column("text", optional=True),
    "image": Column("image", optional=True),
    "width": Column("float", optional=True),
}
FIELDS = dict(
    image=Picture(size=S),
    text=Caption("name/en", length=T),
    video=Frames(size=S, frames=2),
    group_id=Group("class_label"),
)
CONFIG = DataConfig(
    FakeConfig(),
    batch=B,
    fields=FIELDS,
    sampler=InOrder(),
    reader=ReaderConfig(threads=2),
    error_minimum=1000,
)


def whole(i):
    return {**record(i), "frames": [record(i)["image"]] * 2, "width": float(i)}


def without(i, *names):
    return {name: value for name, value in whole(i).items() if name not in names}


LACKING = {
    1: without(1, "frames"),
    2: {**whole(2), "frames": []},
    3: without(3, "name/en"),
    4: {**whole(4), "name/en": "  "},
    5: without(5, "image", "frames"),
    6: without(6, "image", "frames", "name/en"),
}


def source(known=(), replace=LACKING):
    return FakeSource(N, {i: whole(i) for i in range(N)} | replace, COLUMNS_HERE, known)


@pytest.fixture
def batches():
    """Makes `Batches` of the records that the config selects, closed when the test ends."""
    made = []

    def make(source, tokens=None, **options):
        config = dataclasses.replace(CONFIG, **options)
        made.append(Batches(config, config.select(source), tokens or tokenizer(), seed=0))
        return made[-1]

    yield make
    for one in made:
        one.close()


def numbers(batch):
    return (batch["group_id"] - FIRST_CLASS).tolist()


def test_what_only_reading_tells_is_replaced_and_counted(batches):
    b = batches(source())
    assert numbers(b[0]) == [0, 7, 7, 7, 7, 7, 7, 7]
    met = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6}  # each in its own place and in those before it
    causes = {"no video": met[1] + met[2], "no text": met[3] + met[4], "no image": met[5] + met[6]}
    assert b.counts() == (N + sum(met.values()), causes)
    assert len(b.source) == N


def test_what_the_source_knows_is_left_out_and_not_counted(batches):
    b = batches(source(known=("frames", "name/en", "image")))
    assert len(b.source) == 4  # 0, 7, and the records whose column is there but empty
    assert numbers(b[0]) == [0, 7, 7, 7] * 2  # two epochs of these
    assert b.counts()[1] == {"no video": 2, "no text": 2 * 2}
    partly = batches(source(known=("frames",)))
    assert (
        len(partly.source) == N - 3 and partly[0]["group_id"].tolist().count(FIRST_CLASS + 1) == 0
    )


@pytest.mark.parametrize("known", [(), ("frames", "name/en", "image")])
def test_a_mask_says_what_a_row_has(batches, known):
    b = batches(source(known, {**LACKING, 6: whole(6)}), missing="mask")
    batch = b[0]
    assert numbers(batch) == list(range(N)) and not b.counts()[1]
    has = {
        name: np.flatnonzero(batch[f"has_{name}"]).tolist() for name in ("image", "text", "video")
    }
    assert has == {
        "image": [0, 1, 2, 3, 4, 6, 7],
        "text": [0, 1, 2, 5, 6, 7],
        "video": [0, 3, 4, 6, 7],
    }
    for name, rows in has.items():
        absent = np.setdiff1d(np.arange(N), rows)
        assert (
            not batch[name][absent].any() and batch[name][rows].reshape(len(rows), -1).any(1).all()
        )
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (s.shape, s.dtype) for k, s in b.config.shapes.items()
    }


def test_a_text_that_is_not_there_is_padding(batches):
    """Its id need not be 0."""
    plain = tokenizer()
    other = Tokenizer("sentencepiece", plain.content, pad_id=plain.vocab_size, eos_id=1)
    for tokens in (plain, other):
        batch = batches(
            source(),
            tokens,
            missing="mask",
            fields=FIELDS | dict(text=Caption("name/en", length=T, count=2)),
        )[0]
        assert (batch["text"][3:5] == tokens.pad_id).all() and (
            batch["text"][0] != tokens.pad_id
        ).any()
        assert batch["text"].shape == (B, 2, T)


def test_a_record_without_any_input_is_replaced_under_masks_too(batches):
    b = batches(source(), missing="mask")
    assert numbers(b[0]) == [0, 1, 2, 3, 4, 5, 7, 7]
    assert b.counts() == (N + 1, {"no image": 1})


def test_a_field_without_a_mask_is_needed_under_masks(batches):
    """A row without a class would be one of class 0."""
    fields = dict(
        text=Caption("name/en", length=T), width=Number("width"), group_id=Group("class_label")
    )
    lacking = {2: without(2, "width"), 4: without(4, "name/en")}
    b = batches(
        source(replace=lacking), fields=fields | dict(image=Picture(size=S)), missing="mask"
    )
    assert numbers(b[0]) == [0, 1, 3, 3, 4, 5, 6, 7] and b.counts()[1] == {"no width": 1}
    assert b[0]["has_text"].tolist() == [True] * 4 + [False] + [True] * 3
    assert not {"has_width", "has_group_id"} & set(b[0])
    known = batches(
        source(("width",), lacking), fields=fields | dict(image=Picture(size=S)), missing="mask"
    )
    assert len(known.source) == N - 1 and not known.counts()[1]
    assert numbers(known[0])[:7] == [0, 1, 3, 4, 5, 6, 7] and not known.counts()[1]


def test_labels_do_not_make_a_record_of_use(batches):
    fields = dict(
        video=Frames(size=S, frames=2), class_label=Label(), group_id=Group("class_label")
    )
    b = batches(source(), fields=fields, missing="mask")
    assert numbers(b[0]) == [0, 3, 3, 3, 4, 7, 7, 7] and b.counts()[1] == {
        "no video": 2 + 1 + 2 + 1
    }
