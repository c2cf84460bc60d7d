"""Tokenizers that travel: the same ids as the library that they come from, and as the one that they
are written for."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers
from interop_cases import LENGTH, VOCAB, WORDS, bert_files, clip_files, library, piece_file

from jaxvl.data.tokenizers import Tokenizer, train_unigram
from jaxvl.interop import tokens
from jaxvl.interop.mapping import ConversionError
from jaxvl.models import InputSpec

transformers = library("transformers")
INPUTS = InputSpec(24, LENGTH, VOCAB, 0, VOCAB - 1)
TEXTS = [
    "a photo of cat",
    "Two  DOGS, the red_stamp's ball!",
    "",
    "  the small cat " * 5,
    "it's 1950",
    "\tblue\n",
]


def theirs_of(folder, length=LENGTH):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return np.asarray(
        tokenizer(TEXTS, padding="max_length", truncation=True, max_length=length).input_ids
    )


def siglip_files(folder):
    piece_file(folder / "spiece.model")
    settings = dict(
        tokenizer_class="SiglipTokenizer",
        pad_token="</s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=LENGTH,
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def merges_only(folder):
    """As openai/clip-vit-base-patch32 was published at first."""
    clip_files(folder)
    values = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(values["vocab"]))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n"
        + "\n".join(m if isinstance(m, str) else " ".join(m) for m in values["merges"])
    )


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
    np.testing.assert_array_equal(
        tokens.read_tokenizer(tmp_path, INPUTS).encode(TEXTS, LENGTH), wanted
    )


def test_our_trained_vocabulary_keeps_its_ids_in_transformers(tmp_path):
    tokenizer = Tokenizer(
        "unigram",
        train_unigram([" ".join(WORDS), *WORDS], VOCAB, lowercase=True),
        pad_id=0,
        eos_id=1,
    )
    tokens.write_tokenizer(tokenizer, tmp_path, LENGTH)
    np.testing.assert_array_equal(theirs_of(tmp_path), tokenizer.encode(TEXTS, LENGTH))


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_clips_vocabulary_is_open_clips(clean):
    """The byte pairs that the open_clip wheel carries, against its own tokenizer, repairs of broken
    text included."""
    open_clip = library("open_clip")
    texts = [
        *TEXTS,
        (
            "caf\u00e9 d\u2019or &amp;amp; na\u00efve \u65e5\u672c\u306e\u5207\u624b 1950\u5e74 "
            "\U0001f600"
        ),
        "x" * 300,
        "don't they'll I'M",
        "sch\u00c3\u00b6n",
    ]
    theirs = open_clip.tokenizer.SimpleTokenizer(clean=clean)
    ours = tokens.clip_tokenizer(InputSpec(224, 77, 49408), f"open_clip_{clean}")
    np.testing.assert_array_equal(ours.encode(texts, 77), theirs(texts).numpy())
    assert (ours.vocab_size, ours.cls_id, ours.eos_id, ours.pad_id) == (49408, 49406, 49407, 0)
    assert ours.decode(ours.encode(["a photo of a cat"], 77)) == ["a photo of a cat"]


# --------------------------------------------------------------------------------------------------
# BERT's vocabularies: lines, settings

LINES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "\u2028",
    "cat",
    "dog\u2028house",
    "\x85",
    "x\x0cy",
    "x\x1c",
    "\u2029",
    "two",
    "caf\u00e9",
    "cafe",
    "Cafe",
    "Caf\u00e9",
    "cAT",
    "\u65e5",
    "\u672c",
    "\u65e5\u672c",
    "##s",
    "tail\u3000",
    "",
    "b\rc",
    "!",
    "n",
    "o",
]
WRITTEN = [
    "a caf\u00e9 cat",
    "CAT Cafe Caf\u00e9 cAT!",
    "\u65e5\u672c two cats",
    "[MASK] a [SEP] cat",
    "dog\u2028house",
    "x\x0cy no",
    "",
]
SETTINGS = {
    "none": {},
    "cased": dict(do_lower_case=False),
    "cased, without accents": dict(do_lower_case=False, strip_accents=True),
    "accents": dict(strip_accents=False),
    "accents by case": dict(strip_accents=None),
    "Chinese words": dict(tokenize_chinese_chars=False),
    "all": dict(do_lower_case=False, strip_accents=True, tokenize_chinese_chars=False),
}


def vocabulary(folder, lines=LINES, end="\n", **settings):
    """As BERT was published: a vocab.txt and its settings."""
    (folder / "vocab.txt").write_bytes((end.join(lines) + end).encode())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(dict(tokenizer_class="BertTokenizer", **settings))
    )


def bert_of(folder, rows=len(LINES)):
    """(ours, ids of `WRITTEN`, theirs of the same)."""
    ours = tokens.read_tokenizer(folder, dataclasses.replace(INPUTS, vocab_size=rows))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert type(theirs).__name__ == "BertTokenizer"
    return (
        ours,
        ours.encode(WRITTEN, LENGTH),
        theirs(WRITTEN, padding="max_length", truncation=True, max_length=LENGTH).input_ids,
    )


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_of_a_vocabulary_are_those_of_transformers(end, tmp_path):
    """Every word has the number of its line, also after U+2028 and others at which Python ends a
    line."""
    vocabulary(tmp_path, end=end)
    ours, ids, wanted = bert_of(tmp_path)
    np.testing.assert_array_equal(ids, wanted)
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    words = tokenizers.Tokenizer.from_buffer(ours.content)
    for i, line in enumerate(LINES):
        word = "tail" if line.startswith("tail") else line
        if word.strip("\u2028\u2029\x85"):
            assert words.token_to_id(word) == theirs.convert_tokens_to_ids(word) == i, repr(line)
    assert words.get_vocab() == theirs.get_vocab()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_settings_of_bert_are_followed(settings, file, tmp_path):
    """Beside a tokenizer.json of the defaults as well: its class takes the words from it, and how
    texts are read from the settings."""
    vocabulary(tmp_path, **({} if file == "tokenizer.json" else SETTINGS[settings]))
    if file == "tokenizer.json":
        transformers.BertTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
        (tmp_path / "vocab.txt").unlink()
        path = tmp_path / "tokenizer_config.json"
        saved = {k: v for k, v in json.loads(path.read_text()).items() if k not in SETTINGS["all"]}
        path.write_text(json.dumps({**saved, **SETTINGS[settings]}))
    ours, ids, wanted = bert_of(tmp_path)
    np.testing.assert_array_equal(ids, wanted)
    if settings != "accents by case":
        vocabulary(tmp_path)
        assert (
            settings == "none" or (np.asarray(bert_of(tmp_path)[2]) != wanted).any()
        )  # it is a text that tells them apart
    back = tmp_path / "back"
    back.mkdir()
    tokens.write_tokenizer(ours, back, LENGTH)
    again = transformers.AutoTokenizer.from_pretrained(back)
    assert (
        again(WRITTEN, padding="max_length", truncation=True, max_length=LENGTH).input_ids == wanted
    )


def test_settings_of_another_class_change_nothing(tmp_path):
    """PreTrainedTokenizerFast is its tokenizer.json; CLIP's class ignores case whatever they
    say."""
    for kind in ("bert", "clip", "merges"):
        folder = tmp_path / kind
        folder.mkdir()
        {"bert": bert_files, "clip": clip_files, "merges": merges_only}[kind](folder)
        if kind == "merges":
            (folder / "tokenizer.json").unlink()
        path = folder / "tokenizer_config.json"
        path.write_text(
            json.dumps(
                {**json.loads(path.read_text()), "do_lower_case": False, "strip_accents": False}
            )
        )
        np.testing.assert_array_equal(
            tokens.read_tokenizer(folder, INPUTS).encode(TEXTS, LENGTH), theirs_of(folder)
        )


def test_the_class_of_a_folder_that_names_none_is_its_models(tmp_path):
    vocabulary(tmp_path, do_lower_case=False)
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="align")))
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(dict(do_lower_case=False)))
    transformers.BertTokenizer.from_pretrained(tmp_path, do_lower_case=True).save_pretrained(
        tmp_path / "fast"
    )
    (tmp_path / "fast" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    _, ids, wanted = bert_of(tmp_path)
    np.testing.assert_array_equal(ids, wanted)


def test_names_of_special_tokens_are_the_folders(tmp_path):
    names = {
        "[PAD]": "<pad>",
        "[UNK]": "<unk>",
        "[CLS]": "<s>",
        "[SEP]": "</s>",
        "[MASK]": "<mask>",
    }
    keys = dict(
        pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>", mask_token="<mask>"
    )
    vocabulary(tmp_path, [names.get(line, line) for line in LINES], **keys)
    ours, ids, wanted = bert_of(tmp_path)
    np.testing.assert_array_equal(ids, wanted)
    vocabulary(tmp_path, [names.get(line, line) for line in LINES])
    with pytest.raises(
        ConversionError, match=r"has no \[UNK\], \[SEP\], \[PAD\], \[CLS\] among its words"
    ):
        tokens.read_tokenizer(tmp_path, INPUTS)


DISTINCT = [line for line in LINES if line.strip()]


def added(folder, how):
    """A vocabulary with words and a special token that came later, as transformers 5, 4 and 3 write
    them."""
    vocabulary(folder, DISTINCT)
    theirs = transformers.BertTokenizer.from_pretrained(folder)
    theirs.add_tokens(["newword", "cat dog"])
    theirs.add_special_tokens({"additional_special_tokens": ["<X>"]})
    theirs.save_pretrained(folder)
    ids = {text: i for text, i in theirs.get_added_vocab().items() if i >= len(DISTINCT)}
    assert ids == {"newword": len(DISTINCT), "cat dog": len(DISTINCT) + 1, "<X>": len(DISTINCT) + 2}
    if how == "json":
        return
    (folder / "tokenizer.json").unlink()
    if how == "decoder":
        fields = dict(lstrip=False, rstrip=False, single_word=False)
        tokens = {
            i: dict(content=text, special=text == "<X>", normalized=text != "<X>", **fields)
            for text, i in ids.items()
        }
        vocabulary(folder, DISTINCT, added_tokens_decoder=tokens, additional_special_tokens=["<X>"])
    else:
        vocabulary(folder, DISTINCT)
        (folder / "added_tokens.json").write_text(json.dumps(ids))
        (folder / "special_tokens_map.json").write_text(
            json.dumps(dict(additional_special_tokens=["<X>"]))
        )


@pytest.mark.parametrize("how", ["json", "decoder", "added_tokens.json"])
def test_tokens_that_were_added_to_a_vocabulary(how, tmp_path):
    added(tmp_path, how)
    texts = ["a newword NEWWORD cat dog <X> <x>", "Caf\u00e9<X>cat [MASK] newwords"]
    ours = tokens.read_tokenizer(tmp_path, INPUTS)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    wanted = theirs(texts, padding="max_length", truncation=True, max_length=LENGTH).input_ids
    assert any(len(DISTINCT) + 2 in row for row in wanted)
    np.testing.assert_array_equal(ours.encode(texts, LENGTH), wanted)


def test_an_added_token_of_another_id_is_refused(tmp_path):
    vocabulary(tmp_path, DISTINCT)
    (tmp_path / "added_tokens.json").write_text(json.dumps(dict(newword=40)))
    with pytest.raises(
        ConversionError, match=f"'newword' gets the id {len(DISTINCT)}, but the folder says 40"
    ):
        tokens.read_tokenizer(tmp_path, INPUTS)


@pytest.mark.parametrize(
    "settings, ids, message",
    [
        (
            dict(added_tokens_decoder=["a"]),
            {},
            "added_tokens_decoder: must hold a token for each id",
        ),
        (
            dict(added_tokens_decoder=dict(a="b")),
            {},
            "added_tokens_decoder: must hold a token for each id",
        ),
        (
            dict(added_tokens_decoder={"30": dict(special=True)}),
            {},
            "token {'special': True}: must be a text",
        ),
        (dict(cls_token=3), {}, "token 3: must be a text, or have it as content"),
        ({}, dict(newword="b"), "added_tokens.json: must hold the id of each token"),
    ],
)
def test_tokens_of_the_wrong_kind_are_refused_by_name(settings, ids, message, tmp_path):
    vocabulary(tmp_path, **settings)
    (tmp_path / "added_tokens.json").write_text(json.dumps(ids))
    with pytest.raises(ConversionError, match=message):
        tokens.read_tokenizer(tmp_path, INPUTS)


def test_tokens_that_were_added_to_merges(tmp_path):
    merges_only(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<style>": VOCAB}))
    texts = ["a cat <style> dog", "<STYLE>"]
    ours = tokens.read_tokenizer(tmp_path, dataclasses.replace(INPUTS, vocab_size=VOCAB + 1))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    wanted = theirs(texts, padding="max_length", truncation=True, max_length=LENGTH).input_ids
    assert VOCAB in wanted[0]
    np.testing.assert_array_equal(ours.encode(texts, LENGTH), wanted)


@pytest.mark.parametrize("key", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
def test_settings_of_the_wrong_kind_are_refused_by_name(key, tmp_path):
    vocabulary(tmp_path, **{key: "false"})
    with pytest.raises(ConversionError, match=f"tokenizer_config.json.{key}: 'false' must be true"):
        tokens.read_tokenizer(tmp_path, INPUTS)


# --------------------------------------------------------------------------------------------------
# Marks of byte order, merges, several files


def mark(folder):
    for path in folder.iterdir():
        if path.suffix in (".json", ".txt"):
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


@pytest.mark.parametrize("kind", ["clip", "bert", "siglip", "merges", "vocabulary"])
def test_marks_of_byte_order_change_nothing(kind, tmp_path):
    """Against transformers on the same files without: it cannot read them with."""
    {**FOLDERS, "merges": merges_only, "vocabulary": vocabulary}[kind](tmp_path)
    if kind == "merges":
        (tmp_path / "tokenizer.json").unlink()
    wanted = theirs_of(tmp_path)
    mark(tmp_path)
    np.testing.assert_array_equal(
        tokens.read_tokenizer(tmp_path, INPUTS).encode(TEXTS, LENGTH), wanted
    )


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_of_merges(end, tmp_path):
    """A pair with U+2028 or a no-break space is one line and two words."""
    merges_only(tmp_path)
    path = tmp_path / "vocab.json"
    words = list(json.loads(path.read_text()))
    words[words.index("unused0")] = "a\u2028"
    words[words.index("unused1")] = "\u2028"
    words[words.index("unused2")] = "\xa0"
    words[words.index("unused3")] = "b\xa0"
    path.write_text(json.dumps({word: i for i, word in enumerate(words)}))
    lines = (tmp_path / "merges.txt").read_text().split("\n")
    (tmp_path / "merges.txt").write_bytes(
        end.join([*lines[:2], "a \u2028", "b \xa0", *lines[2:]]).encode()
    )
    (tmp_path / "tokenizer.json").unlink()
    ours = tokens.read_tokenizer(tmp_path, INPUTS)
    np.testing.assert_array_equal(ours.encode(TEXTS, LENGTH), theirs_of(tmp_path))
    assert ["a", "\u2028"] in json.loads(ours.content)["model"]["merges"]


def test_siglip_reads_its_pieces_beside_a_tokenizer_json(tmp_path):
    unigram_json(tmp_path)
    siglip_files(tmp_path)
    np.testing.assert_array_equal(
        tokens.read_tokenizer(tmp_path, INPUTS).encode(TEXTS, LENGTH), theirs_of(tmp_path)
    )


@pytest.mark.parametrize("lower", [True, False])
def test_siglip_keeps_case_where_it_is_told(lower, tmp_path):
    siglip_files(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_lower_case": lower}))
    np.testing.assert_array_equal(
        tokens.read_tokenizer(tmp_path, INPUTS).encode(TEXTS, LENGTH), theirs_of(tmp_path)
    )


def test_siglip2_ignores_case_though_its_folder_names_gemmas_class(tmp_path):
    words = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<mask>",
        "\u2581",
        *"abcdefghijklmnopqrstuvwxyzCDRT",
        "ca",
        "cat",
    ]
    tokenizer = transformers.Siglip2Tokenizer(
        vocab={w: i for i, w in enumerate(words)}, merges=[("c", "a"), ("ca", "t")]
    )
    model = tokenizer.backend_tokenizer
    model.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")  # Gemma's keeps capitals
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    model.save(str(tmp_path / "tokenizer.json"))
    settings = dict(
        tokenizer_class="GemmaTokenizer",
        padding_side="right",
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="siglip2")))
    ours = tokens.read_tokenizer(tmp_path, INPUTS)
    texts = ["a Cat", "two CATS", "red dog"]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    wanted = theirs(texts, padding="max_length", truncation=True, max_length=LENGTH).input_ids
    np.testing.assert_array_equal(ours.encode(texts, LENGTH), wanted)


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
