"""Changes of words: what each may do, how often, and that a number decides."""

import collections

import numpy as np
import pytest

from jaxvl.config import ConfigError
from jaxvl.data.text_augment import TextAugment

TEXT = "a b c d"
WORDS = TEXT.split()
DRAWS = np.random.default_rng(0).random(4000).tolist()


def changed(augment, text=TEXT):
    return [augment(text, draw).split() for draw in DRAWS]


def test_two_words_change_places():
    counts = collections.Counter(map(tuple, changed(TextAugment(swap=1.0))))
    assert len(counts) == 6  # every pair of places
    for words, count in counts.items():
        assert sorted(words) == WORDS and sum(a != b for a, b in zip(words, WORDS)) == 2
        assert abs(count - 4000 / 6) < 5 * np.sqrt(4000 / 6)


def test_words_are_left_out_but_never_all():
    found = changed(TextAugment(delete=1.0, delete_share=0.5))
    assert all(words and words == [w for w in WORDS if w in words] for words in found)
    # Of nothing kept, which is 1/16, one word stays.
    assert abs(np.mean([len(words) for words in found]) - (2 + 1 / 16)) < 0.08
    assert {tuple(w) for w in changed(TextAugment(delete=1.0, delete_share=1.0))} == {
        (word,) for word in WORDS
    }


def test_a_word_is_said_once_more():
    found = changed(TextAugment(insert=1.0))
    for words in found:
        twice = [word for word, n in collections.Counter(words).items() if n == 2]
        assert len(words) == 5 and len(twice) == 1
    assert len({tuple(words) for words in found}) == 4 * 4  # 5 places, of which two look the same


def test_shares_and_repeats():
    augment = TextAugment(swap=0.4, delete=0.2)
    found = changed(augment)
    assert found == changed(augment)
    same = np.mean([words == WORDS for words in found])
    assert abs(same - (0.4 + 0.2 * 0.9**4)) < 0.04
    assert augment("word", 0.3) == "word" and not TextAugment().changes


def test_refusals():
    with pytest.raises(ConfigError, match="swap: 0.6, delete 0.5 and insert 0.0 must be <= 1"):
        TextAugment(swap=0.6, delete=0.5)
    with pytest.raises(ConfigError, match="delete_share: 2.0 is a share"):
        TextAugment(delete_share=2.0)
