"""Which texts a vocabulary is trained on."""

import itertools
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from jaxvl.config import ConfigError
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources.base import Column, Source
from jaxvl.data.text_sample import sample_origin, sample_texts, text_columns
from jaxvl.data.tokenizers import Tokenizer, TokenizerConfig, make_tokenizer
from jaxvl.data.unigram import LONGEST, train_unigram

COLUMNS = {
    "image": Column("image"),
    "name/en": Column("text"),
    "class_label": Column("class"),
    "name/de": Column("text", optional=True),
    "keywords/en": Column("texts", optional=True),
}


class Texts(Source):
    """Records in memory whose pictures cannot be read; those in `bad` cannot be read at all.
    `cheap` columns come as a whole."""

    name = "memory"
    fingerprint = "content"

    def __init__(self, n, cheap=(), bad=(), columns=COLUMNS):
        self.n = n
        self.cheap = cheap
        self.bad = frozenset(bad)
        self.columns = columns
        self.asked = []

    def __len__(self):
        return self.n

    def values(self, i):
        texts = {"name/en": f"name {i}"}
        if i % 2:
            texts["name/de"] = f"Name {i}"
        if i % 3 == 0:
            texts["keywords/en"] = [f"word {i} {j}" for j in range(4)]
        return texts

    def read(self, i, columns=None):
        assert columns is not None and not {"image", "class_label"} & set(columns), (
            "only texts are needed"
        )
        self.asked.append((i, tuple(columns)))
        if i in self.bad:
            raise BadRecord("record cannot be read", f"number {i}")
        return {name: value for name, value in self.values(i).items() if name in columns}

    def column(self, name):
        if name not in self.cheap:
            return None
        out = np.empty(self.n, object)
        for i in range(self.n):
            out[i] = self.values(i).get(name)
        return out

    def present(self, name):
        return (
            np.array([name in self.values(i) for i in range(self.n)])
            if name in self.cheap
            else super().present(name)
        )


def drawn(source, n, seed=0, columns=("name/*", "keywords/*"), **options):
    return list(sample_texts(source, columns, n, seed, **options))


def all_texts(source, names=("name/en", "name/de", "keywords/en")):
    values = [source.values(i) for i in range(len(source))]
    lists = [
        v[name] if isinstance(v[name], list) else [v[name]]
        for v in values
        for name in names
        if name in v
    ]
    return list(itertools.chain.from_iterable(lists))


def test_patterns_of_columns():
    source = Texts(3)
    assert text_columns(source, ["name/*"]) == ("name/en", "name/de")
    assert text_columns(source, ["keywords/en", "name/en"]) == (
        "name/en",
        "keywords/en",
    )  # in the source's order
    assert text_columns(source, ["*"]) == ("name/en", "name/de", "keywords/en")
    with pytest.raises(
        ConfigError,
        match=r"columns: 'nme/en' matches no column; did you mean 'name/en'\? \(text columns of memory: name/en",
    ):
        text_columns(source, ["nme/en"])
    with pytest.raises(ConfigError, match="'image' is of kind image, not text or texts"):
        text_columns(source, ["name/*", "image"])
    with pytest.raises(ConfigError, match="text columns of memory: none"):
        text_columns(Texts(3, columns={"image": Column("image")}), ["*"])


def test_all_texts_of_a_small_source_in_order():
    source = Texts(50)
    assert drawn(source, 10_000) == all_texts(source)
    assert drawn(source, 10_000, columns=["name/de"]) == all_texts(source, ["name/de"])
    assert [i for i, _ in sorted(source.asked)] == sorted([*range(50), *range(50)])


def test_texts_are_drawn_in_their_templates():
    source = Texts(50)
    templates = {"name/de": ("{}", "find {}."), "name/en": ("a {}",)}
    found = drawn(source, 10_000, columns=["name/*"], templates=templates)
    expected = []
    for i in range(50):
        values = source.values(i)
        if "name/en" in values:
            expected.append(f"a {values['name/en']}")
        if "name/de" in values:
            expected.extend([values["name/de"], f"find {values['name/de']}."])
    assert found == expected
    assert set(drawn(source, 20, columns=["name/*"], templates=templates)) < set(expected)


@pytest.mark.parametrize(
    "cheap", [(), ("name/en",), ("name/de", "keywords/en"), ("name/en", "name/de", "keywords/en")]
)
@pytest.mark.parametrize("n", [40, 900, 5000])
def test_cheap_columns_give_the_same_texts_unread(n, cheap):
    source = Texts(1000, cheap)
    assert drawn(source, n) == drawn(Texts(1000), n, threads=3)
    assert not {name for _, names in source.asked for name in names} & set(cheap)
    if len(cheap) == 3:
        assert source.asked == []


def test_records_are_drawn_without_replacement_one_text_each():
    source = Texts(5000)
    texts = drawn(source, 300)
    numbers = [i for i, _ in source.asked]
    assert len(set(numbers)) == len(numbers) == 300 == len(texts)
    assert len(set(texts)) == 300 and set(texts) <= set(all_texts(source))
    assert set(drawn(Texts(5000), 300, seed=1)) != set(texts)


def test_every_record_and_text_is_as_likely():
    found = Counter()
    for seed in range(400):
        found.update(int(text.split()[1]) for text in drawn(Texts(30), 7, seed))
    counts = np.array([found[i] for i in range(30)])
    assert counts.sum() == 400 * 7
    assert (
        (counts - 93.3) ** 2 / 93.3
    ).sum() < 60  # chi-squared with 29 degrees of freedom: 0.1 % are above 58.3
    kinds = Counter(
        text.split()[0] for seed in range(300) for text in drawn(Texts(40), 4, seed, ["name/*"])
    )
    assert 0.18 < kinds["Name"] / kinds.total() < 0.32  # half of the records have it, as one of two


def test_numbers_between_one_and_all():
    source = Texts(600)
    everything = all_texts(source)
    texts = drawn(source, 700)  # 1.17 of a record's texts
    assert (
        500 < len(texts) <= 760 and len(set(texts)) == len(texts) and set(texts) < set(everything)
    )


def test_bad_records_are_skipped_and_counted():
    bad = range(0, 100, 7)
    skipped = Counter()
    texts = drawn(Texts(100, bad=bad), 10_000, skipped=skipped)
    assert skipped == {"record cannot be read": len(bad)}
    assert not {int(text.split()[1]) for text in texts} & set(bad)
    with pytest.raises(
        DataError,
        match="memory: none of 20 records that were drawn .* .record cannot be read: 20.$",
    ):
        drawn(Texts(20, bad=range(20)), 50)
    assert drawn(Texts(0), 50) == []


def test_other_errors_are_not_swallowed():
    class Gone(Texts):
        def read(self, i, columns=None):
            raise DataError("shard 3 is gone")

    with pytest.raises(DataError, match="shard 3 is gone"):
        drawn(Gone(10), 5)


def test_every_process_draws_the_same():
    program = (
        "import json, sys; sys.path.insert(0, 'tests/data'); from test_text_sample import *;"
        "print(json.dumps(drawn(Texts(3000, bad=range(0, 3000, 11)), 200, seed=5)))"
    )
    theirs = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(theirs) == drawn(Texts(3000, bad=range(0, 3000, 11)), 200, seed=5, threads=2)


def test_a_huge_source_takes_no_more_memory_than_its_texts():
    class Huge(Texts):
        def values(self, i):
            return {"name/en": str(i)}

    numbers = [int(text) for text in drawn(Huge(10**10), 500, columns=["name/en"])]
    assert numbers == sorted(numbers) and len(set(numbers)) == 500
    assert all(k * 2 * 10**7 <= i < (k + 1) * 2 * 10**7 for k, i in enumerate(numbers))


def test_long_and_empty_texts():
    class Odd(Texts):
        def values(self, i):
            return {
                "name/en": ["x" * 10**6, "", " \n", None, "None", "a\ud83d b"][i % 6],
                "keywords/en": [],
            }

    assert drawn(Odd(6), 100) == ["x" * LONGEST, "None", "a\ud83d b"]
    content = train_unigram(
        [
            *drawn(Odd(6), 100),
            *("red star", "two\nlines", "tab\there", "nul\0", "\u2585 \u2581") * 3,
        ],
        40,
        lowercase=True,
    )
    assert content == train_unigram(
        [
            "x" * 10**6,
            "None",
            "a\ud83d b",
            "red star",
            "two\nlines",
            "tab\there",
            "nul\0",
            "\u2585 \u2581",
        ],
        40,
        lowercase=True,
    )


def test_origins_differ_where_texts_may():
    source = Texts(10)
    other = Texts(10)
    other.fingerprint = "changed"
    origins = [
        sample_origin(source, ["name/*"], 10, 0),
        sample_origin(other, ["name/*"], 10, 0),
        sample_origin(source, ["name/en"], 10, 0),
        sample_origin(source, ["name/*"], 11, 0),
        sample_origin(source, ["name/*"], 10, 1),
    ]
    assert (
        len(set(origins)) == len(origins)
        and sample_origin(source, ["name/en", "name/de"], 10, 0) == origins[0]
    )
    plain = {"name/en": ("{}",), "name/de": ("{}",)}
    assert sample_origin(source, ["name/*"], 10, 0, templates=plain) == origins[0]
    wrapped = {"name/en": ("a {}",)}
    assert sample_origin(source, ["name/*"], 10, 0, templates=wrapped) not in origins
    other.fingerprint = ""
    assert sample_origin(other, ["name/*"], 10, 0) == ""


def test_a_vocabulary_of_a_source_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path))
    source = Texts(200)
    config = TokenizerConfig(vocab_size=80, sample=100)
    origin = sample_origin(source, ["name/*"], config.sample, 0)
    first = make_tokenizer(config, sample_texts(source, ["name/*"], config.sample, 0), origin)
    source.asked.clear()
    again = make_tokenizer(config, sample_texts(source, ["name/*"], config.sample, 0), origin)
    assert again.to_json() == first.to_json() and source.asked == []  # nothing was read
    assert first.decode(first.encode(["name 17"], 16)) == ["name 17"]


def test_rare_characters_do_not_take_the_vocabulary():
    common = [
        f"word {i} of many others that say little more than this one does here" for i in range(5000)
    ]
    rare = [chr(0x4E00 + i) for i in range(180)]  # with a token each, they would not fit
    tokenizer = Tokenizer(
        "unigram", train_unigram([*common, *rare], 200, lowercase=True), pad_id=0, eos_id=1
    )
    assert tokenizer.vocab_size <= 200 and tokenizer.decode(
        tokenizer.encode(["word of many"], 16)
    ) == ["word of many"]
