"""A source, tokenizer and encoders whose right answers are known.

A picture of class k is black but for one white pixel at place k; a text of class k is a word that
the tokenizer maps to k. The encoders read k and look it up in their weights, so any table of
vectors can be put behind either of them.
"""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxvl.data.classes import ClassSet
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Column, Source
from jaxvl.evals.differentiable import Functions
from jaxvl.evals.encoders import Encoders
from jaxvl.models.generate import TextShape, generate

SIZE = 8
PREPROCESS = Preprocess(
    image_size=SIZE, mean=(0.5, 0.4, 0.3), std=(0.5, 0.5, 0.5), background=(1.0, 1.0, 1.0)
)


def picture(k, channels=3):
    pixels = np.zeros((SIZE, SIZE, channels), np.uint8)
    pixels[..., 3:] = 255
    pixels[k // SIZE, k % SIZE] = 255
    return pixels


def encoded(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


class Records(Source):
    """Records of (class, texts by language).

    Columns: `image`, `class_label` with `names`, `parity`, and of each language `name/…` and
      `keywords/…`.
    `broken` positions hold no image, `unreadable` ones are bad records, and those of `bugs` raise a
    KeyError. `asked`: columns that are read with each record, in order.
    """

    def __init__(self, rows, names=None, broken=(), unreadable=(), bugs=(), name="toy"):
        self.rows = rows
        self.broken = broken
        self.unreadable = unreadable
        self.bugs = bugs
        self.reads = 0
        self.asked = []
        self.name = self.fingerprint = name
        languages = {language for _, texts in rows for language in texts}
        self.columns = {
            "image": Column("image"),
            "class_label": Column(
                "class", classes=ClassSet({k: tuple(v) for k, v in (names or {"en": ()}).items()})
            ),
            "parity": Column("class", classes=ClassSet({"en": ("even", "odd")})),
        }
        self.columns |= {
            f"name/{language}": Column("text", optional=True) for language in sorted(languages)
        }
        self.columns |= {
            f"keywords/{language}": Column("texts", optional=True) for language in sorted(languages)
        }

    def __len__(self):
        return len(self.rows)

    def read(self, i, columns=None):
        if not 0 <= i < len(self.rows):
            raise IndexError(i)
        if i in self.unreadable:
            raise BadRecord("record cannot be read", "truncated")
        if i in self.bugs:
            raise KeyError("no such column")
        columns = tuple(self.columns if columns is None else columns)
        self.asked.append(columns)
        self.reads += "image" in columns
        record = self.record(i, columns)
        return {name: record[name] for name in columns if record.get(name) is not None}

    def record(self, i, columns):
        label, texts = self.rows[i]
        record = {"class_label": label, "parity": label % 2}
        if "image" in columns:
            record["image"] = (
                b"not a picture" if i in self.broken else encoded(picture(label, 3 + i % 2))
            )
        for language, (name, keywords) in texts.items():
            record |= {f"name/{language}": name, f"keywords/{language}": keywords}
        return record

    def column(self, name):
        return (
            np.array([label for label, _ in self.rows], np.int32) if name == "class_label" else None
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Toy:
    """Config of a source."""

    records: Source

    def open(self, log=print):
        return self.records


def toy(labels, classes=None, **faults):
    """An image per label, named `word K` in English and `Wort K` in German."""
    classes = classes or max(labels, default=0) + 1
    rows = [
        (k, {"en": [f"word {k}", ["thing", f"k{k % 3}"]], "de": [f"Wort {k}", []]}) for k in labels
    ]
    names = {
        "en": [f"word {k}" for k in range(classes)],
        "de": [f"Wort {k}" for k in range(classes)],
    }
    return Toy(Records(rows, names, **faults))


class Tokenizer:
    """The last number in a text is its token (0 without one); the rest is padding."""

    vocab_size = 64
    pad_id = 0
    eos_id = None
    kind = "toy"

    def to_json(self):
        return type(self).__name__

    def encode(self, texts, length):
        out = np.zeros((len(texts), length), np.int32)
        out[:, 0] = [int("".join(c for c in t if c.isdigit()) or 0) for t in texts]
        return out


def unit(rows, width, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def pair(train, test, **faults):
    """Options of a probe: a source "train" and one "test", with an image per label and the same
    classes."""
    classes = max(*train, *test) + 1
    return dict(
        train=toy(train, classes, name="train"),
        source=toy(test, classes, **{"name": "test", **faults}),
    )


class Words(Tokenizer):
    """The digits of a text are its tokens (digit d is token d + 2), then EOS, which is 1."""

    vocab_size = 12
    eos_id = 1
    before = []

    def ids(self, texts):
        return [[2 + int(c) for c in t if c.isdigit()] for t in texts]

    def encode(self, texts, length):
        out = np.zeros((len(texts), length), np.int32)
        for row, ids in zip(out, self.ids(texts)):
            ids = [*ids[: length - 1], 1]
            row[: len(ids)] = ids
        return out

    def decode(self, ids):
        return [" ".join(str(i - 2) for i in row if i > 1) for row in np.asarray(ids)]


def bigram_logits(kind, seed=0):
    """Logits [class, last token, next token] of a model of texts that knows the picture's class;
    token 0 stands before a text."""
    table = np.random.default_rng(seed).normal(size=(64, 12, 12))
    if kind == "oracle":  # of class k: "k" then EOS, for certain, whatever stands before
        table[:] = 0
        for k in range(10):
            table[k, :, 2 + k], table[k, 2 + k, 1] = 50.0, 100.0
    return np.zeros_like(table) if kind == "uniform" else table


def scorer(mesh, table, batch=16, length=5):
    """Encoders that score, and write greedily, with a table of logits."""
    label = lambda pixels: jnp.argmax(pixels[..., 0].reshape(len(pixels), -1), axis=1)

    def score(weights, pixels, tokens, begin):
        last = jnp.pad(tokens[..., :-1], ((0, 0), (0, 0), (1, 0)))
        logits = weights[label(pixels)[:, None, None], last]
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]
        best = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0] >= logits.max(-1)
        counts = (tokens != 0) & (jnp.arange(tokens.shape[-1]) >= begin[:, None, None])
        return jnp.stack([(log_p * counts).sum(-1), counts.sum(-1), (counts & best).sum(-1)], -1)

    def write(weights, pixels, generation, numbers, index, prompt):
        def step(known, last, position):
            return weights[known, jnp.where(position == 0, 0, last)], known

        options = dict(numbers=numbers, prompt=prompt)
        return generate(
            step,
            label(pixels),
            generation,
            TextShape(len(pixels), length, 1, 0),
            **options,
        ).tokens

    unused = lambda weights, x: jnp.zeros((len(x), 2))
    weights = jnp.asarray(table, jnp.float32)
    return Encoders(
        Functions(unused, unused, score=score, caption=write),
        weights,
        Words(),
        PREPROCESS,
        length,
        mesh,
        batch=batch,
    )


def encoders(mesh, image_table, text_table, batch=16):
    """Encoders that look classes up in float32 [classes, D] tables; of four tokens one is the
    class's vector, the others noise."""

    def image(weights, pixels):
        return weights["image"][jnp.argmax(pixels[..., 0].reshape(len(pixels), -1), axis=1)]

    def text(weights, tokens):
        return weights["text"][tokens[:, 0]]

    def tokens(weights, pixels):
        label = jnp.argmax(pixels[..., 0].reshape(len(pixels), -1), axis=1)
        noise = (
            jax.random.normal(jax.random.key(0), (64, 4, weights["image"].shape[1]))[label] * 0.05
        )
        return jnp.where(
            (jnp.arange(4) == label[:, None] % 4)[..., None],
            weights["image"][label][:, None],
            noise,
        )

    weights = {"image": jnp.asarray(image_table), "text": jnp.asarray(text_table)}
    return Encoders(
        Functions(image, text, tokens=tokens),
        weights,
        Tokenizer(),
        PREPROCESS,
        4,
        mesh,
        batch=batch,
    )
