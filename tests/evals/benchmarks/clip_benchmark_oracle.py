"""CLIP_benchmark's own writer, reader and metrics, with embeddings from tables."""

import contextlib
import functools
import io
import os

import numpy as np

from jaxvl.interop.peers import peer

torch = peer("torch")

from clip_benchmark.datasets.builder import build_wds_dataset  # noqa: E402
from clip_benchmark.metrics import (  # noqa: E402
    image_caption_selection,
    zeroshot_classification,
    zeroshot_retrieval,
)
from clip_benchmark.webdataset_builder import convert_dataset, convert_retrieval_dataset  # noqa: E402

# Their `accuracy` takes `float` of arrays of one element, which numpy no longer has.
zeroshot_classification.float = lambda x: (
    float(x) if isinstance(x, str) else float(np.squeeze(np.asarray(x)))
)


class Rows(list):
    """A data set of (picture bytes, label or captions) with `classes` and `templates`."""

    classes = None
    templates = None


@contextlib.contextmanager
def _without_workers():
    """Their converter starts eight worker processes for a handful of rows."""
    whole = torch.utils.data.DataLoader
    torch.utils.data.DataLoader = lambda *args, **options: whole(
        *args, **{**options, "num_workers": 0}
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        torch.utils.data.DataLoader = whole


def write_classification(folder, rows, classes, templates=None, **options):
    """`rows`: (picture bytes, label), or with `multilabel=True` (picture bytes, vector)."""
    data = Rows((content, torch.tensor(label)) for content, label in rows)
    data.classes = classes
    data.templates = templates
    os.makedirs(folder, exist_ok=True)
    with _without_workers():
        convert_dataset(data, "test", str(folder), image_format="png", **options)


def write_retrieval(folder, rows, **options):
    os.makedirs(folder, exist_ok=True)
    with _without_workers():
        convert_retrieval_dataset(Rows(rows), "test", str(folder), image_format="png", **options)


def read(folder):
    """(rows, classes, templates) as their reader has them; pictures as arrays."""
    data = build_wds_dataset("tiny", np.asarray, data_dir=str(folder))
    return list(data), data.classes, data.templates


class Model:
    """Embeds image k and text k as rows of two tables; both come as their numbers."""

    def __init__(self, image_table, text_table):
        self._images = torch.tensor(np.asarray(image_table, np.float32))
        self._texts = torch.tensor(np.asarray(text_table, np.float32))

    def encode_image(self, numbers):
        return self._images[numbers.long().reshape(-1)]

    def encode_text(self, numbers):
        return self._texts[numbers.long().reshape(-1)]


def tokenize(texts):
    """Number of a text: its digits, as the tokenizer of `known_answers`."""
    return torch.tensor([int("".join(c for c in text if c.isdigit()) or 0) for text in texts])


class Batches(list):
    """A loader of batches with `dataset.classes`, as their evaluation asks for it."""

    def __init__(self, batches, classes=()):
        super().__init__(batches)
        self.dataset = type("Dataset", (), {"classes": list(classes)})


def classification(model, numbers, targets, names, templates):
    batches = Batches([(torch.tensor(numbers), torch.tensor(np.asarray(targets)))], names)
    options = dict(device="cpu", amp=False)
    return zeroshot_classification.evaluate(
        model, batches, tokenize, list(names), list(templates), **options
    )


def retrieval(model, numbers, captions, ks=(1, 5, 10)):
    batches = Batches([(torch.tensor(numbers), captions)])
    return zeroshot_retrieval.evaluate(
        model, batches, tokenize, "cpu", amp=False, recall_k_list=list(ks)
    )


def selection(model, numbers, captions):
    """`numbers` [n, images of an instance]."""
    pictures = torch.tensor(numbers).reshape(len(numbers), -1, 1, 1, 1)
    return image_caption_selection.evaluate(
        model, Batches([(pictures, captions)]), tokenize, "cpu", amp=False
    )


average_precision = functools.partial(zeroshot_classification.average_precision_per_class)
