"""Projections of what an encoder gives into a space of their own: one for each loss that should not
pull at the same vector (SimCLR, Chen et al. 2020, arXiv 2002.05709, section 4.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Depth, Hidden, Width, check
from jaxvl.models.base import Encoded
from jaxvl.models.heads import HEADS
from jaxvl.models.heads.base import Head, HeadConfig, one_width
from jaxvl.models.heads.layers import Norm, Perceptron
from jaxvl.nn.activations import Activation
from jaxvl.nn.norms import l2_normalize


@HEADS.register("projection")
@dataclasses.dataclass(frozen=True)
class ProjectionConfig(HeadConfig):
    """A linear map or a perceptron of each pooled vector; several inputs share the parameters.

    With `norm="batch"` rows are not independent: in microbatches the statistics are those of a
    part.

    Attributes:
      dim: E of the output.
      layers: linear maps; 1: no hidden layer.
      hidden: width of the hidden layers.
      norm: after every hidden layer: `none`, `batch` or `layer`.
      last_norm: whether the norm follows the last layer as well (SimSiam's projector, Chen & He
        2020, arXiv 2011.10566: `layers=3, hidden=2048, dim=2048, norm="batch", last_norm=True,
        normalize=False`).
      activation: between the layers.
      normalize: whether rows are scaled to length 1.
    """

    dim: Width = 256
    layers: Depth = 1
    hidden: Hidden = 2048
    norm: Norm = "none"
    last_norm: bool = False
    activation: Activation = "relu"
    normalize: bool = True

    def __post_init__(self):
        for name in ("dim", "layers", "hidden"):
            value = vars(self)[name]
            check(value >= 1, name, f"{value!r} must be >= 1")
        check(
            not self.last_norm or self.norm != "none",
            "last_norm",
            "True needs a norm; must be False with norm='none'",
        )

    def widths(self, inputs: Mapping[str, int]) -> dict[str, int]:
        return {name: self.dim for name in self.names.values()}

    def build(
        self, inputs: Mapping[str, int], rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> Head:
        return Projection(self, one_width(inputs), self.dim, rngs=rngs, dtype=dtype)


class Projection(Head):
    """See `ProjectionConfig`. A `PredictorConfig` has the same options.

    Args:
      inputs, outputs: widths D and E.
    """

    def __init__(
        self,
        config: ProjectionConfig,
        inputs: int,
        outputs: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        self.perceptron = Perceptron(
            (inputs, *[config.hidden] * (config.layers - 1), outputs),
            norm=config.norm,
            last_norm=config.last_norm,
            activation=config.activation,
            rngs=rngs,
            dtype=dtype,
        )
        self.names = config.names
        self.normalize = config.normalize

    def __call__(
        self,
        encoded: Mapping[str, Encoded],
        batch: Mapping[str, jax.Array],
        *,
        train: bool,
        key: jax.Array | None,
        progress: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """Float32 [B, E] for each input, unit rows with `normalize`."""
        del batch, key, progress
        outputs = {}
        for source, value in encoded.items():
            row = self.perceptron(value.pooled, train=train)
            outputs[self.names[source]] = (
                l2_normalize(row) if self.normalize else row.astype(jnp.float32)
            )
        return outputs
