"""Hard negatives of every record, by what a model finds similar."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

import numpy as np
from jax.sharding import Mesh

from jaxvl.config import Range, check
from jaxvl.data.sources.base import Source
from jaxvl.data.tables import Columns
from jaxvl.evals.columns import PICTURES, check_column, check_texts, groups_of
from jaxvl.evals.columns import Columns as Names
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.ranking import TIE, top_k
from jaxvl.evals.source_options import check_tokenizer
from jaxvl.jobs import JOBS
from jaxvl.jobs.base import Job
from jaxvl.jobs.embedding import BLOCK, image_rows, joined, text_rows

NONE = -1  # in the place of a negative that there is not
Most = Annotated[int, Range(0, 65_536)]


@JOBS.register("mine_negatives")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MineNegatives(Job):
    """Column `negative` int32 [n, above + below]: numbers of the records that are hard negatives of
    each, -1 where there are fewer.

    The queries are one side of the records, the candidates the other side of all of them; with
    `document` texts are candidates as well. Of the two kinds of MM-Embed (Lin et al. 2024, arXiv
    2411.02571, section 4.1.1) the first comes first:

        above   candidates that score higher than the query's own one, the highest first. With
                `document` these are documents: of the wrong modality, whatever they say.
        below   candidates from rank `cut` + 1 on: similar, and more surely wrong. With `document`
                these are pictures, ranked among pictures and documents.

    Ranks are among the candidates of other groups; documents have none. The sampler
    `with_negatives` reads the column, and the objective `hard_nce` the batches that it makes. The
    similarities are computed in blocks; no device holds a row of them.

    Attributes:
      query: side that asks; the other side is what is found.
      image: column of pictures.
      text: column of texts, or several; the first text of a record counts.
      document: column of texts, or several, that are candidates of the wrong modality; None: there
        are none, and `above` is of the right one.
      group: column whose equal values are never negatives of each other; None: only a record itself
        is none of its own.
      above: negatives of the first kind, 1 in the paper.
      below: negatives of the second kind, 1 in the paper.
      cut: k', 45; the number is not from the paper.
    """

    numbers: ClassVar[tuple[str, ...]] = ("negative",)

    query: Literal["image", "text"] = "text"
    image: str = "image"
    text: Names = "text"
    document: Names | None = None
    group: str | None = None
    above: Most = 1
    below: Most = 1
    cut: Most = 45

    def __post_init__(self):
        super().__post_init__()
        check(self.above + self.below > 0, "above", "0 and below=0 leave nothing; one must be >= 1")
        check(
            not self.below or self.above <= self.cut,
            "above",
            f"{self.above!r} must be at most cut, {self.cut!r}, so that no record is of both kinds",
        )
        fits = self.document is None or self.query == "text"
        check(fits, "document", f"{self.document!r} is for texts that ask; query is {self.query!r}")

    def check(self, encoders: Encoders, source: Source) -> None:
        """See `Job`."""
        encoders.check_embeds()
        check_column(source, self.image, PICTURES, "image")
        check_tokenizer(encoders)
        check_texts(source, self.text, "text")
        if self.document is not None:
            check_texts(source, self.document, "document")
        if self.group is not None:
            groups_of(source, self.group)

    def run(self, encoders: Encoders, source: Source) -> Columns:
        """See `Job`."""
        images, with_image = image_rows(encoders, source, self.image)
        texts, with_text = text_rows(encoders, source, self.text)
        documents = None
        if self.document is not None:
            documents, with_document = text_rows(encoders, source, self.document)
            with_text = with_text & with_document
        images, found = joined(source, [(images, with_image & with_text)])
        texts = texts[found]
        documents = None if documents is None else documents[found]
        queries, candidates = (images, texts) if self.query == "image" else (texts, images)
        groups = found if self.group is None else groups_of(source, self.group)[found]
        mined = np.full((len(source), self.above + self.below), NONE, np.int32)
        pool = Pool(candidates, groups, documents)
        for start in range(0, len(found), BLOCK):
            some = slice(start, start + BLOCK)
            own = np.einsum("nd,nd->n", queries[some], candidates[some])
            places = self._places(queries[some], own, groups[some], pool, encoders.mesh)
            mined[found[some]] = np.where(places >= 0, found[places], NONE)
        return {"negative": mined}

    def _places(
        self, queries: np.ndarray, own: np.ndarray, groups: np.ndarray, pool: Pool, mesh: Mesh
    ) -> np.ndarray:
        """Places of the negatives in the pool, int [m, above + below]; -1: none.

        Args:
          own: float32 [m], score of each query with its own candidate.
          groups: of the queries.
        """
        depth = max(self.above, self.cut + self.below if self.below else 0)
        without = groups, pool.groups
        scores, places = ranked(queries, pool.candidates, depth, mesh, without)
        wrong = scores
        wrong_places = places
        rank = np.broadcast_to(np.arange(depth), scores.shape)
        if pool.documents is not None:
            depth = max(self.above, self.cut)
            wrong, wrong_places = ranked(queries, pool.documents, depth, mesh)
            for j in range(wrong.shape[1]):  # all at once would be [m, depth, cut]
                rank = rank + (wrong[:, j : j + 1] > scores)
        higher = wrong[:, : self.above] > own[:, None] + TIE
        above = np.where(higher, wrong_places[:, : self.above], NONE)
        # Ranks rise, so the first ones past the cut come first in a stable order.
        order = np.argsort(rank < self.cut, axis=1, kind="stable")[:, : self.below]
        past = np.take_along_axis(rank, order, 1) >= self.cut
        below = np.where(past, np.take_along_axis(places, order, 1), NONE)
        return np.concatenate([above, below], axis=1)


@dataclasses.dataclass(frozen=True)
class Pool:
    """What is searched.

    Attributes:
      candidates: float32 [n, D], of the right modality.
      groups: int [n], of the candidates.
      documents: float32 [n, D], of the wrong modality, or None.
    """

    candidates: np.ndarray
    groups: np.ndarray
    documents: np.ndarray | None


def ranked(
    queries: np.ndarray,
    candidates: np.ndarray,
    depth: int,
    mesh: Mesh,
    without: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [m, depth] and places [m, depth] of the best candidates (`ranking.top_k`); -inf and -1
    where there are fewer."""
    scores, places = top_k(queries, candidates, depth, mesh, without=without)
    short = depth - scores.shape[1]
    scores = np.pad(scores, ((0, 0), (0, short)), constant_values=-np.inf)
    places = np.pad(places, ((0, 0), (0, short)))
    return scores, np.where(scores > -np.inf, places, NONE)
