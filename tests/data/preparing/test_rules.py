"""Parts of the rules that need no Beam, against plain counting."""

import collections
import dataclasses
import io
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvl.config import ConfigError, resolve
from jaxvl.data.preparing.losses import Loss, Removal, cut
from jaxvl.data.preparing.near import nearest_test, table_of
from jaxvl.data.preparing.numbering import BLOCK, placed, starts_of
from jaxvl.data.preparing.options import PrepareConfig, Rules
from jaxvl.data.preparing.rare import _join, lowest_kept
from jaxvl.data.preparing.rows import Bad, Row, _load, _save
from jaxvl.data.preparing.rules import MaxAspect, MinSide, UidSubset, WordCount, rules_of
from jaxvl.data.preparing.scoring import least_step, step_of
from jaxvl.data.preparing.shards import suffix_of
from jaxvl.data.preparing.subsets import check_subset
from jaxvl.data.preparing.words import grams, normalized, text_key, words
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES

QUICK = settings(max_examples=100, deadline=None)


def row(position=0, width=300, height=300, texts=("a", "b", "c")):
    placed_texts = tuple((("alt", number), text) for number, text in enumerate(texts))
    return Row(
        position, bytes([position % 256]) * 32, width, height, 2**63 + 1, "0" * 32, placed_texts
    )


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A photo, of a DOG!", ["a", "photo", "of", "a", "dog"]),
        ("don't  stop\u2019s", ["don't", "stop\u2019s"]),
        ("ﬁne １２ Straße", ["fine", "12", "strasse"]),
        ("赤い円 red", ["赤", "い", "円", "red"]),
        ("Привет, мир", ["привет", "мир"]),
        ("snake_case 3.5", ["snake_case", "3", "5"]),
        ("... -- !", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_grams_are_words_and_pairs_of_neighbours():
    assert grams("a b a") == ["a", "b", "a", "a b", "b a"]
    assert grams("a") == ["a"] and grams("") == []


def test_texts_are_equal_without_case_and_spaces():
    assert text_key(" Ａ\u00a0photo\n") == text_key("a photo") != text_key("a photos")
    assert normalized("\ud800 x") and text_key("\ud800")


LOOKS = st.integers(0, 2**64 - 1)


@QUICK
@given(
    st.lists(LOOKS, max_size=20),
    LOOKS,
    st.sets(st.integers(0, 63), max_size=6),
    st.integers(0, 15),
    st.randoms(),
)
def test_the_nearest_test_picture_is_found_within_the_distance(
    looks, look, flipped, distance, random
):
    near = look ^ sum(1 << bit for bit in flipped)
    tests = [("a", i, other) for i, other in enumerate(looks)] + [("b", 7, near)]
    random.shuffle(tests)
    loss = nearest_test(dataclasses.replace(row(), look=look), table_of(tests), distance)
    apart, name, number = min(
        (bin(look ^ other).count("1"), name, number) for name, number, other in tests
    )
    assert (loss is not None) == (apart <= distance)
    if loss is not None:
        assert (
            loss.why == f"like record {number} of {name} ({apart} bits apart)" and loss.places == ()
        )


def test_without_test_pictures_nothing_is_near():
    assert nearest_test(row(), table_of([]), 15) is None
    assert nearest_test(dataclasses.replace(row(), look=None), table_of([("a", 0, 0)]), 15) is None


@QUICK
@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 9), min_size=1),
    st.integers(1, 20),
)
def test_the_most_frequent_are_kept_and_ties_go_together(counts, most):
    lowest = lowest_kept(collections.Counter(counts.values()).items(), most)
    kept = [name for name, n in counts.items() if n >= lowest]
    assert len(kept) <= most
    border = max((n for n in counts.values() if n < lowest), default=None)
    if border is not None:  # the next group would have been too many
        assert len(kept) + sum(n == border for n in counts.values()) > most


@QUICK
@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(1, 12), st.data())
def test_joining_in_any_grouping_is_the_same(positions, fewest, data):
    """A runner may combine parts of what a key has, and parts of parts."""
    parts = [(1, fewest, ((position, ("alt", 0)),)) for position in positions]
    while len(parts) > 1:
        size = data.draw(st.integers(2, len(parts)))
        parts = [_join(parts[:size]), *parts[size:]]
    total, needed, kept = _join(parts)
    assert (total, needed) == (len(positions), fewest)
    assert (kept is None) == (total >= fewest)
    if kept is not None:
        assert sorted(position for position, _ in kept) == sorted(positions)


@QUICK
@given(
    st.lists(st.one_of(st.floats(-1, 1), st.just(math.nan)), min_size=1, max_size=30),
    st.floats(0.01, 1),
)
def test_the_best_share_is_that_of_a_sorted_list(scores, share):
    least = least_step(collections.Counter(step_of(score) for score in scores).items(), share)
    kept = [score for score in scores if step_of(score) >= least]
    most = int(share * len(scores))
    assert len(kept) <= most and not any(math.isnan(score) for score in kept)
    rest = sorted(
        (step_of(score) for score in scores if not math.isnan(score) and step_of(score) < least),
        reverse=True,
    )
    if rest:  # the next of equal ones would have been too many
        assert len(kept) + rest.count(rest[0]) > most


def test_what_a_row_loses():
    whole = row()
    assert cut(whole, [], "r") == (whole, None)
    left, removal = cut(
        whole, [Loss(0, (("alt", 1),), "one"), Loss(0, (("alt", 1), ("alt", 9)), "two")], "r"
    )
    assert left.texts == ((("alt", 0), "a"), (("alt", 2), "c"))
    assert removal == Removal("r", 0, False, ("b",), "one; two")
    assert cut(whole, [Loss(0, (("alt", 9),), "gone before")], "r") == (whole, None)
    left, removal = cut(whole, [Loss(0, (), "whole"), Loss(0, (("alt", 1),), "b")], "r")
    assert left is None and removal.record and removal.texts == ("a", "b", "c")
    left, removal = cut(whole, [Loss(0, tuple(("alt", i) for i in range(3)), "all")], "r")
    assert left is None and removal.record


def test_thresholds_of_the_paper_are_strict():
    side = MinSide("s", "", "", 200)
    aspect = MaxAspect("a", "", "", 3.0)
    assert (
        side.judge(row(width=200, height=999)) is not None
        and side.judge(row(width=201, height=999)) is None
    )
    assert (
        aspect.judge(row(width=300, height=100)) is not None
        and aspect.judge(row(width=299, height=100)) is None
    )
    count = WordCount("w", "", "", 3, 20)
    texts = [" ".join("a" * n) for n in (2, 3, 20, 21)]
    assert count.judge(row(texts=texts)).places == (("alt", 0), ("alt", 3))


def test_numbers_of_rows_do_not_depend_on_the_grouping():
    rng = np.random.default_rng(0)
    positions = sorted(rng.choice(5 * BLOCK, 1000, replace=False).tolist())
    rows = [row(position) for position in positions]
    counts = collections.Counter(position // BLOCK for position in positions)
    starts = starts_of(counts.items())
    found = {}
    for block in rng.permutation(list(counts)).tolist():
        mine = [one for one in rows if one.position // BLOCK == block]
        rng.shuffle(mine)
        for shard, (place, one) in placed((block, mine), starts, 300):
            found[shard * 300 + place] = one.position
    assert [found[i] for i in range(1000)] == positions


def test_uids_are_looked_up_in_a_sorted_file(tmp_path):
    rng = np.random.default_rng(0)
    numbers = sorted({tuple(pair) for pair in rng.integers(0, 2**64, (200, 2), np.uint64).tolist()})
    np.save(tmp_path / "uids.npy", np.array(numbers[::2], "u8,u8"))
    check_subset(str(tmp_path / "uids.npy"))
    rule = UidSubset("u", "", "", str(tmp_path / "uids.npy"))
    names = [f"{a:016x}{b:016x}" for a, b in numbers]
    losses = [rule.judge(dataclasses.replace(row(), uid=name)) for name in names]
    assert [loss is None for loss in losses] == [i % 2 == 0 for i in range(len(names))]
    assert (
        rule.judge(dataclasses.replace(row(), uid="f" * 31)).why
        == f"{'f' * 31!r} is not 32 hex digits"
    )
    assert rule.judge(dataclasses.replace(row(), uid=None)).why == "it has no uid"
    np.save(tmp_path / "mixed.npy", np.array([*numbers, numbers[3]], "u8,u8"))
    with pytest.raises(ConfigError, match="is not sorted"):
        check_subset(str(tmp_path / "mixed.npy"))
    np.save(tmp_path / "other.npy", np.zeros((3, 2)))
    with pytest.raises(ConfigError, match="must be a sorted list of dtype u8,u8"):
        check_subset(str(tmp_path / "other.npy"))
    np.save(tmp_path / "pickle.npy", np.array([{}], object))
    with pytest.raises(ConfigError, match="cannot be read"):
        check_subset(str(tmp_path / "pickle.npy"))


def test_rows_come_back_from_their_file(tmp_path):
    rows = [row(3, texts=("a", "\ud800 lone")), Bad(4, "no caption", "record 4"), row(5)]
    _save(tmp_path / "rows", rows)
    assert _load(tmp_path / "rows") == rows
    assert _load(tmp_path / "none") is None
    (tmp_path / "rows").write_bytes((tmp_path / "rows").read_bytes()[:-3])
    with pytest.raises(DataError, match="is damaged"):
        _load(tmp_path / "rows")


def test_rules_that_are_left_out(monkeypatch):
    assert [rule.name for rule in rules_of(_config(Rules()))] == [
        "min_side",
        "max_aspect",
        "texts_per_image",
        "images_per_text",
        "rare_words",
        "word_count",
        "duplicates",
    ]
    none = Rules(None, None, None, None, None, None, None, None, None, None)
    assert rules_of(_config(none)) == []
    for wrong in (dict(min_score=0.3), dict(min_words=9, max_words=3), dict(top_share=0.0)):
        with pytest.raises(ConfigError):
            resolve(Rules, wrong)


def _config(rules):
    return PrepareConfig(source=next(iter(SOURCES), None), out="x", rules=rules)


@pytest.mark.parametrize(
    "kind, suffix", [("FLAC", "flac"), ("OGG", "ogg"), ("WAV", "wav"), ("MP3", "mp3")]
)
def test_suffixes_of_sounds(kind, suffix):
    soundfile = pytest.importorskip("soundfile")
    out = io.BytesIO()
    soundfile.write(out, np.zeros(8000, np.float32), 16000, format=kind)
    assert suffix_of(out.getvalue(), "audio") == suffix


def test_a_broken_picture_has_no_suffix_of_its_own():
    assert suffix_of(b"<html>404</html>", "image") == "bin"


@pytest.mark.parametrize(
    "kind, suffix",
    [
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
        ("JPEG2000", "jp2"),
        ("AVIF", "avif"),
        ("PPM", "ppm"),
        ("QOI", "qoi"),
    ],
)
def test_suffixes_of_pictures(kind, suffix):
    from data_samples import encoded, noise

    assert suffix_of(encoded(noise(0, 8, 8, 3), kind), "image") == suffix


def test_every_subset_of_a_pair_of_rules_is_independent_of_order():
    """Losses of one rule join in any order to the same removal."""
    losses = [Loss(0, (("alt", 0),), "x"), Loss(0, (("alt", 2),), "y"), Loss(0, (("alt", 0),), "z")]
    found = {cut(row(), list(order), "r") for order in itertools.permutations(losses)}
    assert len(found) == 1
