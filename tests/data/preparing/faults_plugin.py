"""A demo corpus as pairs of picture and English name, with faulty records after its own."""

import dataclasses
import functools
import hashlib
import pathlib
from typing import Annotated, Any

import msgpack
import numpy as np

from jaxvl.data.records import BadRecord
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Column, Source

NAMES = {"image": "image", "name/en": "text", "key": "name"}  # column of the corpus -> of the pairs


@functools.cache
def _faults(file):
    return msgpack.unpackb(pathlib.Path(file).read_bytes())


class WithFaults(Source):
    columns = {"image": Column("image"), "text": Column("text"), "name": Column("text")}

    def __init__(self, corpus, faults, step):
        self.corpus = corpus
        self.faults = faults
        self.step = step
        self.name = f"{corpus.name} with faults"
        self.fingerprint = (
            corpus.fingerprint + hashlib.sha256(pathlib.Path(faults).read_bytes()).hexdigest()
        )
        self.own = len(range(0, len(corpus), step))

    def __len__(self):
        return self.own + len(_faults(self.faults))

    def shards(self):
        return np.array([self.own, len(self) - self.own])

    def read(self, i, columns=None):
        if i >= self.own:
            return _faults(self.faults)[i - self.own]
        record = self.corpus.read(i * self.step, NAMES)
        if "name/en" not in record:
            raise BadRecord("no caption", record["key"])
        return {ours: record[theirs] for theirs, ours in NAMES.items()}


@SOURCES.register("with_faults")
@dataclasses.dataclass(frozen=True)
class WithFaultsConfig:
    source: Annotated[Any, SOURCES]
    faults: str
    step: int = 1

    def open(self, log=print):
        return WithFaults(self.source.open(log), self.faults, self.step)
