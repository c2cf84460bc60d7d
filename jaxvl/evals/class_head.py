"""Accuracy of a class head of the model."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxvl.config import ConfigError, check
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Source
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.columns import NONE, check_column, values_of
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.metrics.classification import hits, mean_per_class_recall
from jaxvl.evals.source_options import SourceOptions, skipped_figures

KS = (1, 5)


@EVALUATORS.register("class_head")
@dataclasses.dataclass(frozen=True)
class ClassHead(SourceOptions):
    """How often the class that a head of the model finds likeliest is the right one.

    Figures: `acc@1`, `acc@5` (1 where there are no more than five classes), `mean_class_acc@1`
    (every class weighs the same), `classes` of the head, `images`, `skipped/CAUSE`. Pictures
    without a label are left out and counted. Of classes that score the same the first one counts.

    Attributes:
      head: name of the head; it gives `logits/HEAD` of pictures alone.
      label: column of classes or integers, numbered as in training.
    """

    head: str = ""
    label: str = "class_label"

    def __post_init__(self):
        super().__post_init__()
        check(bool(self.head), "head", "is required: the name of a class head of the model")

    @property
    def figures(self) -> tuple[str, ...]:
        shares = tuple(f"acc@{k}" for k in KS)
        return (*shares, "mean_class_acc@1", "classes", "images", "skipped/*")

    @property
    def output(self) -> str:
        """The model's output that is read."""
        return f"logits/{self.head}"

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        source = self.open()
        self.check_images(source)
        labels = self._labels(source)
        try:
            (classes,) = encoders.output_shape(self.output)
        except ConfigError as error:
            raise ConfigError("head", f"{self.head!r}: {error.problem}") from None
        most = int(labels.max(initial=NONE))
        problem = (
            f"{self.label!r} of {source.name} has the class {most}, but the head {self.head!r} has "
            f"{classes} classes"
        )
        check(most < classes, "label", problem)

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises DataError where no picture has a label."""
        source = self.open()
        encoded = encoders.images(source, column=self.image, memo=self.source, output=self.output)
        self.within_budget(encoded.skipped, source)
        labels = self._labels(source)[encoded.index]
        known = labels != NONE
        if not known.any():
            raise DataError(f"{source.name} has no picture with a class ({self.label})")
        logits = encoded.rows[known]
        labels = labels[known]
        best = np.argsort(-logits, axis=1, kind="stable")[:, : max(KS)]
        found = {f"acc@{k}": float(hits(best, labels, k).mean()) for k in KS}
        found["mean_class_acc@1"] = mean_per_class_recall(best[:, 0], labels)
        found["classes"] = float(logits.shape[1])
        found["images"] = float(len(labels))
        skipped = skipped_figures(encoded.skipped, {"picture has no class": int((~known).sum())})
        return EvalResult(found | skipped, [])

    def _labels(self, source: Source) -> np.ndarray:
        """Class of every record, int64 [n]; `NONE` where it has none."""
        check_column(source, self.label, ("class", "int"), "label")
        values = values_of(source, self.label)
        return np.array([NONE if v is None else max(v, NONE) for v in values], np.int64)
