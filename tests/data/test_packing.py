"""Interleaved rows, against lists put together by hand and against the loader's rows of one image."""

import dataclasses

import numpy as np
import pytest
from data_samples import Corpus, Source, tokenizer

from jaxvl.config import ConfigError
from jaxvl.data.captions import CaptionConfig
from jaxvl.data.corpora.shapes import Shapes
from jaxvl.data.feed import Feed
from jaxvl.data.loader import Batches, DataConfig
from jaxvl.data.packing import LEAST, pack
from jaxvl.sharding import make_mesh

N, B, K, T = 24, 8, 3, 10
TOKENIZER = tokenizer()
CONFIG = DataConfig(
    corpus=Shapes(), split="train", batch=B, image_size=12, text_length=T, threads=2, images_per_row=K,
    captions=CaptionConfig(name=1, keyword=1, foreign=1), error_minimum=1000,
)  # fmt: skip


def random_texts(rng, b, k, t):
    texts = rng.integers(2, 50, (b, k, t))
    ends = rng.integers(0, t, (b, k))
    place = np.arange(t)
    return np.where(place < ends[..., None], texts, np.where(place == ends[..., None], 1, 0)).astype(np.int32)


def words(text):
    """Up to and with the first EOS."""
    return text.tolist()[: text.tolist().index(1) + 1]


@pytest.mark.parametrize("length", [30, 21, 12, 9])
def test_texts_stand_one_behind_the_other(length):
    texts = random_texts(np.random.default_rng(length), 64, 3, 10)
    got = pack(texts, length, eos_id=1, pad_id=0)
    for row, text, segment, lengths, weight in zip(texts, got["text"], got["segment"], got["lengths"], got["weight"]):
        whole = [words(t) for t in row]
        kept, room = [], length
        for i, tokens in enumerate(whole):
            later = sum(min(len(t), LEAST) for t in whole[i + 1 :])
            kept.append(tokens if len(tokens) <= room - later else tokens[: room - later - 1] + [1])
            room -= len(kept[-1])
        flat = [t for tokens in kept for t in tokens]
        assert text.tolist() == flat + [0] * (length - len(flat))
        assert segment.tolist() == [i + 1 for i, tokens in enumerate(kept) for _ in tokens] + [0] * (length - len(flat))
        assert lengths.tolist() == [len(t) for t in kept]
        assert weight.tolist() == [float(s > 0) for s in segment]
        assert sum(map(len, whole)) > length or kept == whole


def test_padding_may_be_the_end_token_and_too_short_rows_are_refused():
    got = pack(np.array([[[5, 1, 1, 1], [6, 7, 1, 1]]]), 8, eos_id=1, pad_id=1)
    assert got["text"].tolist() == [[5, 1, 6, 7, 1, 1, 1, 1]] and got["segment"].tolist() == [[1, 1, 2, 2, 2, 0, 0, 0]]
    with pytest.raises(ValueError, match="length 5 has no room for 2 texts; must be >= 6"):
        pack(np.zeros((1, 2, 4), int), 5, eos_id=1, pad_id=0)


def batches(rows=None, **options):
    return Batches(dataclasses.replace(CONFIG, **options), Source(N), TOKENIZER, seed=3, rows=rows)


def test_rows_hold_consecutive_records_of_the_stream():
    packed, single = batches()[2], batches(images_per_row=1, batch=B * K)[2]
    assert {k: (v.dtype, v.shape) for k, v in packed.items()} == {k: (s.dtype, s.shape) for k, s in CONFIG.shapes.items()}
    for key in ("image", "id", "index"):
        np.testing.assert_array_equal(packed[key].reshape(single[key].shape), single[key])
    for i, text in enumerate(single["text"]):
        row, k = divmod(i, K)
        assert packed["text"][row][packed["segment"][row] == k + 1].tolist() == words(text)


def test_hosts_and_a_resumed_feed_read_the_rows_of_the_same_batches():
    whole = [batches(row_length=16)[i] for i in range(4)]
    halves = [batches(rows=half, row_length=16)[3] for half in np.array_split(np.arange(B), 2)]
    for key, value in whole[3].items():
        np.testing.assert_array_equal(np.concatenate([h[key] for h in halves]), value)
    feed = Feed(dataclasses.replace(CONFIG, row_length=16), Corpus(Source(N)), TOKENIZER, seed=3, mesh=make_mesh(), start=2 * B * K)
    try:
        for expected in whole[2:]:
            got = next(feed)
            assert got.keys() == expected.keys()
            for key, value in got.items():
                np.testing.assert_array_equal(value, expected[key])
    finally:
        feed.close()


def test_positions_count_records():
    """Rows of three records: four of them, then rows in batches of twice as many."""
    stream = np.concatenate([batches()[i]["id"] for i in range(3)])
    feed = Feed(dataclasses.replace(CONFIG, batch=2 * B), Corpus(Source(N)), TOKENIZER, seed=3, mesh=make_mesh(), start=B * K)
    try:
        np.testing.assert_array_equal(next(feed)["id"], stream[B:])
        assert feed.position == 3 * B * K
    finally:
        feed.close()


def test_wrong_options():
    with pytest.raises(ConfigError, match="row_length: 20 is of interleaved rows, with images_per_row > 1"):
        dataclasses.replace(CONFIG, images_per_row=1, row_length=20)
    with pytest.raises(ConfigError, match="row_length: 8 must be >= 3 tokens for each of 3 texts"):
        dataclasses.replace(CONFIG, row_length=8)
    with pytest.raises(ConfigError, match="images_per_row: 0 must be >= 1"):
        dataclasses.replace(CONFIG, images_per_row=0)
