"""Scores of image-text pairs by a checkpoint, for `python -m jaxvl.data.prepare --rules.score=checkpoint --rules.score.workdir=RUN`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from jaxvl.config import PathText, to_path
from jaxvl.data.preparing import SCORERS
from jaxvl.data.sources.base import Column, Record, Source
from jaxvl.evals.encoders import Encoders
from jaxvl.training.restore import restore_encoders


@SCORERS.register("checkpoint")
@dataclasses.dataclass(frozen=True)
class CheckpointScorer:
    """The cosine of the embeddings of picture and text.

    Attributes:
      workdir: of a training run, or of `jaxvl.convert`.
      step: of one of its checkpoints; None: the newest.
    """

    workdir: PathText
    step: int | None = None

    def open(self) -> PairScores:
        """Raises ConfigError for a wrong step, CheckpointError where there is no readable checkpoint."""
        step = None if self.step is None else str(self.step)
        _, _, encoders = restore_encoders(to_path(self.workdir, "rules.score.workdir"), step)
        return PairScores(encoders)


class _Pictures(Source):
    """Encoded pictures in memory as records with one column, `image`."""

    name = "pictures of pairs"
    fingerprint = ""
    columns = {"image": Column("image")}

    def __init__(self, pictures: Sequence[bytes]):
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, i: int, columns: Collection[str] | None = None) -> Record:
        return {"image": self._pictures[i]}


class PairScores:
    """Scores by the encoders of a model; see `CheckpointScorer`."""

    def __init__(self, encoders: Encoders):
        self._encoders = encoders

    def scores(self, pictures: Sequence[bytes], texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """float32 [K] for each picture: cosine with each of its K texts; nan where the picture cannot be encoded."""
        encoded = self._encoders.images(_Pictures(pictures))
        rows = dict(zip(encoded.index.tolist(), encoded.rows))
        flat = [text for some in texts for text in some]
        embedded = self._encoders.texts(flat) if flat else np.zeros((0, encoded.rows.shape[-1]), np.float32)
        out = []
        start = 0
        for i, some in enumerate(texts):
            mine = embedded[start : start + len(some)]
            start += len(some)
            out.append(mine @ rows[i] if i in rows else np.full(len(some), np.nan, np.float32))
        return out
