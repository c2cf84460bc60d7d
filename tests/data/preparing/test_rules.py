"""Parts of the rules that need no Beam, against plain counting."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvl.config import ConfigError, resolve
from jaxvl.data.preparing.losses import Loss, Removal, cut
from jaxvl.data.preparing.near import bands
from jaxvl.data.preparing.numbering import BLOCK, placed, starts_of
from jaxvl.data.preparing.options import PrepareConfig, Rules
from jaxvl.data.preparing.rare import _gather, lowest_kept
from jaxvl.data.preparing.rows import Bad, Row, _load, _save
from jaxvl.data.preparing.rules import MaxAspect, MinSide, WordCount, rules_of
from jaxvl.data.preparing.shards import suffix_of
from jaxvl.data.preparing.subsets import is_in_subset, subset
from jaxvl.data.preparing.words import grams, normalized, text_key, words
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES

QUICK = settings(max_examples=100, deadline=None)


def row(position=0, width=300, height=300, texts=("a", "b", "c")):
    placed_texts = tuple((("alt", number), text) for number, text in enumerate(texts))
    return Row(position, bytes([position % 256]) * 32, width, height, 2**63 + 1, "0" * 32, placed_texts)


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


@QUICK
@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), max_size=6), st.integers(0, 15))
def test_hashes_that_differ_in_few_bits_share_a_band(look, flipped, distance):
    other = look
    for bit in flipped:
        other ^= 1 << bit
    mine, theirs = list(bands(look, distance)), list(bands(other, distance))
    assert len(mine) == distance + 1
    if len(flipped) <= distance:
        assert set(mine) & set(theirs)
    if not flipped:
        assert mine == theirs


def test_bands_hold_every_bit_once():
    for distance in range(16):
        for bit in range(64):
            assert [value.bit_count() for _, value in bands(1 << bit, distance)].count(1) == 1


@QUICK
@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 9), min_size=1), st.integers(1, 20))
def test_the_most_frequent_are_kept_and_ties_go_together(counts, most):
    lowest = lowest_kept(collections.Counter(counts.values()).items(), most)
    kept = [name for name, n in counts.items() if n >= lowest]
    assert len(kept) <= most
    border = max((n for n in counts.values() if n < lowest), default=None)
    if border is not None:  # the next group would have been too many
        assert len(kept) + sum(n == border for n in counts.values()) > most


@QUICK
@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(1, 12), st.data())
def test_gathering_in_any_grouping_is_the_same(positions, fewest, data):
    """A runner may combine parts of what a key has, and parts of parts."""
    values = [(1, ((position, ("alt", 0)),)) for position in positions]
    parts = values
    while len(parts) > 1:
        size = data.draw(st.integers(2, len(parts)))
        parts = [_gather(parts[:size], fewest), *parts[size:]]
    total, kept = _gather(parts, fewest)
    assert total == len(positions)
    assert (kept is None) == (total >= fewest)
    if kept is not None:
        assert sorted(position for position, _ in kept) == sorted(positions)


def test_what_a_row_loses():
    whole = row()
    assert cut(whole, [], "r") == (whole, None)
    left, removal = cut(whole, [Loss(0, (("alt", 1),), "one"), Loss(0, (("alt", 1), ("alt", 9)), "two")], "r")
    assert left.texts == ((("alt", 0), "a"), (("alt", 2), "c"))
    assert removal == Removal("r", 0, False, ("b",), "one; two")
    assert cut(whole, [Loss(0, (("alt", 9),), "gone before")], "r") == (whole, None)
    left, removal = cut(whole, [Loss(0, (), "whole"), Loss(0, (("alt", 1),), "b")], "r")
    assert left is None and removal.record and removal.texts == ("a", "b", "c")
    left, removal = cut(whole, [Loss(0, tuple(("alt", i) for i in range(3)), "all")], "r")
    assert left is None and removal.record


def test_thresholds_of_the_paper_are_strict():
    side, aspect = MinSide("s", "", "", 200), MaxAspect("a", "", "", 3.0)
    assert side.judge(row(width=200, height=999)) is not None and side.judge(row(width=201, height=999)) is None
    assert aspect.judge(row(width=300, height=100)) is not None and aspect.judge(row(width=299, height=100)) is None
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
    uids = subset(str(tmp_path / "uids.npy"))
    names = [f"{a:016x}{b:016x}" for a, b in numbers]
    assert [is_in_subset(uids, name) for name in names] == [i % 2 == 0 for i in range(len(names))]
    np.save(tmp_path / "other.npy", np.zeros((3, 2)))
    with pytest.raises(ConfigError, match="must be a sorted list of dtype u8,u8"):
        subset(str(tmp_path / "other.npy"))
    np.save(tmp_path / "pickle.npy", np.array([{}], object))
    with pytest.raises(ConfigError, match="cannot be read"):
        subset(str(tmp_path / "pickle.npy"))


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
        "min_side", "max_aspect", "texts_per_image", "images_per_text", "rare_words", "word_count", "duplicates",
    ]  # fmt: skip
    none = Rules(None, None, None, None, None, None, None, None, None, None)
    assert rules_of(_config(none)) == []
    for wrong in (dict(min_score=0.3), dict(min_words=9, max_words=3), dict(top_share=0.0)):
        with pytest.raises(ConfigError):
            resolve(Rules, wrong)


def _config(rules):
    return PrepareConfig(source=next(iter(SOURCES), None), out="x", rules=rules)


@pytest.mark.parametrize("kind, suffix", [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif"),
                                          ("JPEG2000", "jp2"), ("AVIF", "avif"), ("PPM", "ppm"), ("QOI", "qoi")])  # fmt: skip
def test_suffixes_of_pictures(kind, suffix):
    from data_samples import encoded, noise

    assert suffix_of(encoded(noise(0, 8, 8, 3), kind)) == suffix


def test_every_subset_of_a_pair_of_rules_is_independent_of_order():
    """Losses of one rule join in any order to the same removal."""
    losses = [Loss(0, (("alt", 0),), "x"), Loss(0, (("alt", 2),), "y"), Loss(0, (("alt", 0),), "z")]
    found = {cut(row(), list(order), "r") for order in itertools.permutations(losses)}
    assert len(found) == 1
