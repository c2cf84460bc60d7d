"""Sounds whose samples say which they are: 1000 * language + position."""

import collections
import dataclasses

import numpy as np
import pytest
from data_samples import COLUMNS, MOVING, FakeSource, record, row_of, tokenizer

from jaxvl.config import ConfigError
from jaxvl.data import clips
from jaxvl.data.fields.waveform import Waveform
from jaxvl.data.records import BadRecord

pytest.importorskip("soundfile", reason="clips need jaxvl[audio]")

SAMPLES = 160
SOURCE = FakeSource(1, columns=MOVING)
TOKENIZER = tokenizer()
LANGUAGES = ("de", "fr", "ja")  # 1, 2 and 3
FIELD = Waveform("speech/*", seconds=0.01)
PAIRED = Waveform("speech/*", seconds=0.01, text="name/*", text_length=12)


def ramp(number, length):
    return clips.to_flac((1000 * number + np.arange(length)) / 32768)


def sounding(i=3):
    """Record `i` with sounds of 100, 200 and 300 samples; it has no Japanese name."""
    speech = {f"speech/{language}": ramp(k, 100 * k) for k, language in enumerate(LANGUAGES, 1)}
    return {**record(i), **speech, "sound/zxx": ramp(9, 50)}


def row(field, given=None, draws=(0.5, 0.5), source=SOURCE):
    return row_of(
        field, sounding() if given is None else given, "wave", source, list(draws), TOKENIZER
    )


def rows(field, n=400, seed=0):
    return [
        row(field, draws=draws) for draws in np.random.default_rng(seed).random((n, 2)).tolist()
    ]


def test_clips_of_every_language_are_drawn_cut_and_padded():
    seen = collections.Counter()
    starts = set()
    for found in rows(FIELD):
        wave = found["wave"].astype(int)
        length = int(found["wave_length"])
        language = wave[0] // 1000
        seen[language] += 1
        assert length == min(100 * language, SAMPLES)
        assert (np.diff(wave[:length]) == 1).all() and not wave[length:].any()
        if language == 3:
            starts.add(wave[0] % 1000)
        else:
            assert language == 1 and wave[0] == 1000 or language == 2
    assert set(seen) == {1, 2, 3} and min(seen.values()) > 400 / 3 / 1.4
    assert len(starts) > 80 and max(starts) <= 300 - SAMPLES
    last = np.nextafter(1.0, 0.0)
    assert (
        row(FIELD, draws=(last, 0.0))["wave"][0] == 3000
        and row(FIELD, draws=(last, last))["wave"][0] == 3000 + 300 - SAMPLES
    )


def test_the_beginning_of_one_language():
    kept = row(dataclasses.replace(FIELD, random=False, languages=("ja",)), draws=(0.9, 0.9))
    assert (kept["wave"] == 3000 + np.arange(SAMPLES)).all() and kept["wave_length"] == SAMPLES


def test_languages_in_any_order_and_a_column_of_ones_own():
    some = Waveform("speech/*", languages=("fr", "de"), seconds=0.01)
    assert {int(found["wave"][0]) // 1000 for found in rows(some, 60)} == {1, 2}
    noises = row(Waveform("sound/zxx", seconds=0.01))
    assert noises["wave"][0] == 9000 and noises["wave_length"] == 50
    assert row(Waveform("sound/*", seconds=0.01))["wave"][0] == 9000


def test_shapes_and_types():
    shapes = {name: (shape.shape, shape.dtype) for name, shape in PAIRED.arrays("wave").items()}
    assert shapes == {
        "wave": ((SAMPLES,), np.int16),
        "wave_length": ((), np.int32),
        "text": ((12,), np.int32),
    }
    assert set(FIELD.arrays("wave")) == {"wave", "wave_length"}
    found = row(PAIRED)
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == shapes
    assert Waveform().samples == 131_072 and Waveform(seconds=1.0).samples == clips.RATE


def test_the_text_is_in_the_language_of_the_sound():
    languages = set()
    for found in rows(PAIRED, 80):
        number = int(found["wave"][0]) // 1000
        languages.add(number)
        language = {1: "de", 2: "fr"}[number]  # no record has a Japanese name
        np.testing.assert_array_equal(found["text"], TOKENIZER.encode([f"{language} 3"], 12)[0])
    assert languages == {1, 2}


@pytest.mark.parametrize("text", [None, ""])
def test_a_sound_without_its_text_is_left_out(text):
    given = {**sounding(), "name/de": text}
    assert {
        int(row(PAIRED, given, draws)["wave"][0]) // 1000
        for draws in np.random.default_rng(1).random((40, 2))
    } == {2}
    assert row(PAIRED, {**given, "name/fr": text}) is None


def test_a_record_without_sounds_has_none():
    assert row(FIELD, record(0)) is None
    some = {**record(0), "speech/fr": ramp(2, 200)}
    assert row(FIELD, some)["wave"][0] // 1000 == 2
    assert row(dataclasses.replace(FIELD, languages=("de",)), some) is None


def test_any_of_the_sounds_is_enough():
    assert FIELD.needs(SOURCE) == [("speech/de", "speech/fr", "speech/ja")]
    assert dataclasses.replace(FIELD, languages=("fr",)).needs(SOURCE) == [("speech/fr",)]
    assert PAIRED.needs(SOURCE) == [("speech/de", "speech/fr")]


def test_only_the_columns_that_are_asked_for_are_read():
    from jaxvl.data.cache import Cache
    from jaxvl.data.fields.base import Context
    from jaxvl.data.preprocess import Preprocess

    context = Context(TOKENIZER, Preprocess(), Cache(0))
    assert FIELD.reader("w", SOURCE, context).columns == ("speech/de", "speech/fr", "speech/ja")
    paired = dataclasses.replace(PAIRED, languages=("fr",)).reader("w", SOURCE, context)
    assert paired.columns == ("speech/fr", "name/fr")


@pytest.mark.parametrize("data", [b"fLaC", b"", ramp(1, 100)[:60]])
def test_a_broken_clip_is_a_bad_record(data):
    with pytest.raises(BadRecord, match="clip cannot be decoded"):
        row(
            FIELD, {**sounding(), "speech/fr": data}, draws=(0.0, 0.0)
        )  # though another one is drawn


REFUSED = [
    (
        dict(columns="audio", languages=("fr",)),
        r"languages: \('fr',\): columns are 'audio', which must end in '\*'",
    ),
    (dict(columns="speech/*", text="name/en"), r"text: 'name/en' must end in '\*'"),
    (
        dict(columns="audio", text="name/*"),
        r"text: 'name/\*' must end in '\*', and so must columns \('audio'\)",
    ),
    (dict(columns="speech/*", text="name/*", text_length=2), "text_length: 2 must be >= 3"),
    (dict(seconds=0.0), "seconds: 0.0 must be at least one sample"),
]


@pytest.mark.parametrize("values, message", REFUSED)
def test_refusals(values, message):
    with pytest.raises(ConfigError, match=message):
        Waveform(**values)


@pytest.mark.parametrize(
    "field, source, message",
    [
        (
            Waveform("speech/*", languages=("es",)),
            SOURCE,
            r"languages: \('es',\): fake has no such sounds \(it has: speech/de, .*sound/zxx\)",
        ),
        (Waveform("speech/*", text="title/*"), SOURCE, "fake has no such sounds"),
        (
            Waveform("speech/*"),
            FakeSource(1, columns=COLUMNS),
            r"columns: 'speech/\*' is no column of fake",
        ),
        (Waveform("image"), SOURCE, "columns: 'image' of fake holds image; must be audio"),
    ],
)
def test_columns_that_a_source_has_not(field, source, message):
    with pytest.raises(ConfigError, match=message):
        row(field, source=source)
