"""What probes of frozen features share: classes, and the report of predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np

from jaxvl.config import check
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Source, SourceConfig
from jaxvl.evals.columns import NONE, class_names, labels_of
from jaxvl.evals.encoders import EncodedImages, Encoders
from jaxvl.evals.result import EvalResult, GalleryRow, Item
from jaxvl.evals.source_options import SourceOptions, open_named, sample, skipped_figures
from jaxvl.evals.thumbnails import Thumbnails

TIE = 1e-6  # of logits
SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Features of the images of a source that have a class. rows [n, …]; labels int64 [n]; index
    int64 [n]: records; skipped: by cause."""

    rows: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    skipped: dict[str, int]


@dataclasses.dataclass(frozen=True)
class ProbeOptions(SourceOptions):
    """A probe is trained on one source and tested on another.

    Attributes:
      source: the test source.
      train: the source that the probe learns from, with the same columns; the model stays as it is.
      label: the column that is to be told: of classes, numbers or texts (emoji: `class_label`,
        `group`; shapes: `colour`, `shape`, `count`). Classes that the two sources number in
        different ways are matched by name.
      language: of the classes' names.
    """

    train: Annotated[Any, SOURCES] | None = None
    label: str = "class_label"
    language: str = "en"

    def __post_init__(self):
        super().__post_init__()
        check(self.train is not None, "train", "is required: the source that the probe learns from")
        check(self.train != self.source, "train", "is the test source as well")

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        return (self.source, self.train)

    @property
    def figures(self) -> tuple[str, ...]:
        shares = ("acc@1", "mean_class_acc@1", "acc@1_chance", "acc@1_majority", "train_acc@1")
        return (*shares, "classes", "images", "train_images", "skipped/*")

    def open_train(self) -> Source:
        """The records that the probe learns from. Raises ConfigError at `train`."""
        return open_named(self.train, "train")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`; what the model must have is the probe's to say."""
        source = self.open()
        train = self.open_train()
        self.check_images(source)
        self.check_images(train)
        of_train, of_test, _ = self.labels(train, source)
        classes = np.unique(of_train[of_train != NONE])
        check(
            len(classes) >= 2,
            "train",
            f"{train.name} has one class only: there is nothing to tell apart",
        )
        shared = np.isin(of_test, classes).any()
        check(
            shared,
            "source",
            f"{source.name} has no image of a class of the train source {train.name}",
        )

    def labels(self, train: Source, test: Source) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Class of every record of both sources, int64 [n], `NONE` where it is no class of the
        train source, and the classes' names.

        Raises ConfigError where a source has no such column, or its classes no names in the
        language.
        """
        own = labels_of(train, self.label, self.language)
        other = labels_of(test, self.label, self.language)
        names, of_test = (
            class_names(part.classes, self.language, repr(self.label)) for part in (own, other)
        )
        values = other.values
        if of_test != names:
            place = {name: i for i, name in reversed(list(enumerate(names))) if name}
            numbers = np.array([place.get(name, NONE) for name in of_test], np.int64)
            values = np.where(values == NONE, NONE, numbers[values])
        return own.values, values, [name or f"class {i}" for i, name in enumerate(names)]

    def both(
        self, encode: Callable[[Source, SourceConfig], EncodedImages]
    ) -> tuple[Labelled, Labelled, list[str]]:
        """Train and test rows with labels 0 … C - 1, the classes being those of the train source,
        and their names.

        Test images of other classes are left out and counted.

        Args:
          encode: features of the pictures of a source, and its config.

        Raises:
          DataError: no image in one of the sources, too many bad ones, or fewer than two classes in
            the train source.
        """
        train = self.open_train()
        test = self.open()
        of_train, of_test, names = self.labels(train, test)
        parts = []
        classes = np.zeros(0, np.int64)
        for source, config, labels in ((train, self.train, of_train), (test, self.source, of_test)):
            encoded = encode(source, config)
            self.within_budget(encoded.skipped, source)
            labels = labels[encoded.index]
            if source is train:
                classes = np.unique(labels[labels != NONE])
            kept = np.isin(labels, classes)
            if not kept.any():
                raise DataError(
                    f"{source.name} has no image to probe (records that were skipped: "
                    f"{encoded.skipped or 0})"
                )
            skipped = {**encoded.skipped, "class is not in the train source": int((~kept).sum())}
            parts.append(
                Labelled(
                    encoded.rows[kept],
                    np.searchsorted(classes, labels[kept]),
                    encoded.index[kept],
                    skipped,
                )
            )
        if len(classes) < 2:
            raise DataError(f"{train.name} has one class only: there is nothing to tell apart")
        return parts[0], parts[1], [names[c] for c in classes]

    def result(
        self,
        encoders: Encoders,
        logits: np.ndarray,
        train: Labelled,
        test: Labelled,
        names: list[str],
        more: dict[str, float],
    ) -> EvalResult:
        """Figures of logits [n, C] of the test images, and a gallery."""
        right = expected_accuracy(logits, test.labels)
        classes, counts = np.unique(test.labels, return_counts=True)
        per_class = np.bincount(test.labels, right, len(names))[classes] / counts
        metrics = {
            "acc@1": right.mean(),
            "mean_class_acc@1": per_class.mean(),
            "acc@1_chance": 1 / len(names),
            "acc@1_majority": (test.labels == np.bincount(train.labels).argmax()).mean(),
            "classes": len(names),
            "images": len(test.labels),
            "train_images": len(train.labels),
            **more,
        }
        thumbnail = Thumbnails(self.open(), encoders.preprocess, self.image)

        def row(q: int) -> GalleryRow:
            best = np.argsort(-logits[q], kind="stable")[:SHOWN]
            p = np.exp(logits[q].astype(np.float64) - logits[q].max())
            items = tuple(
                Item(names[c], float(p[c] / p.sum()), bool(c == test.labels[q])) for c in best
            )
            return GalleryRow(
                "Image to class",
                names[test.labels[q]],
                thumbnail(test.index[q]),
                items,
                float((p > p[test.labels[q]]).sum() + 1),
            )

        gallery = [row(int(q)) for q in sample(len(test.labels), self.gallery)]
        return EvalResult(
            {k: float(v) for k, v in metrics.items()} | skipped_figures(test.skipped), gallery
        )


def expected_accuracy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probability that the right class is picked among the best ones, which are equal within `TIE`,
    float64 [n]."""
    best = logits >= logits.max(1, keepdims=True) - TIE
    return best[np.arange(len(labels)), labels] / best.sum(1)


def hold_out(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """bool [n]: a random `share` of each class, rounded, but never all of it; the same for the same
    labels."""
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == c))
        held[own[: min(round(share * len(own)), len(own) - 1)]] = True
    return held
