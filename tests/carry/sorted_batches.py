"""Batches of pictures that the model finds alike, dealt anew while it learns."""

import dataclasses

import numpy as np

from jaxvl.jobs import JOBS
from jaxvl.jobs.embedding import EmbeddingJob


@JOBS.register("halves")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Halves(EmbeddingJob):
    """Column `half`: on which side of the median the first number of the embedding lies."""

    def run(self, encoders, source):
        rows, index = self.rows(encoders, source)
        half = np.full(len(source), -1, np.int32)
        half[index] = rows[:, 0] > np.median(rows[:, 0])
        return {"half": half}
