"""Interleaved rows, against lists put together by hand and against the loader's rows of one
image."""

import dataclasses

import numpy as np
import pytest
from data_samples import FakeConfig, FakeSource, assert_same, tokenizer

from jaxvl.config import ConfigError
from jaxvl.data.batches import Batches, Rows, Start
from jaxvl.data.config import DataConfig, Interleave, ReaderConfig
from jaxvl.data.feed import Feed
from jaxvl.data.fields.caption import Caption
from jaxvl.data.fields.numbers import Group
from jaxvl.data.fields.picture import Picture
from jaxvl.data.packing import LEAST, pack
from jaxvl.sharding import make_mesh

N = 24
B = 8
K = 3
T = 10
TOKENIZER = tokenizer()
TEXT = Caption({"name/en": 1, "keywords/en": 1, "name/*": 1}, length=T)
FIELDS = dict(image=Picture(size=12), text=TEXT, group_id=Group("class_label"))
ROWS = Interleave(K)
CONFIG = DataConfig(
    FakeConfig(),
    batch=B,
    fields=FIELDS,
    interleave=ROWS,
    reader=ReaderConfig(threads=2),
    error_minimum=1000,
)


def random_texts(rng, b, k, t):
    texts = rng.integers(2, 50, (b, k, t))
    ends = rng.integers(0, t, (b, k))
    place = np.arange(t)
    return np.where(
        place < ends[..., None], texts, np.where(place == ends[..., None], 1, 0)
    ).astype(np.int32)


def words(text):
    """Up to and with the first EOS."""
    return text.tolist()[: text.tolist().index(1) + 1]


@pytest.mark.parametrize("length", [30, 21, 12, 9])
def test_texts_stand_one_behind_the_other(length):
    texts = random_texts(np.random.default_rng(length), 64, 3, 10)
    got = pack(texts, length, eos_id=1, pad_id=0)
    for row, text, segment, lengths, weight in zip(
        texts, got["text"], got["segment"], got["lengths"], got["weight"]
    ):
        whole = [words(t) for t in row]
        kept = []
        room = length
        for i, tokens in enumerate(whole):
            later = sum(min(len(t), LEAST) for t in whole[i + 1 :])
            kept.append(tokens if len(tokens) <= room - later else tokens[: room - later - 1] + [1])
            room -= len(kept[-1])
        flat = [t for tokens in kept for t in tokens]
        assert text.tolist() == flat + [0] * (length - len(flat))
        assert segment.tolist() == [i + 1 for i, tokens in enumerate(kept) for _ in tokens] + [
            0
        ] * (length - len(flat))
        assert lengths.tolist() == [len(t) for t in kept]
        assert weight.tolist() == [float(s > 0) for s in segment]
        assert sum(map(len, whole)) > length or kept == whole


def test_padding_may_be_the_end_token_and_too_short_rows_are_refused():
    got = pack(np.array([[[5, 1, 1, 1], [6, 7, 1, 1]]]), 8, eos_id=1, pad_id=1)
    assert got["text"].tolist() == [[5, 1, 6, 7, 1, 1, 1, 1]] and got["segment"].tolist() == [
        [1, 1, 2, 2, 2, 0, 0, 0]
    ]
    with pytest.raises(ValueError, match="length 5 has no room for 2 texts; must be >= 6"):
        pack(np.zeros((1, 2, 4), int), 5, eos_id=1, pad_id=0)


@pytest.fixture
def batches():
    """Makes `Batches` of 24 records, closed when the test ends."""
    made = []

    def make(rows=None, start=None, **options):
        config = dataclasses.replace(CONFIG, **options)
        made.append(Batches(config, FakeSource(N), TOKENIZER, seed=3, rows=rows, start=start))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_rows_hold_consecutive_records_of_the_stream(batches):
    packed = batches()[2]
    single = batches(interleave=None, batch=B * K)[2]
    assert {k: (v.dtype, v.shape) for k, v in packed.items()} == {
        k: (s.dtype, s.shape) for k, s in CONFIG.shapes.items()
    }
    for key in ("image", "group_id", "position"):
        np.testing.assert_array_equal(packed[key].reshape(single[key].shape), single[key])
    for i, text in enumerate(single["text"]):
        row, k = divmod(i, K)
        assert packed["text"][row][packed["segment"][row] == k + 1].tolist() == words(text)


def test_hosts_and_a_resumed_feed_read_the_rows_of_the_same_batches(batches):
    short = Interleave(K, length=16)
    b = batches(interleave=short)
    whole = [b[i] for i in range(4)]
    halves = [
        batches(rows=Rows(half, np.ones(len(half), bool)), interleave=short)[3]
        for half in np.array_split(np.arange(B), 2)
    ]
    assert_same(
        whole[3], {key: np.concatenate([half[key] for half in halves]) for key in halves[0]}
    )
    config = dataclasses.replace(CONFIG, interleave=short)
    feed = Feed(config, FakeSource(N), TOKENIZER, seed=3, mesh=make_mesh(), start=Start(2 * B * K))
    try:
        for expected in whole[2:]:
            assert_same(next(feed), expected)
    finally:
        feed.close()


def test_positions_count_records(batches):
    """Rows of three records: four of them, then rows in batches of twice as many."""
    b = batches()
    stream = np.concatenate([b[i]["group_id"] for i in range(3)])
    config = dataclasses.replace(CONFIG, batch=2 * B)
    feed = Feed(config, FakeSource(N), TOKENIZER, seed=3, mesh=make_mesh(), start=Start(B * K))
    try:
        np.testing.assert_array_equal(next(feed)["group_id"], stream[B:])
        assert feed.position == 3 * B * K
    finally:
        feed.close()
    late = batches(start=Start(K))  # one row later
    np.testing.assert_array_equal(
        np.concatenate([late[i]["group_id"] for i in range(2)]), stream[1 : 2 * B + 1]
    )


def test_each_record_of_a_row_is_counted(batches):
    counted = np.arange(B) < 2
    b = batches(rows=Rows(np.arange(B), counted))
    b[0]
    assert b.counts() == (2 * K, {})


def test_sizes_of_a_row():
    assert (CONFIG.records_per_row, CONFIG.records_per_batch, CONFIG.tokens) == (K, B * K, K * T)
    assert dataclasses.replace(CONFIG, interleave=Interleave(K, 16)).tokens == 16
    assert dataclasses.replace(CONFIG, interleave=None).tokens == T


WRONG = [
    (
        dict(interleave=Interleave(K, 8)),
        "interleave.length: 8 must be >= 3 tokens for each of 3 texts",
    ),
    (dict(fields=dict(image=Picture(size=12))), "interleave: needs an image and a text"),
    (dict(fields=dict(text=TEXT)), "interleave: needs an image and a text"),
    (
        dict(fields=dict(picture=Picture(size=12), text=TEXT)),
        "interleave: needs an image and a text",
    ),
    (dict(missing="mask"), "interleave: needs an image and a text, and missing='skip'"),
    (
        dict(fields=FIELDS | dict(text=dataclasses.replace(TEXT, count=2))),
        r"interleave: needs one text of each record \(fields.text.count is 2",
    ),
]


@pytest.mark.parametrize("options, message", WRONG)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **options)
