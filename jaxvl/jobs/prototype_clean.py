"""Labels that prototypes of the classes and a class head agree with (CAPro, Qin et al. 2023, arXiv
2310.09761, section 3.4)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from jaxvl.config import Range, Scale, check
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Source
from jaxvl.data.tables import Columns
from jaxvl.evals.columns import PICTURES, check_column
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.ranking import unit_rows
from jaxvl.jobs import JOBS
from jaxvl.jobs.base import Job
from jaxvl.jobs.embedding import BLOCK, known_classes, known_column
from jaxvl.objectives.capro import clean

Share = Annotated[float, Range(0.0, 1.0)]


@JOBS.register("prototype_clean")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PrototypeClean(Job):
    """Keeps, corrects or drops every label of a source, by the rule of the objective `capro`.

    Prototypes are the means of the seeds' projected pictures, scaled to length 1, of the weights
    that the job has. The release takes those of its last step, which are moving averages.

    Columns, each [n]:
      label int32: the label that is kept or corrected; -1 of a dropped record.
      keep int8: 1, or 0 of a dropped record; for `data.keep`.

    A record without a picture is dropped.

    Attributes:
      head, projected: see the objective; outputs of pictures alone.
      label: column of the given labels.
      seed: column of the seeds, as a table of `text_seeds` has it.
      image: column of pictures.
      temperature, alpha, threshold: see the objective.
    """

    head: str
    projected: str = "projected"
    label: str = "class_label"
    seed: str = "seed"
    image: str = "image"
    temperature: Scale = 0.1
    alpha: Share = 0.5
    threshold: Share = 0.6

    def check(self, encoders: Encoders, source: Source) -> None:
        """See `Job`."""
        image = {"image": encoders.input_shapes["image"]}
        encoders.check_outputs(image, (self.projected, f"logits/{self.head}"))
        check_column(source, self.image, PICTURES, "image")
        check_column(source, self.label, ("class", "int"), "label")
        check_column(source, self.seed, ("int",), "seed")

    def run(self, encoders: Encoders, source: Source) -> Columns:
        """See `Job`. Raises DataError where no record is a seed."""
        names = (self.projected, f"logits/{self.head}")
        encoded = encoders.together(source, names, self.image)
        projected = encoded[names[0]]
        logits = encoded[names[1]].rows
        index = projected.index
        labels = known_classes(source, self.label, "label")[index]
        marked = np.asarray(known_column(source, self.seed, "seed"))[index] > 0
        seeds = marked & (labels >= 0)
        if not seeds.any():
            raise DataError(f"{source.name}: no record with a picture and a label is a seed")
        classes = logits.shape[1]
        problem = (
            f"{self.label!r} has the number {labels.max()}; must be below the head's {classes}"
        )
        check(labels.max() < classes, "label", problem)
        sums = np.zeros((classes, projected.rows.shape[1]))
        np.add.at(sums, labels[seeds], projected.rows[seeds].astype(np.float64))
        there = sums.any(1)
        prototypes = unit_rows(sums).astype(np.float32)
        label = np.full(len(source), -1, np.int32)
        for start in range(0, len(index), BLOCK):
            some = slice(start, start + BLOCK)
            scores = projected.rows[some] @ prototypes.T / self.temperature
            scores = np.where(there, scores, -np.inf)
            near = jax.nn.softmax(scores)
            rated = self.alpha * jax.nn.softmax(logits[some]) + (1 - self.alpha) * near
            given = jnp.asarray(labels[some])
            found = clean(rated, given, jnp.asarray(seeds[some]), self.threshold)
            label[index[some]] = np.where(found.kept, found.label, -1)
        return {"label": label, "keep": (label >= 0).astype(np.int8)}
