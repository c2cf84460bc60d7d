"""Records whose texts say that their labels are right: the clean seeds of CAPro (Qin et al. 2023,
arXiv 2310.09761, section 3.2)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np
from scipy import sparse

from jaxvl.config import Count, Range, check
from jaxvl.data.sources.base import Source
from jaxvl.data.tables import Columns
from jaxvl.evals.columns import (
    LABELS,
    PICTURES,
    check_column,
    check_texts,
    class_names,
    labels_of,
)
from jaxvl.evals.columns import Columns as Names
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.prompts import class_vectors, templates_of
from jaxvl.evals.ranking import top_k
from jaxvl.evals.source_options import check_tokenizer
from jaxvl.jobs import JOBS
from jaxvl.jobs.base import Job
from jaxvl.jobs.embedding import BLOCK, image_rows, text_rows


@JOBS.register("text_seeds")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSeeds(Job):
    """Clean seeds of each class: those of its records whose texts are most like its definition.

    A text's vector is smoothed over the pictures' nearest neighbours, which completes missing texts
    and outvotes wrong ones. With A_ij the cosine of pictures i and j, where j is among the k
    nearest others of i and the cosine is > 0, and the larger of A_ij and A_ji in both places:

        S       = rows of (rows of A scaled to sum 1) + self_weight I, scaled to sum 1
        s       = S t                          t: [n, D], the texts' vectors; 0 where there is none
        match_i = cos(s_i, prototype of the class that i is labelled with)

    The prototype of a class is the vector of its definition. The release ranks neighbours anew by
    their own neighbours before it takes the first k; this job does not.

    Columns, each [n]:
      seed int8: 1 for the K best matches among the records of a class, else 0.
      match float32; 0 of a record without a label or a picture.

    Attributes:
      label: column of classes.
      image: column of pictures.
      text: column of texts, or several; the first text of a record counts.
      definitions: a text for each class; empty: its name.
      language: of the names.
      templates: a set by name, or texts with `{}` for the name or the definition.
      k: neighbours (the release: 5, or 10 of many labels).
      self_weight: 0.
      count: K (the release: 50).
    """

    label: str = "class_label"
    image: str = "image"
    text: Names = "text"
    definitions: tuple[str, ...] = ()
    language: str = "en"
    templates: str | tuple[str, ...] = "plain"
    k: Count = 5
    self_weight: Annotated[float, Range(0.0, 1e3)] = 0.0
    count: Count = 50

    def __post_init__(self):
        super().__post_init__()
        templates_of(self.templates)

    def check(self, encoders: Encoders, source: Source) -> None:
        """See `Job`."""
        encoders.check_embeds()
        check_tokenizer(encoders)
        check_column(source, self.image, PICTURES, "image")
        check_column(source, self.label, LABELS, "label")
        check_texts(source, self.text, "text")
        self._names(source)

    def _names(self, source: Source) -> tuple[str, ...]:
        """Definitions of the classes. Raises ConfigError where they are too few, or a class has no
        name."""
        classes = labels_of(source, self.label, self.language).classes
        names = self.definitions or class_names(classes, self.language, repr(self.label))
        problem = f"are {len(names)}, of {len(classes)} classes"
        check(len(names) == len(classes), "definitions", problem)
        missing = [i for i, name in enumerate(names) if not name]
        check(not missing, "definitions", f"class {missing[:1]} has neither name nor definition")
        return tuple(names)

    def run(self, encoders: Encoders, source: Source) -> Columns:
        """See `Job`."""
        prototypes = class_vectors(
            encoders.texts, self._names(source), templates_of(self.templates)
        )
        labels = labels_of(source, self.label, self.language).values
        images, seen = image_rows(encoders, source, self.image)
        texts, _ = text_rows(encoders, source, self.text)
        found = np.flatnonzero(seen)
        smooth = np.zeros((len(source), texts.shape[1]))
        smooth[found] = self.graph(images[found], encoders) @ texts[found].astype(np.float64)
        length = np.maximum(np.linalg.norm(smooth, axis=1), 1e-12)
        known = seen & (labels >= 0)
        own = prototypes[np.maximum(labels, 0)].astype(np.float64)
        match = np.where(known, np.einsum("nd,nd->n", smooth, own) / length, 0.0)
        seed = np.zeros(len(source), np.int8)
        for label in range(len(prototypes)):
            of_class = np.flatnonzero(known & (labels == label))
            best = np.argsort(-match[of_class], kind="stable")[: self.count]
            seed[of_class[best]] = 1
        return {"seed": seed, "match": match.astype(np.float32)}

    def graph(self, images: np.ndarray, encoders: Encoders) -> sparse.csr_matrix:
        """S of unit rows [n, D]. A record without a neighbour has its own text."""
        n = len(images)
        itself = np.arange(n)
        rows = []
        columns = []
        cosines = []
        for start in range(0, n, BLOCK):
            some = slice(start, start + BLOCK)
            without = itself[some], itself
            scores, near = top_k(images[some], images, self.k, encoders.mesh, without=without)
            use = scores > 0  # those that nobody is left for are -inf
            rows.append(np.broadcast_to(itself[some, None], near.shape)[use])
            columns.append(near[use])
            cosines.append(np.minimum(scores[use], 1.0))
        places = np.concatenate(rows), np.concatenate(columns)
        one_way = sparse.csr_matrix((np.concatenate(cosines).astype(np.float64), places), (n, n))
        return smoothing(one_way, self.self_weight)


def smoothing(one_way: sparse.csr_matrix, self_weight: float) -> sparse.csr_matrix:
    """S of cosines [n, n] of each row's neighbours; see `TextSeeds`."""
    both = _scaled(one_way.maximum(one_way.T))
    alone = np.asarray(both.sum(1)).ravel() == 0
    return _scaled(both + sparse.diags(np.where(alone, 1.0, self_weight)))


def _scaled(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Rows of sum 1; empty ones stay."""
    total = np.asarray(matrix.sum(1)).ravel()
    return sparse.diags(np.divide(1.0, total, where=total > 0, out=np.zeros(len(total)))) @ matrix
