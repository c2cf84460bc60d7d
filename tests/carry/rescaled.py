"""IA3: every output of some frozen maps is multiplied by a learned number."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from jaxvl.adapters import ADAPTERS
from jaxvl.adapters.linear import OfLinear
from jaxvl.nn.adapters import axes_of


@ADAPTERS.register("rescale")
@dataclasses.dataclass(frozen=True)
class RescaleConfig(OfLinear):
    """y = s * W x, with s = 1 at first (Liu et al. 2022, arXiv 2205.05638)."""

    def build(self, module, number, rngs):
        return Rescale(module)


class Rescale(nnx.Module):
    def __init__(self, linear):
        self.scale = nnx.Param(jnp.ones(linear.outputs), axes=axes_of(linear)[1])

    def __call__(self, x, y):
        return y * self.scale[...].astype(y.dtype)
