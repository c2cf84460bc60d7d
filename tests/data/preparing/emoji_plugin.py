"""The emoji corpus as pairs, with faulty records after its own."""

import dataclasses
import functools
import hashlib
import pathlib

import msgpack
import numpy as np
from array_record.python import array_record_data_source

from jaxvl.data.records import BadRecord
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Column, Source


@functools.cache
def _opened(folder):
    return array_record_data_source.ArrayRecordDataSource(str(pathlib.Path(folder) / "records.array_record"))


@functools.cache
def _faults(file):
    return msgpack.unpackb(pathlib.Path(file).read_bytes())


class EmojiPairs(Source):
    columns = {"image": Column("image"), "text": Column("text"), "emoji": Column("text")}
    name = "emoji with faults"

    def __init__(self, folder, faults, step):
        self.folder, self.faults, self.step = folder, faults, step
        self.fingerprint = hashlib.sha256(pathlib.Path(faults).read_bytes()).hexdigest()
        self.own = len(range(0, len(_opened(folder)), step))

    def __len__(self):
        return self.own + len(_faults(self.faults))

    def shards(self):
        return np.array([self.own, len(self) - self.own])

    def read(self, i, columns=None):
        if i >= self.own:
            return _faults(self.faults)[i - self.own]
        record = msgpack.unpackb(_opened(self.folder)[i * self.step])
        if "en" not in record["captions"]:
            raise BadRecord("no caption", record["key"])
        return {"image": record["image"], "text": record["captions"]["en"][0], "emoji": record["key"]}


@SOURCES.register("emoji_pairs")
@dataclasses.dataclass(frozen=True)
class EmojiConfig:
    folder: str
    faults: str
    step: int = 1

    def open(self, log=print):
        return EmojiPairs(self.folder, self.faults, self.step)
