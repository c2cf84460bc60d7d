"""Text embeddings moved to where images lie: the adapters of CLOSE (Gu, Clark and Kembhavi 2023,
arXiv 2211.09778, section 4.2)."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import jax
import numpy as np

from jaxvl.aliases import Json
from jaxvl.config import Range, Seed
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Source
from jaxvl.data.tables import PRESENT, Columns
from jaxvl.evals.columns import PICTURES, check_column, check_texts
from jaxvl.evals.columns import Columns as Names
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.ranking import unit_rows
from jaxvl.evals.source_options import check_tokenizer, open_named
from jaxvl.jobs import JOBS
from jaxvl.jobs.base import Job
from jaxvl.jobs.embedding import image_rows, text_rows


@JOBS.register("text_to_image")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToImage(Job):
    """Column `embedding` float32 [n, D]: of each record's first text, t, moved by what pairs
    (t', v') of an auxiliary source say of texts and images:

        shift        t + a mean(v' - t')
        linear       norm(A t + b), of least squares: A t' + b = v'
        covariance   t + mean(v' - t') + c z,  z ~ N(0, cov(v' - t'))

    The model `close` adds its noise and scales to length 1. As in the release, only `linear` does
    so before. The release draws z anew at every step, this job once for each record and `seed`. How
    its linear map was fitted is not in the release.

    Attributes:
      how: which.
      pairs: records of both by name of their format; None: those of the source itself.
      image: column of pictures, of the pairs.
      text: column of texts, or several, of both.
      scale: a; not from the paper.
      factor: c (the release: 3).
      seed: of z.
    """

    how: Literal["shift", "linear", "covariance"] = "shift"
    pairs: Annotated[Any, SOURCES] | None = None
    image: str = "image"
    text: Names = "text"
    scale: Annotated[float, Range(0.0, 1e3)] = 1.0
    factor: Annotated[float, Range(0.0, 1e3)] = 3.0
    seed: Seed = 0

    def check(self, encoders: Encoders, source: Source) -> None:
        """See `Job`."""
        encoders.check_embeds()
        check_tokenizer(encoders)
        pairs = self._pairs(source)
        check_column(pairs, self.image, PICTURES, "image")
        for records in (source, pairs):
            check_texts(records, self.text, "text")

    def _pairs(self, source: Source) -> Source:
        return source if self.pairs is None else open_named(self.pairs, "pairs")

    def others(self) -> Json:
        """See `Job`."""
        return None if self.pairs is None else open_named(self.pairs, "pairs").fingerprint

    def run(self, encoders: Encoders, source: Source) -> Columns:
        """See `Job`. Raises DataError where no two pairs are there."""
        texts, present = text_rows(encoders, source, self.text)
        pairs = self._pairs(source)
        own = self.pairs is None
        theirs, with_text = (texts, present) if own else text_rows(encoders, pairs, self.text)
        images, with_image = image_rows(encoders, pairs, self.image)
        both = with_text & with_image
        if both.sum() < 2:
            raise DataError(f"{pairs.name}: no two records have both a picture and a text")
        moved = self.moved(texts, theirs[both], images[both])
        return {"embedding": moved.astype(np.float32), PRESENT: present}

    def moved(self, texts: np.ndarray, theirs: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Texts [n, D] moved by pairs [m, D], float64."""
        texts, theirs, images = (x.astype(np.float64) for x in (texts, theirs, images))
        gap = images - theirs
        if self.how == "shift":
            return texts + self.scale * gap.mean(0)
        if self.how == "linear":
            one = lambda x: np.concatenate([x, np.ones((len(x), 1))], axis=1)
            rows = one(texts) @ np.linalg.lstsq(one(theirs), images)[0]
            return unit_rows(rows)
        # Of the eigenvectors, as the covariance of fewer pairs than D has no Cholesky factor.
        values, vectors = np.linalg.eigh(np.cov(gap, rowvar=False))
        drawn = jax.random.normal(jax.random.key(self.seed), texts.shape)
        noise = np.float64(drawn) * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
        return texts + gap.mean(0) + self.factor * noise
