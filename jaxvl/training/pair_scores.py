"""Scores of image-text pairs by a checkpoint, for `python -m jaxvl.data.prepare
--rules.score=checkpoint --rules.score.workdir=RUN`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxvl.config import PathText, to_path
from jaxvl.data.preparing import SCORERS
from jaxvl.data.sources.base import Column
from jaxvl.data.sources.in_memory import InMemory
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
        """Raises ConfigError for a wrong step, CheckpointError where there is no readable
        checkpoint."""
        step = None if self.step is None else str(self.step)
        _, _, encoders = restore_encoders(to_path(self.workdir, "rules.score.workdir"), step)
        return PairScores(encoders)


class PairScores:
    """Scores by the encoders of a model; see `CheckpointScorer`."""

    def __init__(self, encoders: Encoders):
        self._encoders = encoders

    def scores(self, pictures: Sequence[bytes], texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """float32 [K] for each picture: cosine with each of its K texts; nan where the picture
        cannot be encoded."""
        records = [{"image": picture} for picture in pictures]
        encoded = self._encoders.images(
            InMemory("pictures of pairs", {"image": Column("image")}, records)
        )
        rows = dict(zip(encoded.index.tolist(), encoded.rows))
        flat = [text for some in texts for text in some]
        embedded = (
            self._encoders.texts(flat)
            if flat
            else np.zeros((0, encoded.rows.shape[-1]), np.float32)
        )
        out = []
        start = 0
        for i, some in enumerate(texts):
            mine = embedded[start : start + len(some)]
            start += len(some)
            out.append(mine @ rows[i] if i in rows else np.full(len(some), np.nan, np.float32))
        return out
