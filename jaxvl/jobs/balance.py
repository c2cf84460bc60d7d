"""A subset of the records that has as many of every concept."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from jaxvl.config import Count, check
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Source
from jaxvl.data.tables import Columns
from jaxvl.evals.columns import check_column
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.ranking import unit_rows
from jaxvl.jobs import JOBS
from jaxvl.jobs.embedding import EmbeddingJob, known_classes


@JOBS.register("balance")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Balance(EmbeddingJob):
    """Column `keep` int32 [n]: 1 for the `each` records of a concept that are nearest to its
    prototype, by cosine; 0 for the others.

    A concept's prototype is the mean of the unit vectors of its records, scaled to length 1 ("From
    unimodal to multimodal", Maniparambil et al. 2024, arXiv 2409.19425, section 3.2: prototypes of
    pictures, and the pairs whose captions are nearest in CLIP's space). A task reads such pairs
    alone with `keep="TABLE"`. A concept with fewer records keeps all. Not from the paper: a record
    is of one concept, which is a column; the clusters of `kmeans` are concepts where there are no
    names.

    Attributes:
      of: the vectors that are compared with the prototypes.
      concept: column of classes or integers; records below 0 have none, and are not kept.
      each: records that are kept of a concept.
      prototypes: what prototypes are means of, in the same space.
    """

    of: Literal["image", "text", "pair"] = "text"
    concept: str = "class_label"
    each: Count = 100
    prototypes: Literal["image", "text", "pair"] = "image"

    def __post_init__(self):
        super().__post_init__()
        check(self.each >= 1, "each", f"{self.each!r} must be >= 1")
        fits = "pair" not in (self.of, self.prototypes) or self.of == self.prototypes
        problem = f"{self.prototypes!r} are of another width than the vectors of {self.of!r}"
        check(fits, "prototypes", f"{problem}; must be {self.of!r}")

    @property
    def _of_prototypes(self) -> Balance:
        return dataclasses.replace(self, of=self.prototypes)

    def check(self, encoders: Encoders, source: Source) -> None:
        """See `Job`."""
        super().check(encoders, source)
        if self.prototypes != self.of:
            EmbeddingJob.check(self._of_prototypes, encoders, source)
        check_column(source, self.concept, ("int", "class"), "concept")

    def run(self, encoders: Encoders, source: Source) -> Columns:
        """See `Job`. Raises DataError where no record has a concept and both vectors."""
        concepts = known_classes(source, self.concept, "concept")
        rows, index = self.rows(encoders, source)
        other = self.prototypes != self.of and self.features is None
        prototypes = self._of_prototypes.rows(encoders, source) if other else (rows, index)
        of_prototypes, found = prototypes
        both = np.intersect1d(index, found)
        both = both[concepts[both] >= 0]
        if not len(both):
            raise DataError(f"{source.name}: no record has {self.concept!r} and what is embedded")
        vectors = unit_rows(rows[np.searchsorted(index, both)])
        means = unit_rows(of_prototypes[np.searchsorted(found, both)])
        keep = np.zeros(len(source), np.int32)
        keep[both] = nearest_of_each(vectors, means, concepts[both], self.each)
        return {"keep": keep}


def nearest_of_each(
    rows: np.ndarray, of_prototypes: np.ndarray, concepts: np.ndarray, each: int
) -> np.ndarray:
    """Which rows [m, D] are among the `each` of their concept with the largest cosine to its
    prototype, bool [m]; of equal ones the first.

    Args:
      of_prototypes: unit rows [m, D] of the same records; their means by concept are the
        prototypes.
      concepts: int [m].
    """
    kept = np.zeros(len(rows), bool)
    for concept in np.unique(concepts):
        own = np.flatnonzero(concepts == concept)
        score = rows[own] @ unit_rows(of_prototypes[own].mean(0))
        kept[own[np.argsort(-score, kind="stable")[:each]]] = True
    return kept
