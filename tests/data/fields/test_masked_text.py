"""Hidden tokens, against the rule of BERT (Devlin et al. 2019, section 3.1)."""

import dataclasses

import numpy as np
import pytest
from data_samples import FakeSource, row_of, tokenizer

from jaxvl.config import ConfigError
from jaxvl.data.cache import Cache
from jaxvl.data.fields.base import Context
from jaxvl.data.fields.caption import DRAWS, Caption
from jaxvl.data.fields.masked_text import MaskedText
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.tokenizers import TokenizerConfig, make_tokenizer

T = 40
TOKENIZER = tokenizer()
MASK_ID = 2  # of the unknown token, which no text here has
TEXT = "red circle green square blue star black ring"
FIELD = MaskedText("name/en", length=T, mask_id=MASK_ID)
PLAIN = TOKENIZER.encode([TEXT], T)[0]
SPECIAL = np.isin(PLAIN, [TOKENIZER.pad_id, TOKENIZER.eos_id])


def row(field=FIELD, draws=None, tokens=TOKENIZER, text=TEXT):
    return row_of(field, {"name/en": text}, "x", FakeSource(1), draws, tokens)


def rows(field=FIELD, n=600, seed=0):
    """Entry -> int [n, T]."""
    made = [
        row(field, draws) for draws in np.random.default_rng(seed).random((n, field.draws)).tolist()
    ]
    return {name: np.stack([one[name] for one in made]) for name in made[0]}


def near(share, n, p):
    return abs(share - p) < 5 * np.sqrt(p * (1 - p) / n)


def test_the_target_is_the_hidden_token_and_all_others_stay():
    made = rows()
    hidden = made["x_target"] != -1
    np.testing.assert_array_equal(
        made["x_target"][hidden], np.broadcast_to(PLAIN, hidden.shape)[hidden]
    )
    np.testing.assert_array_equal(made["x"][~hidden], np.broadcast_to(PLAIN, hidden.shape)[~hidden])
    assert hidden.any() and made["x"].dtype == made["x_target"].dtype == np.int32


def test_padding_and_special_tokens_are_never_hidden():
    made = rows(dataclasses.replace(FIELD, share=1.0), n=20)
    assert SPECIAL.sum() > 1
    np.testing.assert_array_equal(
        made["x_target"] != -1, np.broadcast_to(~SPECIAL, made["x"].shape)
    )


def test_shares_are_those_of_bert():
    made = rows()
    words = made["x"][:, ~SPECIAL]
    target = made["x_target"][:, ~SPECIAL]
    hidden = target != -1
    assert near(hidden.mean(), hidden.size, 0.15)
    n = hidden.sum()
    masked = words[hidden] == MASK_ID
    same = words[hidden] == target[hidden]
    assert near(masked.mean(), n, 0.8 + 0.1 / TOKENIZER.vocab_size)
    assert near(same.mean(), n, 0.1 + 0.1 / TOKENIZER.vocab_size)


def test_shares_of_ones_own():
    for masked, random in ((1.0, 0.0), (0.0, 0.0), (0.0, 1.0)):
        made = rows(dataclasses.replace(FIELD, share=1.0, masked=masked, random=random), n=30)
        words = made["x"][:, ~SPECIAL]
        if masked:
            assert (words == MASK_ID).all()
        elif random:
            assert (
                (words == PLAIN[~SPECIAL]).mean() < 0.1
                and words.min() >= 0
                and words.max() < TOKENIZER.vocab_size
            )
        else:
            assert (words == PLAIN[~SPECIAL]).all()


def test_random_tokens_are_any_of_the_vocabulary_equally_often():
    made = rows(dataclasses.replace(FIELD, share=1.0, masked=0.0, random=1.0))
    words = made["x"][:, ~SPECIAL].reshape(-1)
    counts = np.bincount(words, minlength=TOKENIZER.vocab_size)
    assert len(counts) == TOKENIZER.vocab_size
    expected = len(words) / TOKENIZER.vocab_size
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)


def test_the_text_is_drawn_as_a_caption_is():
    columns = {"name/en": 1, "name/de": 1}
    source = FakeSource(1)
    given = {"name/en": "red circle", "name/de": "blue star"}
    caption = Caption(columns, length=T)
    field = MaskedText(columns, length=T, share=0.0, mask_id=MASK_ID)
    for draws in np.random.default_rng(2).random((20, field.draws)).tolist():
        plain = row_of(caption, given, "x", source, draws[:DRAWS], TOKENIZER)["x"]
        made = row_of(field, given, "x", source, draws, TOKENIZER)
        np.testing.assert_array_equal(made["x"], plain)
        assert (made["x_target"] == -1).all()


def test_what_it_fills_and_needs():
    shapes = {name: (shape.shape, shape.dtype) for name, shape in FIELD.arrays("x").items()}
    assert shapes == {"x": ((T,), np.int32), "x_target": ((T,), np.int32)}
    assert FIELD.draws == DRAWS + 2 * T and FIELD.inputs("x") == {}
    assert FIELD.needs(FakeSource(1)) == [("name/en",)]
    assert row(text="") is None


def test_the_cached_text_is_not_changed():
    context = Context(TOKENIZER, Preprocess(), Cache(2**20))
    hiding = dataclasses.replace(FIELD, share=1.0, masked=1.0, random=0.0)
    reader = hiding.reader("x", FakeSource(1), context)
    value = reader.load({"name/en": TEXT})
    out = {name: np.zeros((1, T), np.int32) for name in ("x", "x_target")}
    for _ in range(2):
        reader.write(out, 0, value, [0.5] * hiding.draws)
        np.testing.assert_array_equal(out["x_target"][0][~SPECIAL], PLAIN[~SPECIAL])


def test_the_mask_token_is_the_tokenizers_own(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "star"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    bert = make_tokenizer(TokenizerConfig("wordpiece", path=str(tmp_path / "vocab.txt")))
    assert [bert.id_of(word) for word in words] == list(range(len(words))) and bert.id_of(
        "blue"
    ) is None
    field = MaskedText("name/en", length=6, share=1.0, masked=1.0, random=0.0)
    made = row(field, tokens=bert, text="red star")
    assert made["x"].tolist() == [2, 4, 4, 3, 0, 0] and made["x_target"].tolist() == [
        -1,
        5,
        6,
        -1,
        -1,
        -1,
    ]


def test_a_tokenizer_without_one():
    with pytest.raises(ConfigError, match=r"mask_id: the tokenizer has no \[MASK\]; name the id"):
        row(MaskedText("name/en", length=T))
    size = TOKENIZER.vocab_size
    with pytest.raises(
        ConfigError, match=f"mask_id: {size} must be < {size}, the size of the vocabulary"
    ):
        row(MaskedText("name/en", length=T, mask_id=size))


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(masked=0.8, random=0.3), "masked: 0.8 and random 0.3 must be <= 1"),
        (dict(count=2), "count: 2 must be 1"),
    ],
)
def test_refusals(values, message):
    with pytest.raises(ConfigError, match=message):
        MaskedText("name/en", **values)
