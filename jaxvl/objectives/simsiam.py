"""Predictions of the other modality's projection, without negatives: SimSiam across modalities."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxvl.config import check
from jaxvl.nn.norms import l2_normalize
from jaxvl.objectives import OBJECTIVES, Loss, Objective

Pairs = tuple[tuple[str, str], ...]


@OBJECTIVES.register("simsiam")
@dataclasses.dataclass(frozen=True)
class SimSiam(Objective):
    """A predictor of each modality guesses the projection of the other (SiamLIP, Fini et al. 2023,
    arXiv 2305.08675, section 3; SimSiam, Chen & He 2020, arXiv 2011.10566, equation 2).

        L = mean over pairs (p, v) of  mean_i 2 - 2 cos(p_i, sg(v_i))

    sg: no gradient flows into what is predicted. SimSiam's own value, -cos, is half of this, less a
    constant.

    Reads the outputs that `pairs` name: Float[Array, "B D"] (the heads `predictor` and
    `projection`, the latter with `normalize=False`). Config:
    configs/methods/recipe.py:method=simsiam. SimSiam of two views of a picture has
    `pairs=(("predicted/image", "projected/image_2"), ("predicted/image_2", "projected/image"))`.

    Attributes:
      pairs: (prediction, what it predicts), names of model outputs.
    """

    pairs: Pairs = (
        ("predicted_text/image", "projected_text/text"),
        ("predicted_image/text", "projected_image/image"),
    )

    def __post_init__(self):
        check_pairs(self.pairs)

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for pair in self.pairs for name in pair))

    def __call__(self, outputs, batch, state, context):
        del batch, context
        pairs = [(outputs[guess], outputs[truth]) for guess, truth in self.pairs]
        return predicted(pairs, [guess for guess, _ in self.pairs]), state


def check_pairs(pairs: Pairs) -> None:
    """Raises ConfigError at `pairs` where there are none, or one is no pair."""
    good = bool(pairs) and all(len(pair) == 2 for pair in pairs)
    check(good, "pairs", f"{list(pairs)!r} must be pairs (prediction, what it predicts)")


def predicted(pairs: list[tuple[jax.Array, jax.Array]], names: list[str]) -> Loss:
    """Mean of 2 - 2 cos over pairs of a prediction and a target, both [B, D].

    The metric `spread` is the mean standard deviation of the targets' unit rows times sqrt(D): 1
    where they are spread evenly, 0 where they have collapsed.

    Args:
      names: of the predictions, for the log.
    """
    losses = {}
    spread = []
    for name, (guess, truth) in zip(names, pairs):
        truth = jax.lax.stop_gradient(l2_normalize(truth))
        loss = jnp.mean(2 - 2 * jnp.sum(l2_normalize(guess) * truth, -1))
        losses[f"distance/{name}"] = losses.get(f"distance/{name}", 0.0) + loss
        spread.append(truth.std(0).mean() * truth.shape[-1] ** 0.5)
    value = sum(losses.values()) / len(pairs)
    metrics = {**losses, "spread": sum(spread) / len(spread)}
    return Loss(value, jax.lax.stop_gradient(metrics))
