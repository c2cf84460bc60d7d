"""A corpus, tokenizer and encoders whose right answers are known.

A picture of class k is black but for one white pixel at place k; a text of class k is a word that the tokenizer maps to
k. The encoders read k and look it up in their weights, so any table of vectors can be put behind either of them.
"""

import dataclasses
import io

import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxvl.data.preprocess import Preprocess
from jaxvl.evals.encoders import Encoders

SIZE = 8
PREPROCESS = Preprocess(image_size=SIZE, mean=(0.5, 0.4, 0.3), std=(0.5, 0.5, 0.5), background=(1.0, 1.0, 1.0))


def picture(k, channels=3):
    pixels = np.zeros((SIZE, SIZE, channels), np.uint8)
    pixels[..., 3:] = 255
    pixels[k // SIZE, k % SIZE] = 255
    return pixels


def encoded(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


class Source:
    """Records of (class, captions by locale); `broken` positions hold no image, `unreadable` ones raise."""

    def __init__(self, rows, broken=(), unreadable=()):
        self.rows, self.broken, self.unreadable, self.reads = rows, broken, unreadable, 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        if not 0 <= i < len(self.rows):
            raise IndexError(i)
        if i in self.unreadable:
            raise OSError("truncated record")
        self.reads += 1
        label, captions = self.rows[i]
        image = b"not a picture" if i in self.broken else encoded(picture(label, 3 + i % 2))
        return {"key": str(i), "image": image, "label": label, "style": "toy", "captions": captions}


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Config and corpus in one."""

    sources: dict
    names: dict

    def prepare(self, log=print):
        return self

    @property
    def splits(self):
        return list(self.sources)

    def split(self, name):
        return self.sources[name]

    def labels(self, split):
        return np.array([label for label, _ in self.sources[split].rows], np.int32)

    def class_names(self, locale="en"):
        return self.names[locale]


def corpus(labels, classes=None, **faults):
    """One split "test" with an image per label, named `word K` in English and `Wort K` in German."""
    classes = classes or max(labels) + 1
    rows = [(k, {"en": [f"word {k}", ["thing", f"k{k % 3}"]], "de": [f"Wort {k}", []]}) for k in labels]
    names = {"en": [f"word {k}" for k in range(classes)], "de": [f"Wort {k}" for k in range(classes)]}
    return Corpus({"test": Source(rows, **faults)}, names)


class Tokenizer:
    """The last number in a text is its token (0 without one); the rest is padding."""

    vocab_size, pad_id, eos_id, kind = 64, 0, None, "toy"

    def encode(self, texts, length):
        out = np.zeros((len(texts), length), np.int32)
        out[:, 0] = [int("".join(c for c in t if c.isdigit()) or 0) for t in texts]
        return out


def unit(rows, width, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def encoders(mesh, image_table, text_table, batch=16):
    """Encoders that look classes up in float32 [classes, D] tables."""

    def image(weights, pixels):
        return weights["image"][jnp.argmax(pixels[..., 0].reshape(len(pixels), -1), axis=1)]

    def text(weights, tokens):
        return weights["text"][tokens[:, 0]]

    weights = {"image": jnp.asarray(image_table), "text": jnp.asarray(text_table)}
    return Encoders(image, text, weights, Tokenizer(), PREPROCESS, 4, mesh, batch=batch)
