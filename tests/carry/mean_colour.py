"""The mean colour of a picture, as a field of the batch, is told from its embedding."""

import dataclasses
import io
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxvl.data.fields import FIELDS
from jaxvl.data.fields.base import Field, RowShape
from jaxvl.objectives import OBJECTIVES, Loss, Objective


@FIELDS.register("mean_colour")
@dataclasses.dataclass(frozen=True)
class MeanColour(Field):
    column: str = "image"

    def arrays(self, name):
        return {name: RowShape((3,), np.float32)}

    def reader(self, name, source, context):
        return Reader(name, self.column)


class Reader:
    def __init__(self, name, column):
        self.name, self.columns, self.key = name, (column,), ("mean_colour", column)

    def load(self, record):
        picture = Image.open(io.BytesIO(record[self.columns[0]])).convert("RGB")
        return np.asarray(picture, np.float32).mean((0, 1)) / 255

    def write(self, out, row, value, draws):
        out[self.name][row] = value


@OBJECTIVES.register("mean_colour")
@dataclasses.dataclass(frozen=True)
class ColourLoss(Objective):
    reads: ClassVar[tuple[str, ...]] = ("guess",)
    batch_keys: ClassVar[tuple[str, ...]] = ("colour",)

    def __call__(self, outputs, batch, state, context):
        error = jnp.square(outputs["guess"] - batch["colour"]).mean()
        return Loss(error, {"spread": batch["colour"].std(0).mean()}), state
