"""Predictors, which map one view's projection to another's: what keeps a pair of networks without
negatives from collapsing (BYOL, Grill et al. 2020, arXiv 2006.07733; SimSiam, Chen & He 2020, arXiv
2011.10566)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Width
from jaxvl.models.heads import HEADS
from jaxvl.models.heads.base import Head, one_width
from jaxvl.models.heads.layers import Norm
from jaxvl.models.heads.projection import Projection, ProjectionConfig


@HEADS.register("predictor")
@dataclasses.dataclass(frozen=True)
class PredictorConfig(ProjectionConfig):
    """A perceptron from an output to an output of the same width.

    The defaults are BYOL's: `D -> 4096 -> D`, batch normalisation and ReLU after the first layer;
    SimSiam has `hidden=512` of 2048. `predictor` is a `projection` with other defaults.

    Attributes:
      dim: E of the output; None: the input's width.
      layers, hidden, norm, last_norm, activation, normalize: as for `projection`.
    """

    dim: Width | None = None
    layers: int = 2
    hidden: int = 4096
    norm: Norm = "batch"
    normalize: bool = False

    def __post_init__(self):
        if self.dim is None:
            dataclasses.replace(self, dim=1)  # checks the other options
        else:
            super().__post_init__()

    def widths(self, inputs: Mapping[str, int]) -> dict[str, int]:
        return {name: self.dim or one_width(inputs) for name in self.names.values()}

    def build(
        self, inputs: Mapping[str, int], rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> Head:
        width = one_width(inputs)
        return Projection(self, width, self.dim or width, rngs=rngs, dtype=dtype)
