"""Questions of one's own; the order of answers is that of sorted Python strings."""

import json
import pickle

import numpy as np
import pytest
from data_samples import encoded, noise

from jaxvl.config import ConfigError, choose
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.questions import Questions, common

TRAIN = [
    {
        "image": "a.png",
        "question": "Where is he looking?",
        "answers": ["down", "up", "down"],
        "type": "other",
        "question_id": 7,
    },
    {"image": "sub/b.png", "question": "how many?", "answers": ["2"]},
    {"image": "gone.png", "question": "what colour?", "answers": ["red", "blue"]},
]
VAL = [
    {
        "image": "a.png",
        "question": "is it a cat?",
        "answers": ["yes", "no", "yes"],
        "type": "yes/no",
    }
]


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "train", TRAIN)
    write(tmp_path, "val", VAL)
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "sub" / "b.png").write_bytes(picture(2))
    return tmp_path


def picture(i):
    return encoded(noise(i, 6, 6, 3))


def write(folder, split, lines):
    (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")


def open_(folder, split="train", **options):
    return Questions(str(folder), split, **options).open()


def test_records_and_columns(folder):
    source = open_(folder)
    assert {name: column.kind for name, column in source.columns.items()} == {
        "image": "image",
        "question": "text",
        "answers": "texts",
        "type": "text",
        "text": "text",
        "class_label": "class",
    }
    assert len(source) == 3 and source.name.endswith("train.jsonl")
    assert source[0] == {
        "image": picture(1),
        "question": "Where is he looking?",
        "answers": ["down", "up", "down"],
        "type": "other",
        "text": "Where is he looking? down",
        "class_label": 1,
    }
    assert (
        source[1]["image"] == picture(2)
        and source[1]["type"] == ""
        and source[1]["text"] == "how many? 2"
    )
    for i in (-1, 3, 10**12):
        with pytest.raises(IndexError):
            source.read(i)


def test_classes_are_the_commonest_answers_of_all_files(folder):
    train = open_(folder)
    val = open_(folder, "val")
    expected = sorted(
        ["down", "2", "red", "yes"]
    )  # not "up", "blue" and "no", which are nobody's commonest
    for source in (train, val):
        assert source.columns["class_label"].classes.names == {"en": tuple(expected)}
    assert train.column("class_label").tolist() == [expected.index(a) for a in ("down", "2", "red")]
    assert (
        val.column("class_label").tolist() == [expected.index("yes")]
        and val.column("class_label").dtype == np.int64
    )
    assert [train.read(i, ["class_label"])["class_label"] for i in range(3)] == train.column(
        "class_label"
    ).tolist()
    assert train.column("question") is None


@pytest.mark.parametrize(
    "answers, answer",
    [(["b", "a", "a"], "a"), (["b", "a"], "b"), (["a", "b", "b", "a"], "a"), (["x"], "x")],
)
def test_the_commonest_answer_and_of_several_the_first(answers, answer):
    assert common(answers) == answer


def test_a_picture_is_read_only_where_it_is_asked_for(folder):
    source = open_(folder)
    assert source.read(2, ["text", "answers"]) == {
        "text": "what colour? red",
        "answers": ["red", "blue"],
    }
    assert source.read(2, []) == {} and source.read(0, ["none"]) == {}
    for columns in (None, ["image"]):
        with pytest.raises(BadRecord, match="image is missing: .*gone.png"):
            source.read(2, columns)


def test_pictures_may_lie_elsewhere(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("pictures")
    (other / "gone.png").write_bytes(picture(3))
    assert open_(folder, images=str(other))[2]["image"] == picture(3)
    with pytest.raises(ConfigError, match="images: no folder '.*nowhere'"):
        Questions(str(folder), "train", images=str(folder / "nowhere"))


def test_the_fingerprint_is_of_questions_and_answers(folder):
    first = open_(folder).fingerprint
    assert open_(folder).fingerprint == first != open_(folder, "val").fingerprint
    (folder / "a.png").write_bytes(picture(9))
    assert open_(folder).fingerprint == first  # pictures are not read for it
    for lines in (
        [{**TRAIN[0], "question": "Who?"}, *TRAIN[1:]],
        [{**TRAIN[0], "answers": ["up"]}, *TRAIN[1:]],
        TRAIN[:2],
    ):
        write(folder, "train", lines)
        assert open_(folder).fingerprint != first
    write(folder, "train", TRAIN)
    assert open_(folder).fingerprint == first
    write(folder, "val", [{**VAL[0], "answers": ["a new class"]}])
    assert open_(folder).fingerprint != first  # its classes have other numbers


def test_it_may_be_pickled(folder):
    source = open_(folder)
    again = pickle.loads(pickle.dumps(source))
    assert again[0] == source[0] and again.fingerprint == source.fingerprint


LINES = [
    ("{", "not JSON"),
    ("[1]", "must have 'image' and 'question'"),
    (json.dumps({**TRAIN[0], "answers": []}), r"'answers' \(a list of one text or more\)"),
    (json.dumps({**TRAIN[0], "answers": "down"}), "'answers'"),
    (json.dumps({**TRAIN[0], "answers": [1]}), "'answers'"),
    (json.dumps({**TRAIN[0], "question": " "}), "'question'"),
    (json.dumps({"image": "a.png", "answers": ["x"]}), "'question'"),
    (json.dumps({**TRAIN[0], "image": 3}), "'image'"),
]


@pytest.mark.parametrize("line, message", LINES)
def test_a_line_that_is_no_question_is_named(folder, line, message):
    (folder / "val.jsonl").write_text(json.dumps(VAL[0]) + "\n\n" + line + "\n")
    with pytest.raises(DataError, match=f"val.jsonl:3: .*{message}"):
        open_(folder)


def test_splits_and_folders_that_are_not_there(folder, tmp_path_factory):
    with pytest.raises(
        ConfigError, match=r"split: 'vla' is none; did you mean 'val'\? \(splits: train, val\)"
    ):
        Questions(str(folder), "vla")
    with pytest.raises(ConfigError, match="folder: .* has no .jsonl file"):
        Questions(str(tmp_path_factory.mktemp("empty")), "train")


def test_it_is_found_by_name(folder):
    assert choose(
        SOURCES, dict(name="questions", folder=str(folder), split="val"), "source"
    ) == Questions(str(folder), "val")
