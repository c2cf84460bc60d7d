"""Folders of pictures as teams keep them."""

import csv
import json
import os
import shutil

import datasets
import pytest
from twelve_records import make_png

from jaxvl import paths
from jaxvl.config import ConfigError
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources.folder import Folder


def quiet(line):
    pass


def put(folder, *names, content=None):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(make_png(i) if content is None else content)


def files(source):
    return [source.read(i, ["file"])["file"] for i in range(len(source))]


def test_pictures_with_texts_of_the_same_stem(tmp_path):
    """img2dataset's layout "files": SHARD/KEY.jpg, KEY.txt, KEY.json."""
    put(
        tmp_path,
        "00000/000000001.jpg",
        "00000/000000000.webp",
        "00001/000010000.PNG",
        "loose.jpeg",
        "00001/Photo 2.0 (clean).jpg",
    )
    put(
        tmp_path,
        "00000/000000000.json",
        "00001.parquet",
        ".hidden.png",
        ".git/a.png",
        content=b"{}",
    )
    put(tmp_path, "00000/000000000.txt", content="grün\n".encode())
    put(tmp_path, "00001/Photo 2.0 (clean).txt", content=b"two\nlines\r\n")
    put(tmp_path, "00001/000010000.txt", content=b"\xff\xfe")
    said = []
    source = Folder(str(tmp_path)).open(said.append)
    assert files(source) == [
        "loose.jpeg",
        "00000/000000000.webp",
        "00000/000000001.jpg",
        "00001/000010000.PNG",
        "00001/Photo 2.0 (clean).jpg",
    ]
    assert said == [f"{tmp_path}: 5 pictures (left out: no picture: 2)"]
    assert source.columns["text"].optional and source.present("text").tolist() == [
        False,
        True,
        False,
        True,
        True,
    ]
    assert (
        source.read(1, ["text"]) == {"text": "grün"}
        and source[4]["text"] == "two\nlines"
        and "text" not in source[0]
    )
    assert source[2]["image"] == make_png(0) and source.read(2, ["text"]) == {}
    assert source.shards().tolist() == [1, 2, 2]
    with pytest.raises(BadRecord, match="text is not UTF-8: .*000010000.txt"):
        source.read(3)
    assert source.read(3, ["image"]) == {"image": make_png(2)}


def test_classes_by_folder_are_torchvisions(tmp_path):
    """`ImageFolder` numbers the sorted names of the top folders, and takes pictures at any depth
    below."""
    put(tmp_path, "n02/b.JPEG", "n02/a.JPEG", "n01/deep/er/c.JPEG", "n10/d.JPEG")
    source = Folder(str(tmp_path), classes="folder").open(quiet)
    ours = [(source[i]["file"], source[i]["class_label"]) for i in range(4)]
    assert ours == [
        ("n01/deep/er/c.JPEG", 0),
        ("n02/a.JPEG", 1),
        ("n02/b.JPEG", 1),
        ("n10/d.JPEG", 2),
    ]
    assert source.columns["class_label"].classes.names == {
        "en": tuple(sorted(os.listdir(tmp_path)))
    }
    assert source.column("class_label").tolist() == [0, 1, 1, 2]


def test_folders_of_imagenet_v2_are_the_numbers_themselves(tmp_path):
    put(tmp_path, "0/a.jpeg", "2/a.jpeg", "10/a.jpeg", "999/a.jpeg")
    source = Folder(str(tmp_path), classes="integer").open(quiet)
    assert [(source[i]["file"].split("/")[0], source[i]["class_label"]) for i in range(4)] == [
        ("0", 0),
        ("10", 10),
        ("2", 2),
        ("999", 999),
    ]
    assert source.columns["class_label"].classes is None
    put(tmp_path, "cat/a.jpeg")
    with pytest.raises(
        ConfigError,
        match=r"^classes: 'integer': the folder 'cat' of .* is no number; must be 0, 1, 2 …",
    ):
        Folder(str(tmp_path), classes="integer").open(quiet)
    put(tmp_path, "loose.jpeg")
    with pytest.raises(
        ConfigError, match=r"^classes: 'folder': .* holds 'loose.jpeg' outside of any folder"
    ):
        Folder(str(tmp_path), classes="folder").open(quiet)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_is_that_of_hugging_faces_imagefolder(tmp_path, kind, monkeypatch):
    put(tmp_path / "data", "a.png", "deep/b.png", "deep/c.png", "not named.png")
    rows = [
        {"file_name": "deep/b.png", "text": "bee", "n": 2},
        {"file_name": "a.png", "text": "NA", "n": 1},
        {"file_name": "deep/c.png", "text": "", "n": 3},
    ]
    with open(tmp_path / "data" / f"metadata.{kind}", "w", encoding="utf-8", newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, ["file_name", "text", "n"])
            writer.writeheader()
            writer.writerows(rows)
    source = Folder(str(tmp_path / "data")).open(quiet)
    ours = {
        source[i]["file"]: (source[i]["text"], source[i]["n"], source[i]["image"])
        for i in range(len(source))
    }
    assert ours == {
        "a.png": ("NA", 1, make_png(0)),
        "deep/b.png": ("bee", 2, make_png(1)),
        "deep/c.png": ("", 3, make_png(2)),
    }
    assert source.column("n").tolist() == [1, 2, 3] and source.column("text").tolist() == [
        "NA",
        "bee",
        "",
    ]
    (tmp_path / "data" / "not named.png").unlink()  # which makes theirs stop
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache")
    )["train"]
    theirs = theirs.cast_column("image", datasets.Image(decode=False))
    read = {os.path.relpath(row["image"]["path"], tmp_path / "data"): row["n"] for row in theirs}
    assert read == {name: n for name, (_, n, _) in ours.items()}


def test_metadata_in_the_folder_of_each_split(tmp_path):
    for split in ("train", "val"):
        put(tmp_path / split, "a.png")
        put(
            tmp_path / split,
            "metadata.jsonl",
            content=json.dumps(
                {"file_name": "a.png", "label": split == "val", "objects": {"text": split}}
            ).encode(),
        )
    source = Folder(str(tmp_path), columns={"text": "objects.text"}).open
    with pytest.raises(ConfigError, match="no column 'objects.text'"):
        source(quiet)
    source = Folder(str(tmp_path), classes="folder", columns={"is_val": "label"}).open(quiet)
    assert [source.read(i, ["is_val", "class_label", "file"]) for i in range(2)] == [
        {"class_label": 0, "is_val": 0, "file": "train/a.png"},
        {"class_label": 1, "is_val": 1, "file": "val/a.png"},
    ]


def test_metadata_that_cannot_be_used(tmp_path):
    put(tmp_path, "a.png")
    for content, message in (
        (b"{", "metadata.jsonl: cannot be read"),
        (b"[1]", "metadata.jsonl:1: is no JSON object"),
        (b'{"text": "a"}', r"metadata.jsonl: row 1 has no 'file_name' \(it has: text\)"),
        (b'{"file_name": "\xff"}', "metadata.jsonl: is not UTF-8"),
        (
            b'{"file_name": "../../etc/passwd", "text": "a"}',
            "none of the 1 files that its metadata names is there, as '../../etc/passwd'",
        ),
    ):
        put(tmp_path, "metadata.jsonl", content=content)
        with pytest.raises(DataError, match=message):
            Folder(str(tmp_path)).open(quiet)
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(
        ConfigError,
        match=r"^columns: .* has no metadata.jsonl or metadata.csv that would have columns",
    ):
        Folder(str(tmp_path), columns={"text": "text"}).open(quiet)


def test_links_and_odd_files_are_counted_by_cause(tmp_path):
    root = tmp_path / "root"
    put(root, "a.png", "b/c.png")
    put(tmp_path, "outside/secret.png")
    (root / "loop").symlink_to(root)
    (root / "b" / "up").symlink_to("..")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "out.png").symlink_to(tmp_path / "outside" / "secret.png")
    (root / "passwd.txt").symlink_to("/etc/passwd")
    (root / "gone.png").symlink_to("nothing")
    (root / "again.png").symlink_to("a.png")
    (root / "linked").symlink_to("b")
    os.mkfifo(root / "pipe.png")
    said = []
    source = Folder(str(root)).open(said.append)
    assert files(source) == ["a.png", "again.png", "b/c.png", "linked/c.png"]
    told = said[0].removeprefix(f"{root}: 4 pictures (left out: ").removesuffix(")")
    assert dict(part.rsplit(": ", 1) for part in told.split(", ")) == {
        "link that leads out of the folder": "3",
        "link in a circle": "3",
        "link to nothing": "1",
        "no regular file": "1",
    }
    assert source[1]["image"] == make_png(0)


def test_a_picture_that_goes_or_turns_into_a_link_during_a_run(tmp_path):
    put(tmp_path / "root", "a.png", "b.png", "c.png")
    put(tmp_path, "secret")
    source = Folder(str(tmp_path / "root")).open(quiet)
    (tmp_path / "root" / "a.png").unlink()
    (tmp_path / "root" / "b.png").unlink()
    (tmp_path / "root" / "b.png").symlink_to(tmp_path / "secret")
    with pytest.raises(BadRecord, match="image is missing"):
        source.read(0)
    with pytest.raises(BadRecord, match="path leaves its folder"):
        source.read(1)
    assert source[2]["image"] == make_png(2)


def test_folders_without_pictures(tmp_path):
    with pytest.raises(ConfigError, match=r"^path: .* holds no pictures$"):
        Folder(str(tmp_path)).open(quiet)
    put(tmp_path, "a.pdf", "b.txt")
    with pytest.raises(
        ConfigError, match=r"^path: .* holds no pictures \(left out: no picture: 2\)"
    ):
        Folder(str(tmp_path)).open(quiet)
    with pytest.raises(ConfigError, match=r"^path: no folder"):
        Folder(str(tmp_path / "no")).open(quiet)


def test_a_fingerprint_tells_other_pictures(tmp_path):
    put(tmp_path / "a", "x.png", "y.png")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one = Folder(str(tmp_path / "a")).open(quiet)
    two = Folder(str(tmp_path / "b")).open(quiet)
    assert one.fingerprint == two.fingerprint
    for name, content in (("x.png", b"other"), ("x.txt", b"text"), ("z.png", b"more")):
        put(tmp_path / "b", name, content=content)
        before = two
        two = Folder(str(tmp_path / "b")).open(quiet)
        assert two.fingerprint != before.fingerprint


def test_in_an_object_store(tmp_path, monkeypatch):
    import object_store

    bucket = object_store.start(monkeypatch)
    put(tmp_path, "0/a.png", "1/b.png")
    put(tmp_path, "1/b.txt", content=b"bee")
    for name in ("0/a.png", "1/b.png", "1/b.txt"):
        paths.upload(tmp_path / name, paths.as_path(f"{bucket}/f/{name}"))
    source = Folder(f"{bucket}/f", classes="integer").open(quiet)
    assert source[1] == {"image": make_png(1), "text": "bee", "class_label": 1, "file": "1/b.png"}
