"""A megabyte of anything in a caption: tokenizers and cleaning take it in less than a second, and
never in more than a few."""

import html
import time

import numpy as np
import pytest
import tokenizers

from jaxvl.data.cleaning import CLEANERS
from jaxvl.data.tokenizers import Tokenizer, TokenizerConfig, make_tokenizer, train_unigram

MEGABYTE = 10**6
TEXTS = {
    "one word": "w" * MEGABYTE,
    "a URL": "https://example.org/" + "a1/b2?c=3&" * (MEGABYTE // 10),
    "base64": "iVBORw0KGgo+/" * (MEGABYTE // 13),
    "words": "a red square " * (MEGABYTE // 13),
    "spaces": " " * MEGABYTE,
    "lines": "\r\n" * (MEGABYTE // 2),
    "punctuation": "!?.,;" * (MEGABYTE // 5),
    "entities": "&amp;" * (MEGABYTE // 5),
    "entities of entities": "&" + "amp;" * (MEGABYTE // 4),
    "entities of entities, mixed": "&" + "#38;amp;#x26;" * (MEGABYTE // 13),
    "short lines": "a\n" * (MEGABYTE // 2),
    "markup": "<b>" * (MEGABYTE // 3),
    "ideographs": "\u4e00" * (MEGABYTE // 3),
    "pictures": "\U0001f600" * (MEGABYTE // 4),
    "marks": "e" + "\u0301" * (MEGABYTE // 2),
    "broken encoding": "\u00c3\u00a9" * (MEGABYTE // 4),
    "controls": "\x00\x1b\x7f" * (MEGABYTE // 3),
    "directions": "\u202e\u2067" * (MEGABYTE // 6),
}
MOST_SECONDS = 5.0  # of one core; about ten times what the slowest takes


def seconds(work):
    """CPU seconds that `work` takes; those of other processes do not count."""
    began = time.process_time()
    work()
    return time.process_time() - began


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    words = ["a red square", "two blue stars", "https://example.org", "\u00e9\u4e00"]
    vocabulary = tmp_path_factory.mktemp("bert") / "vocab.txt"
    vocabulary.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##a", "red", "w", "##w", "!", "?"])
        + "\n"
    )
    pairs = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    pairs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<end>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    pairs.train_from_iterator(["wwww ww w", *words] * 5, trainer)
    return {
        "unigram": Tokenizer(
            "unigram", train_unigram(words * 2, 60, lowercase=True), pad_id=0, eos_id=1
        ),
        "wordpiece": make_tokenizer(TokenizerConfig(kind="wordpiece", path=str(vocabulary))),
        "json": Tokenizer("json", pairs.to_str().encode(), pad_id=0, eos_id=1),
    }


@pytest.mark.parametrize(
    "name", ["one word", "a URL", "punctuation", "short lines", "ideographs", "marks", "controls"]
)
@pytest.mark.parametrize("kind", ["unigram", "wordpiece", "json"])
def test_a_tokenizer_takes_a_megabyte(made, kind, name):
    rows = []
    assert seconds(lambda: rows.append(made[kind].encode([TEXTS[name]], 16))) < MOST_SECONDS
    assert rows[0].shape == (1, 16) and rows[0].dtype == np.int32


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", CLEANERS)
def test_cleaning_takes_a_megabyte(name, text):
    if name.startswith("open_clip"):
        pytest.importorskip("ftfy")
    assert seconds(lambda: CLEANERS[name](text)) < MOST_SECONDS


@pytest.mark.parametrize(
    "text",
    [
        "&" + "amp;" * 12 + "lt;",
        "a &amp;amp;amp; b",
        "caf\u00c3\u00a9 " + "&" + "#38;" * 20,
        "&amp;" * 30,
        "a " * 5000,
    ],
)
def test_repairing_is_that_of_ftfy(text):
    """Entities of entities, as deep as they may be."""
    ftfy = pytest.importorskip("ftfy")
    expected = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    assert CLEANERS["open_clip_whitespace"](text) == " ".join(expected.split())
