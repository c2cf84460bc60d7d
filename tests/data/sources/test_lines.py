"""JSON Lines and CSV/TSV: as pandas and the csv module write them, odd ones from public reports,
and damaged ones."""

import base64
import contextlib
import csv
import io
import json
import pickle

import numpy as np
import object_store
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twelve_records import TEXTS, make_png

from jaxvl import paths
from jaxvl.config import ConfigError, resolve
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources import SOURCES, line_index
from jaxvl.data.sources.delimited import Delimited
from jaxvl.data.sources.jsonl import JsonLines

PNG = make_png(5)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_LOCAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def picture(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)


def quiet(line):
    pass


def lines(folder, *rows, name="a.jsonl"):
    (folder / name).write_bytes(
        b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    )
    return JsonLines(str(folder / name))


def table(folder, text, name="a.tsv", **options):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return Delimited(str(folder / name), **options)


def causes(source):
    found = {}
    for i in range(len(source)):
        try:
            source.read(i)
        except BadRecord as error:
            found[i] = error.cause
    return found


# --------------------------------------------------------------------------------------------------
# JSON Lines


def test_what_pandas_writes(tmp_path):
    frame = pd.DataFrame(
        {
            "file_name": ["a.png"] * 12,
            "caption": TEXTS,
            "score": np.linspace(0, 1, 12),
            "label": range(12),
            "tags": [["x", "y"]] * 12,
        }
    )
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    source = JsonLines(str(tmp_path / "a.jsonl")).open(quiet)
    assert {name: column.kind for name, column in source.columns.items()} == {
        "image": "image",
        "text": "text",
        "class_label": "class",
        "score": "float",
        "tags": "texts",
    }
    for i in range(12):
        assert source[i] == {
            "image": PNG,
            "text": TEXTS[i],
            "class_label": i,
            "score": pytest.approx(frame.score[i]),
            "tags": ["x", "y"],
        }
    assert source.column("text").tolist() == list(TEXTS) and source.column(
        "class_label"
    ).tolist() == list(range(12))


def test_pictures_as_data_uris_base64_and_paths(tmp_path):
    body = base64.b64encode(PNG).decode()
    rows = [
        f"data:image/png;base64,{body}",
        body,
        "\n".join([body[:50], body[50:]]),
        "a.png",
        "data:image/png,abc",
        f"data:image/png;base64,{body[:-7]}!",
    ]
    source = lines(tmp_path, *({"image": row} for row in rows)).open(quiet)
    assert [source[i]["image"] for i in range(4)] == [PNG] * 4
    assert causes(source) == {4: "image cannot be decoded", 5: "image cannot be decoded"}


def test_parts_of_objects_and_keys_that_come_and_go(tmp_path):
    rows = [
        {"image": "a.png", "meta": {"alt": "first", "n": 1}},
        {"image": "a.png", "meta": None},
        {"image": None, "more": 2.5},
        {"meta": {"alt": ["b", "c"]}},
    ]
    source = lines(tmp_path, *rows)
    said = []
    assert (
        set(source.open(said.append).columns) == {"image", "more"}
        and "not read: meta (dict)" in said[0]
    )
    object.__setattr__(source, "columns", {"text": "meta.alt", "n": "meta.n", "image": "image"})
    opened = source.open(quiet)
    assert [opened[i] for i in range(4)] == [
        {"text": ["first"], "n": 1, "image": PNG},
        {"image": PNG},
        {},
        {"text": ["b", "c"]},
    ]
    assert opened.present("n").tolist() == [True, False, False, False] and opened.column(
        "n"
    ).tolist() == [1, 0, 0, 0]


def test_lines_that_cannot_be_read_are_bad_records(tmp_path):
    good = {"image": "a.png", "text": "fine"}
    source = lines(
        tmp_path,
        good,
        b"",
        b"   ",
        b'{"text": "cut',
        b'{"text": "\xff"}',
        b"[1]",
        b"3",
        b"[" * 10**5,
        b'{"text": 4, "image": "a.png"}',
        {**good, "image": "no.png"},
        {**good, "image": "../a.png"},
        {**good, "image": "/etc/passwd"},
        {**good, "image": ""},
        {**good, "image": [1]},
        b'{"text": "half \\ud800"}',
        good,
    ).open(quiet)
    assert len(source) == 14
    unread = "record cannot be read"
    leaves = "path leaves its folder"
    assert causes(source) == {
        1: unread,
        2: "text is not UTF-8",
        3: unread,
        4: unread,
        5: unread,
        7: "image is missing",
        8: leaves,
        9: leaves,
        10: "no image",
        11: "value is of another kind",
        12: "text is not UTF-8",
    }
    assert source[6]["text"] == "4" and source[13] == {"image": PNG, "text": "fine"}


def test_line_ends_of_every_system_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n{"text": "c\\u2028d"}'
    )
    source = JsonLines(str(tmp_path / "a.jsonl")).open(quiet)
    assert [source[i]["text"] for i in range(len(source))] == ["a", "b", "c\u2028d"]


def test_files_without_records(tmp_path):
    with pytest.raises(ConfigError, match=r"^files: .*a.jsonl' has no lines"):
        lines(tmp_path, b"", b"  ").open(quiet)
    with pytest.raises(
        DataError, match=r"record 0: no JSON .*; no line that was looked at is a JSON object"
    ):
        lines(tmp_path, b"no json").open(quiet)
    with pytest.raises(DataError, match=r"a.jsonl: is a web page$"):
        lines(tmp_path, b"<html>").open(quiet)
    with pytest.raises(DataError, match="b.jsonl: is not there"):
        JsonLines(str(tmp_path / "b.jsonl")).open(quiet)


def test_a_caption_of_a_megabyte(tmp_path):
    long = "ü" * 2**20
    assert lines(tmp_path, {"text": long}, {"text": "b"}).open(quiet)[0]["text"] == long
    source = table(tmp_path, f"filepath\ttitle\na.png\t{long}\na.png\tb\n").open(quiet)
    assert source[0]["text"] == long and source[1]["text"] == "b"


def test_a_file_is_read_through_once_and_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(line_index, "CHUNK", 7)
    texts = [f"text {i} ü" for i in range(50)]
    config = lines(tmp_path, *({"text": text} for text in texts))
    source = config.open(quiet)
    assert [source[i]["text"] for i in range(50)] == texts
    monkeypatch.setattr(line_index.RecordFiles, "_index", None)
    again = config.open(quiet)
    assert again.fingerprint == source.fingerprint and again[49]["text"] == texts[49]
    assert isinstance(again._records._indexes[0], np.memmap)
    assert len(pickle.dumps(again)) < 3000, "the index is mapped anew, not sent"


def test_a_file_that_changes_during_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxvl.data.sources.range_files.LOOK_AGAIN", -1.0)
    source = lines(tmp_path, {"text": "a"}, {"text": "b"}).open(quiet)
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(b'\n{"text": "c"}')
    with pytest.raises(DataError, match="a.jsonl: was replaced or is still being written"):
        source.read(0)
    source = JsonLines(str(tmp_path / "a.jsonl")).open(quiet)
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DataError, match="a.jsonl: is not there any more"):
        source.read(0)


def test_several_files_local_and_remote(tmp_path, monkeypatch):
    lines(tmp_path, {"text": "a"}, name="0.jsonl")
    lines(tmp_path, b"", name="1.jsonl")
    lines(tmp_path, {"text": "b", "image": "p.png"}, {"text": "c"}, name="2.jsonl")
    (tmp_path / "p.png").write_bytes(PNG)
    source = JsonLines(str(tmp_path / "{0..2}.jsonl")).open(quiet)
    assert [source[i]["text"] for i in range(3)] == [
        "a",
        "b",
        "c",
    ] and source.shards().tolist() == [1, 2]
    bucket = object_store.start(monkeypatch)
    paths.upload(tmp_path / "2.jsonl", paths.as_path(f"{bucket}/x/2.jsonl"))
    paths.upload(tmp_path / "a.png", paths.as_path(f"{bucket}/x/p.png"))
    remote = resolve(SOURCES["jsonl"], {"files": f"{bucket}/x/2.jsonl"}).open(quiet)
    assert remote[0] == {"text": "b", "image": PNG} and remote.fingerprint != source.fingerprint
    local = JsonLines(str(tmp_path / "2.jsonl")).open(quiet)
    assert local.fingerprint == remote.fingerprint


# --------------------------------------------------------------------------------------------------
# CSV and TSV


def test_open_clips_defaults(tmp_path):
    """As its `CsvDataset` reads them: `sep="\\t"`, `filepath`, `title`."""
    frame = pd.DataFrame({"filepath": ["a.png"] * 12, "title": TEXTS})
    frame.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    source = resolve(SOURCES["csv"], {"files": str(tmp_path / "a.tsv")}).open(quiet)
    assert [source[i] for i in range(12)] == [{"image": PNG, "text": text} for text in TEXTS]
    theirs = pd.read_csv(tmp_path / "a.tsv", sep="\t", keep_default_na=False)
    assert source.column("text").tolist() == theirs.title.tolist()
    assert not source.columns["text"].optional and source.present("image").all()


def test_paths_from_the_root(tmp_path):
    """As open_clip's CSV files often have them."""
    text = f"filepath\ttitle\n{tmp_path}/a.png\there\n/etc/hostname\tb\n"
    (tmp_path / "deep").mkdir()
    inside = table(tmp_path, text, images=str(tmp_path)).open(quiet)
    assert inside[0] == {"image": PNG, "text": "here"}
    with pytest.raises(
        BadRecord,
        match=r"path leaves its folder: .* is not below .*; images='/' admits every path from the root",
    ):
        inside.read(1)
    outside = table(tmp_path / "deep", text).open(quiet)
    assert causes(outside) == {0: "path leaves its folder", 1: "path leaves its folder"}
    everywhere = table(tmp_path / "deep", text, images="/").open(quiet)
    assert everywhere[0]["image"] == PNG


def test_texts_stay_what_they_are(tmp_path):
    odd = ["None", "null", "NA", "nan", "N/A", "", "  ", "1999", "1e5", "true", "-"]
    source = table(
        tmp_path, "filepath\ttitle\n" + "".join(f"a.png\t{text}\n" for text in odd)
    ).open(quiet)
    assert [source[i]["text"] for i in range(len(odd))] == odd


def test_a_comma_separated_file_under_the_tab_default_is_one_line(tmp_path):
    with pytest.raises(ConfigError) as caught:
        table(tmp_path, "filepath,title\na.png,hello\n", "a.csv").open(quiet)
    file = tmp_path / "a.csv"
    assert str(caught.value) == (
        f"delimiter: '\\t' (a tab) finds one column, 'filepath,title', in {file}, which is "
        f"separated by a comma: delimiter=','"
    )
    columns = {"image": "filepath", "text": "title"}
    with pytest.raises(
        ConfigError,
        match=r"^delimiter: ',' \(a comma\) finds one column, 'filepath\\ttitle', .* separated by a tab: delimiter='\\t'",
    ):
        table(
            tmp_path, "filepath\ttitle\na.png\thello\n", "b.csv", delimiter=",", columns=columns
        ).open(quiet)
    assert table(tmp_path, "filepath,title\na.png,hello\n", "a.csv", delimiter=",").open(quiet)[
        0
    ] == {"image": PNG, "text": "hello"}
    for delimiter in ("", ",,", "\n", '"'):
        with pytest.raises(ConfigError, match="delimiter"):
            Delimited("a", delimiter=delimiter)


def test_a_caption_column_that_holds_lists(tmp_path):
    source = table(
        tmp_path, "filepath\ttitle\na.png\t" + '"[""a b"", ""c""]"' + "\na.png\t['d', \"it's\"]\n"
    ).open(quiet)
    assert source.columns["text"].kind == "texts"
    assert source[0]["text"] == ["a b", "c"] and source[1]["text"] == ["d", "it's"]
    mixed = table(tmp_path, "filepath\ttitle\na.png\t['a']\na.png\t[sic]\n", "b.tsv").open(quiet)
    assert mixed.columns["text"].kind == "text" and mixed[0]["text"] == "['a']"
    asked = table(
        tmp_path, "filepath\ttitle\na.png\t['a']\na.png\t[sic]\n", "b.tsv", kinds={"text": "texts"}
    ).open(quiet)
    assert asked[1]["text"] == ["[sic]"]


def test_numbers_and_fields_that_are_left_out(tmp_path):
    source = table(
        tmp_path, "title\tlabel\tscore\tcode\na\t1\t0.5\tx1\nb\t\t2\t7\nc\t3\tnan\t8\n"
    ).open(quiet)
    assert {name: column.kind for name, column in source.columns.items()} == {
        "text": "text",
        "class_label": "class",
        "score": "float",
        "code": "text",
    }
    assert (
        source[0] == {"text": "a", "class_label": 1, "score": 0.5, "code": "x1"}
        and "class_label" not in source[1]
    )
    assert source.column("class_label").tolist() == [1, -1, 3] and source.present(
        "class_label"
    ).tolist() == [True, False, True]


def test_rows_that_do_not_fit(tmp_path):
    source = table(
        tmp_path,
        b"filepath\ttitle\na.png\tfine\na.png\na.png\tb\tc\na.png\t\xff\xfe\n\n../x\tb\n\tb\na.png\tlast",
    ).open(quiet)
    fields = "row has another number of fields"
    assert causes(source) == {
        1: fields,
        2: fields,
        3: "text is not UTF-8",
        4: "path leaves its folder",
        5: "no image",
    }
    assert source[6] == {"image": PNG, "text": "last"}


def test_a_quote_that_is_never_closed(tmp_path):
    text = 'filepath\ttitle\na.png\t5" nails\na.png\t"a nail\na.png\tb\na.png\tc\n'
    with pytest.raises(
        DataError,
        match=r"a.tsv: a quote that opens after byte 30 is never closed; if quotes are part of the texts, set quotes=False",
    ):
        table(tmp_path, text).open(quiet)
    source = table(tmp_path, text, quotes=False).open(quiet)
    assert [source[i]["text"] for i in range(4)] == ['5" nails', '"a nail', "b", "c"]


def test_headers(tmp_path):
    with pytest.raises(ConfigError, match=r"has several columns 'title'"):
        table(tmp_path, "title\ttitle\na\tb\n").open(quiet)
    with pytest.raises(ConfigError, match=r"is empty; must begin with a header line"):
        table(tmp_path, "").open(quiet)
    with pytest.raises(ConfigError, match=r"has no rows below its header"):
        table(tmp_path, "filepath\ttitle\n").open(quiet)
    with pytest.raises(
        ConfigError, match=r"^columns.text: no column 'titel'; did you mean 'title'\?"
    ):
        table(tmp_path, "filepath\ttitle\na.png\tb\n", columns={"text": "titel"}).open(quiet)
    assert table(tmp_path, b"\xef\xbb\xbffilepath\ttitle\r\na.png\tb\r\n").open(quiet)[0] == {
        "image": PNG,
        "text": "b",
    }
    table(tmp_path, "filepath\ttitle\na.png\tb\n", "0.tsv")
    table(tmp_path, "filepath\tcaption\na.png\tb\n", "1.tsv")
    with pytest.raises(
        DataError,
        match=r"1.tsv: has the columns filepath, caption, but .*0.tsv has filepath, title; write them alike",
    ):
        Delimited(str(tmp_path / "{0,1}.tsv")).open(quiet)


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6),
    st.sampled_from(["\t", ",", ";"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_the_csv_module_writes_is_read(tmp_path, rows, delimiter, end):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end)
    writer.writerow(["text", "other"])
    writer.writerows(rows)
    (tmp_path / "a.csv").write_bytes(out.getvalue().encode())
    columns = {"one": "text", "two": "other"}
    config = Delimited(
        str(tmp_path / "a.csv"),
        columns=columns,
        kinds={"one": "text", "two": "text"},
        delimiter=delimiter,
    )
    source = config.open(quiet)
    assert [(source[i]["one"], source[i]["two"]) for i in range(len(source))] == rows


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes_are_rows_or_an_error_of_ours(tmp_path, content):
    headed = table(tmp_path, b"filepath\ttitle\n" + content)
    for config in (
        headed,
        table(tmp_path, content, "b.tsv", quotes=False),
        lines(tmp_path, content),
    ):
        with contextlib.suppress(ConfigError, DataError):
            causes(config.open(quiet))
