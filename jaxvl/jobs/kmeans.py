"""Clusters of the records of a source."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxvl.config import Count, Seed, check
from jaxvl.data.sources.base import Source
from jaxvl.data.tables import Columns
from jaxvl.evals.columns import check_column
from jaxvl.evals.encoders import Encoders
from jaxvl.jobs import JOBS
from jaxvl.jobs.clustering import kmeans
from jaxvl.jobs.embedding import EmbeddingJob, known_classes


@JOBS.register("kmeans")
@dataclasses.dataclass(frozen=True, kw_only=True)
class KMeans(EmbeddingJob):
    """Column `cluster` int32 [n]: the cluster of each record, -1 for one that cannot be embedded.

    The sampler `per_cluster` makes batches of one cluster each, as multi-stage contrastive learning
    does (MCL, arXiv 2402.11816: clusters within those of all earlier stages, k = 10).

    Attributes:
      k: clusters.
      spherical: by cosine; False: by Euclidean distance.
      iterations: at most.
      within: integer columns, of earlier tables. Records are of one cluster only where these agree
        too; the clusters are then numbered by all of them together.
      seed: of the first centres.
    """

    k: Count = 10
    spherical: bool = True
    iterations: Count = 100
    within: tuple[str, ...] = ()
    seed: Seed = 0

    def check(self, encoders: Encoders, source: Source) -> None:
        """See `Job`."""
        super().check(encoders, source)
        for i, name in enumerate(self.within):
            check_column(source, name, ("int", "class"), f"within[{i}]")
        n = len(source)
        check(self.k <= n, "k", f"{self.k!r} must be at most {n:,}, the records of {source.name}")

    def run(self, encoders: Encoders, source: Source) -> Columns:
        """See `Job`. Raises ConfigError where fewer than k records can be embedded."""
        rows, index = self.rows(encoders, source)
        check(
            self.k <= len(rows),
            "k",
            f"{self.k!r} must be at most {len(rows):,}, the records that can be embedded",
        )
        found = kmeans(
            rows,
            self.k,
            encoders.mesh,
            seed=self.seed,
            spherical=self.spherical,
            iterations=self.iterations,
        )
        labels = np.full(len(source), -1, np.int32)
        labels[index] = found.labels
        earlier = []
        for i, name in enumerate(self.within):
            earlier.append(known_classes(source, name, f"within[{i}]"))
        return {"cluster": cumulative(earlier, labels)}


def cumulative(earlier: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Clusters int32 [n] that agree in all of several clusterings; -1 where one of them is
    negative."""
    all_labels = np.stack([*earlier, labels], axis=1).astype(np.int64)
    out = np.full(len(labels), -1, np.int32)
    usable = (all_labels >= 0).all(axis=1)
    out[usable] = np.unique(all_labels[usable], axis=0, return_inverse=True)[1].reshape(-1)
    return out if earlier else labels
