"""Datasets as the `datasets` library keeps them."""

import pathlib
import shutil

import datasets
import numpy as np
import pytest
from twelve_records import RECORDS, make_png, write_huggingface

from jaxvl.config import ConfigError
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources.huggingface import HuggingFace


def quiet(line):
    pass


FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "caption": datasets.List(datasets.Value("string")),
        "fine_label": datasets.ClassLabel(names=["cat", "dog"]),
        "grid": datasets.Array2D((2, 3), "float32"),
        "frames": datasets.List(datasets.Image()),
        "sound": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        "about": {"n": datasets.Value("int32"), "deep": {"text": datasets.Value("large_string")}},
    }
)


def columns(n):
    return {
        "image": [{"bytes": make_png(i), "path": "a.png"} for i in range(n)],
        "caption": [[f"{i}", "b"] for i in range(n)],
        "fine_label": [i % 2 for i in range(n)],
        "grid": [np.full((2, 3), i, np.float32) for i in range(n)],
        "frames": [[{"bytes": make_png(i), "path": None}] * (i % 3) for i in range(n)],
        "sound": [{"bytes": b"fLaC" + bytes([i]), "path": None} for i in range(n)],
        "about": [{"n": i, "deep": {"text": f"deep {i}"}} for i in range(n)],
    }


def test_features_are_kinds_and_nothing_is_decoded(tmp_path):
    dataset = datasets.Dataset.from_dict(columns(10), features=FEATURES)
    dataset.cast_column("sound", datasets.Audio(decode=False)).save_to_disk(
        str(tmp_path / "d")
    )  # encoding one would need torchcodec
    source = HuggingFace(str(tmp_path / "d")).open(quiet)
    assert {name: column.kind for name, column in source.columns.items()} == {
        "image": "image",
        "text": "texts",
        "fine_label": "class",
        "grid": "array",
        "frames": "frames",
        "audio": "audio",
    }
    assert source.columns["fine_label"].classes.names == {"en": ("cat", "dog")}
    record = source[5]
    assert (
        record["image"] == make_png(5)
        and record["text"] == ["5", "b"]
        and record["fine_label"] == 1
        and record["audio"] == b"fLaC\5"
    )
    assert (
        record["grid"].shape == (2, 3)
        and record["grid"].dtype == np.float32
        and (record["grid"] == 5).all()
    )
    assert record["frames"] == [make_png(5)] * 2 and source[3]["frames"] == []
    assert source.column("fine_label").tolist() == [0, 1] * 5
    chosen = HuggingFace(
        str(tmp_path / "d"), columns={"text": "about.deep.text", "n": "about.n"}
    ).open(quiet)
    assert chosen[7] == {"text": "deep 7", "n": 7} and chosen.column("text").tolist() == [
        f"deep {i}" for i in range(10)
    ]


def test_rows_that_lack_a_value(tmp_path):
    table = {
        "image": [{"bytes": make_png(1), "path": None}, None],
        "text": ["a", None],
        "n": [None, 3],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "n": datasets.Value("int64")}
    )
    datasets.Dataset.from_dict(table, features=features).save_to_disk(str(tmp_path / "d"))
    source = HuggingFace(str(tmp_path / "d")).open(quiet)
    assert source[1] == {"n": 3} and set(source[0]) == {"image", "text"}
    assert (
        source.present("image").tolist() == [True, False]
        and source.column("text").tolist() == ["a", ""]
        and source.column("n").tolist() == [0, 3]
    )


def test_a_selection_that_was_saved_is_what_is_read(tmp_path):
    dataset = (
        datasets.Dataset.from_dict({"text": [f"{i}" for i in range(50)]})
        .shuffle(seed=3)
        .select(range(20))
    )
    dataset.save_to_disk(str(tmp_path / "d"))
    source = HuggingFace(str(tmp_path / "d")).open(quiet)
    assert [source[i]["text"] for i in range(20)] == dataset["text"][:]


def test_splits_are_named(tmp_path):
    one = datasets.Dataset.from_dict({"text": ["a", "b"]})
    datasets.DatasetDict(train=one, test=one.select([1])).save_to_disk(str(tmp_path / "d"))
    assert HuggingFace(str(tmp_path / "d"), split="test").open(quiet)[0] == {"text": "b"}
    with pytest.raises(ConfigError, match=r"^split: is required: .* holds test, train$"):
        HuggingFace(str(tmp_path / "d")).open(quiet)
    with pytest.raises(
        ConfigError,
        match=r"^split: 'tset' is not in .*; did you mean 'test'\? \(there are: test, train\)",
    ):
        HuggingFace(str(tmp_path / "d"), split="tset").open(quiet)
    with pytest.raises(ConfigError, match=r"^split: 'train': .* holds one split; leave it out"):
        HuggingFace(str(tmp_path / "d" / "train"), split="train").open(quiet)


def test_the_arrow_cache_of_the_library(tmp_path):
    """As `load_dataset` leaves it below ~/.cache/huggingface/datasets."""
    (tmp_path / "data").mkdir()
    for split, texts in (("train", ["a", "b"]), ("test", ["c"])):
        datasets.Dataset.from_dict({"text": texts}).to_json(
            str(tmp_path / "data" / f"{split}.jsonl")
        )
    files = {split: str(tmp_path / "data" / f"{split}.jsonl") for split in ("train", "test")}
    loaded = datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path / "cache"))
    folder = pathlib.Path(loaded["train"].cache_files[0]["filename"]).parent
    source = HuggingFace(str(folder), split="train").open(quiet)
    assert [source[i]["text"] for i in range(2)] == ["a", "b"]
    assert HuggingFace(loaded["test"].cache_files[0]["filename"]).open(quiet)[0] == {"text": "c"}
    with pytest.raises(ConfigError, match="split: is required: .* holds test, train"):
        HuggingFace(str(folder)).open(quiet)


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"^path: .* holds no state.json, dataset_dict.json or .arrow files, so save_to_disk did not write it",
    ):
        HuggingFace(str(tmp_path)).open(quiet)
    with pytest.raises(ConfigError, match=r"^path: no file or folder"):
        HuggingFace(str(tmp_path / "no")).open(quiet)
    with pytest.raises(
        ConfigError, match=r"^path: .* is remote, but Arrow files are memory-mapped"
    ):
        HuggingFace("s3://bucket/d")


def test_a_file_that_is_cut_short_or_missing_is_told(tmp_path):
    config = write_huggingface(tmp_path)
    [first, second] = sorted((tmp_path / "saved" / "train").glob("*.arrow"))
    whole = second.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 200):
        second.write_bytes(whole[:length])
        with pytest.raises(
            DataError, match=r"saved: cannot be read \(.*a file was cut short or is missing"
        ):
            config.open(quiet)
    second.unlink()
    with pytest.raises(DataError, match=r"saved: cannot be read \(FileNotFoundError"):
        config.open(quiet)
    second.write_bytes(whole)
    source = config.open(quiet)
    shutil.rmtree(tmp_path / "saved")
    assert source[11]["text"] == RECORDS[11]["text"], "what is mapped stays"


def test_pictures_by_path(tmp_path):
    """As the Arrow cache has them; `save_to_disk` would put the pictures into its files."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(make_png(1))
    with datasets.arrow_writer.ArrowWriter(
        features=datasets.Features({"image": datasets.Image()}),
        path=str(tmp_path / "d-train.arrow"),
    ) as writer:
        for path in ("a.png", "../x.png"):
            writer.write({"image": {"bytes": None, "path": path}})
        writer.finalize()
    source = HuggingFace(str(tmp_path / "d-train.arrow"), images=str(tmp_path / "pictures")).open(
        quiet
    )
    assert source[0] == {"image": make_png(1)}
    with pytest.raises(BadRecord, match="path leaves its folder"):
        source.read(1)
