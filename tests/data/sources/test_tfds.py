"""TFDS builders, without TensorFlow."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from twelve_records import RECORDS, make_png, write_array_records, write_tfds

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.data.sources.tfds import Tfds


def quiet(line):
    pass


class Many(tfds.core.GeneratorBasedBuilder):
    """A feature of each kind, in two splits."""

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {"2.0.0": ""}

    def _info(self):
        of = tfds.features
        features = {
            "image": of.Image(shape=(None, None, 3)),
            "clip": of.Sequence(of.Image()),
            "captions": of.Sequence({"text": of.Text(), "id": np.int64}),
            "names": of.Sequence(of.Text()),
            "score": np.float32,
            "count": of.Scalar(np.int64),
            "flag": of.Scalar(np.bool_),
            "vector": of.Tensor(shape=(3,), dtype=np.float32),
            "box": of.BBoxFeature(),
            "about": {"title": of.Text(), "mask": of.Image(shape=(None, None, 1))},
        }
        return tfds.core.DatasetInfo(
            builder=self, features=of.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10), "val": self._generate_examples(4)}

    def _generate_examples(self, count):
        for i in range(count):
            yield (
                i,
                {
                    "image": io.BytesIO(make_png(i)),
                    "clip": [io.BytesIO(make_png(i)), io.BytesIO(make_png(i + 1))],
                    "captions": [{"text": f"c{i}", "id": 1}, {"text": "ü", "id": 2}],
                    "names": [f"n{i}"],
                    "score": i / 4,
                    "count": 2**40 + i,
                    "flag": i % 2 == 0,
                    "vector": np.full(3, i, np.float32),
                    "box": tfds.features.BBox(0.0, 0.25, 0.5, 1.0),
                    "about": {"title": f"t{i}", "mask": io.BytesIO(make_png(7))},
                },
            )


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    Many(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return str(folder)


def test_features_are_kinds_and_nothing_is_decoded(many):
    said = []
    source = Tfds(many, dataset="many", split="train").open(said.append)
    kinds = {name: column.kind for name, column in source.columns.items()}
    assert kinds == {
        "image": "image",
        "clip": "frames",
        "names": "texts",
        "score": "float",
        "count": "int",
        "flag": "int",
        "vector": "array",
        "box": "array",
    }
    assert not any(column.optional for column in source.columns.values())
    assert "about" in said[0] and "captions" in said[0]
    record = source[6]
    assert (
        record["image"] == make_png(6)
        and record["clip"] == [make_png(6), make_png(7)]
        and record["names"] == ["n6"]
    )
    assert record["score"] == 1.5 and record["count"] == 2**40 + 6 and record["flag"] == 1
    assert record["vector"].tolist() == [6, 6, 6] and record["box"].tolist() == [
        0.0,
        0.25,
        0.5,
        1.0,
    ]
    chosen = Tfds(
        many,
        dataset="many",
        columns={"text": "captions.text", "title": "about.title", "image": "about.mask"},
    ).open(quiet)
    assert chosen[2] == {"text": ["c2", "ü"], "title": "t2", "image": make_png(7)}


@pytest.mark.parametrize(
    "split, counts",
    [
        ("train", range(10)),
        ("val", range(4)),
        ("train[:50%]", range(5)),
        ("train[7:]+val[:2]", [7, 8, 9, 0, 1]),
        ("train[-1:]", [9]),
    ],
)
def test_split_expressions(many, split, counts):
    source = Tfds(many, dataset="many", split=split).open(quiet)
    assert [source[i]["count"] - 2**40 for i in range(len(source))] == list(counts)
    assert source.shards().sum() == len(source)


def test_splits_that_are_not_there(many):
    with pytest.raises(
        ConfigError, match=r"^split: 'trian' cannot be used \(there are: train, val\)"
    ):
        Tfds(many, dataset="many", split="trian").open(quiet)
    with pytest.raises(
        ConfigError,
        match=r"^split: 'train\[0:0\]' of many/2.0.0 has no records|^split: 'train\[0:0\]' cannot be used",
    ):
        Tfds(many, dataset="many", split="train[0:0]").open(quiet)
    prints = {
        Tfds(many, dataset="many", split=split).open(quiet).fingerprint
        for split in ("train", "val", "train[:5]")
    }
    assert len(prints) == 3


def test_datasets_and_versions(many, tmp_path):
    assert len(Tfds(f"{many}/many/2.0.0").open(quiet)) == 10
    assert len(Tfds(many, dataset="many:2.0.0").open(quiet)) == 10
    with pytest.raises(
        ConfigError, match=r"^dataset: no dataset 'mamy' in .*; did you mean 'many'\?"
    ):
        Tfds(many, dataset="mamy").open(quiet)
    with pytest.raises(
        ConfigError, match=r"^dataset: 'many' has no version '3.0.0' \(there are: 2.0.0\)"
    ):
        Tfds(many, dataset="many:3.0.0").open(quiet)
    with pytest.raises(
        ConfigError, match=r"^data_dir: .* has no dataset_info.json; name the dataset"
    ):
        Tfds(many).open(quiet)
    with pytest.raises(ConfigError, match=r"^data_dir: no folder"):
        Tfds(str(tmp_path / "no")).open(quiet)
    with pytest.raises(ConfigError, match=r"^data_dir: .* is remote"):
        Tfds("gs://bucket/tfds")


def test_a_format_without_random_access_is_refused(tmp_path):
    """Writing one needs TensorFlow; what says which it is need not."""
    config = write_tfds(tmp_path)
    about = tmp_path / "twelve" / "1.2.0" / "dataset_info.json"
    about.write_text(about.read_text().replace('"array_record"', '"tfrecord"'))
    told = r"^dataset: twelve/1.2.0 was written as tfrecord, which has no random access; prepare it with file_format='array_record'"
    with pytest.raises(ConfigError, match=told):
        config.open(quiet)


def test_the_library_reads_the_same(tmp_path):
    source = write_tfds(tmp_path).open(quiet)
    theirs = tfds.builder_from_directory(str(tmp_path / "twelve" / "1.2.0")).as_data_source(
        "train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    for i in range(12):
        assert source[i] == {
            "image": theirs[i]["image"],
            "text": theirs[i]["caption"].decode(),
            "class_label": theirs[i]["label"],
        }
        assert source[i]["image"] == RECORDS[i]["image"]


def test_a_file_that_is_missing_or_damaged(tmp_path):
    config = write_tfds(tmp_path)
    [file] = (tmp_path / "twelve" / "1.2.0").glob("*array_record*")
    whole = file.read_bytes()
    source = config.open(quiet)
    file.unlink()
    with pytest.raises(DataError, match="its file is not there any more"):
        source.read(0)
    with pytest.raises(DataError, match="00000-of-00001: is not there"):
        config.open(quiet)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="00000-of-00001: not a whole ArrayRecord file"):
        config.open(quiet)
    write_array_records(file, [b"a"] * 11)
    with pytest.raises(
        DataError, match="00000-of-00001: holds 11 records, but dataset_info.json says 12"
    ):
        config.open(quiet)
    file.write_bytes(whole)
    (tmp_path / "twelve" / "1.2.0" / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="1.2.0: cannot be read"):
        config.open(quiet)
