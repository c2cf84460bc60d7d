"""Each modality predicts which prototypes the other one belongs to: SwAV across modalities."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxvl.config import Range, Scale, check
from jaxvl.objectives import OBJECTIVES, Loss, Objective


@OBJECTIVES.register("swav")
@dataclasses.dataclass(frozen=True)
class Swav(Objective):
    """Codes of each modality, balanced over the prototypes, are the other's targets (SwALIP, Fini
    et al. 2023, arXiv 2305.08675, section 3, the release's `SwALIPV1Loss`; SwAV, Caron et al. 2020,
    arXiv 2006.09882, equations 2 to 5).

        Q_x = sinkhorn(s_x / epsilon)        [B, K], rows sum to 1
        L   = 1/2 mean_i (- sum_k Q_y,ik log softmax_k(s_x,i / temperature)_k, and x and y changed)

    s are the cosines with K prototypes. Sinkhorn's iterations make the sums of all prototypes
    equal, then those of all rows; they run over the whole batch in float32 with logarithms of the
    factors, K and B numbers: no matrix is kept beside the cosines, and nothing overflows. No
    gradient flows into codes.

    The release's later loss has the other modality's batch in place of prototypes; that one is not
    here.

    Reads the outputs named by `image` and `text`: Float[Array, "B K"] (the head `prototypes`).
    Config: configs/methods/recipe.py:method=swav.

    Attributes:
      image, text: names of model outputs.
      temperature: 0.1.
      epsilon: 0.05.
      iterations: 3.
    """

    image: str = "prototypes/image"
    text: str = "prototypes/text"
    temperature: Scale = 0.1
    epsilon: Scale = 0.05
    iterations: Annotated[int, Range(1, 1000)] = 3

    def __post_init__(self):
        for name in ("temperature", "epsilon"):
            check(getattr(self, name) > 0, name, f"{getattr(self, name)!r} must be > 0")
        check(self.iterations >= 1, "iterations", f"{self.iterations!r} must be >= 1")

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.image, self.text)

    def __call__(self, outputs, batch, state, context):
        del batch, context
        image = outputs[self.image].astype(jnp.float32)
        text = outputs[self.text].astype(jnp.float32)
        codes = [log_codes(x, self.epsilon, self.iterations) for x in (image, text)]
        image_loss = self._entropy(image, codes[1])
        text_loss = self._entropy(text, codes[0])
        metrics = {"image/loss": image_loss, "text/loss": text_loss, "used": _used(codes[0])}
        return Loss((image_loss + text_loss) / 2, jax.lax.stop_gradient(metrics)), state

    def _entropy(self, scores: jax.Array, log_target: jax.Array) -> jax.Array:
        """Mean cross-entropy of scores [B, K] with targets."""
        log_p = jax.nn.log_softmax(scores / self.temperature, 1)
        return -jnp.sum(jnp.exp(log_target) * log_p, 1).mean()


def log_codes(scores: jax.Array, epsilon: float, iterations: int) -> jax.Array:
    """Logarithms of Sinkhorn's codes, float32 [B, K], without gradient.

    Args:
      scores: float32 [B, K].
      epsilon: > 0; the smaller, the harder the codes.
      iterations: each makes the columns' sums equal, then the rows'.
    """
    sharp = jax.lax.stop_gradient(scores) / epsilon
    row = jnp.zeros(len(scores), jnp.float32)
    for _ in range(iterations):
        column = -jax.nn.logsumexp(sharp + row[:, None], 0)
        row = -jax.nn.logsumexp(sharp + column, 1)
    return sharp + column + row[:, None]


def _used(codes: jax.Array) -> jax.Array:
    """Share of prototypes that are some row's first choice."""
    count = codes.shape[1]
    chosen = jnp.zeros(count, bool).at[codes.argmax(1)].set(True)
    return chosen.mean(dtype=jnp.float32)
