"""A source of records in one file, and a scorer, as a user's own plugin has them."""

import dataclasses
import functools
import hashlib
import io
import os
import pathlib
from typing import Any

import msgpack
import numpy as np
from PIL import Image

from jaxvl.data.preparing import SCORERS
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Column, Source

COLUMNS = {
    "image": Column("image"),
    "alt": Column("texts"),
    "title": Column("text", optional=True),
    "uid": Column("text", optional=True),
    "class_label": Column("class", optional=True),
    "boxes": Column("array", optional=True),
}


@functools.cache
def _records(path):
    return msgpack.unpackb(pathlib.Path(path).read_bytes())


class PairsSource(Source):
    def __init__(self, path):
        self.path = path
        self.name = pathlib.Path(path).name
        self.columns = COLUMNS
        self.fingerprint = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()

    def __len__(self):
        return len(_records(self.path))

    def read(self, i, columns=None):
        if columns is None and str(i) == os.environ.get("PAIRS_DIE_AT"):
            os._exit(9)
        if columns is None and str(i) == os.environ.get("PAIRS_FAIL_AT"):
            raise DataError("the disk is gone")
        found = _records(self.path)[i]
        if "cause" in found:
            raise BadRecord(found["cause"], f"record {i}")
        record: dict[str, Any] = {
            name: found[name]
            for name in COLUMNS
            if name in found and (columns is None or name in columns)
        }
        if "boxes" in record:
            record["boxes"] = np.array(record["boxes"], np.float32)
        return record


@SOURCES.register("pairs_in_a_file")
@dataclasses.dataclass(frozen=True)
class PairsConfig:
    path: str

    def open(self, log=print):
        return PairsSource(self.path)


@SCORERS.register("brightness")
@dataclasses.dataclass(frozen=True)
class Brightness:
    """Mean of the pixels, 0 to 1, whatever the text."""

    def open(self):
        return self

    def scores(self, pictures, texts):
        means = [
            np.asarray(Image.open(io.BytesIO(picture)).convert("L")).mean() / 255
            for picture in pictures
        ]
        return [np.full(len(some), mean) for mean, some in zip(means, texts)]
