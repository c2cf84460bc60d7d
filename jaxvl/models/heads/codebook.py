"""Finite discrete tokens: pictures and texts as sparse sums of the same codes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Range, Scale, Width, check
from jaxvl.models.base import Encoded
from jaxvl.models.heads import HEADS
from jaxvl.models.heads.base import Head, HeadConfig
from jaxvl.nn.linear import Linear, normal
from jaxvl.nn.norms import LayerNorm, l2_normalize
from jaxvl.nn.sparsemax import sparsemax


@HEADS.register("codebook")
@dataclasses.dataclass(frozen=True)
class CodebookConfig(HeadConfig):
    """FDT (Chen et al. 2023, arXiv 2303.14865, equations 1 to 4): every input is a sum of the same
    K codes C, weighted by how well its best token fits each.

        q = MLP(LN(token));  s = max over tokens of q . C / sqrt(d);  w = sparsemax(s / tau);
        feature = w . C

    Each input has a query map of its own, as in the release: LN, linear, GELU, LN, linear. Codes
    are drawn from the standard normal distribution and lie as rows [K, d], sharded over both axes
    (`prototypes`, `embed`).

    Outputs NAME: float32 [B, d], the feature as a unit row; with `weights` NAME_weights: float32
    [B, K], w.

    The temperature falls by the same factor in every step, from `temperature` to `least` after the
    share `until` of the run, and stays there. The release multiplies by a factor every so many
    steps; which share of the run that takes is not from the paper. Without a progress, as in
    evaluation, it is `least`.

    Attributes:
      reads: the model's inputs, of any widths.
      count, dim: K and d; 16,384 and 512 as in the paper.
      temperature, least: tau at first and at last; 1000 and 0.01 as in the release.
      until: in (0, 1].
      padding: `zero`: padding's tokens have s = 0, as in the release; `never`: they are none of
        those that the maximum is taken over (not from the paper).
      weights: whether w is an output.
    """

    count: Annotated[int, Range(2, 16_777_216)] = 16_384
    dim: Width = 512
    temperature: Scale = 1000.0
    least: Scale = 0.01
    until: Annotated[float, Range(0.0, 1.0, above=True)] = 0.5
    padding: str = "never"
    weights: bool = False

    any_widths: ClassVar[bool] = True

    def __post_init__(self):
        check(
            self.least <= self.temperature,
            "least",
            f"{self.least!r} must be at most temperature = {self.temperature:g}",
        )
        known = ("never", "zero")
        check(
            self.padding in known,
            "padding",
            f"{self.padding!r} is not valid; must be one of {', '.join(known)}",
        )

    def widths(self, inputs: Mapping[str, int]) -> dict[str, int]:
        return {name: self.dim for name in self.names.values()}

    def build(
        self, inputs: Mapping[str, int], rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> Head:
        return Codebook(self, inputs, rngs=rngs, dtype=dtype)


class Query(nnx.Module):
    """The map of an input's tokens [B, T, D] into the codes' space [B, T, d]."""

    def __init__(self, width: int, dim: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.norm = LayerNorm(width, eps=1e-5, dtype=dtype)
        self.up = Linear(width, dim, axes=("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.inner_norm = LayerNorm(dim, eps=1e-5, dtype=dtype)
        self.down = Linear(dim, dim, axes=("mlp", "joint"), rngs=rngs, dtype=dtype)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        hidden = jax.nn.gelu(self.up(self.norm(tokens)), approximate=False)
        return self.down(self.inner_norm(hidden))


class Codebook(Head):
    """See `CodebookConfig`."""

    def __init__(
        self, config: CodebookConfig, inputs: Mapping[str, int], *, rngs: nnx.Rngs, dtype: DTypeLike
    ):
        rows = normal(1.0)(rngs.params(), (config.count, config.dim), jnp.float32)
        self.codes = nnx.Param(rows, axes=("prototypes", "embed"))
        self.query = nnx.Dict(
            {
                config.names[source] or source: Query(width, config.dim, rngs=rngs, dtype=dtype)
                for source, width in inputs.items()
            }
        )
        self.config = config
        self.dtype = dtype

    def __call__(
        self,
        encoded: Mapping[str, Encoded],
        batch: Mapping[str, jax.Array],
        *,
        train: bool,
        key: jax.Array | None,
        progress: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """Features float32 [B, d] for each input, unit rows; and weights float32 [B, K]."""
        del batch, train, key
        codes = self.codes[...]
        temperature = self.temperature(progress)
        outputs = {}
        for source, value in encoded.items():
            name = self.config.names[source]
            fits = self.fits(self.query[name or source](value.tokens), value.mask)
            weights = sparsemax(fits / temperature)
            outputs[name] = l2_normalize(weights @ codes)
            if self.config.weights:
                outputs[f"{name}_weights" if name else "weights"] = weights
        return outputs

    def temperature(self, progress: jax.Array | None) -> jax.Array | float:
        """tau at a share of the run."""
        config = self.config
        if progress is None:
            return config.least
        share = jnp.minimum(progress / config.until, 1.0)
        return config.temperature * (config.least / config.temperature) ** share

    def fits(self, queries: jax.Array, mask: jax.Array | None) -> jax.Array:
        """s float32 [B, K] of tokens [B, T, d]."""
        codes = self.codes[...].astype(self.dtype)
        found = jnp.einsum("BTD,KD->BTK", queries, codes, preferred_element_type=jnp.float32)
        found = found / math.sqrt(self.config.dim)
        if mask is not None:
            mask = mask | ~mask.any(1, keepdims=True)  # a row of padding alone: all of it
            hidden = -jnp.inf if self.config.padding == "never" else 0.0
            found = jnp.where(mask[..., None], found, hidden)
        return found.max(1)
