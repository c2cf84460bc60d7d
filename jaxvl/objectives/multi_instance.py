"""IMP's noise-contrastive estimation over any modalities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxvl.config import check
from jaxvl.kernels.contrastive import Diagonal, PairMask, SameId, contrastive_loss
from jaxvl.objectives import OBJECTIVES, Loss


@OBJECTIVES.register("nce")
@dataclasses.dataclass(frozen=True)
class ModalityPairs:
    """Softmax contrast of each pair of modalities, each with its own temperature (IMP, Akbari et al. 2023, section 3.2).

        L = mean over pairs A-B of  w_AB / 2 (- mean_i log softmax_j(s_ij)_i - mean_j log softmax_i(s_ij)_j),
        s_ij = exp(log_scale_AB) a_i . b_j

    A pair of which a row has only one half is left out of both directions, for that row and that pair alone.

    Reads, for each pair: `A>B`, `B>A`: Float[Array, "B D"], unit rows; `log_scale/A-B`: Float[Array, ""]; and where it is there `has/A`:
    Bool[Array, "B"]. From the batch id: Int[Array, "B"].

    Attributes:
      pairs: as in `vision-text`.
      weights: pair -> w; 1 for those not named.
      duplicates: what other rows with the same id are, see `PairObjective`.
      implementation: of `contrastive_loss`.
    """

    pairs: tuple[str, ...] = ("vision-text",)
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    duplicates: Literal["diagonal", "positive", "mask"] = "diagonal"
    implementation: str | None = None

    batch_keys: ClassVar[tuple[str, ...]] = ("id",)

    def __post_init__(self):
        check(bool(self.pairs), "pairs", "must name at least one, as in 'vision-text'")
        for pair in self.pairs:
            check(len(pair.split("-")) == 2, "pairs", f"{pair!r} must be two modalities, as in 'vision-text'")
        for pair, weight in self.weights.items():
            check(pair in self.pairs, f"weights.{pair}", f"is not among the pairs ({', '.join(self.pairs)})")
            check(weight >= 0, f"weights.{pair}", f"{weight!r} must be >= 0")

    @property
    def reads(self) -> tuple[str, ...]:
        sides = [pair.split("-") for pair in self.pairs]
        return tuple(name for a, b in sides for name in (f"{a}>{b}", f"{b}>{a}", f"log_scale/{a}-{b}"))

    def init_aux(self) -> tuple[()]:
        return ()

    def __call__(self, outputs, batch, aux, key):
        del key
        total, metrics = jnp.float32(0), {}
        for pair in self.pairs:
            a, b = pair.split("-")
            u, v, log_scale = outputs[f"{a}>{b}"], outputs[f"{b}>{a}"], outputs[f"log_scale/{pair}"]
            loss = contrastive_loss(u, v, log_scale, targets=self._targets(outputs, batch, a, b), implementation=self.implementation)
            total += self.weights.get(pair, 1.0) * loss
            metrics |= {f"{pair}/loss": loss, f"{pair}/scale": jnp.exp(jax.lax.stop_gradient(log_scale))}
        return Loss(total / len(self.pairs), metrics), aux

    def _targets(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], a: str, b: str) -> Any:
        targets = Diagonal() if self.duplicates == "diagonal" else SameId(batch["id"], duplicates=self.duplicates)
        has = [outputs[f"has/{side}"] for side in (a, b) if f"has/{side}" in outputs]
        if not has:
            return targets
        both = has[0] & has[-1]
        return PairMask(targets, row_valid=both, col_valid=both)
