"""What is inside data: formats by name and first bytes, figures of a sample against plain counting,
the sheet and the lines to paste."""

import dataclasses
import io
import json
import os
import tarfile

import numpy as np
import pytest
from data_samples import encoded, noise
from PIL import Image

from jaxvl.config import ConfigError
from jaxvl.data import inspect
from jaxvl.data.inspecting.paste import absolute
from jaxvl.data.inspecting.recognise import recognise
from jaxvl.data.inspecting.survey import draw, survey
from jaxvl.data.inspecting.texts import is_broken, only_name, script, text_figures
from jaxvl.data.records import BadRecord
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Column, Source

TEXTS = [
    "a red circle",
    "A  red circle",
    "null",
    "",
    "красный круг",
    "赤い円",
    "broken \ufffd",
    "one two three four",
]


class Mixed(Source):
    """Pictures of several formats, with texts, a class, numbers, and some bad ones."""

    name = "mixed [bold]data"
    fingerprint = "0123456789abcdef"
    columns = {
        "image": Column("image", optional=True),
        "text": Column("text"),
        "alts": Column("texts", optional=True),
        "class_label": Column("class"),
        "score": Column("float"),
        "boxes": Column("array", optional=True),
    }

    def __init__(self, n):
        self.n = n
        self.reads = []

    def __len__(self):
        return self.n

    def shards(self):
        return np.array([self.n - self.n // 2, self.n // 2])

    def read(self, i, columns=None):
        self.reads.append(i)
        if i % 10 == 9:
            raise BadRecord("record cannot be read", f"shard 0: record {i}")
        record = {"text": TEXTS[i % len(TEXTS)], "class_label": i % 3, "score": i / 2}
        if i % 10 == 7:
            return {**record, "image": b"<html>"}
        record["image"] = encoded(noise(i, 20 + i % 5, 40, 3), "JPEG" if i % 2 else "PNG")
        if i % 2:
            record |= {"alts": ["one", "two words"], "boxes": np.zeros((i % 3, 4), np.float32)}
        return record


@SOURCES.register("mixed_for_inspection")
@dataclasses.dataclass(frozen=True)
class MixedConfig:
    records: int = 40

    def open(self, log=print):
        return Mixed(self.records)


def test_figures_of_a_sample_are_those_of_plain_counting():
    source = Mixed(40)
    found = survey(source, 100, 0, 8)
    assert (found.records, found.sampled, found.shards) == (40, 40, (2, 20, 20, 20))
    assert found.bad == {
        "record cannot be read": (4, "shard 0: record 9"),
        "image cannot be decoded": (4, found.bad["image cannot be decoded"][1]),
    }
    assert found.bad["image cannot be decoded"][1].startswith("record 7: ")
    good = [i for i in range(40) if i % 10 != 9]
    whole = [i for i in good if i % 10 != 7]
    image = found.columns["image"].image
    assert image.images == len(whole)
    assert image.formats == {"PNG": 20 / 32, "JPEG": 12 / 32}
    heights = [20 + i % 5 for i in whole]
    assert image.height == tuple(np.percentile(heights, (0, 5, 50, 95, 100)))
    assert image.small == 1.0 and image.long == 0.0
    assert found.columns["text"].present == len(good) / 40
    assert found.columns["alts"].present == sum(i % 2 for i in whole) / 40
    assert found.columns["alts"].text.texts == 2 * sum(i % 2 for i in whole)
    assert found.columns["class_label"].values == "0 … 1 … 2, 3 different"
    assert found.columns["score"].values.startswith("0 … ")
    assert len(found.examples) == len([one for one in found.examples if one.position in good]) <= 8
    picture = next(one.picture for one in found.examples if one.picture)
    assert Image.open(io.BytesIO(picture)).format == "JPEG"


def test_figures_of_texts():
    found = text_figures(TEXTS)
    assert found.texts == 8 and found.duplicates == 1 / 8 and found.common == [("a red circle", 2)]
    assert (found.empty, found.no_text, found.broken) == (1, 1, 1)
    assert found.scripts == {
        "latin": 5 / 8,
        "none": 1 / 8,
        "cyrillic": 1 / 8,
        "chinese or japanese": 1 / 8,
    }
    assert found.characters == tuple(
        np.percentile([len(text) for text in TEXTS], (0, 5, 50, 95, 100))
    )
    assert found.words[-1] == 4
    assert text_figures(["long " * 20] * 2).common == [("long " * 11 + "long…", 2)]
    assert [is_broken(text) for text in ("a\0b", "\ud800", "né", "\ufffd")] == [
        True,
        True,
        False,
        True,
    ]
    assert script("عربي") == "arabic"


def test_a_sample_is_drawn_by_seed_without_a_list_of_all():
    assert draw(5, 10, 0) == [0, 1, 2, 3, 4]
    assert draw(10**12, 500, 3) == draw(10**12, 500, 3) != draw(10**12, 500, 4)
    for records in (10**12, 1000, 600):
        found = draw(records, 500, 0)
        assert (
            found == sorted(set(found))
            and len(found) == 500
            and found[0] >= 0
            and found[-1] < records
        )
    assert abs(np.mean(draw(10**6, 5000, 0)) / 10**6 - 0.5) < 0.03


def test_a_large_source_is_not_read_whole():
    source = Mixed(10**9)
    survey(source, 50, 0, 2)
    assert len(source.reads) == 50


def test_the_command_prints_figures_and_writes_a_sheet(tmp_path, capsys):
    sheet = tmp_path / "sheet.html"
    plugins = ["--source=mixed_for_inspection", "--source.records=30", f"--out={sheet}"]
    assert inspect.main(plugins) == 0
    out = capsys.readouterr().out
    for said in (
        "30 records in 2 shards of 15",
        "mixed [bold]data",
        "image cannot be decoded",
        "shard 0: record 9",
        "Texts of text",
        "ms a record",
        "such as None, null or NA",
        'source=dict(name="mixed_for_inspection", records=30),',
        "batch=16,",
        "# further columns: alts (texts), class_label (class), score (float), boxes (array)",
    ):
        assert said in out, said
    page = sheet.read_text()
    assert page.count("data:image/jpeg;base64,") == 24 and "赤い円" in page
    assert page.count('<span class="soft">image cannot be decoded</span>') == 3
    assert inspect.main([*plugins, "--json", "--sample=10"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["sampled"] == 10 and figures["data"]["source"] == {
        "name": "mixed_for_inspection",
        "records": 30,
    }
    for wrong, said in (
        (["--samples=3"], "did you mean 'sample'"),
        ([], "PATH: is required"),
        (["a", "b"], "2 paths; must be one"),
        (["/no/such/path"], "is not there"),
        (["--source=mixed_for_inspection", "--source.records=0"], "has no records"),
        (["/no/such/*.tar"], "source.files: '/no/such/*.tar': no file matches"),
    ):
        assert inspect.main(wrong) == 2
        assert said in " ".join(capsys.readouterr().err.split()), wrong


def test_a_remote_source_keeps_its_address_and_a_local_one_gets_a_path_from_the_root():
    assert absolute(dict(files="s3://bucket/a.tar", name="webdataset")) == dict(
        name="webdataset", files="s3://bucket/a.tar"
    )
    here = os.getcwd()
    assert (
        absolute(dict(name="webdataset", files="a/{0..3}.tar::/b.tar"))["files"]
        == f"{here}/a/{{0..3}}.tar::/b.tar"
    )


@pytest.mark.parametrize(
    ("column", "texts", "expected"),
    [
        ("text", ["a1", "a2"], False),
        ("image_url", ["a page"], True),
        ("json.key", ["no code"], True),
        ("name", ["00001", "img/2"], True),
        ("name", ["cat", "dog 2"], False),
        ("name", ["猫1", "犬2"], False),
    ],
)
def test_texts_that_only_name_a_record_have_no_figures(column, texts, expected):
    assert only_name(column, texts) == expected


def tar(path):
    with tarfile.open(path, "w") as out:
        about = tarfile.TarInfo("0.txt")
        about.size = 1
        out.addfile(about, io.BytesIO(b"x"))


def test_formats_are_recognised(tmp_path):
    def folder(name, *files):
        made = tmp_path / name
        for file in files:
            (made / file).parent.mkdir(parents=True, exist_ok=True)
            (made / file).write_text("{}")
        return made

    tars = folder("tars", "00000.parquet", "00000_stats.json")
    tar(tars / "00000.tar")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1....PAR1")
    (tmp_path / "unnamed").write_bytes(b"PAR1....PAR1")
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "comma.csv").write_text("filepath,title\na.jpg,b\n")
    (tmp_path / "tab.tsv").write_text("filepath\ttitle, of it\na.jpg\tb\n")
    hf = folder("hf", "dataset_dict.json", "train/state.json")
    (hf / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    commas = folder("commas", "a.csv")
    (commas / "a.csv").write_text("filepath,title\n")
    at = lambda path: str(path)
    cases = [
        (tars, dict(name="webdataset", files=at(tars))),
        (tars / "00000.tar", dict(name="webdataset", files=at(tars / "00000.tar"))),
        (
            "s3://bucket/{00000..00099}.tar",
            dict(name="webdataset", files="s3://bucket/{00000..00099}.tar"),
        ),
        (tmp_path / "rows.parquet", dict(name="parquet", files=at(tmp_path / "rows.parquet"))),
        (tmp_path / "unnamed", dict(name="parquet", files=at(tmp_path / "unnamed"))),
        (tmp_path / "rows.jsonl", dict(name="jsonl", files=at(tmp_path / "rows.jsonl"))),
        (tmp_path / "comma.csv", dict(name="csv", files=at(tmp_path / "comma.csv"), delimiter=",")),
        (tmp_path / "tab.tsv", dict(name="csv", files=at(tmp_path / "tab.tsv"))),
        (hf, dict(name="huggingface", path=at(hf), split="train")),
        (hf / "train", dict(name="huggingface", path=at(hf / "train"))),
        (
            folder("tfds", "1.0.0/dataset_info.json", "1.0.0/features.json"),
            dict(name="tfds", data_dir=at(tmp_path / "tfds/1.0.0")),
        ),
        (
            folder("mds", "index.json", "shard.00000.mds"),
            dict(name="mds", path=at(tmp_path / "mds")),
        ),
        (
            folder("arrays", "a.array_record"),
            dict(name="array_record", files=at(tmp_path / "arrays")),
        ),
        (
            folder("hub", "README.md", "data/train-00000-of-00001.parquet"),
            dict(name="parquet", files=at(tmp_path / "hub/*/*.parquet")),
        ),
        (folder("flat", "a.JPG", "a.txt"), dict(name="folder", path=at(tmp_path / "flat"))),
        (
            folder("classes", "cat/a.png", "dog/b.png"),
            dict(name="folder", path=at(tmp_path / "classes"), classes="folder"),
        ),
        (commas, dict(name="csv", files=at(commas / "*.csv"), delimiter=",")),
    ]
    for path, expected in cases:
        assert recognise(str(path)) == expected


def test_what_is_not_recognised_is_said(tmp_path):
    files = {
        "a.tar.gz": (b"\x1f\x8b\x08", "gunzip"),
        "a.tar": (b"PK\x03\x04", "unzip"),
        "b.tar": (b"<html>" * 100, "is named as webdataset but begins with b'<html>"),
        "a.pkl": (b"\x80\x04\x95", "may run code"),
        "a.parquet": (b"<html>", "is named as parquet but begins with"),
        "empty.tar": (b"", "is empty"),
        "a.bin": (b"0123", "which is none of webdataset, parquet"),
        "a.jpg": (b"\xff\xd8\xff", "is one picture; name the folder"),
    }
    for name, (content, said) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=said):
            recognise(str(tmp_path / name))
    with pytest.raises(ConfigError, match="is not there; did you mean 'a.parquet'"):
        recognise(str(tmp_path / "a.parqet"))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/notes.doc").write_bytes(b"x")
    with pytest.raises(ConfigError, match="holds notes.doc; none of the formats"):
        recognise(str(tmp_path / "odd"))
    with pytest.raises(ConfigError, match="does not end in a known suffix"):
        recognise("data/*.xyz")
