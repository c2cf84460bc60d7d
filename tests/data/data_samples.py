"""Pictures, records and sources that the data tests share."""

import dataclasses
import io

import numpy as np
from PIL import Image

from jaxvl.data.cache import Cache
from jaxvl.data.classes import ClassSet
from jaxvl.data.fields.base import Context
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.sources.base import Column, Source
from jaxvl.data.tokenizers import Tokenizer, train_unigram

COLOURS = ("red", "green", "blue", "black", "white", "grey")
SHAPES = ("circle", "square", "star", "ring")
FIRST_CLASS = 100


def encoded(pixels, kind="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def name_of(i):
    return f"{COLOURS[i % 6]} {SHAPES[i // 6 % 4]} {i}"


def record(i, size=12, channels=4, pixels=None):
    """Record `i` by columns; its picture can be told from every other's."""
    return {
        "key": f"style/{i}",
        "image": encoded(noise(i, size, size, channels) if pixels is None else pixels),
        "class_label": FIRST_CLASS + i,
        "name/en": name_of(i),
        "keywords/en": [f"keyword {i} {j}" for j in range(4)],
        "name/de": f"de {i}",
        "name/fr": f"fr {i}",
    }


def stored(i, size=12):
    """Record `i` as a file of a demo corpus holds it."""
    captions = {
        "en": [name_of(i), [f"keyword {i} {j}" for j in range(4)]],
        "de": [f"de {i}", []],
        "fr": [f"fr {i}", []],
    }
    image = encoded(noise(i, size, size, 4))
    return {
        "key": f"style/{i}",
        "image": image,
        "label": FIRST_CLASS + i,
        "style": "style",
        "captions": captions,
    }


COLUMNS = {
    "key": Column("text"),
    "image": Column("image"),
    "class_label": Column(
        "class", classes=ClassSet({"en": tuple(f"class {i}" for i in range(2 * FIRST_CLASS))})
    ),
    "name/en": Column("text"),
    "keywords/en": Column("texts"),
    "name/de": Column("text"),
    "name/fr": Column("text"),
}
MOVING = {
    **COLUMNS,
    "frames": Column("frames", optional=True),
    "speech/de": Column("audio", optional=True),
    "speech/fr": Column("audio", optional=True),
    "speech/ja": Column("audio", optional=True),
    "sound/zxx": Column("audio", optional=True),
}


class FakeSource(Source):
    """Records in memory, or what `replace` puts in their place.

    Args:
      n: records.
      replace: number -> record, or an exception that reading it raises.
      columns: what the source says that it has.
      known: optional columns of which the source can tell which records have them.

    Attributes:
      reads: number of the record of every read, in order.
      asked: columns of every read.
    """

    name = "fake"
    fingerprint = "fake"

    def __init__(self, n, replace=None, columns=COLUMNS, known=(), **options):
        self.records = [record(i, **options) for i in range(n)]
        self.replace = replace or {}
        self.columns = columns
        self.known = known
        self.reads = []
        self.asked = []

    def __len__(self):
        return len(self.records)

    def read(self, i, columns=None):
        self.reads.append(i)
        self.asked.append(columns)
        found = self.replace.get(i, self.records[i])
        if isinstance(found, Exception):
            raise found
        return (
            found if columns is None else {name: found[name] for name in columns if name in found}
        )

    def present(self, name):
        if name not in self.known:
            return super().present(name)
        return np.array([name in self.replace.get(i, self.records[i]) for i in range(len(self))])


@dataclasses.dataclass(frozen=True)
class FakeConfig:
    """A source's config that no test opens: sources are made by hand."""

    def open(self, log=print):
        raise NotImplementedError


def tokenizer():
    texts = [
        t
        for i in range(24)
        for t in (name_of(i), *(f"keyword {i} {j}" for j in range(4)), f"de {i}", f"fr {i}")
    ]
    return Tokenizer("unigram", train_unigram(texts, 80, lowercase=True), pad_id=0, eos_id=1)


def row_of(
    field, given, name="x", source=None, draws=None, tokens=None, preprocess=None, cache_mb=1
):
    """One row of a field as the host makes it: entry -> array; None where the record has no
    value."""
    context = Context(tokens, preprocess or Preprocess(), Cache(cache_mb * 2**20))
    reader = field.reader(name, source or FakeSource(1), context)
    value = reader.load(given)
    if value is None:
        return None
    out = {
        entry: np.zeros((1, *shape.shape), shape.dtype)
        for entry, shape in field.arrays(name).items()
    }
    reader.write(out, 0, value, [0.5] * field.draws if draws is None else draws)
    return {entry: array[0] for entry, array in out.items()}


def assert_same(a, b):
    """Both have the same entries with the same values."""
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(np.asarray(a[key]), np.asarray(b[key]), err_msg=key)
