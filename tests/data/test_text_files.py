"""Lines of files that others wrote: vocabularies and JSONL that hold Unicode's other separators."""

import json

import numpy as np
import pytest

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.data.sources import questions
from jaxvl.data.text_files import read_lines, without_surrogates
from jaxvl.data.tokenizers import TokenizerConfig, make_tokenizer

OTHERS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"  # `str.splitlines` ends a line at each of them
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *OTHERS,
    "a",
    f"b{OTHERS}b",
    "café",
    "cafe",
    "Cafe",
    "日本",
    "日",
    "本",
    "\r!",
    "cat",
]
SAMPLES = ["a Café cat", "CAFE cafe café Cafe", "日本 cat", ""]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_lines_end_at_line_feeds_only(end, mark, last):
    words = [*OTHERS, "", f"b{OTHERS}b", "\r!", "x"]
    content = mark + end.join(words) + (end if last else "")
    assert read_lines(content.encode()) == words


def test_a_file_without_lines():
    assert read_lines(b"") == read_lines(b"\xef\xbb\xbf") == []
    with pytest.raises(UnicodeDecodeError):
        read_lines(b"\xff")


SETTINGS = {
    "none": {},
    "cased": dict(do_lower_case=False),
    "accents": dict(strip_accents=False),
    "Chinese words": dict(tokenize_chinese_chars=False),
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_wordpiece_follows_the_settings_beside_it(settings, file, mark, tmp_path):
    """Ids are transformers', which cannot read marks of byte order and is given the files
    without."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_bytes(("\n".join(WORDS) + "\n").encode())
    if file == "tokenizer.json":
        transformers.BertTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    saved = json.dumps(dict(tokenizer_class="BertTokenizerFast", **SETTINGS[settings])).encode()
    (tmp_path / "tokenizer_config.json").write_bytes(saved)
    wanted = transformers.AutoTokenizer.from_pretrained(tmp_path)(
        SAMPLES, padding="max_length", max_length=16
    ).input_ids
    for path in tmp_path.iterdir():
        path.write_bytes(mark + path.read_bytes())
    ours = make_tokenizer(TokenizerConfig("wordpiece", path=str(tmp_path / file)))
    np.testing.assert_array_equal(ours.encode(SAMPLES, 16), wanted)
    assert (ours.vocab_size, ours.pad_id, ours.cls_id, ours.eos_id) == (len(WORDS), 0, 2, 3)


def test_case_that_a_config_names_goes_before_the_file(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(do_lower_case=False)))
    path = str(tmp_path / "vocab.txt")
    cased, forced, named = (
        make_tokenizer(TokenizerConfig("wordpiece", path=path, lowercase=case))
        for case in (None, True, False)
    )
    assert cased.to_json() == named.to_json() != forced.to_json()
    assert forced.encode(["CAT"], 4).tolist() == [[2, WORDS.index("cat"), 3, 0]]
    assert named.encode(["CAT"], 4).tolist() == [[2, 1, 3, 0]]


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            '{"strip_accents": "no"}',
            "tokenizer_config.json.strip_accents: 'no' must be true, false or null",
        ),
        (
            '{"do_lower_case": null}',
            "tokenizer_config.json.do_lower_case: None must be true or false",
        ),
        ("{", "tokenizer_config.json: is not JSON"),
        ("[]", "tokenizer_config.json: must hold a JSON object"),
    ],
)
def test_settings_that_cannot_be(settings, message, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "tokenizer_config.json").write_text(settings)
    with pytest.raises(ConfigError, match=message):
        make_tokenizer(TokenizerConfig("wordpiece", path=str(tmp_path / "vocab.txt")))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_questions_with_other_separators_are_one_line(end, tmp_path):
    """JSON escapes none of U+2028, U+2029 and U+0085."""
    asked = [
        dict(image="a.jpg", question=f"what{c}is it", answers=[f"a{c}cat"], type="x")
        for c in ("\u2028", "\u2029", "\x85", " ")
    ]
    lines = [json.dumps(one, ensure_ascii=False) for one in asked]
    (tmp_path / "train.jsonl").write_bytes(("\ufeff" + end.join(lines) + end).encode())
    assert questions.read(tmp_path / "train.jsonl") == asked
    (tmp_path / "train.jsonl").write_bytes(end.join([lines[0], "{"]).encode())
    with pytest.raises(DataError, match="train.jsonl:2: not JSON"):
        questions.read(tmp_path / "train.jsonl")
    (tmp_path / "train.jsonl").write_bytes(b"\xff")
    with pytest.raises(DataError, match="train.jsonl: is not UTF-8"):
        questions.read(tmp_path / "train.jsonl")


def test_lone_surrogates_are_replaced_and_pairs_are_joined():
    cases = [
        ("a", "a"),
        ("né 赤 \U0001f600", "né 赤 \U0001f600"),
        ("a \ud83d dog", "a \ufffd dog"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
    ]
    for text, expected in cases:
        assert without_surrogates(text) == expected
