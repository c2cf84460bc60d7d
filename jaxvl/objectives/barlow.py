"""Decorrelated projections of two modalities: Barlow Twins across modalities."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxvl.config import Epsilon, Weight, check
from jaxvl.objectives import OBJECTIVES, Loss, Objective

Pairs = tuple[tuple[str, str], ...]


@OBJECTIVES.register("barlow")
@dataclasses.dataclass(frozen=True)
class Barlow(Objective):
    """The correlation of the coordinates of image and text is the identity (BarLIP, Fini et al.
    2023, arXiv 2305.08675, section 3; Barlow Twins, Zbontar et al. 2021, arXiv 2103.03230,
    equations 1 and 2).

        C_ab = mean_i (x_ia - mean x_a) (y_ib - mean y_b) / (std x_a  std y_b)
        L    = scale (sum_a (1 - C_aa)² + off_diagonal sum_{a != b} C_ab²)

    Mean and standard deviation are those of the whole batch. The release normalises by batch
    normalisation in the heads, with a learned gain and offset; here it is done in float32 without,
    as in the Barlow Twins paper, so the heads need none at their end. C is D x D, on every device.

    Reads the outputs that `pairs` name: Float[Array, "B D"] (the head `projection` with
    `normalize=False`; the release: 3 layers of 3000, D = 8192). Config:
    configs/methods/recipe.py:method=barlow.

    Attributes:
      pairs: (image, text), names of model outputs; the loss is the mean over them.
      off_diagonal: 0.005.
      scale: 0.025.
      epsilon: added to the variance, 1e-5 in the release's normalisation.
    """

    pairs: Pairs = (("barlow_image/image", "barlow_text/text"),)
    off_diagonal: Weight = 5e-3
    scale: Weight = 0.025
    epsilon: Epsilon = 1e-5

    def __post_init__(self):
        good = bool(self.pairs) and all(len(pair) == 2 for pair in self.pairs)
        check(good, "pairs", f"{list(self.pairs)!r} must be pairs of outputs (image, text)")
        for name in ("off_diagonal", "scale"):
            check(getattr(self, name) >= 0, name, f"{getattr(self, name)!r} must be >= 0")
        check(self.epsilon > 0, "epsilon", f"{self.epsilon!r} must be > 0")

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for pair in self.pairs for name in pair))

    def check_data(self, data) -> None:
        """Raises ConfigError for a batch of one row, whose coordinates do not vary."""
        check(data.batch >= 2, "pairs", f"needs two rows (data.batch is {data.batch})")

    def __call__(self, outputs, batch, state, context):
        del batch, context
        parts = [self._parts(outputs[image], outputs[text]) for image, text in self.pairs]
        on, off = (sum(part) / len(parts) for part in zip(*parts))
        value = self.scale * (on + self.off_diagonal * off)
        return Loss(value, jax.lax.stop_gradient({"on_diagonal": on, "off_diagonal": off})), state

    def _parts(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Both sums of the equation."""
        x = self._standard(x)
        y = self._standard(y)
        correlation = jnp.einsum("ia,ib->ab", x, y, precision="highest") / len(x)
        diagonal = jnp.diagonal(correlation)
        # The sum of all squares less the diagonal's would cancel where C is close to the identity.
        others = correlation - jnp.diag(diagonal)
        return jnp.square(1 - diagonal).sum(), jnp.square(others).sum()

    def _standard(self, x: jax.Array) -> jax.Array:
        """[B, D] with mean 0 and variance 1 in every column, float32."""
        x = x.astype(jnp.float32)
        x = x - x.mean(0)
        return x * jax.lax.rsqrt(jnp.square(x).mean(0) + self.epsilon)
