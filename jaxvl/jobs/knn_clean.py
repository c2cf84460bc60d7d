"""Labels that a record's nearest neighbours agree with."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from jaxvl.config import Count, Range, check
from jaxvl.data.sources.base import Source
from jaxvl.data.tables import Columns
from jaxvl.evals.columns import check_column
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.ranking import top_k, unit_rows
from jaxvl.jobs import JOBS
from jaxvl.jobs.embedding import BLOCK, EmbeddingJob, known_classes

Share = Annotated[float, Range(0.0, 1.0)]


@JOBS.register("knn_clean")
@dataclasses.dataclass(frozen=True, kw_only=True)
class KnnClean(EmbeddingJob):
    """Keeps, relabels or drops records with noisy labels, by the labels of the k nearest other
    records.

    A record keeps its label where at least `agree` of its neighbours have it. Else it takes the
    label that most of them have, where at least `relabel` of them do (of equally many the smallest
    number). Else it is dropped. The rule and its shares are not from a paper; methods that clean by
    neighbours, such as CAPro, differ in them.

    Columns, each [n]:
      label int32: the label that is kept or taken; -1 of a dropped record.
      keep int8: 1, or 0 of a dropped record; for `data.keep`.
      agreement float32: share of the neighbours that have the record's own label.

    A record that cannot be embedded, or has no label, is dropped.

    Attributes:
      label: column of classes.
      k: neighbours.
      agree: share of the neighbours that a label needs to stay.
      relabel: share that another label needs to take its place.
    """

    label: str = "class_label"
    k: Count = 10
    agree: Share = 0.5
    relabel: Share = 0.8

    def check(self, encoders: Encoders, source: Source) -> None:
        """See `Job`."""
        super().check(encoders, source)
        check_column(source, self.label, ("class", "int"), "label")

    def run(self, encoders: Encoders, source: Source) -> Columns:
        """See `Job`."""
        rows, index = self.rows(encoders, source)
        labels = known_classes(source, self.label, "label")[index]
        rows = unit_rows(rows)
        known = labels >= 0
        rows = rows[known]
        index = index[known]
        labels = labels[known]
        k = min(self.k, len(rows) - 1)
        check(k >= 1, "label", f"{self.label!r}: fewer than two records have a label")
        itself = np.arange(len(rows))
        out = {
            "label": np.full(len(source), -1, np.int32),
            "keep": np.zeros(len(source), np.int8),
            "agreement": np.zeros(len(source), np.float32),
        }
        for start in range(0, len(rows), BLOCK):
            some = slice(start, start + BLOCK)
            without = itself[some], itself
            _, near = top_k(rows[some], rows, k, encoders.mesh, without=without)
            agreement, cleaned = vote(labels[near], labels[some], self.agree, self.relabel)
            out["label"][index[some]] = cleaned
            out["keep"][index[some]] = cleaned >= 0
            out["agreement"][index[some]] = agreement
        return out


def vote(
    neighbours: np.ndarray, own: np.ndarray, agree: float, relabel: float
) -> tuple[np.ndarray, np.ndarray]:
    """Share of the neighbours with the own label, float32 [m], and the cleaned label int64 [m], -1
    where the record is dropped.

    Args:
      neighbours: int [m, k], their labels.
      own: int [m].
    """
    k = neighbours.shape[1]
    agreement = (neighbours == own[:, None]).mean(axis=1)
    votes = np.zeros(neighbours.shape, np.int32)
    for i in range(k):
        votes += neighbours == neighbours[:, i : i + 1]
    most = votes.max(axis=1)
    candidates = np.where(votes == most[:, None], neighbours, np.iinfo(np.int64).max)
    other = np.where(most >= relabel * k, candidates.min(axis=1), -1)
    return agreement.astype(np.float32), np.where(agreement >= agree, own, other)
