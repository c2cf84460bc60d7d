"""Tokenizers that travel: the same ids as the library that they come from, and as the one that they are written for."""

import dataclasses
import json

import numpy as np
import pytest
from interop_cases import LENGTH, VOCAB, WORDS, bert_files, clip_files, library, piece_file

from jaxvl.data.tokenizers import Tokenizer, train_unigram
from jaxvl.interop import tokens
from jaxvl.interop.mapping import ConversionError
from jaxvl.models import InputSpec

transformers = library("transformers")
INPUTS = InputSpec(24, LENGTH, VOCAB, 0, VOCAB - 1)
TEXTS = ["a photo of cat", "Two  DOGS, the red_stamp's ball!", "", "  the small cat " * 5, "it's 1950", "\tblue\n"]


def theirs_of(folder, length=LENGTH):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return np.asarray(tokenizer(TEXTS, padding="max_length", truncation=True, max_length=length).input_ids)


def siglip_files(folder):
    piece_file(folder / "spiece.model")
    settings = dict(tokenizer_class="SiglipTokenizer", pad_token="</s>", eos_token="</s>", unk_token="<unk>", model_max_length=LENGTH)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def merges_only(folder):
    """As openai/clip-vit-base-patch32 was published at first."""
    clip_files(folder)
    values = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(values["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(m if isinstance(m, str) else " ".join(m) for m in values["merges"]))


def unigram_json(folder):
    """As SigLIP2 has it: no token before a text, one after it, padding of its own."""
    vocab = train_unigram([" ".join(WORDS)] * 3 + WORDS, VOCAB, lowercase=True)
    tokenizer = Tokenizer("unigram", vocab, pad_id=0, eos_id=1)
    tokens.write_tokenizer(tokenizer, folder, LENGTH)


FOLDERS = {"clip": clip_files, "bert": bert_files, "siglip": siglip_files, "unigram": unigram_json}


@pytest.mark.parametrize("kind", FOLDERS)
def test_ids_are_those_of_transformers_there_and_back(kind, tmp_path):
    FOLDERS[kind](tmp_path)
    wanted = theirs_of(tmp_path)
    ours = tokens.read_tokenizer(tmp_path, INPUTS)
    np.testing.assert_array_equal(ours.encode(TEXTS, LENGTH), wanted)
    assert ours.vocab_size == VOCAB
    np.testing.assert_array_equal(Tokenizer.from_json(ours.to_json()).encode(TEXTS, LENGTH), wanted)
    back = tmp_path / "back"
    back.mkdir()
    tokens.write_tokenizer(ours, back, LENGTH)
    np.testing.assert_array_equal(theirs_of(back), wanted)


def test_a_folder_of_vocabulary_and_merges(tmp_path):
    merges_only(tmp_path)
    wanted = theirs_of(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    np.testing.assert_array_equal(tokens.read_tokenizer(tmp_path, INPUTS).encode(TEXTS, LENGTH), wanted)


def test_our_trained_vocabulary_keeps_its_ids_in_transformers(tmp_path):
    tokenizer = Tokenizer("unigram", train_unigram([" ".join(WORDS), *WORDS], VOCAB, lowercase=True), pad_id=0, eos_id=1)
    tokens.write_tokenizer(tokenizer, tmp_path, LENGTH)
    np.testing.assert_array_equal(theirs_of(tmp_path), tokenizer.encode(TEXTS, LENGTH))


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_clips_vocabulary_is_open_clips(clean):
    """The byte pairs that the open_clip wheel carries, against its own tokenizer, repairs of broken text included."""
    open_clip = library("open_clip")
    texts = [
        *TEXTS,
        "caf\u00e9 d\u2019or &amp;amp; na\u00efve \u65e5\u672c\u306e\u5207\u624b 1950\u5e74 \U0001f600",
        "x" * 300,
        "don't they'll I'M",
        "sch\u00c3\u00b6n",
    ]
    theirs = open_clip.tokenizer.SimpleTokenizer(clean=clean)
    ours = tokens.clip_tokenizer(InputSpec(224, 77, 49408), f"open_clip_{clean}")
    np.testing.assert_array_equal(ours.encode(texts, 77), theirs(texts).numpy())
    assert (ours.vocab_size, ours.cls_id, ours.eos_id, ours.pad_id) == (49408, 49406, 49407, 0)
    assert ours.decode(ours.encode(["a photo of a cat"], 77)) == ["a photo of a cat"]


def test_what_does_not_fit_is_refused(tmp_path):
    for folder in ("none", "clip", "left", "pad"):
        (tmp_path / folder).mkdir()
        if folder != "none":
            clip_files(tmp_path / folder)

    def change(folder, **values):
        path = tmp_path / folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    change("left", padding_side="left")
    change("pad", pad_token="<nowhere>")
    small = dataclasses.replace(INPUTS, vocab_size=40)
    for folder, inputs, message in (
        ("none", INPUTS, "has no tokenizer .*--tokenizer=none"),
        ("clip", small, "has 60 tokens, more than the model's table of 40 rows"),
        ("left", INPUTS, "padding_side: 'left'"),
        ("pad", INPUTS, "pad_token: '<nowhere>'"),
    ):
        with pytest.raises(ConversionError, match=message):
            tokens.read_tokenizer(tmp_path / folder, inputs)


def test_one_that_was_left_behind_refuses_texts():
    with pytest.raises(ValueError, match="left behind"):
        Tokenizer.from_json(tokens.without(INPUTS).to_json()).encode(["a"], 8)
