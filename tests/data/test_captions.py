import collections

import numpy as np
import pytest
from data_samples import record

from jaxvl.config import ConfigError
from jaxvl.data.captions import DRAWS, CaptionConfig
from jaxvl.data.records import BadRecord

N = 20_000
RECORD = record(3)


def drawn(config, record=RECORD, n=N):
    texts = config.texts(record)
    return collections.Counter(config.choose(texts, row) for row in np.random.default_rng(0).random((n, DRAWS)).tolist())


def test_the_default_is_the_name():
    assert drawn(CaptionConfig(), n=50) == {"black circle 3": 50}


def test_weights_are_frequencies():
    counts = drawn(CaptionConfig(name=3, keyword=2, foreign=1))
    expected = {"black circle 3": 1 / 2, **{f"keyword 3 {j}": 1 / 3 / 4 for j in range(4)}, "de 3": 1 / 12, "fr 3": 1 / 12}
    assert counts.keys() == expected.keys()
    for text, p in expected.items():
        assert abs(counts[text] - N * p) < 5 * np.sqrt(N * p * (1 - p)), text


def test_a_missing_source_gives_its_weight_to_the_others():
    config = CaptionConfig(name=1, keyword=1, foreign=2, foreign_locales=("xx", "yy"))
    counts = drawn(config)
    assert abs(counts["black circle 3"] - N / 2) < 5 * np.sqrt(N / 4)
    assert all(t == "black circle 3" or t.startswith("keyword") for t in counts)


def test_only_the_listed_languages():
    assert drawn(CaptionConfig(name=0, foreign=1, foreign_locales=("fr",)), n=50) == {"fr 3": 50}
    assert drawn(CaptionConfig(locale="de", name=1), n=50) == {"de 3": 50}


def test_joined_keywords_are_different_and_of_every_number():
    counts = drawn(CaptionConfig(name=0, keyword=1, keywords_joined=3))
    numbers = collections.Counter()
    for text, n in counts.items():
        words = text.split(", ")
        assert len(set(words)) == len(words) and all(w.startswith("keyword 3 ") for w in words)
        numbers[len(words)] += n
    assert numbers.keys() == {1, 2, 3} and all(abs(n - N / 3) < 5 * np.sqrt(2 * N / 9) for n in numbers.values())
    assert len(counts) == 4 + 4 * 3 + 4 * 3 * 2  # every ordered choice occurs


def test_no_more_keywords_than_there_are():
    short = {**RECORD, "captions": {"en": ["name", ["one", "two"]]}}
    assert set(drawn(CaptionConfig(name=0, keyword=1, keywords_joined=8), short, 500)) == {"one", "two", "one, two", "two, one"}


def test_no_caption_of_the_asked_kind_is_a_bad_record():
    with pytest.raises(BadRecord, match=r"no caption: 'style/3' has none of the asked kind \(it has locales \['de', 'en', 'fr'\]"):
        CaptionConfig(locale="ja").texts(RECORD)


def test_locales_that_can_occur():
    assert CaptionConfig().locales == ("en",)
    assert CaptionConfig(foreign=1, foreign_locales=("de", "en")).locales == ("en", "de")
    assert CaptionConfig(foreign=1).locales is None


@pytest.mark.parametrize(
    "values, message", [(dict(name=-1.0), "must be >= 0"), (dict(name=0.0), "at least one"), (dict(keywords_joined=0), "must be in 1 … 8")]
)
def test_refusals(values, message):
    with pytest.raises(ConfigError, match=message):
        CaptionConfig(**values)
