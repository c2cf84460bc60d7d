"""Retrieval of pictures by pictures of the same class."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxvl.config import Count
from jaxvl.data.records import DataError
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.columns import LABELS, check_column, groups_of
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.ranking import top_k, unit_rows
from jaxvl.evals.source_options import SourceOptions, skipped_figures


@EVALUATORS.register("image_knn")
@dataclasses.dataclass(frozen=True)
class ImageKnn(SourceOptions):
    """Nearest neighbours of every picture among the other pictures of a source, by cosine, as
    picture retrieval is measured (Schall et al. 2024, arXiv 2409.01936).

        AP@K = 1 / min(R, K)  sum_{k <= K} right_k  (right ones among the first k) / k

    with R the other pictures of the query's class. Pictures whose class has no other are
    candidates, but ask nothing.

    Figures: `map@K`, the mean of AP@K, K = `depth`; `nn_acc`, the share of queries whose nearest
    picture is of their class; `queries`, `images`, `skipped/CAUSE`.

    Attributes:
      label: column of classes, numbers or texts that are equal for right answers.
      depth: K; as many as there are pictures: the mean average precision of the whole ranking.
      output: the model's output of pictures that is compared; None: the embedding.
    """

    label: str = "class_label"
    depth: Count = 100
    output: str | None = None

    @property
    def figures(self) -> tuple[str, ...]:
        return (f"map@{self.depth}", "nn_acc", "queries", "images", "skipped/*")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        source = self.open()
        self.check_images(source)
        check_column(source, self.label, LABELS, "label")
        encoders.check_embeds(texts=False)

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises DataError where no two pictures are of one class."""
        source = self.open()
        encoded = encoders.images(source, column=self.image, memo=self.source, output=self.output)
        self.within_budget(encoded.skipped, source)
        groups = groups_of(source, self.label)[encoded.index]
        _, place, size = np.unique(groups, return_inverse=True, return_counts=True)
        if len(size) == len(groups):
            raise DataError(f"{source.name} has no two pictures of one class ({self.label})")
        rows = unit_rows(encoded.rows)
        own = np.arange(len(rows))
        scores, best = top_k(rows, rows, self.depth, encoders.mesh, without=(own, own))
        right = (groups[best] == groups[:, None]) & (scores > -np.inf)
        others = size[place] - 1
        asks = others > 0
        precision = average_precision(right, others)[asks]
        metrics = {
            f"map@{self.depth}": float(precision.mean()),
            "nn_acc": float(right[asks, 0].mean()),
            "queries": float(asks.sum()),
            "images": float(len(rows)),
        }
        return EvalResult(metrics | skipped_figures(encoded.skipped), [])


def average_precision(right: np.ndarray, others: np.ndarray) -> np.ndarray:
    """AP@K float64 [n] of rankings bool [n, K], best first, with `others` int [n] right ones in
    all; 0 where there are none."""
    found = np.cumsum(right, axis=1)
    places = np.arange(1, right.shape[1] + 1)
    most = np.maximum(np.minimum(others, right.shape[1]), 1)
    return (right * found / places).sum(1) / most
