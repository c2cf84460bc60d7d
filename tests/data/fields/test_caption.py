import collections

import numpy as np
import pytest
from data_samples import FakeSource, record, row_of, tokenizer

from jaxvl.config import ConfigError
from jaxvl.data.cache import Cache
from jaxvl.data.fields.base import Context
from jaxvl.data.fields.caption import DRAWS, Caption, TextEncoder, choose
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Column
from jaxvl.data.text_augment import TextAugment

N = 20_000
RECORD = record(3)
SOURCE = FakeSource(1)
TOKENIZER = tokenizer()


def reader_of(field, source=SOURCE):
    return field.reader("text", source, Context(TOKENIZER, Preprocess(), Cache(0)))


def drawn(field, given=RECORD, n=N, source=SOURCE):
    texts = reader_of(field, source).load(given)
    return collections.Counter(
        choose(texts, field.joined, row)
        for row in np.random.default_rng(0).random((n, DRAWS)).tolist()
    )


def near(count, n, p):
    """Within five standard deviations of the binomial."""
    return abs(count - n * p) < 5 * np.sqrt(n * p * (1 - p))


def test_one_column_is_its_text():
    assert drawn(Caption("name/en"), n=50) == {"black circle 3": 50}
    assert drawn(Caption("name/de"), n=50) == {"de 3": 50}
    assert Caption().columns == {"text": 1.0}


def test_weights_are_frequencies():
    counts = drawn(Caption({"name/en": 3, "keywords/en": 2, "name/*": 1}))
    expected = {
        "black circle 3": 1 / 2,
        **{f"keyword 3 {j}": 1 / 3 / 4 for j in range(4)},
        "de 3": 1 / 12,
        "fr 3": 1 / 12,
    }
    assert counts.keys() == expected.keys()
    for text, p in expected.items():
        assert near(counts[text], N, p), text


def test_columns_of_a_pattern_share_its_weight():
    """Without names of their own all of them are of the pattern."""
    counts = drawn(Caption({"name/*": 1, "keywords/en": 1}))
    names = {"black circle 3": 1 / 6, "de 3": 1 / 6, "fr 3": 1 / 6}
    assert all(near(counts[text], N, p) for text, p in names.items())
    assert near(sum(n for text, n in counts.items() if text.startswith("keyword")), N, 1 / 2)


def test_lists_of_a_pattern_share_its_weight_however_long_they_are():
    source = FakeSource(1, columns={"keywords/en": Column("texts"), "keywords/de": Column("texts")})
    given = {"keywords/en": ["one", "two", "three", "four"], "keywords/de": ["eins"]}
    counts = drawn(Caption("keywords/*"), given, source=source)
    assert near(counts["eins"], N, 1 / 2) and all(
        near(counts[text], N, 1 / 8) for text in given["keywords/en"]
    )


def test_names_without_weights_weigh_the_same():
    counts = drawn(Caption(["name/en", "name/de"]))
    assert counts.keys() == {"black circle 3", "de 3"} and near(counts["de 3"], N, 1 / 2)


def test_a_missing_column_gives_its_weight_to_the_others():
    lacking = {name: value for name, value in RECORD.items() if name not in ("name/de", "name/fr")}
    counts = drawn(Caption({"name/en": 1, "keywords/en": 1, "name/*": 2}), lacking)
    assert near(counts["black circle 3"], N, 1 / 2)
    assert all(text == "black circle 3" or text.startswith("keyword") for text in counts)
    half = {name: value for name, value in RECORD.items() if name != "name/de"}
    assert near(
        drawn(Caption({"name/en": 1, "name/*": 1}), half)["fr 3"], N, 1 / 2
    )  # of a pattern, to its other columns


@pytest.mark.parametrize("empty", [None, "", "  ", [], ["", "\n"]])
def test_what_is_empty_is_missing(empty):
    given = {**RECORD, "name/en": empty}
    assert drawn(Caption(["name/en", "name/de"]), given, 50) == {"de 3": 50}
    assert reader_of(Caption("name/en")).load(given) is None


def test_a_weight_of_zero_is_never_drawn_and_not_read():
    field = Caption({"name/en": 0, "name/de": 1})
    assert drawn(field, n=50) == {"de 3": 50} and reader_of(field).columns == ("name/de",)
    assert drawn(Caption({"name/en": 0, "name/*": 1}), n=500).keys() == {
        "de 3",
        "fr 3",
    }  # and so is left out of a pattern


def test_joined_texts_are_different_and_of_every_number():
    counts = drawn(Caption("keywords/en", joined=3))
    numbers = collections.Counter()
    for text, n in counts.items():
        words = text.split(", ")
        assert len(set(words)) == len(words) and all(w.startswith("keyword 3 ") for w in words)
        numbers[len(words)] += n
    assert numbers.keys() == {1, 2, 3} and all(near(n, N, 1 / 3) for n in numbers.values())
    assert len(counts) == 4 + 4 * 3 + 4 * 3 * 2  # every ordered choice occurs


def test_only_texts_of_one_list_are_joined():
    """Names in several languages are different captions, not parts of one."""
    counts = drawn(Caption({"keywords/en": 1, "name/*": 1}, joined=2), n=2000)
    assert {"de 3", "fr 3", "black circle 3"} < counts.keys()
    assert not [
        text
        for text in counts
        if "," in text and not all(part.startswith("keyword") for part in text.split(", "))
    ]


def test_no_more_texts_are_joined_than_there_are():
    short = {**RECORD, "keywords/en": ["one", "two"]}
    assert set(drawn(Caption("keywords/en", joined=8), short, 500)) == {
        "one",
        "two",
        "one, two",
        "two, one",
    }


def test_a_record_without_any_of_the_columns_has_none():
    source = FakeSource(1, columns={"name/ja": Column("text", optional=True)})
    assert row_of(Caption("name/ja"), RECORD, source=source, tokens=TOKENIZER) is None


@pytest.mark.parametrize(
    "value, kind", [(3, "int"), (b"text", "bytes"), ([None], "NoneType"), (["a", b"b"], "bytes")]
)
def test_what_is_no_text_is_a_bad_record(value, kind):
    with pytest.raises(
        BadRecord, match=f"caption is no text: column 'name/en' holds {kind}"
    ) as error:
        reader_of(Caption("name/en")).load({"name/en": value})
    assert error.value.cause == "caption is no text"


def test_a_row_is_the_tokens_of_the_text():
    row = row_of(Caption("name/en", length=9), RECORD, tokens=TOKENIZER)["x"]
    np.testing.assert_array_equal(row, TOKENIZER.encode(["black circle 3"], 9)[0])


def test_several_texts_of_a_row_are_drawn_each_on_its_own_and_the_first_stays():
    columns = {"name/en": 1, "keywords/en": 1, "name/*": 1}
    one = Caption(columns, length=9)
    three = Caption(columns, length=9, count=3)
    assert (one.draws, three.draws) == (DRAWS, 3 * DRAWS)
    assert three.arrays("x")["x"].shape == (3, 9) and one.arrays("x")["x"].shape == (9,)
    same = []
    for draws in np.random.default_rng(1).random((100, 3 * DRAWS)).tolist():
        rows = row_of(three, RECORD, draws=draws, tokens=TOKENIZER)["x"]
        for i in range(3):
            alone = row_of(one, RECORD, draws=draws[DRAWS * i : DRAWS * (i + 1)], tokens=TOKENIZER)[
                "x"
            ]
            np.testing.assert_array_equal(rows[i], alone)
        same.append((rows[1] == rows[2]).all())
    assert 0.1 < np.mean(same) < 0.9


def test_the_largest_draws_choose_the_last_text():
    last = [np.nextafter(1.0, 0.0)] * DRAWS
    texts = reader_of(Caption({"name/en": 0.1, "name/de": 0.2, "keywords/en": 0.7})).load(RECORD)
    assert choose(texts, 1, last) == "keyword 3 3"
    assert choose(texts, 8, last) == ", ".join(f"keyword 3 {j}" for j in (3, 2, 1, 0))
    assert choose(texts, 1, [0.0] * DRAWS) == "black circle 3"


def test_a_text_is_tokenised_once_and_for_each_length():
    asked = []

    class Counted:
        def encode(self, texts, length):
            asked.append((*texts, length))
            return TOKENIZER.encode(texts, length)

    cache = Cache(2**20)
    short = TextEncoder(Counted(), 5, cache)
    long = TextEncoder(Counted(), 9, cache)
    for _ in range(3):
        assert short("red star").shape == (5,) and long("red star").shape == (9,)
    assert asked == [("red star", 5), ("red star", 9)]


def test_columns_and_needs_are_those_that_are_named():
    field = Caption({"name/en": 1, "name/*": 1})
    assert set(reader_of(field).columns) == {"name/en", "name/de", "name/fr"}
    (needed,) = field.needs(SOURCE)
    assert set(needed) == {"name/en", "name/de", "name/fr"}  # any of them is enough


REFUSED = [
    (dict(columns={"name/en": -1.0}), "columns: the weights .* must be >= 0"),
    (dict(columns={"name/en": 0.0}), "columns: the weights .* one of them > 0"),
    (dict(columns={}), "columns: must name at least one"),
    (dict(joined=0), "joined: 0 must be in 1 … 8"),
    (dict(joined=9), "joined: 9 must be in 1 … 8"),
    (dict(length=2), "length: 2 must be >= 3"),
    (dict(count=0), "count: 0 must be >= 1"),
]


@pytest.mark.parametrize("values, message", REFUSED)
def test_refusals(values, message):
    with pytest.raises(ConfigError, match=message):
        Caption(**values)


@pytest.mark.parametrize(
    "columns, message",
    [
        (
            "title",
            r"columns: 'title' is no column of fake \(columns: key \(text\), image \(image\), .*name/fr \(text\)\)",
        ),
        ("name/ne", "columns: 'name/ne' is no column of fake; did you mean 'name/en'"),
        ("caption/*", r"columns: 'caption/\*' is no column of fake"),
        ("class_label", "columns: 'class_label' of fake holds class; must be text or texts"),
        ("*", "columns: .* must be text or texts"),
    ],
)
def test_columns_that_a_source_has_not(columns, message):
    with pytest.raises(ConfigError, match=message):
        reader_of(Caption(columns))


def shown(field, given, draws):
    """The texts of a row."""
    rows = row_of(field, given, "text", SOURCE, draws=list(draws), tokens=TOKENIZER)["text"]
    return TOKENIZER.decode(rows.reshape(-1, field.length))


def test_different_texts_are_all_of_a_record_or_so_many_of_them():
    names = {"black circle 3", "de 3", "fr 3"}
    random = np.random.default_rng(0)
    whole = Caption("name/*", length=16, count=3, different=True)
    some = Caption({"name/*": 1, "keywords/en": 2}, length=16, count=2, different=True)
    firsts = collections.Counter()
    for _ in range(200):
        texts = shown(whole, RECORD, random.random(whole.draws))
        assert set(texts) == names
        firsts[texts[0]] += 1
        assert len(set(shown(some, RECORD, random.random(some.draws)))) == 2
    assert all(near(count, 200, 1 / 3) for count in firsts.values()), "their order is drawn"
    more = Caption("name/*", length=16, count=5, different=True)
    texts = shown(more, RECORD, random.random(more.draws))
    assert set(texts[:3]) == names and len(set(texts[3:])) == 2, (
        "where there are fewer, they come again"
    )
    twice = {"name/en": "a", "name/de": "a", "name/fr": "b"}
    assert sorted(
        shown(Caption("name/*", length=16, count=2, different=True), twice, [0.0] * 20)
    ) == ["a", "b"]
    with pytest.raises(ConfigError, match="different: True is for single texts; joined is 2"):
        Caption("keywords/en", joined=2, different=True)


def test_changed_words_are_drawn_for_each_row_and_again_the_same():
    field = Caption("name/en", length=32, count=2, augment=TextAugment(swap=0.5, delete=0.5))
    reader = reader_of(field)
    texts = reader.load({"name/en": "four yellow stars shine"})
    draws = np.random.default_rng(0).random((64, field.draws))
    assert field.draws == 2 * DRAWS + 2 and Caption("name/en", count=2).draws == 2 * DRAWS
    rows = []
    for _ in range(2):
        out = {"text": np.zeros((64, 2, 32), np.int32)}
        for row in range(64):
            reader.write(out, row, texts, draws[row].tolist())
        rows.append(out["text"])
    np.testing.assert_array_equal(*rows)
    assert (rows[0][:, 0] != rows[0][:, 1]).any()  # each text of a row has its own number
    assert len(np.unique(rows[0].reshape(-1, 32), axis=0)) > 8


def test_a_template_stands_around_the_text():
    row = row_of(Caption("name/en", length=12, template="find: {}"), RECORD, tokens=TOKENIZER)["x"]
    np.testing.assert_array_equal(row, TOKENIZER.encode(["find: black circle 3"], 12)[0])
    with pytest.raises(ConfigError, match="template: 'find' must hold '{}' once"):
        Caption(template="find")
