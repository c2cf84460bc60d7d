"""What probes of frozen features share: labels of the images of two splits, and what is reported of predictions."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxvl.config import check, nearest
from jaxvl.data.corpora.prepared import prepared
from jaxvl.data.records import DataError
from jaxvl.evals.encoders import EncodedImages, Encoders
from jaxvl.evals.result import EvalResult, GalleryRow, Item
from jaxvl.evals.split import SplitOptions, Thumbnails, class_names, open_split, sample, skipped_figures

TIE = 1e-6  # of logits
SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Features of the images of a split that have a label. rows [n, …]; labels int64 [n]; index int64 [n]: records; skipped: by cause."""

    rows: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    skipped: dict[str, int]


@dataclasses.dataclass(frozen=True)
class ProbeOptions(SplitOptions):
    """A probe is trained on one split and tested on another.

    Attributes:
      split: the test split.
      train_split: images that the probe learns from; the model stays as it is.
      label: what is to be told: None: the corpus's classes, else one of its attributes (emoji: `group`; shapes: `colour`, `shape`,
        `count`).
    """

    train_split: str = ""
    label: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check(bool(self.train_split), "train_split", "is required: the split that the probe learns from")
        check(self.train_split != self.split, "train_split", f"{self.train_split!r} is the test split as well")

    @property
    def figures(self) -> tuple[str, ...]:
        shares = ("acc@1", "mean_class_acc@1", "acc@1_chance", "acc@1_majority", "train_acc@1")
        return (*shares, "classes", "images", "train_images", "skipped/*")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`; what the model must have is the probe's to say."""
        super().check(encoders)
        open_split(self.corpus, self.train_split, "train_split")
        classes = np.unique(self.labels(self.train_split)[0])
        check(len(classes) >= 2, "train_split", f"{self.train_split!r} has one class only: there is nothing to tell apart")
        shared = np.isin(self.labels(self.split)[0], classes).any()
        check(shared, "split", f"{self.split!r} has no image of a class of the train split {self.train_split!r}")

    def labels(self, split: str) -> tuple[np.ndarray, list[str]]:
        """Label of every record int64 [n], and the labels' names. Raises ConfigError for an attribute that the corpus does not have."""
        corpus = prepared(self.corpus)
        if self.label is None:
            names = [name or f"class {i}" for i, name in enumerate(class_names(self.corpus, self.locale))]
            return np.asarray(corpus.labels(split), np.int64), names
        known = list(getattr(corpus, "attributes", ()))
        problem = f"{self.label!r} is not an attribute of the corpus{nearest(self.label, known)} (it has: {', '.join(known) or 'none'}; None: its classes)"
        check(self.label in known, "label", problem)
        values, names = corpus.attribute(self.label, split)
        return np.asarray(values, np.int64), names

    def both(self, encode) -> tuple[Labelled, Labelled, list[str]]:
        """Train and test rows with labels 0 … C - 1, the classes being those of the train split, and their names.

        Test images of other classes are left out and counted.

        Args:
          encode: `(source, split) -> EncodedImages`.

        Raises:
          DataError: no image in one of the splits, too many bad ones, or fewer than two classes in the train split.
        """
        parts, classes, names = [], None, None
        for split in (self.train_split, self.split):
            source = open_split(self.corpus, split)
            encoded: EncodedImages = encode(source, split)
            self.within_budget(encoded.skipped, len(source), split)
            labels, names = self.labels(split)
            labels = labels[encoded.index]
            classes = np.unique(labels) if classes is None else classes
            kept = np.isin(labels, classes)
            if not kept.any():
                raise DataError(f"split {split!r} has no image to probe (records that were skipped: {encoded.skipped or 0})")
            skipped = {**encoded.skipped, "class is not in the train split": int((~kept).sum())}
            parts.append(Labelled(encoded.rows[kept], np.searchsorted(classes, labels[kept]), encoded.index[kept], skipped))
        if len(classes) < 2:
            raise DataError(f"split {self.train_split!r} has one class only: there is nothing to tell apart")
        return parts[0], parts[1], [names[c] for c in classes]

    def result(
        self, encoders: Encoders, logits: np.ndarray, train: Labelled, test: Labelled, names: list[str], more: dict[str, float]
    ) -> EvalResult:
        """Figures of logits [n, C] of the test images, and a gallery."""
        right = expected_accuracy(logits, test.labels)
        classes, counts = np.unique(test.labels, return_counts=True)
        per_class = np.bincount(test.labels, right, len(names))[classes] / counts
        metrics = {
            "acc@1": right.mean(), "mean_class_acc@1": per_class.mean(), "acc@1_chance": 1 / len(names),
            "acc@1_majority": (test.labels == np.bincount(train.labels).argmax()).mean(), "classes": len(names),
            "images": len(test.labels), "train_images": len(train.labels), **more,
        }  # fmt: skip
        thumbnail = Thumbnails(open_split(self.corpus, self.split), encoders.preprocess)

        def row(q: int) -> GalleryRow:
            best = np.argsort(-logits[q], kind="stable")[:SHOWN]
            p = np.exp(logits[q].astype(np.float64) - logits[q].max())
            items = tuple(Item(names[c], float(p[c] / p.sum()), bool(c == test.labels[q])) for c in best)
            return GalleryRow(
                "Image to class", names[test.labels[q]], thumbnail(test.index[q]), items, float((p > p[test.labels[q]]).sum() + 1)
            )

        gallery = [row(int(q)) for q in sample(len(test.labels), self.gallery)]
        return EvalResult({k: float(v) for k, v in metrics.items()} | skipped_figures(test.skipped), gallery)


def expected_accuracy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probability that the right class is picked among the best ones, which are equal within `TIE`, float64 [n]."""
    best = logits >= logits.max(1, keepdims=True) - TIE
    return best[np.arange(len(labels)), labels] / best.sum(1)


def hold_out(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """bool [n]: a random `share` of each class, rounded, but never all of it; the same for the same labels."""
    rng, held = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for c in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == c))
        held[own[: min(round(share * len(own)), len(own) - 1)]] = True
    return held
