"""Contrast of mixed embeddings, later of soft targets (M3CoL)."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from jaxvl.config import Range, Scale, check
from jaxvl.kernels.contrastive import Mixup, SoftTargets, contrastive_loss
from jaxvl.nn.norms import l2_normalize
from jaxvl.objectives import OBJECTIVES, Loss, Objective

Share = Annotated[float, Range(0.0, 1.0)]


@OBJECTIVES.register("m3col")
@dataclasses.dataclass(frozen=True)
class MixupContrast(Objective):
    """Contrast of mixtures of one modality with the other as it is, and back (M3CoL, Kumar, Singhal
    et al. 2024, arXiv 2409.17777, equations 1 to 5; its released code).

    In the first part of a run each row of one modality, with probability `share`, is mixed with
    another row, pi being a permutation:

        a ~ Beta(beta, beta), or 1;   u~_i = unit(a_i u_i + (1 - a_i) u_pi(i))
        P = diag(a) + (1 - a) at pi
        M(u~, v) = 1/2B sum_ij P_ij (- log softmax_j(u~_i . v_j / t)_j - log softmax_i(u~_i . v_j /
                   t)_i)
        L = M(u~, v) + M(v~, u)

    and after it nothing is mixed, and targets are soft:

        S(u, v) = 1/2B sum_ij (- softmax_j(v_i . v_j / t_s)_j log softmax_j(u_i . v_j / t_s)_j
                               - softmax_i(v_i . v_j / t_s)_i log softmax_i(u_i . v_j / t_s)_i)
        L = S(u, v) + S(v, u)

    Rows of P sum to one; its columns need not, and are taken as they are, as in the release. Two
    things differ from the release: where pi(i) = i, P_ii is 1 (there 1 - a), and no gradient flows
    through soft targets. The paper adds the cross-entropies of class heads on the image, the text
    and both (objective `classification`), and weighs this loss by 0.1.

    Reads the outputs named by `image` and `text`: Float[Array, "B D"], which are scaled to length 1
    here. Temperatures are fixed. What is mixed is drawn from the step's key, alike on every mesh.

    Attributes:
      image, text: names of model outputs.
      mixed: the modalities that are mixed.
      beta: of the Beta distribution, 0.15 in the release.
      share: of rows that are mixed, 0.5 in the release.
      until: share of the run's steps with mixtures, 0.33 in the release (of epochs).
      temperature: t, 0.1.
      soft_temperature: t_s, 0.125.
      implementation: of `contrastive_loss`.
    """

    image: str = "image"
    text: str = "text"
    mixed: Literal["both", "image", "text"] = "both"
    beta: Scale = 0.15
    share: Share = 0.5
    until: Share = 0.33
    temperature: Scale = 0.1
    soft_temperature: Scale = 0.125
    implementation: str | None = None

    def __post_init__(self):
        known = ("both", "image", "text")
        check(
            self.mixed in known,
            "mixed",
            f"{self.mixed!r} is not valid; must be one of {', '.join(known)}",
        )
        for name in ("beta", "temperature", "soft_temperature"):
            check(getattr(self, name) > 0, name, f"{getattr(self, name)!r} must be > 0")
        for name in ("share", "until"):
            value = getattr(self, name)
            check(0 <= value <= 1, name, f"{value!r} is a share; must be in [0, 1]")

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.image, self.text)

    def __call__(self, outputs, batch, state, context):
        del batch
        image = l2_normalize(outputs[self.image])
        text = l2_normalize(outputs[self.text])
        sides = {"image": (image, text), "text": (text, image)}
        used = sides if self.mixed == "both" else {self.mixed: sides[self.mixed]}
        keys = dict(zip(sides, jax.random.split(context.key)))
        mixing = context.progress < self.until
        losses = {
            name: jax.lax.cond(mixing, self._mixed, self._soft, x, other, keys[name])
            for name, (x, other) in used.items()
        }
        metrics = {f"{name}/loss": loss for name, loss in losses.items()}
        metrics["cosine_pairs"] = jax.lax.stop_gradient(jnp.sum(image * text, -1).mean())
        metrics["mixing"] = mixing.astype(jnp.float32)
        return Loss(sum(losses.values()), metrics), state

    def _mixed(self, x: jax.Array, other: jax.Array, key: jax.Array) -> jax.Array:
        """M: x [B, D] is mixed, `other` is not."""
        lam, permutation = self.mixture(len(x), key)
        mixed = l2_normalize(lam[:, None] * x + (1 - lam[:, None]) * x[permutation])
        return contrastive_loss(
            mixed,
            other,
            -jnp.log(self.temperature),
            targets=Mixup(permutation, lam),
            implementation=self.implementation,
        )

    def _soft(self, x: jax.Array, other: jax.Array, key: jax.Array) -> jax.Array:
        """S: the likeness of `other` [B, D] to itself is the target."""
        del key
        targets = SoftTargets(other, other, scale=1 / self.soft_temperature)
        return contrastive_loss(
            x,
            other,
            -jnp.log(self.soft_temperature),
            targets=targets,
            implementation=self.implementation,
        )

    def mixture(self, rows: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What is drawn for a modality: a, float32 [B], and pi, int32 [B]."""
        share, amount, order = jax.random.split(key, 3)
        chosen = jax.random.uniform(share, (rows,)) < self.share
        lam = jax.random.beta(amount, self.beta, self.beta, (rows,))
        return jnp.where(chosen, lam, 1.0), jax.random.permutation(order, rows)
