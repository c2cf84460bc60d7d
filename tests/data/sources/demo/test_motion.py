"""The builder on packages in small; the real corpus where it is in the cache."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import fake_packages
import numpy as np
import pytest
from PIL import Image

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.demo import drawing, emoji, motion, store
from jaxvl.data.sources.demo.motion import Motion

KEYS = ("1f600", "1f997", "1f3cf", "1f1e9-1f1ea")


def animation(frames, hue=0):
    """Frame `k` is one grey, 10 * k; its lower half is transparent."""
    pictures = []
    for k in range(frames):
        pixels = np.zeros((32, 32, 4), np.uint8)
        pixels[:16] = (10 * k + hue, 10 * k + hue, 10 * k + hue, 255)
        pictures.append(Image.fromarray(pixels))
    out = io.BytesIO()
    pictures[0].save(
        out, "WEBP", save_all=True, append_images=pictures[1:], duration=42, lossless=True
    )
    return out.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("motion")
    modules = root / "modules"
    fake_packages.write(modules)
    assets = modules / "@lobehub/fluent-emoji-anim-3" / "assets"
    assets.mkdir(parents=True)
    for name, data in {
        "1f600": animation(12),
        "1f997": animation(5, 3),
        "1f3cf-fe0f": animation(12, 5),
        "1f1e9-1f1ea": animation(3, 7),
        "2764": animation(1),
        "ffff": animation(4),
        "1f468-200d-1f33e": animation(12)[:-200],
    }.items():
        (assets / f"{name}.webp").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVL_CACHE", str(root / "cache"))
        patch.setenv("PATH", fake_packages.client(root / "bin", fake_packages.serving(modules)))
        patch.setattr(emoji, "MIN_NAMES", 5)
        patch.setattr(emoji, "held_out", lambda name: name in ("cricket", "flag: Germany"))
        patch.setattr(drawing, "workers", lambda: ThreadPoolExecutor(2))
        patch.setattr(
            motion,
            "EXPECT",
            {"small": {"images": 4, "locales": 2, "unreadable": 1, "train": 3, "test": 1}},
        )
        yield Motion(size=16, stride=2, frames=4).prepare(log=lambda text: None)


def test_frames_captions_and_labels(corpus):
    records = {r["key"].split("/")[1]: r for split in corpus.splits for r in corpus.split(split)}
    assert set(records) == set(
        KEYS
    )  # not the still heart, not what is no emoji, not the file that is cut short
    assert {k: len(r["frames"]) for k, r in records.items()} == {
        "1f600": 4,
        "1f997": 3,
        "1f3cf": 4,
        "1f1e9-1f1ea": 2,
    }
    for k, data in enumerate(records["1f600"]["frames"]):
        pixels = np.array(Image.open(io.BytesIO(data)).convert("RGBA"))
        assert (
            pixels.shape == (16, 16, 4)
            and (pixels[:5, :, 3] > 250).all()
            and (pixels[11:, :, 3] < 5).all()
        )
        assert (
            np.abs(pixels[1:5, 2:14, :3].astype(int) - 20 * k).max() <= 4
        )  # every second frame; WebP is not exact
    middle = Image.open(io.BytesIO(records["1f600"]["image"]))
    assert middle.format == "PNG" and abs(middle.getpixel((8, 3))[0] - 40) <= 4
    order = sorted(fake_packages.EMOJI)
    for key, r in records.items():
        name = fake_packages.EMOJI[key][1]
        assert r["label"] == order.index(key) and corpus.class_set().names["en"][r["label"]] == name
        assert r["captions"]["de"] == [f"{name} auf Deutsch", ["de keyword"]]


def test_concepts_are_held_out_as_the_emoji_corpus_does(corpus):
    assert [r["key"] for r in corpus.split("test")] == [
        "fluent-anim/1f997"
    ]  # a cricket; flags never are
    assert not set(corpus.labels("train").tolist()) & set(corpus.labels("test").tolist())
    assert corpus.splits == ["train", "test"]


def test_packages_that_are_not_what_they_should_be(tmp_path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "readme.webp").write_bytes(b"")
    with pytest.raises(
        DataError, match="no WebP files of emoji; the package is not what was expected"
    ):
        motion.find_clips([tmp_path], {"1f600"})


def test_refusals():
    assert SOURCES["motion"] is Motion
    for values, message in (
        (dict(part="half"), "part: 'half' must be one of small, full"),
        (dict(frames=1), "frames: 1 must be >= 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            Motion(**values)


def test_the_real_corpus_shares_the_emoji_corpus_held_out_concepts():
    folders = sorted(store.cache_folder().glob(f"motion-v{motion.VERSION}-*[0-9]"))
    theirs = sorted(store.cache_folder().glob(f"emoji-v{emoji.VERSION}-*[0-9]"))
    if not folders or not theirs:
        pytest.skip("the motion or the emoji corpus is not in the cache")
    mine, other = (
        store.Corpus(f, json.loads((f / "manifest.json").read_text()))
        for f in (folders[0], theirs[0])
    )
    seen = set(other.labels("train_b").tolist())
    assert (
        not set(mine.labels("test").tolist()) & seen and set(mine.labels("train").tolist()) <= seen
    )
    assert mine.class_set().names["fr"] == other.class_set().names["fr"]
