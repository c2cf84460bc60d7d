"""Linkage of records by pooled vectors of picture and text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import scipy.cluster.hierarchy

from jaxvl.config import Range, check
from jaxvl.data.records import DataError
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.columns import (
    LABELS,
    Columns,
    all_texts,
    check_column,
    check_texts,
    groups_of,
    listed,
)
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.ranking import rank, unit_rows
from jaxvl.evals.source_options import SourceOptions, check_tokenizer, skipped_figures

MOST = 20_000  # records that are clustered: 1.6 GB of distances
Pool = Literal["both", "image", "text"]


@EVALUATORS.register("linkage")
@dataclasses.dataclass(frozen=True)
class Linkage(SourceOptions):
    """Linkage of noisy records of the same thing (CLIPPINGS, Arora et al. 2023, arXiv 2304.03464).

        z = (u + v) / |u + v|,   u and v the unit rows of a record's picture and text

    Records are linked in both ways of the paper. By exemplars: the first record of each class is
    known, and each other record gets the class of the nearest exemplar. By clusters: agglomerative
    with average linkage on cosine distances, of all records, cut at `distance`, or into as many
    clusters as there are classes.

    Figures: `exemplar_acc`, the share of records whose nearest exemplar is of their class (equal
    scores count by chance), `exemplar_acc_chance`; `adjusted_rand` of the clusters (Hubert & Arabie
    1985; 0 by chance), `clusters`; `records`, `classes`, `skipped/CAUSE`.

    Attributes:
      text: column of texts, or several; the first text of a record counts.
      label: column of classes, numbers or texts that are equal for records of one thing.
      pool: `both`, or one of the two alone, which is what the paper compares with.
      distance: cosine distance at which clusters are no more joined (the paper tunes it on held-out
        records); None: into as many as there are classes, which is not from the paper.
    """

    text: Columns = "text"
    label: str = "class_label"
    pool: Pool = "both"
    distance: Annotated[float, Range(0.0, 2.0)] | None = None

    def __post_init__(self):
        super().__post_init__()
        known = ("both", "image", "text")
        check(self.pool in known, "pool", f"{self.pool!r} must be one of {', '.join(known)}")

    @property
    def figures(self) -> tuple[str, ...]:
        found = ("exemplar_acc", "exemplar_acc_chance", "adjusted_rand", "clusters")
        return (*found, "records", "classes", "skipped/*")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        source = self.open()
        self.check_images(source)
        encoders.check_embeds()
        check_tokenizer(encoders)
        check_texts(source, self.text, "text")
        check_column(source, self.label, LABELS, "label")
        problem = f"{source.name} has {len(source):,} records; must be at most {MOST:,} to cluster"
        check(len(source) <= MOST, "source", problem)

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises DataError where no two records are of one thing."""
        source, encoded = self.encode(encoders)
        texts = all_texts(source, listed(self.text))
        have = np.array([bool(texts[i]) for i in encoded.index])
        index = encoded.index[have]
        labels = np.unique(groups_of(source, self.label)[index], return_inverse=True)[1]
        classes = len(np.unique(labels))
        if classes == len(labels):
            raise DataError(f"{source.name} has no two records of one {self.label}")
        rows = pooled(encoded.rows[have], encoders.texts([texts[i][0] for i in index]), self.pool)
        first = np.unique(labels, return_index=True)[1]
        others = np.setdiff1d(np.arange(len(labels)), first)
        ranks = rank(rows[others], rows[first], labels[others], labels[first], encoders.mesh)
        clusters = agglomerate(rows, self.distance, classes)
        metrics = {
            "exemplar_acc": float(ranks.recall(1).mean()),
            "exemplar_acc_chance": 1 / classes,
            "adjusted_rand": adjusted_rand(labels, clusters),
            "clusters": float(len(np.unique(clusters))),
            "records": float(len(labels)),
            "classes": float(classes),
        }
        skipped = skipped_figures(encoded.skipped, {"no text": int((~have).sum())})
        return EvalResult(metrics | skipped, [])


def pooled(images: np.ndarray, texts: np.ndarray, pool: Pool = "both") -> np.ndarray:
    """Unit vectors float32 [n, D] of records from unit rows of their pictures and texts."""
    rows = {"both": (images + texts) / 2, "image": images, "text": texts}[pool]
    return unit_rows(rows)


def agglomerate(rows: np.ndarray, distance: float | None, clusters: int) -> np.ndarray:
    """Clusters int [n] of unit rows by average linkage on cosine distances: those that are joined
    below `distance`, or so many."""
    tree = scipy.cluster.hierarchy.linkage(rows.astype(np.float64), "average", "cosine")
    if distance is None:
        return scipy.cluster.hierarchy.fcluster(tree, clusters, "maxclust")
    return scipy.cluster.hierarchy.fcluster(tree, distance, "distance")


def adjusted_rand(one: Sequence[int] | np.ndarray, other: Sequence[int] | np.ndarray) -> float:
    """Adjusted Rand index of two partitions (Hubert & Arabie 1985, equation 5): 1 where they are
    equal, 0 on average where they are drawn."""
    rows = np.unique(one, return_inverse=True)[1]
    columns = np.unique(other, return_inverse=True)[1]
    both = np.unique(np.stack([rows, columns]), axis=1, return_counts=True)[1]  # no table
    pairs = lambda counts: (counts * (counts - 1) / 2).sum()
    of_rows = pairs(np.bincount(rows))
    of_columns = pairs(np.bincount(columns))
    expected = of_rows * of_columns / max(pairs(np.array([len(rows)])), 1)
    most = (of_rows + of_columns) / 2
    if most == expected:  # both put all in one, or each on its own
        return 1.0
    return float((pairs(both) - expected) / (most - expected))
