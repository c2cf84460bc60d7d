"""Batches of frames and sounds beside pictures and texts."""

import dataclasses

import numpy as np
import pytest
from data_samples import (
    FIRST_CLASS,
    MOVING,
    FakeConfig,
    FakeSource,
    assert_same,
    encoded,
    record,
    tokenizer,
)

from jaxvl.data import clips
from jaxvl.data.batches import Batches, Rows, Start
from jaxvl.data.config import DataConfig, ReaderConfig
from jaxvl.data.feed import Feed
from jaxvl.data.fields.caption import Caption
from jaxvl.data.fields.frames import Frames
from jaxvl.data.fields.numbers import Group
from jaxvl.data.fields.picture import Picture
from jaxvl.data.fields.waveform import Waveform
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.samplers.in_order import InOrder
from jaxvl.sharding import make_mesh

pytest.importorskip("soundfile", reason="clips need jaxvl[audio]")

N = 16
B = 8
S = 10
T = 12
TOKENIZER = tokenizer()
FIELDS = dict(
    image=Picture(size=S),
    text=Caption({"name/en": 1, "keywords/en": 1, "name/*": 1}, length=T),
    video=Frames(size=S, frames=3, stride=2),
    waveform=Waveform("speech/*", seconds=0.01),
    group_id=Group("class_label"),
)
CONFIG = DataConfig(
    FakeConfig(), batch=B, fields=FIELDS, reader=ReaderConfig(threads=2), error_minimum=1000
)
IN_ORDER = dict(sampler=InOrder())


def full(i):
    """Record `i` with frames whose grey, and sounds whose samples, say which they are."""
    pictures = [encoded(np.full((S, S, 3), 20 * k, np.uint8)) for k in range(9)]
    sounds = {
        f"speech/{language}": clips.to_flac((1000 * k + np.arange(100 * k)) / 32768)
        for k, language in enumerate(("de", "fr", "ja"), 1)
    }
    return {**record(i), "frames": pictures, **sounds}


ALL = {i: full(i) for i in range(N)}


def source(replace=None):
    return FakeSource(N, ALL | (replace or {}), MOVING)


@pytest.fixture
def batches():
    """Makes `Batches`, closed when the test ends."""
    made = []

    def make(of=None, rows=None, seed=0, fields=FIELDS, **options):
        config = dataclasses.replace(CONFIG, fields=fields, **options)
        made.append(Batches(config, of or source(), TOKENIZER, seed=seed, rows=rows))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_shapes_are_those_announced(batches):
    batch = batches()[0]
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (s.shape, s.dtype) for k, s in CONFIG.shapes.items()
    }
    assert batch["video"].shape == (B, 3, S, S, 4) and batch["video"].dtype == np.uint8
    assert batch["waveform"].shape == (B, 160) and batch["waveform"].dtype == np.int16
    assert set(batch) == {*FIELDS, "waveform_length", "position"}


def test_a_sound_in_parts_is_the_sound(batches):
    """Two parts are heard whole, one in part, the last two are padding."""
    long = dict(seconds=0.05, random=False)
    whole, parts = (
        batches(fields=dict(waveform=Waveform("speech/*", **long, parts=n)))[0] for n in (1, 5)
    )
    assert parts["waveform"].shape == (B, 5, 160) and parts["waveform"].dtype == np.int16
    np.testing.assert_array_equal(parts["waveform"].reshape(B, 800), whole["waveform"])
    np.testing.assert_array_equal(parts["waveform_length"].sum(1), whole["waveform_length"])
    for heard, total in zip(parts["waveform_length"], whole["waveform_length"]):
        assert list(heard) == [min(max(total - 160 * k, 0), 160) for k in range(5)]
    assert (parts["waveform_length"] == 0).any()


def test_pictures_and_texts_do_not_depend_on_what_else_is_asked_for(batches):
    image = dict(image=Picture(size=S, crop=(0.3, 1.0)))
    plain = batches(fields={name: (FIELDS | image)[name] for name in ("image", "text", "group_id")})
    more = batches(fields=FIELDS | image)
    for i in range(4):
        full_batch = more[i]
        assert_same(plain[i], {k: full_batch[k] for k in plain[i]})


def test_only_what_is_asked_for_is_read(batches):
    broken = {
        i: {**record(i), "image": b"broken", "frames": [b"broken"], "speech/fr": b"broken"}
        for i in range(N)
    }
    of = source(broken)
    b = batches(of, fields=dict(text=FIELDS["text"]))
    assert set(b[0]) == {"text", "position"} and not b.counts()[1]
    assert {column for asked in of.asked for column in asked} == {
        "name/en",
        "keywords/en",
        "name/de",
        "name/fr",
    }


def test_batches_depend_on_seed_and_number_only(batches):
    one = batches(seed=3)
    two = batches(seed=3, reader=ReaderConfig(threads=3, cache_mb=0))
    for i in (5, 0, 2):
        assert_same(one[i], two[i])
    parts = [
        batches(seed=3, rows=Rows(rows, np.ones(2, bool)))[5] for rows in np.split(np.arange(B), 4)
    ]
    assert_same(one[5], {k: np.concatenate([p[k] for p in parts]) for k in parts[0]})
    in_order = batches(seed=3, **IN_ORDER)
    epochs = [in_order[i] for i in (0, 2)]  # the same records, drawn anew in the next epoch
    np.testing.assert_array_equal(epochs[0]["group_id"], epochs[1]["group_id"])
    assert (epochs[0]["waveform"] != epochs[1]["waveform"]).any() and (
        epochs[0]["video"] != epochs[1]["video"]
    ).any()


DAMAGED = [
    ({"speech/fr": b"fLaC"}, "clip cannot be decoded"),
    ({"frames": [*full(2)["frames"][:-1], full(2)["frames"][-1][:30]]}, "image cannot be decoded"),
    ({"frames": []}, "no video"),
    ({"speech/de": None, "speech/fr": None, "speech/ja": None}, "no waveform"),
]


@pytest.mark.parametrize("damage, cause", DAMAGED)
def test_a_broken_or_missing_clip_or_frame_is_skipped_by_cause(batches, damage, cause):
    bad = full(2) | damage
    b = batches(source({2: bad}), **IN_ORDER)
    assert (b[0]["group_id"] - FIRST_CLASS).tolist() == [0, 1, 3, 3, 4, 5, 6, 7] and b.counts()[
        1
    ] == {cause: 1}
    worse = batches(source({2: bad, 3: bad}), error_minimum=2, error_budget=0.0, **IN_ORDER)
    worse[0]
    with pytest.raises(DataError, match=f"3 of 11 records are bad .{cause}: 3"):
        worse.check_budget()


def test_a_bad_record_of_a_reader_is_still_one(batches):
    b = batches(source({0: BadRecord("record cannot be read", "x")}), **IN_ORDER)
    assert b[0]["group_id"][0] == FIRST_CLASS + 1


def test_the_feed_resumes_and_puts_everything_on_the_mesh():
    make = lambda start: Feed(CONFIG, source(), TOKENIZER, seed=1, mesh=make_mesh(), start=start)
    f = make(None)
    whole = [next(f) for _ in range(5)]
    f.close()
    f = make(Start(3 * B))
    for expected in whole[3:]:
        got = next(f)
        assert_same(got, expected)
        assert {k: (v.shape, v.dtype) for k, v in got.items()} == {
            k: (s.shape, s.dtype) for k, s in f.shapes.items()
        }
    f.close()
