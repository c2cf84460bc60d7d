"""Twelve records, and writers of each format that make them into files by the format's own library.

A format joins `WRITERS` with a function that writes `RECORDS`, in their order, into a folder and
returns the source's config.
"""

from __future__ import annotations

import csv
import io
import json
import pathlib
import shutil
import struct
import tarfile
import zlib

import datasets
import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from jaxvl.data.sources.array_record import ArrayRecord
from jaxvl.data.sources.delimited import Delimited
from jaxvl.data.sources.folder import Folder
from jaxvl.data.sources.huggingface import HuggingFace
from jaxvl.data.sources.jsonl import JsonLines
from jaxvl.data.sources.mds import Mds
from jaxvl.data.sources.parquet import Parquet
from jaxvl.data.sources.tfds import Tfds
from jaxvl.data.sources.webdataset import WebDataset

HERE = pathlib.Path(__file__).parent
TEXTS = (
    "a red star",
    "grün, weiß und 日本",
    "None",
    "null",
    "NA",
    "nan",
    'she said "stop"',
    "two\nlines",
    "a\ttab, a comma; a bar|",
    "1999",
    "line separator \u2028 inside",
    "[not a list]",
)


def make_png(shade: int, width: int = 3, height: int = 2) -> bytes:
    """A PNG by the format's own description, equal on every machine: its pixels are stored, not
    compressed."""
    rows = b"".join(b"\0" + bytes([shade, 0, 255 - shade]) * width for _ in range(height))
    stored = (
        b"\x78\x01\x01"
        + struct.pack("<HH", len(rows), len(rows) ^ 0xFFFF)
        + rows
        + struct.pack(">I", zlib.adler32(rows))
    )
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", stored),
        (b"IEND", b""),
    )
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


RECORDS = [
    {"image": make_png(20 * i), "text": text, "class_label": i // 4} for i, text in enumerate(TEXTS)
]
NAMES = ("cat", "dog", "owl")


def write_parquet(folder: pathlib.Path) -> Parquet:
    for part, rows in enumerate((RECORDS[:5], RECORDS[5:])):
        table = pa.table(
            {
                "jpg": [r["image"] for r in rows],
                "caption": [r["text"] for r in rows],
                "label": [r["class_label"] for r in rows],
            }
        )
        pyarrow.parquet.write_table(table, folder / f"{part:05d}.parquet", row_group_size=2)
    return Parquet(str(folder / "{00000..00001}.parquet"))


def write_huggingface(folder: pathlib.Path) -> HuggingFace:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.Value("string"),
            "label": datasets.ClassLabel(names=list(NAMES)),
        }
    )
    columns = {
        "image": [{"bytes": r["image"], "path": None} for r in RECORDS],
        "caption": [r["text"] for r in RECORDS],
        "label": [r["class_label"] for r in RECORDS],
    }
    whole = datasets.DatasetDict(train=datasets.Dataset.from_dict(columns, features=features))
    whole.save_to_disk(str(folder / "saved"), num_shards={"train": 2})
    return HuggingFace(str(folder / "saved"))


class Twelve(tfds.core.GeneratorBasedBuilder):
    """The records as a dataset of TFDS."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        of = tfds.features
        features = of.FeaturesDict(
            {
                "image": of.Image(shape=(None, None, 3)),
                "caption": of.Text(),
                "label": of.ClassLabel(names=list(NAMES)),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, record in enumerate(RECORDS):
            yield (
                i,
                {
                    "image": io.BytesIO(record["image"]),
                    "caption": record["text"],
                    "label": record["class_label"],
                },
            )


def write_tfds(folder: pathlib.Path) -> Tfds:
    Twelve(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return Tfds(str(folder), dataset="twelve")


def write_array_records(file: pathlib.Path, contents: list[bytes]) -> None:
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    for content in contents:
        writer.write(content)
    writer.close()


def write_msgpack(folder: pathlib.Path) -> ArrayRecord:
    for part, rows in enumerate((RECORDS[:7], RECORDS[7:])):
        write_array_records(folder / f"{part}.array_record", [msgpack.packb(row) for row in rows])
    return ArrayRecord(str(folder))


def write_examples(folder: pathlib.Path) -> ArrayRecord:
    """`tf.train.Example`s as TFDS's own code for the message writes them."""
    from tensorflow_datasets.proto import tf_example_generated_pb2 as pb

    contents = []
    for record in RECORDS:
        example = pb.Example()
        example.features.feature["jpg"].bytes_list.value.append(record["image"])
        example.features.feature["caption"].bytes_list.value.append(record["text"].encode())
        example.features.feature["label"].int64_list.value.append(record["class_label"])
        contents.append(example.SerializeToString())
    write_array_records(folder / "all.array_record", contents)
    return ArrayRecord(
        str(folder / "all.array_record"),
        columns={"image": "jpg", "text": "caption", "class_label": "label"},
    )


def write_pictures(folder: pathlib.Path) -> list[str]:
    (folder / "pictures").mkdir()
    for i, record in enumerate(RECORDS):
        (folder / "pictures" / f"{i:02d}.png").write_bytes(record["image"])
    return [f"{i:02d}.png" for i in range(len(RECORDS))]


def write_jsonl(folder: pathlib.Path) -> JsonLines:
    names = write_pictures(folder)
    lines = [
        {"file_name": name, "caption": r["text"], "label": r["class_label"]}
        for name, r in zip(names, RECORDS)
    ]
    (folder / "all.jsonl").write_text(
        "\n\n".join(json.dumps(line) for line in lines), encoding="utf-8"
    )
    return JsonLines(str(folder / "all.jsonl"), images=str(folder / "pictures"))


def write_tsv(folder: pathlib.Path) -> Delimited:
    names = write_pictures(folder)
    with open(folder / "all.tsv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["filepath", "title", "label"])
        writer.writerows(
            [f"pictures/{name}", r["text"], r["class_label"]] for name, r in zip(names, RECORDS)
        )
    return Delimited(str(folder / "all.tsv"))


def write_folder(folder: pathlib.Path) -> Folder:
    for i, record in enumerate(RECORDS):
        place = folder / str(record["class_label"])
        place.mkdir(exist_ok=True)
        (place / f"{i:02d}.png").write_bytes(record["image"])
        (place / f"{i:02d}.txt").write_text(record["text"] + "\n", encoding="utf-8")
    return Folder(str(folder), classes="integer")


def write_mds(folder: pathlib.Path) -> Mds:
    """What mosaicml-streaming 0.13 wrote (`write_mds.py`); it cannot be installed beside numpy 2.4
    and transformers 5."""
    shutil.copytree(HERE / "mds" / "plain", folder / "mds")
    return Mds(str(folder / "mds"))


def write_packed_mds(folder: pathlib.Path) -> Mds:
    shutil.copytree(HERE / "mds" / "zstd", folder / "mds")
    return Mds(str(folder / "mds"))


def write_tars(folder: pathlib.Path) -> WebDataset:
    for part, rows in enumerate((RECORDS[:5], RECORDS[5:])):
        with tarfile.open(folder / f"{part:05d}.tar", "w") as tar:
            for i, record in enumerate(rows):
                members = {
                    "png": record["image"],
                    "txt": record["text"].encode(),
                    "cls": str(record["class_label"]).encode(),
                }
                for ending, content in members.items():
                    about = tarfile.TarInfo(f"{part:05d}{i:04d}.{ending}")
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))
    columns = {"image": "png", "text": "txt", "class_label": "cls"}
    return WebDataset(str(folder / "{00000..00001}.tar"), columns=columns)


WRITERS = {
    "webdataset": write_tars,
    "parquet": write_parquet,
    "huggingface": write_huggingface,
    "tfds": write_tfds,
    "array_record": write_msgpack,
    "array_record of Examples": write_examples,
    "jsonl": write_jsonl,
    "csv": write_tsv,
    "folder": write_folder,
    "mds": write_mds,
    "mds in zstd": write_packed_mds,
}


def small_array(i: int) -> np.ndarray:
    """The array that record `i` has in the data that only some formats can hold."""
    return np.arange(3, dtype=np.float32) + i
