"""Pictures, records and sources that the data tests share."""

import io

import numpy as np
from PIL import Image

from jaxvl.data.tokenizers import Tokenizer, train_unigram

COLOURS = ("red", "green", "blue", "black", "white", "grey")
SHAPES = ("circle", "square", "star", "ring")


def encoded(pixels, kind="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def record(i, size=12, channels=4, pixels=None):
    """Record `i`, whose picture can be told from every other's."""
    name = f"{COLOURS[i % 6]} {SHAPES[i // 6 % 4]} {i}"
    return {
        "key": f"style/{i}",
        "image": encoded(noise(i, size, size, channels) if pixels is None else pixels),
        "label": 100 + i,
        "style": "style",
        "captions": {"en": [name, [f"keyword {i} {j}" for j in range(4)]], "de": [f"de {i}", []], "fr": [f"fr {i}", []]},
    }


class Source:
    """Random access to records in memory, or to what `replace` puts in their place; counts its reads.

    `replace` maps a position to a record, or to an exception that reading it raises.
    """

    def __init__(self, n, replace=None, **options):
        self.records, self.replace, self.reads = [record(i, **options) for i in range(n)], replace or {}, []

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        self.reads.append(i)
        found = self.replace.get(i, self.records[i])
        if isinstance(found, Exception):
            raise found
        return found


class Corpus:
    """A corpus with one split, `train`."""

    splits = ["train"]

    def __init__(self, source):
        self.source = source

    def split(self, name):
        return self.source


def tokenizer():
    texts = [t for i in range(24) for name, words in record(i, 1)["captions"].values() for t in (name, *words)]
    return Tokenizer("unigram", train_unigram(texts, 80, lowercase=True), pad_id=0, eos_id=1)
