"""Hard negatives of every record, by what a model finds similar."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

import numpy as np

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

    The queries are one side of the records, the candidates the other side of all of them. Of the
    two kinds of MM-Embed (arXiv 2411.02571, section 4.1.1) the first comes first:

        above   candidates that score higher than the query's own one, the highest first
        below   candidates from rank `cut` + 1 on: similar, and more surely wrong

    Ranks are among the candidates of other groups. The sampler `with_negatives` reads the column.
    The similarities are computed in blocks; no device holds a row of them.

    Attributes:
      query: side that asks; the other side is what is found.
      image: column of pictures.
      text: column of texts, or several; the first text of a record counts.
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

    def check(self, encoders: Encoders, source: Source) -> None:
        """See `Job`."""
        encoders.check_embeds()
        check_column(source, self.image, PICTURES, "image")
        check_tokenizer(encoders)
        check_texts(source, self.text, "text")
        if self.group is not None:
            groups_of(source, self.group)

    def run(self, encoders: Encoders, source: Source) -> Columns:
        """See `Job`."""
        images, with_image = image_rows(encoders, source, self.image)
        texts, with_text = text_rows(encoders, source, self.text)
        images, found = joined(source, [(images, with_image & with_text)])
        texts = texts[found]
        queries, candidates = (images, texts) if self.query == "image" else (texts, images)
        groups = found if self.group is None else groups_of(source, self.group)[found]
        mined = np.full((len(source), self.above + self.below), NONE, np.int32)
        for start in range(0, len(found), BLOCK):
            some = slice(start, start + BLOCK)
            own = np.einsum("nd,nd->n", queries[some], candidates[some])
            places = self._places(queries[some], own, groups[some], candidates, groups, encoders)
            mined[found[some]] = np.where(places >= 0, found[places], NONE)
        return {"negative": mined}

    def _places(
        self,
        queries: np.ndarray,
        own: np.ndarray,
        query_groups: np.ndarray,
        candidates: np.ndarray,
        groups: np.ndarray,
        encoders: Encoders,
    ) -> np.ndarray:
        """Places of the negatives among the candidates, int [m, above + below]; -1: none.

        Args:
          own: float32 [m], score of each query with its own candidate.
        """
        depth = max(self.above, self.cut + self.below if self.below else 0)
        without = query_groups, groups
        scores, places = top_k(queries, candidates, depth, encoders.mesh, without=without)
        short = depth - scores.shape[1]  # of a source with fewer records than that
        scores = np.pad(scores, ((0, 0), (0, short)), constant_values=-np.inf)
        places = np.where(scores > -np.inf, np.pad(places, ((0, 0), (0, short))), NONE)
        higher = scores[:, : self.above] > own[:, None] + TIE
        above = np.where(higher, places[:, : self.above], NONE)
        below = places[:, self.cut : self.cut + self.below]
        return np.concatenate([above, below], axis=1)
