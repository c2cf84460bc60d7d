"""Batches of frames and sounds, and of records that lack something."""

import collections
import dataclasses
import io

import numpy as np
import pytest
from data_samples import Source, encoded, noise, record, tokenizer
from PIL import Image

from jaxvl.config import ConfigError, resolve
from jaxvl.data import clips
from jaxvl.data.captions import CaptionConfig
from jaxvl.data.corpora.shapes import Shapes
from jaxvl.data.feed import Feed
from jaxvl.data.loader import Batches, DataConfig
from jaxvl.data.modalities import AudioConfig, VideoConfig
from jaxvl.data.records import BadRecord, DataError
from jaxvl.sharding import make_mesh

pytest.importorskip("soundfile", reason="clips need jaxvl[audio]")

N, B, S, T = 16, 8, 10, 12
TOKENIZER = tokenizer()
ALL = ("image", "text", "video", "waveform")
CONFIG = DataConfig(
    corpus=Shapes(), split="train", batch=B, image_size=S, text_length=T, threads=2, modalities=ALL, error_minimum=1000,
    video=VideoConfig(frames=3, stride=2), audio=AudioConfig(seconds=0.01),
)  # fmt: skip
SAMPLES = 160


def full(i, frames=9, locales=("fr", "de", "ja"), length=None):
    """Record `i` with frames whose grey, and clips whose samples, say which they are: 1000 * language + position."""
    pictures = [encoded(np.full((S, S, 3), 20 * k, np.uint8)) for k in range(frames)]
    ramp = lambda k, n: (1000 * (k + 1) + np.arange(n)) / 32768
    sounds = {locale: clips.to_flac(ramp(k, length or (100 + 100 * k))) for k, locale in enumerate(locales)}
    return {**record(i), "frames": pictures, "audio": {"speech": sounds, "sound": {"zxx": clips.to_flac(ramp(8, 50))}}}


def source(replace=None):
    return Source(N, {i: full(i) for i in range(N)} | (replace or {}))


def batches(source_=None, rows=None, seed=0, **options):
    return Batches(dataclasses.replace(CONFIG, **options), source_ or source(), TOKENIZER, seed=seed, rows=rows)


def assert_same(a, b):
    if not isinstance(a, dict):
        a, b = {"": a}, {"": b}
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(np.asarray(a[key]), np.asarray(b[key]), err_msg=key)


def tokens(text):
    return TOKENIZER.encode([text], T)[0].tolist()


def test_shapes_are_those_announced():
    batch = batches()[0]
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {k: (s.shape, s.dtype) for k, s in CONFIG.shapes.items()}
    assert batch["video"].shape == (B, 3, S, S, 4) and batch["video"].dtype == np.uint8
    assert batch["waveform"].shape == (B, SAMPLES) and batch["waveform"].dtype == np.int16
    assert (batch["waveform_length"].dtype, set(batch)) == (np.int32, {*ALL, "waveform_length", "id", "index"})


def test_pictures_and_texts_do_not_depend_on_what_else_is_asked_for():
    options = dict(captions=CaptionConfig(name=1, keyword=1, foreign=1), crop=(0.3, 1.0))
    plain = batches(modalities=("image", "text"), **options)
    for i in range(4):
        more = batches(**options)[i]
        assert_same(plain[i], {k: more[k] for k in plain[i]})


def test_several_texts_of_a_row_are_drawn_each_on_its_own_and_the_first_stays():
    options = dict(modalities=("image", "text"), captions=CaptionConfig(name=1, keyword=1, foreign=1))
    plain, several = batches(**options), batches(texts_per_row=3, **options)
    share = []
    for i in range(8):
        one, three = plain[i], several[i]
        assert three["text"].shape == several.config.shapes["text"].shape == (B, 3, T)
        assert_same(one, {**three, "text": three["text"][:, 0]})
        assert_same(three["text"][2:5], batches(rows=np.arange(2, 5), texts_per_row=3, **options)[i]["text"])
        share.append((three["text"][:, 1] == three["text"][:, 2]).all(-1))
    assert 0.1 < np.mean(share) < 0.9


def test_only_what_is_asked_for_is_read():
    broken = {i: {**record(i), "image": b"broken"} for i in range(N)}  # and no frames, no clips
    batch = batches(Source(N, broken), modalities=("text",))[0]
    assert set(batch) == {"text", "id", "index"}


def test_frames_are_a_strided_run_that_starts_anywhere():
    b, seen = batches(), collections.Counter()
    for i in range(40):
        batch = b[i]
        assert (batch["video"][..., 3] == 255).all()
        grey = batch["video"][:, :, 5, 5, 0] // 20
        assert (grey == grey[:, :1] + np.array([0, 2, 4])).all()
        seen.update(grey[:, 0].tolist())
    assert set(seen) == {0, 1, 2, 3, 4}  # 9 frames leave room for five starts
    assert min(seen.values()) > 40 * B / 5 / 2
    first = batches(video=VideoConfig(frames=3, stride=2, random=False))[0]
    assert (first["video"][:, :, 5, 5, 0] == [0, 40, 80]).all()
    short = batches(source({i: full(i, frames=2) for i in range(N)}))[0]  # holds its last frame
    assert (short["video"][:, :, 5, 5, 0] == [0, 20, 20]).all()


def test_frames_are_scaled_and_keep_transparency():
    pixels = noise(3, 2 * S, 2 * S, 4)
    pixels[:S] = 0
    b = batches(source({i: {**full(i), "frames": [encoded(pixels)]} for i in range(N)}), modalities=("video",))
    frame = b[0]["video"][0, 0]
    expected = np.array(Image.open(io.BytesIO(encoded(pixels))).convert("RGBa").resize((S, S), Image.Resampling.BICUBIC).convert("RGBA"))
    assert np.abs(frame.astype(int) - expected)[..., 3].max() <= 4 and frame[: S // 2 - 2, :, 3].max() == 0


def test_clips_of_every_language_are_drawn_cut_and_padded():
    b, seen, starts = batches(), collections.Counter(), set()
    for i in range(40):
        batch = b[i]
        for wave, length in zip(batch["waveform"].astype(int), batch["waveform_length"].tolist()):
            language = wave[0] // 1000
            seen[language] += 1
            assert length == min(100 * language, SAMPLES)
            assert (np.diff(wave[:length]) == 1).all() and not wave[length:].any()
            if language == 3:
                starts.add(wave[0] % 1000)
            else:
                assert language == 1 and wave[0] == 1000 or language == 2
    assert set(seen) == {1, 2, 3} and min(seen.values()) > 40 * B / 3 / 2
    assert min(starts) >= 0 and max(starts) <= 300 - SAMPLES and len(starts) > 20
    kept = batches(audio=AudioConfig(seconds=0.01, random=False, locales=("ja",)))[0]
    assert (kept["waveform"] == 3000 + np.arange(SAMPLES)).all()
    noises = batches(audio=AudioConfig(kind="sound", seconds=0.01))[0]
    assert (noises["waveform"][:, 0] == 9000).all() and (noises["waveform_length"] == 50).all()


def test_a_paired_text_is_in_the_language_of_the_clip():
    b = batches(audio=AudioConfig(seconds=0.01, paired=True), captions=CaptionConfig(locale="en"))
    languages = set()
    for i in range(6):
        batch = b[i]
        for wave, text, label in zip(batch["waveform"], batch["text"].tolist(), batch["id"].tolist()):
            number = wave[0].astype(int) // 1000
            languages.add(number)
            locale = {1: "fr", 2: "de"}.get(number)  # sorted; no record has a Japanese name
            assert locale and text == tokens(f"{locale} {label - 100}")
    assert languages == {1, 2}


def test_batches_depend_on_seed_and_number_only():
    one, two = batches(seed=3), batches(seed=3, cache_mb=0)
    for i in (5, 0, 2):
        assert_same(one[i], two[i])
    parts = [batches(seed=3, rows=rows)[5] for rows in np.split(np.arange(B), 4)]
    assert_same(one[5], {k: np.concatenate([p[k] for p in parts]) for k in parts[0]})
    epochs = [batches(seed=3, shuffle=False)[i] for i in (0, 2)]  # the same records, drawn anew in the next epoch
    np.testing.assert_array_equal(epochs[0]["id"], epochs[1]["id"])
    assert (epochs[0]["waveform"] != epochs[1]["waveform"]).any() and (epochs[0]["video"] != epochs[1]["video"]).any()


LACKING = {
    1: {**record(1)},
    2: {**full(2), "frames": []},
    3: {**full(3), "audio": {"sound": {}}},
    4: {**full(4), "captions": {}},
}


def test_a_mask_says_what_a_row_has():
    b = batches(source(LACKING), missing="mask", shuffle=False)
    rows = {label - 100: {k: v[r] for k, v in b[0].items()} for r, label in enumerate(b[0]["id"].tolist())}
    has = lambda i: {name for name in ALL if rows[i][f"has_{name}"]}
    assert has(0) == {*ALL} and has(1) == {"image", "text"} and has(2) == {"image", "text", "waveform"}
    assert has(3) == {"image", "text", "video"} and has(4) == {"image", "video", "waveform"}
    assert not rows[1]["video"].any() and not rows[3]["waveform"].any() and rows[3]["waveform_length"] == 0
    assert (rows[4]["text"] == TOKENIZER.pad_id).all() and not b.counts()[1]
    shapes = dataclasses.replace(CONFIG, missing="mask").shapes
    assert {k: (v.shape, v.dtype) for k, v in b[0].items()} == {k: (s.shape, s.dtype) for k, s in shapes.items()}


def test_a_record_that_lacks_something_is_replaced_and_counted():
    b = batches(source(LACKING), shuffle=False)
    assert b[0]["id"].tolist() == [100, 105, 105, 105, 105, 105, 106, 107]
    assert b.counts()[1] == {"no video": 3, "no waveform": 3, "no caption": 4}
    empty = batches(source({1: {**record(1), "captions": {}}}), modalities=("text", "waveform"), missing="mask", shuffle=False)
    assert empty[0]["id"].tolist()[:3] == [100, 102, 102] and empty.counts()[1] == {"no text": 1}


@pytest.mark.parametrize(
    "damage, cause",
    [
        (lambda r: r["audio"]["speech"].update(fr=b"fLaC"), "clip cannot be decoded"),
        (lambda r: r["frames"].__setitem__(-1, r["frames"][-1][:30]), "image cannot be decoded"),
    ],
)
def test_a_broken_clip_or_frame_is_skipped_by_cause(damage, cause):
    bad = full(2)
    damage(bad)
    b = batches(source({2: bad}), shuffle=False)
    assert b[0]["id"].tolist() == [100, 101, 103, 103, 104, 105, 106, 107] and b.counts()[1] == {cause: 1}
    worse = batches(source({2: bad, 3: bad}), shuffle=False, error_minimum=2, error_budget=0.0)
    worse[0]
    with pytest.raises(DataError, match=f"3 of 11 records are bad .{cause}: 3"):
        worse.check_budget()


class Views:
    """A corpus that notes which view of its split is asked for."""

    splits = ["train"]

    def __init__(self):
        self.asked = []

    def split(self, name, *having):
        self.asked.append(having)
        return source()


@pytest.mark.parametrize(
    "options, having",
    [
        ({}, ([("frames",), ("speech",)],)), (dict(missing="mask"), ()), (dict(modalities=("image", "text")), ()),
        (dict(modalities=("text", "waveform"), audio=AudioConfig(kind="sound", locales=("fr", "es"))), ([("sound/fr", "sound/es")],)),
    ],
)  # fmt: skip
def test_the_view_of_a_split_holds_what_the_task_needs(options, having):
    corpus = Views()
    config = dataclasses.replace(CONFIG, **options)
    config.open(corpus)
    assert corpus.asked == [having]


def test_the_feed_resumes_and_puts_everything_on_the_mesh():
    make = lambda start: Feed(CONFIG, Views(), TOKENIZER, seed=1, mesh=make_mesh(), start=start)
    f = make(0)
    whole = [next(f) for _ in range(5)]
    f.close()
    f = make(3 * B)
    for expected in whole[3:]:
        got = next(f)
        assert_same(got, expected)
        assert {k: (v.shape, v.dtype) for k, v in got.items()} == {k: (s.shape, s.dtype) for k, s in f.shapes.items()}
    f.close()


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(modalities=("image", "txet")), "modalities: 'txet' is none; did you mean 'text'"),
        (dict(modalities=()), "modalities: .* must name each one once"), (dict(modalities=("text", "text")), "must name each one once"),
        (dict(video=dict(frames=0)), "video.frames: 0 must be >= 1"), (dict(audio=dict(seconds=0.0)), "audio.seconds"),
        (dict(modalities=("image", "text"), audio=dict(paired=True)), "audio.paired: pairs a text with a waveform"),
        (dict(missing="zero"), "missing"),
    ],
)  # fmt: skip
def test_configs_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        resolve(DataConfig, dict(corpus="shapes", split="train", batch=8) | values)


def test_a_bad_record_of_a_reader_is_still_one():
    b = batches(source({0: BadRecord("record cannot be read", "x")}), shuffle=False)
    assert b[0]["id"][0] == 101
