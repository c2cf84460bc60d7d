"""The builder on a package in small; the real corpus where it is in the cache."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import fake_stamps
import numpy as np
import pytest
from PIL import Image
from scipy.signal import resample_poly

from jaxvl.config import ConfigError
from jaxvl.data import clips
from jaxvl.data.fields.waveform import Waveform
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.demo import drawing, stamps, store
from jaxvl.data.sources.demo.recipe import DemoSource
from jaxvl.data.sources.demo.stamps import Stamps
from jaxvl.data.sources.selected import select

pytest.importorskip("resvg_py", reason="builds need jaxvl[demo]")
pytest.importorskip("soundfile", reason="clips need jaxvl[audio]")


@pytest.fixture(scope="module", autouse=True)
def threads():
    """Processes take seconds to start; test_emoji.py has them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "workers", lambda: ThreadPoolExecutor(2))
        yield


@pytest.fixture(scope="module")
def deb(tmp_path_factory):
    path = tmp_path_factory.mktemp("deb") / "stamps.deb"
    return path, fake_stamps.write(path)


@pytest.fixture(scope="module")
def corpora(deb, tmp_path_factory):
    """The small package's corpus with and without clips."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(stamps, "SHA256", deb[1])
        patch.setattr(
            stamps, "EXPECT", {k: n for k, n in fake_stamps.COUNTS.items() if "clips" not in k}
        )
        patch.setattr(
            stamps, "EXPECT_AUDIO", {k: n for k, n in fake_stamps.COUNTS.items() if "clips" in k}
        )
        return [
            Stamps(size=24, audio=audio, package=str(deb[0])).prepare(log=lambda text: None)
            for audio in (True, False)
        ]


def records(corpus):
    return {r["key"]: r for split in corpus.splits for r in corpus.split(split)}


def test_pictures_and_captions(corpora):
    with_clips, mute = map(records, corpora)
    assert {
        k: {**r, "audio": {}} for k, r in with_clips.items()
    } == mute  # nothing but the clips differs
    assert set(mute) == {
        "animals/duck",
        "animals/goose",
        "animals/gander",
        "plants/rose",
        "plants/tulip",
        "plants/tree",
        "plants/tree2",
        "symbols/math/7",
    }
    centre = lambda key: Image.open(io.BytesIO(mute[key]["image"])).getpixel((12, 12))
    assert centre("animals/goose") == (0xDD, 0x22, 0x22, 255)  # an SVG in points
    assert centre("animals/gander") == (0, 0, 255, 255) and centre("plants/rose") == (
        255,
        0,
        0,
        255,
    )  # the PNG beside a bad SVG
    duck = np.array(Image.open(io.BytesIO(mute["animals/duck"]["image"])))
    assert (
        duck.shape == (24, 24, 4)
        and (duck[:5, :, 3] == 0).all()
        and (duck[8:16, :, 3] == 255).all()
    )  # 20 x 10 pixels, centred
    assert mute["animals/duck"]["captions"] == {
        "en": ["A duck.", []],
        "de": ["Eine Ente.", []],
        "pt": ["Um pato.", []],
        "pt-PT": ["Um pato!", []],
    }
    assert set(mute["animals/goose"]["captions"]) == {"en", "sr-Latn", "zh-Hant", "no"}
    assert mute["animals/duck"]["style"] == "animals"
    labels = {k: r["label"] for k, r in mute.items()}
    assert labels["plants/rose"] == labels["plants/tulip"] and len(set(labels.values())) == 7
    classes = corpora[1].class_set().names
    names = classes["en"]
    german = classes["de"]
    assert (
        names[labels["plants/tree2"]] == "An old tree."
        and german[labels["symbols/math/7"]] == "Sieben."
        and german.count(None) == 5
    )


def test_clips(corpora):
    found = {
        k: {kind: set(clips_) for kind, clips_ in r["audio"].items()}
        for k, r in records(corpora[0]).items()
        if r["audio"]
    }
    assert found == {
        "animals/duck": {"speech": {"en", "fr", "pt"}, "sound": {"zxx"}},
        "animals/goose": {"speech": {"fr"}},
        "animals/gander": {"speech": {"fr"}},
        "symbols/math/7": {"symbol": {"und", "de", "zh-Hant"}},
    }
    duck = records(corpora[0])["animals/duck"]["audio"]
    for locale, seconds, rate, loudness in (
        ("en", 0.3, 44100, 0.5),
        ("fr", 0.5, 44100, 0.25),
        ("pt", 0.4, 8000, 0.5),
    ):
        wave = clips.decode_clip(duck["speech"][locale]).astype(np.float64) / 32768
        assert abs(len(wave) - seconds * 16000) <= 2, locale
        # Against a resampler of another library, away from the ends; Vorbis itself alters a tone by
        # a per cent or so.
        tone = loudness * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
        expected = resample_poly(tone, 16000, rate)
        n = min(len(wave), len(expected))
        assert np.abs(wave[:n] - expected[:n])[400 : n - 400].max() < 0.03, locale
    kept = clips.decode_clip(duck["sound"]["zxx"])  # 16 kHz, 16 bit: kept as it was
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(4000) / 16000)
    assert np.abs(kept - tone * 32768).max() <= 1


def test_groups_stay_together(corpora, monkeypatch, deb, tmp_path):
    of = {r["key"]: split for split in corpora[0].splits for r in corpora[0].split(split)}
    assert len(of) == 8
    for a, b in (
        ("plants/rose", "plants/tulip"),
        ("plants/tree", "plants/tree2"),
        ("animals/goose", "animals/gander"),
    ):
        assert of[a] == of[b]
    # With every group in a split of its own number: groups, and nothing else, decide.
    monkeypatch.setattr(stamps, "TEST", 0)
    monkeypatch.setattr(stamps, "VAL", 100)
    splits = stamps.make_splits(["a", "b"], {"a": "a", "b": "b"})
    assert {k: v.tolist() for k, v in splits.items()} == {"train": [], "val": [0, 1], "test": []}


def keys(source, needs):
    """Of the records that have one column of each entry of `needs`."""
    found = select(source, needs)
    return {found.read(i, ["key"])["key"] for i in range(len(found))}


def test_views_of_what_has_a_clip(corpora):
    source = DemoSource(corpora[0], {})
    speech = [name for name in source.columns if name.startswith("speech/")]
    assert sorted(speech) == ["speech/en", "speech/fr", "speech/pt"]
    assert keys(source, [tuple(speech)]) == {"animals/duck", "animals/goose", "animals/gander"}
    assert keys(source, [("speech/en", "symbol/de")]) == {"animals/duck", "symbols/math/7"}
    assert keys(source, [("speech/fr",), ("sound/zxx",)]) == {"animals/duck"}
    parts = [DemoSource(corpora[0], {}, split) for split in corpora[0].splits]
    without = [part for part in parts if len(part) and "animals/duck" not in keys(part, [])]
    assert without
    for part in without:
        with pytest.raises(DataError, match=f"{part.name}: no record has sound/zxx"):
            select(part, [("sound/zxx",)])


def test_clips_that_are_not_there(corpora):
    with_clips, mute = (DemoSource(corpus, {}) for corpus in corpora)
    with pytest.raises(
        ConfigError, match=r"languages: \('ja',\): .* has no such sounds \(it has: .*speech/en"
    ):
        Waveform("speech/*", languages=("ja",)).needs(with_clips)
    with pytest.raises(
        ConfigError, match=r"columns: 'speech/\*' is no column of stamps-v1-24-mute"
    ):
        Waveform("speech/*").needs(mute)
    assert not any(column.kind == "audio" for column in mute.columns.values())


def test_a_stamp_that_cannot_be_drawn_ends_the_build(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path))
    content = {"a/b.png": b"\x89PNG", "a/b.txt": b"Broken.\n"}
    monkeypatch.setattr(stamps, "SHA256", fake_stamps.write(tmp_path / "x.deb", content))
    with pytest.raises(
        DataError, match=r"no picture that can be drawn \(b.png: UnidentifiedImageError"
    ):
        Stamps(audio=False, package=str(tmp_path / "x.deb")).prepare(log=lambda text: None)
    monkeypatch.setattr(stamps, "SHA256", fake_stamps.write(tmp_path / "x.deb", {"a/b.txt": b"x"}))
    with pytest.raises(DataError, match="no stamps; the package is not what was expected"):
        Stamps(audio=False, package=str(tmp_path / "x.deb")).prepare(log=lambda text: None)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_without_the_libraries(monkeypatch):
    monkeypatch.setattr(clips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        DataError, match=r"sound clips need soundfile and soxr: pip install 'jaxvl\[audio\]'"
    ):
        Stamps().prepare()


def test_refusals():
    assert SOURCES["stamps"] is Stamps
    with pytest.raises(ConfigError, match="size: 4 must be in 16 … 512 pixels"):
        Stamps(size=4)


def test_the_real_corpus():
    """Counts of data.md 3b, taken from the package without this code."""
    folder = store.cache_folder() / f"stamps-v{stamps.VERSION}-96"
    if not folder.is_dir():
        pytest.skip("the stamps corpus is not in the cache")
    corpus = store.Corpus(folder, json.loads((folder / "manifest.json").read_text()))
    counts = corpus.manifest["counts"]
    assert (
        counts["images"],
        counts["captions"],
        counts["locales"],
        counts["groups"],
        counts["concepts"],
    ) == (950, 62340, 78, 733, 774)
    source = DemoSource(corpus, {})
    speech = tuple(name for name in source.columns if name.startswith("speech/"))
    assert len(select(source, [speech])) == 925
