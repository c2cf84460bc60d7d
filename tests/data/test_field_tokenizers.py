"""Tokenizers of the field by name and path: the ids of their own libraries, on texts of every
kind."""

import concurrent.futures
import gzip
import html
import io
import json
import pickle

import numpy as np
import pytest
import sentencepiece
from nasty_texts import ALPHABETS, WORDS, nasty_texts

from jaxvl.config import ConfigError
from jaxvl.data import token_files
from jaxvl.data.cleaning import CLEANERS
from jaxvl.data.tokenizers import Tokenizer, TokenizerConfig, make_tokenizer
from jaxvl.interop.mapping import ConversionError
from jaxvl.interop.peers import peer

LENGTH = 64
TEXTS = nasty_texts(2000)


def library(name):
    try:
        return peer(name)
    except ConversionError as error:
        pytest.skip(str(error))


def made(kind, path=None, **options):
    return make_tokenizer(
        TokenizerConfig(kind, path=None if path is None else str(path), **options)
    )


def theirs_of(tokenizer):
    """Ids int [n, LENGTH] of a tokenizer of transformers, cut by it."""
    return np.asarray(
        tokenizer(TEXTS, padding="max_length", truncation=True, max_length=LENGTH).input_ids
    )


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A SentencePiece model with the ids of T5 and SigLIP."""
    out = io.BytesIO()
    texts = [text.replace("\0", "") for text in nasty_texts(2000, seed=1)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=out,
        vocab_size=1000,
        hard_vocab_limit=False,
        character_coverage=0.98,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("pieces") / "spiece.model"
    path.write_bytes(out.getvalue())
    return path


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A vocab.txt of BERT with words and characters of every script."""
    characters = sorted({c for alphabet in ALPHABETS.values() for c in alphabet if not c.isspace()})
    parts = ["##" + c for c in "abcdefghijklmnopqrstuvwxyz0123456789éß日本한ا"]
    lines = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *(w for w in WORDS if " " not in w),
        *characters,
        *parts,
    ]
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(dict.fromkeys(lines)) + "\n")
    return path


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """CLIP's vocabulary as transformers publishes it."""
    library("open_clip")
    merges = (
        gzip.decompress(token_files.clip_file().read_bytes())
        .decode()
        .split("\n")[1 : token_files.CLIP_MERGES + 1]
    )
    characters = token_files.byte_characters()
    words = [
        *characters,
        *(c + "</w>" for c in characters),
        *(m.replace(" ", "") for m in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class="CLIPTokenizer")))
    return folder


def test_clip_is_open_clips():
    open_clip = library("open_clip")
    ours = made("clip")
    np.testing.assert_array_equal(
        ours.encode(TEXTS, 77), open_clip.tokenizer.SimpleTokenizer()(TEXTS).numpy()
    )
    assert (ours.vocab_size, ours.cls_id, ours.eos_id, ours.pad_id) == (49408, 49406, 49407, 0)
    cased = open_clip.tokenizer.SimpleTokenizer(clean="whitespace")(TEXTS[:300]).numpy()
    np.testing.assert_array_equal(
        made("clip", clean="open_clip_whitespace").encode(TEXTS[:300], 77), cased
    )


def test_clip_from_a_file(clip_folder, tmp_path):
    whole = made("clip").to_json()
    packed = token_files.clip_file()
    (tmp_path / "merges.txt").write_bytes(gzip.decompress(packed.read_bytes()))
    for path in (packed, tmp_path / "merges.txt", clip_folder / "merges.txt"):
        assert made("clip", path).to_json() == whole


def test_clip_without_open_clip_says_what_to_give(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError,
        match=r"tokenizer: CLIP's vocabulary .* pip install 'jaxvl\[interop\]', or give the path of a bpe_",
    ):
        made("clip")


@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8b broken", b"#version\na b\n", b"\xff\xfe", b"x\n" + b"a\n" * 48_894]
)
def test_files_that_are_no_merges(content, tmp_path):
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(ConfigError, match="x.gz: is not a file of CLIP's merges"):
        made("clip", tmp_path / "x.gz")


@pytest.mark.parametrize("form", ["vocab.json and merges.txt", "tokenizer.json"])
def test_a_folder_of_transformers_clip(form, clip_folder, tmp_path):
    theirs = library("transformers").CLIPTokenizer.from_pretrained(str(clip_folder))
    if form == "tokenizer.json":
        theirs.save_pretrained(str(tmp_path))
    ours = made("json", tmp_path / "tokenizer.json" if form == "tokenizer.json" else clip_folder)
    np.testing.assert_array_equal(ours.encode(TEXTS, LENGTH), theirs_of(theirs))


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece_is_transformers(lowercase, words):
    vocabulary = {word: i for i, word in enumerate(words.read_text().split("\n")[:-1])}
    theirs = library("transformers").BertTokenizer(vocab=vocabulary, do_lower_case=lowercase)
    np.testing.assert_array_equal(
        made("wordpiece", words, lowercase=lowercase).encode(TEXTS, LENGTH), theirs_of(theirs)
    )


def test_siglip_is_transformers(pieces):
    """But where two ways to cut a text have one score: transformers puts a prefix before it, and
    then adds up in another order."""
    ours = made("siglip", pieces)
    theirs = library("transformers").SiglipTokenizer(vocab_file=str(pieces))
    model = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    assert (ours.pad_id, ours.eos_id) == (1, 1)
    ties = 0
    for text, row, wanted in zip(
        TEXTS, ours.encode(TEXTS, LENGTH).tolist(), theirs_of(theirs).tolist()
    ):
        if row == wanted:
            continue
        ties += 1
        whole = [ours.ids([text])[0], theirs(text, add_special_tokens=False).input_ids]
        scores = [sum(model.get_score(i) for i in ids) for ids in whole]
        assert scores[0] == pytest.approx(scores[1], rel=1e-6), text
    assert ties <= 10


def test_t5_is_sentencepieces(pieces):
    ours = made("t5", pieces)
    model = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    for text, row in zip(TEXTS, ours.encode(TEXTS, LENGTH).tolist()):
        assert row == ([*model.encode(text)[: LENGTH - 1], 1] + [0] * LENGTH)[:LENGTH]


def test_a_unigram_tokenizer_json_is_transformers(pieces, tmp_path):
    settings = dict(
        tokenizer_class="T5Tokenizer",
        extra_ids=0,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    (tmp_path / "spiece.model").write_bytes(pieces.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = library("transformers").AutoTokenizer.from_pretrained(str(tmp_path))
    theirs.save_pretrained(str(tmp_path / "json"))
    ours = made("json", tmp_path / "json")
    for text, row in zip(TEXTS, ours.encode(TEXTS, LENGTH).tolist()):
        ids = theirs(text).input_ids  # cut by transformers, a long word is cut before it is split
        assert row == ([*ids[:-1][: LENGTH - 1], 1] + [0] * LENGTH)[:LENGTH]


def test_a_json_of_another_name_is_read_with_the_settings_beside_it(clip_folder, tmp_path):
    theirs = library("transformers").CLIPTokenizer.from_pretrained(str(clip_folder))
    theirs.save_pretrained(str(tmp_path))
    whole = made("json", tmp_path).to_json()
    (tmp_path / "tokenizer.json").rename(tmp_path / "mine.json")
    assert made("json", tmp_path / "mine.json").to_json() == whole
    with pytest.raises(ConfigError, match="has no tokenizer"):
        made("json", tmp_path)
    values = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del values["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="tokenizer: .*mine.json: has no pad_token"):
        made("json", tmp_path / "mine.json")


def test_a_clean_of_ones_own(pieces):
    texts = ["A_b, C!", "Ünï CODE"]
    plain = made("sentencepiece", pieces)
    cleaned = made("sentencepiece", pieces, clean="canonical")
    np.testing.assert_array_equal(
        cleaned.encode(texts, 16), plain.encode(["a b c", "ünï code"], 16)
    )
    assert (
        cleaned.clean == "canonical" and Tokenizer.from_json(cleaned.to_json()).clean == "canonical"
    )


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(kind="siglip"), "path: is required for kind 'siglip'"),
        (dict(kind="json", path="/nowhere"), "path: no file '/nowhere'"),
        (dict(kind="clip", clean="lowre"), "clean: 'lowre' is not known; did you mean 'lower'"),
        (dict(clean="lower"), "clean: 'lower': a unigram vocabulary has its own"),
        (dict(sample=0), "sample: 0 must be >= 1"),
    ],
)
def test_configs_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        TokenizerConfig(**values)


def test_a_folder_is_for_json_alone(pieces):
    with pytest.raises(ConfigError, match="path: no file"):
        TokenizerConfig("siglip", path=str(pieces.parent))


def test_ids_of_another_model_are_not_t5s(tmp_path):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS),
        model_writer=out,
        vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "m.model").write_bytes(out.getvalue())
    with pytest.raises(ConfigError, match=r"has padding and end \(\d+, 2\); T5's are \(0, 1\)"):
        made("t5", tmp_path / "m.model")


def test_plain_texts_need_no_repair():
    ftfy = library("ftfy")
    rng = np.random.default_rng(0)
    for size in rng.integers(0, 60, 500):
        text = "".join(map(chr, rng.choice([*range(32, 38), *range(39, 127)], size)))
        assert CLEANERS["open_clip_whitespace"](text) == " ".join(
            html.unescape(html.unescape(ftfy.fix_text(text))).split()
        )


# --------------------------------------------------------------------------------------------------
# One text at a time, in threads and in other processes


@pytest.fixture(scope="module")
def kinds(pieces, words):
    library("open_clip")
    return {
        "clip": made("clip"),
        "siglip": made("siglip", pieces),
        "t5": made("t5", pieces),
        "wordpiece": made("wordpiece", words),
    }


@pytest.mark.parametrize("kind", ["clip", "siglip", "t5", "wordpiece"])
def test_one_text_has_the_ids_that_it_has_among_others(kind, kinds):
    ours = kinds[kind]
    together = ours.encode(TEXTS[:400], 32)
    assert together.dtype == np.int32 and together.shape == (400, 32)
    for text, row in zip(TEXTS[:400], together):
        np.testing.assert_array_equal(ours.encode([text], 32)[0], row)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda text: ours.encode([text], 32)[0], TEXTS[:400]))
    np.testing.assert_array_equal(rows, together)
    assert ours.encode([], 32).shape == (0, 32)


@pytest.mark.parametrize("kind", ["clip", "siglip", "t5", "wordpiece"])
def test_pickled_tokenizers_are_the_same(kind, kinds):
    ours = kinds[kind]
    other = pickle.loads(pickle.dumps(ours))
    assert other.to_json() == ours.to_json() and other.vocab_size == ours.vocab_size
    np.testing.assert_array_equal(other.encode(TEXTS[:200], 32), ours.encode(TEXTS[:200], 32))


@pytest.mark.parametrize("kind", ["clip", "siglip", "t5", "wordpiece"])
def test_halves_of_surrogate_pairs(kind, kinds):
    """JSON can hold them; UTF-8 cannot."""
    ours = kinds[kind]
    broken = ["a \ud83d\ude00 b", "x \ud83d", "\udc00"]
    whole = ["a \U0001f600 b", "x \ufffd", "\ufffd"]
    np.testing.assert_array_equal(ours.encode(broken, 12), ours.encode(whole, 12))


def test_decoding_is_the_way_back(kinds):
    assert [
        kinds[k].decode(kinds[k].encode(["a red star"], 24))[0] for k in ("clip", "siglip", "t5")
    ] == ["a red star"] * 3
