"""Odd but real files that users of webdataset, datasets, img2dataset and open_clip have reported;
each names its thread."""

import io
import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tar_cases import write_tar

from jaxvl.config import ConfigError
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources.array_record import ArrayRecord
from jaxvl.data.sources.delimited import Delimited
from jaxvl.data.sources.folder import Folder
from jaxvl.data.sources.jsonl import JsonLines
from jaxvl.data.sources.parquet import Parquet
from jaxvl.data.sources.questions import Questions
from jaxvl.data.sources.webdataset import WebDataset

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    for name in ("JAXVL_CACHE", "JAXVL_LOCAL_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))


def quiet(line):
    """No log."""


def png(value=0):
    out = io.BytesIO()
    Image.new("RGB", (2, 2), (value, 0, 0)).save(out, "PNG")
    return out.getvalue()


def put(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def rows(*objects):
    return "".join(json.dumps(each) + "\n" for each in objects).encode()


# --------------------------------------------------------------------------------------------------
# Tars


def test_a_suffix_of_two_parts_that_ends_in_no_known_one(tmp_path):
    """webdataset#288: S_02_4001_VE1.wav.data with S_02_4001_VE1.wav.label."""
    write_tar(
        tmp_path / "x.tar",
        [("S/VE1.wav.data", b"RIFF1"), ("S/VE1.wav.label", b"1"), ("S/VE2.wav.data", b"RIFF2")],
    )
    with pytest.raises(
        ConfigError,
        match="columns.audio: what 'wav.data' members hold is not known; say it in kinds",
    ):
        WebDataset(str(tmp_path / "x.tar"), columns={"audio": "wav.data"})
    columns = {"audio": "wav.data", "class_label": "wav.label"}
    source = WebDataset(str(tmp_path / "x.tar"), columns=columns, kinds={"audio": "audio"}).open(
        quiet
    )
    assert len(source) == 2 and source.read(0, ["audio", "class_label"]) == {
        "audio": b"RIFF1",
        "class_label": 1,
    }


def test_folders_with_dots_and_a_dot_in_the_name(tmp_path):
    """datasets#7150, #6880: the key ends at the first dot of the last part of the path, not of the
    path."""
    write_tar(
        tmp_path / "x.tar", [("some/path/22.0/1.1.png", png()), ("some/path/22.0/1.1.txt", b"t")]
    )
    source = WebDataset(str(tmp_path / "x.tar"), columns={"image": "1.png", "text": "1.txt"}).open(
        quiet
    )
    assert source.read(0, ["key", "text"]) == {"key": "some/path/22.0/1", "text": "t"}


def test_what_macos_adds(tmp_path):
    """macOS's tar writes `._NAME` beside every NAME; `tar -C FOLDER .` writes `./NAME`."""
    members = [
        ("./._a.jpg", b"\0\5\x16\7"),
        ("./a.jpg", png()),
        ("./._a.txt", b"\0\5\x16\7"),
        ("./a.txt", b"t"),
        ("__MACOSX/._b.jpg", b"\0"),
    ]
    write_tar(tmp_path / "x.tar", members)
    source = WebDataset(str(tmp_path / "x.tar")).open(quiet)
    assert len(source) == 1 and source[0]["text"] == "t" and source[0]["image"] == png()
    assert source.left_out() == {"name without a suffix": 3}


def test_a_caption_that_the_writer_had_not(tmp_path):
    """img2dataset#46, #344: NaN in the JSON, an empty text file, no JSON beside a picture."""
    members = [
        ("0.jpg", png()),
        ("0.json", b'{"caption": NaN}'),
        ("0.txt", b""),
        ("1.jpg", png()),
        ("1.txt", b"t"),
    ]
    write_tar(tmp_path / "x.tar", [*members, ("2.jpg", png()), ("2.json", b'{"caption": "c"}')])
    source = WebDataset(
        str(tmp_path / "x.tar"), columns={"c": "json:caption"}, optional=("c",)
    ).open(quiet)
    assert [source.read(i, ["c"]) for i in range(3)] == [{}, {}, {"c": "c"}]
    assert WebDataset(str(tmp_path / "x.tar"), columns={"c": "json[caption];txt"}).open(quiet).read(
        1, ["c"]
    ) == {"c": "t"}


@pytest.mark.parametrize("ending", [".tar", ".parquet", ".jsonl", ".csv"])
def test_pointers_of_git_lfs(tmp_path, ending):
    """A dataset of the Hub that was cloned without LFS holds pointers instead of files."""
    (tmp_path / f"x{ending}").write_bytes(POINTER)
    config = {".tar": WebDataset, ".parquet": Parquet, ".jsonl": JsonLines, ".csv": Delimited}[
        ending
    ]
    with pytest.raises(
        DataError,
        match=rf"x{ending}: is a pointer of Git LFS, not the file itself; fetch that with `git lfs pull`$",
    ):
        config(str(tmp_path / f"x{ending}")).open(quiet)


def test_a_pointer_for_an_array_record(tmp_path):
    (tmp_path / "x.array_record").write_bytes(POINTER)
    with pytest.raises(DataError, match="x.array_record: is a pointer of Git LFS"):
        ArrayRecord(str(tmp_path / "x.array_record")).open(quiet)


# --------------------------------------------------------------------------------------------------
# Folders


def test_metadata_that_names_some_of_the_pictures(tmp_path):
    """AquaLoRA#8, datasets#4311: pictures without a row, rows without a picture, and several rows
    of one picture are counted."""
    named = [
        {"file_name": "a.png", "text": "first"},
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "a.png", "text": "second"},
    ]
    put(
        tmp_path / "f",
        **{"a.png": png(), "b.png": png(1), "c.png": png(2), "metadata.jsonl": rows(*named)},
    )
    said = []
    source = Folder(str(tmp_path / "f")).open(said.append)
    assert len(source) == 1 and source[0]["text"] == "second"
    left_out = {
        "picture without a row of metadata": 2,
        "row of a file that is not there": 1,
        "further row of one picture": 1,
    }
    assert source.left_out() == left_out
    assert said[-1].startswith(
        f"{tmp_path}/f: 1 pictures (left out: picture without a row of metadata: 2, "
    )


def test_names_as_windows_and_find_write_them(tmp_path):
    """`./a.png` and `sub\\b.png` are taken as datasets' imagefolder takes them."""
    names = [{"file_name": "./a.png", "n": 1}, {"file_name": "sub\\b.png", "n": 2}]
    put(tmp_path / "f", **{"a.png": png(), "sub/b.png": png(1), "metadata.jsonl": rows(*names)})
    source = Folder(str(tmp_path / "f")).open(quiet)
    assert [source.read(i, ["file", "n"]) for i in range(2)] == [
        {"file": "a.png", "n": 1},
        {"file": "sub/b.png", "n": 2},
    ]


def test_metadata_whose_names_start_from_another_folder(tmp_path):
    """diffusers#3674: train/metadata.jsonl that names train/a.png."""
    put(
        tmp_path / "f",
        **{
            "train/a.png": png(),
            "train/metadata.jsonl": rows({"file_name": "train/a.png", "text": "t"}),
        },
    )
    with pytest.raises(
        DataError,
        match="none of the 1 files that its metadata names is there, as 'train/train/a.png'",
    ):
        Folder(str(tmp_path / "f")).open(quiet)


def test_metadata_above_the_splits(tmp_path):
    """datasets#4548."""
    names = [{"file_name": "train/a.png", "text": "t"}, {"file_name": "test/b.png", "text": "u"}]
    put(
        tmp_path / "f",
        **{"train/a.png": png(), "test/b.png": png(), "metadata.jsonl": rows(*names)},
    )
    source = Folder(str(tmp_path / "f"), classes="folder").open(quiet)
    assert {source[i]["text"]: source[i]["class_label"] for i in range(2)} == {"u": 0, "t": 1}


def test_metadata_of_another_name(tmp_path):
    """datasets#6777: metadata1000.jsonl is no metadata of a folder, but a file of lines."""
    put(
        tmp_path / "f",
        **{
            "images/1.png": png(),
            "metadata1000.jsonl": rows({"caption": "c", "image": "images/1.png"}),
        },
    )
    assert Folder(str(tmp_path / "f")).open(quiet).left_out() == {"no picture": 1}
    assert JsonLines(str(tmp_path / "f" / "metadata1000.jsonl")).open(quiet)[0] == {
        "image": png(),
        "text": "c",
    }


def test_upper_case_endings_of_cameras(tmp_path):
    put(
        tmp_path / "f",
        **{"IMG_1.PNG": png(), "IMG_1.TXT": b"one", "Thumbs.db": b"x", ".DS_Store": b"x"},
    )
    source = Folder(str(tmp_path / "f")).open(quiet)
    assert source[0]["text"] == "one" and source.left_out() == {"no picture": 1}


def test_a_fingerprint_does_not_tell_times(tmp_path):
    put(tmp_path / "f", **{"a.png": png(), "a.txt": b"one"})
    before = Folder(str(tmp_path / "f")).open(quiet).fingerprint
    os.utime(tmp_path / "f" / "a.png", (1, 1))
    assert Folder(str(tmp_path / "f")).open(quiet).fingerprint == before


# --------------------------------------------------------------------------------------------------
# Tables


def test_a_space_after_each_comma(tmp_path):
    """fastai#937: `label, file` in every row; a quoted caption after the space may hold commas."""
    put(
        tmp_path / "f",
        **{"a.png": png(), "x.csv": b'filepath, title, n\na.png, "one, two", 3\na.png, plain, 4\n'},
    )
    source = Delimited(str(tmp_path / "f" / "x.csv"), delimiter=",").open(quiet)
    assert [source[i] for i in range(2)] == [
        {"image": png(), "text": "one, two", "n": 3},
        {"image": png(), "text": "plain", "n": 4},
    ]
    put(tmp_path / "f", **{"y.csv": b"filepath,title\na.png, as it stands\n"})
    assert (
        Delimited(str(tmp_path / "f" / "y.csv"), delimiter=",").open(quiet)[0]["text"]
        == " as it stands"
    )


def test_captions_with_line_breaks(tmp_path):
    """img2dataset#283: YFCC has line breaks in its titles."""
    frame = pd.DataFrame({"filepath": ["a.png"] * 2, "title": ["one\r\ntwo\n\nthree", "four"]})
    put(tmp_path / "f", **{"a.png": png()})
    frame.to_csv(tmp_path / "f" / "x.tsv", sep="\t", index=False)
    source = Delimited(str(tmp_path / "f" / "x.tsv")).open(quiet)
    assert [source[i]["text"] for i in range(len(source))] == list(frame.title)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"text": "a"}\n'.encode("utf-16"), "is in UTF-16; write it in UTF-8"),  # PowerShell's `>`
        (
            b"\x1f\x8b\x08rest",
            "is compressed with gzip, so that it cannot be read in parts; unpack it with `gunzip`",
        ),
        (
            b'[\n {"text": "a"},\n {"text": "b"}\n]\n',
            "begins with a list; write each of its elements as a line",
        ),  # datasets#1784, LLaVA's lists
        (
            b'[{"text": "a"}, {"text": "b"}]',
            "begins with a list; write each of its elements as a line",
        ),
    ],
)
def test_files_that_are_no_lines_of_json(tmp_path, content, problem):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=problem):
        JsonLines(str(tmp_path / "x.jsonl")).open(quiet)


def test_nan_is_no_caption(tmp_path):
    """img2dataset#46, pandas: NaN stands where there is no caption; it is not the text "nan"."""
    (tmp_path / "x.jsonl").write_bytes(
        rows(
            {"text": "a", "label": 1},
            {"text": float("nan"), "label": float("nan")},
            {"text": "nan", "label": 2},
        )
    )
    source = JsonLines(str(tmp_path / "x.jsonl")).open(quiet)
    assert [source[i] for i in range(3)] == [
        {"text": "a", "class_label": 1},
        {},
        {"text": "nan", "class_label": 2},
    ]
    assert source.present("text").tolist() == [True, False, True] and source.column(
        "class_label"
    ).tolist() == [1, -1, 2]


def test_files_of_several_writers(tmp_path):
    """NVTabular#429, arrow#39670: columns that only differ in width, in being nullable, or in how
    polars and pandas write texts."""
    texts = ["a", "b"]
    one = {
        "text": pa.array(texts),
        "n": pa.array([1, 2], pa.int32()),
        "x": pa.array([0.5, 1], pa.float32()),
        "t": pa.array([["p"], ["q"]]),
    }
    fields = [
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("n", pa.uint8()),
        pa.field("x", pa.float64()),
        pa.field("t", pa.large_list(pa.field("element", pa.large_string()))),
    ]
    other = pa.table([texts, [1, 2], [0.5, 1.0], [["p"], ["q"]]], schema=pa.schema(fields))
    pq.write_table(pa.table(one), tmp_path / "0.parquet")
    pq.write_table(other, tmp_path / "1.parquet")
    pq.write_table(
        pa.table({**one, "text": pa.array(texts).dictionary_encode()}), tmp_path / "2.parquet"
    )
    source = Parquet(str(tmp_path)).open(quiet)
    assert [source[i] for i in range(6)] == [source[i % 2] for i in range(6)]
    assert source[3] == {"text": "b", "n": 2, "x": 1.0, "t": ["q"]}
    np.testing.assert_array_equal(source.column("n"), [1, 2] * 3)


def test_pictures_of_questions_lie_below_their_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    asked = [
        {"image": name, "question": "what?", "answers": ["a"]}
        for name in ("../secret.png", str(tmp_path / "secret.png"), "/dev/zero")
    ]
    put(tmp_path / "f", **{"train.jsonl": rows(*asked)})
    source = Questions(str(tmp_path / "f"), "train").open(quiet)
    for i in range(3):
        with pytest.raises(BadRecord, match="path leaves its folder"):
            source[i]
