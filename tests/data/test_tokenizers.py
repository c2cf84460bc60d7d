"""Against the libraries' own calls, and transformers' BERT tokenizer."""

import hashlib
import io
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece

from jaxvl.config import ConfigError
from jaxvl.data.tokenizers import Tokenizer, TokenizerConfig, make_tokenizer, train_unigram

WORDS = [
    "red",
    "green",
    "grün",
    "blue",
    "circle",
    "cercle",
    "star",
    "Stern",
    "étoile",
    "two",
    "three",
    "face",
    "smiling",
    "grinning",
    "heart",
]
TEXTS = [" ".join(random.Random(i).choices(WORDS, k=1 + i % 4)) for i in range(300)]
BERT = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "star",
    "##s",
    "##ling",
    "smi",
    "face",
    "etoile",
    ",",
    "!",
    "two",
]
SAMPLES = ["red stars, two!", "Étoile smiling face", "a unknownword", "", "red " * 40]


@pytest.fixture(scope="module")
def unigram():
    return Tokenizer("unigram", train_unigram(TEXTS, 60, lowercase=True), pad_id=0, eos_id=1)


@pytest.fixture
def bert_file(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(BERT) + "\n")
    return path


@pytest.fixture
def sentencepiece_file(tmp_path):
    """A model as T5's: pad 0, end 1, unknown 2."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=out,
        vocab_size=36,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path = tmp_path / "spiece.model"
    path.write_bytes(out.getvalue())
    return path


def test_training_gives_the_same_bytes_in_every_process_and_order(unigram):
    program = (
        "import sys, json, hashlib; from jaxvl.data.tokenizers import train_unigram;"
        "print(hashlib.sha256(train_unigram(json.load(sys.stdin), 60, lowercase=True)).hexdigest())"
    )
    hashes = {hashlib.sha256(unigram.content).hexdigest()}
    for seed in range(2):
        texts = (
            random.Random(seed).sample(TEXTS, len(TEXTS)) + TEXTS[:50]
        )  # another order, and repetitions
        hashes.add(
            subprocess.run(
                [sys.executable, "-c", program],
                input=json.dumps(texts),
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
        )
    assert len(hashes) == 1


def test_unigram_ids_are_the_librarys(unigram):
    model = sentencepiece.SentencePieceProcessor(model_proto=unigram.content)
    got = unigram.encode(TEXTS[:50], 32)
    for row, text in zip(got, TEXTS):
        ids = [*model.encode(text), 1]
        assert row.tolist() == ids + [0] * (32 - len(ids))
    assert model.decode(model.encode("red Stern")) == "red stern"
    assert unigram.vocab_size == model.vocab_size() <= 60 and got.max() < unigram.vocab_size


def test_case_is_kept_where_asked():
    model = sentencepiece.SentencePieceProcessor(
        model_proto=train_unigram(TEXTS, 80, lowercase=False)
    )
    assert model.decode(model.encode("red Stern")) == "red Stern"


def test_sentencepiece_ids_are_the_librarys(sentencepiece_file):
    model = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    ours = make_tokenizer(TokenizerConfig("sentencepiece", path=str(sentencepiece_file)))
    assert (ours.pad_id, ours.eos_id, ours.vocab_size) == (0, 1, 36)
    for text, row in zip(SAMPLES, ours.encode(SAMPLES, 100)):
        ids = [*model.encode(text), 1]
        assert row.tolist() == ids + [0] * (100 - len(ids))


def test_a_sentencepiece_model_without_padding_gets_an_id_of_its_own(tmp_path):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=out, vocab_size=36, minloglevel=2
    )
    (tmp_path / "m.model").write_bytes(out.getvalue())
    ours = make_tokenizer(TokenizerConfig("sentencepiece", path=str(tmp_path / "m.model")))
    assert (ours.pad_id, ours.eos_id, ours.vocab_size) == (36, 2, 37)


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece_ids_are_those_of_transformers(bert_file, lowercase):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizer(
        vocab={w: i for i, w in enumerate(BERT)}, do_lower_case=lowercase
    )
    ours = make_tokenizer(TokenizerConfig("wordpiece", path=str(bert_file), lowercase=lowercase))
    expected = theirs(
        SAMPLES, padding="max_length", truncation=True, max_length=12, return_tensors="np"
    )["input_ids"]
    np.testing.assert_array_equal(ours.encode(SAMPLES, 12), expected)
    assert (ours.pad_id, ours.cls_id, ours.eos_id, ours.vocab_size) == (0, 2, 3, len(BERT))


def test_a_tokenizer_json_is_read_as_it_is(bert_file, tmp_path):
    from_vocab = make_tokenizer(TokenizerConfig("wordpiece", path=str(bert_file)))
    (tmp_path / "tokenizer.json").write_bytes(from_vocab.content)
    ours = make_tokenizer(TokenizerConfig("wordpiece", path=str(tmp_path / "tokenizer.json")))
    np.testing.assert_array_equal(ours.encode(SAMPLES, 12), from_vocab.encode(SAMPLES, 12))


def test_a_cut_text_keeps_its_last_special_token(unigram, bert_file):
    bert = make_tokenizer(TokenizerConfig("wordpiece", path=str(bert_file)))
    assert bert.encode(["red " * 40], 5).tolist() == [[2, 6, 6, 6, 3]]
    row = unigram.encode(["red " * 40], 5)[0]
    assert row[-1] == 1 and (row[:-1] > 2).all()
    assert unigram.encode([""], 4).tolist() == [[1, 0, 0, 0]]
    assert bert.encode([""], 4).tolist() == [[2, 3, 0, 0]]


def test_a_length_without_room_for_a_word(unigram):
    with pytest.raises(
        ValueError, match="length 1 is too short for a unigram tokenizer; must be >= 2"
    ):
        unigram.encode(["red"], 1)


def test_json_carries_the_file(unigram, bert_file, sentencepiece_file):
    for ours in (
        unigram,
        make_tokenizer(TokenizerConfig("wordpiece", path=str(bert_file))),
        make_tokenizer(TokenizerConfig("sentencepiece", path=str(sentencepiece_file))),
    ):
        text = ours.to_json()
        bert_file.unlink(missing_ok=True)  # it must not be needed any more
        other = Tokenizer.from_json(text)
        assert other.to_json() == text and (other.kind, other.vocab_size) == (
            ours.kind,
            ours.vocab_size,
        )
        np.testing.assert_array_equal(
            other.encode([*TEXTS, *SAMPLES], 9), ours.encode([*TEXTS, *SAMPLES], 9)
        )


def test_a_trained_vocabulary_is_kept_by_its_origin(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path))
    config = TokenizerConfig(vocab_size=60)
    first = make_tokenizer(config, TEXTS, "corpus/train")
    assert (
        make_tokenizer(config, iter(()), "corpus/train").to_json() == first.to_json()
    )  # texts are not asked for again
    with pytest.raises(ConfigError, match="tokenizer.vocab_size: there is no text"):
        make_tokenizer(config, iter(()), "corpus/other")
    assert len(list((tmp_path / "tokenizers").iterdir())) == 1


def test_a_damaged_vocabulary_is_trained_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path))
    config = TokenizerConfig(vocab_size=60)
    first = make_tokenizer(config, TEXTS, "corpus/train")
    (kept,) = (tmp_path / "tokenizers").iterdir()
    for content in (b"", kept.read_bytes()[:-100], b"something else"):
        kept.write_bytes(content)
        assert make_tokenizer(config, TEXTS, "corpus/train").to_json() == first.to_json()
        assert make_tokenizer(config, iter(()), "corpus/train").to_json() == first.to_json()


def test_a_vocabulary_too_small_for_the_characters():
    with pytest.raises(
        ConfigError,
        match=r"vocab_size: 16 is too small for \d+ texts with about \d+ distinct characters",
    ):
        train_unigram(TEXTS, 16, lowercase=True)


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(kind="wordpiece"), "path: is required"),
        (dict(kind="sentencepiece", path="/nowhere/x.model"), "path: no file '/nowhere/x.model'"),
        (dict(kind="unigram", path="x"), "is trained, not read"),
        (dict(vocab_size=3), "must be >= 16"),
    ],
)
def test_configs_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        TokenizerConfig(**values)


def test_files_that_are_something_else(tmp_path, bert_file):
    words = tmp_path / "words.txt"
    words.write_text("one\ntwo\n")
    with pytest.raises(
        ConfigError, match=r"no \[PAD\], \[CLS\], \[SEP\], \[UNK\]; it is not a BERT vocabulary"
    ):
        make_tokenizer(TokenizerConfig("wordpiece", path=str(words)))
    with pytest.raises(ConfigError, match="is not a sentencepiece file"):
        make_tokenizer(TokenizerConfig("sentencepiece", path=str(bert_file)))
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{")
    with pytest.raises(ConfigError, match="is not a wordpiece file"):
        make_tokenizer(TokenizerConfig("wordpiece", path=str(broken)))
