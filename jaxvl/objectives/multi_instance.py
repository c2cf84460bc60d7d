"""IMP's noise-contrastive estimation over any modalities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxvl.config import Weight, check
from jaxvl.data.config import DataConfig
from jaxvl.kernels.contrastive import (
    Diagonal,
    PairMask,
    SameId,
    Unpaired,
    contrastive_loss,
)
from jaxvl.objectives import OBJECTIVES, Loss, Masks, Objective, whole_rows
from jaxvl.objectives.competing import competing


@OBJECTIVES.register("nce")
@dataclasses.dataclass(frozen=True)
class ModalityPairs(Objective):
    """Softmax contrast of each pair of modalities, each with its own temperature (IMP, Akbari et
    al. 2023, section 3.2).

        L = mean over pairs A-B of  w_AB / 2 (- mean_i log softmax_j(s_ij)_i - mean_j log
        softmax_i(s_ij)_j), s_ij = exp(log_scale_AB) a_i . b_j

    A row may be several instances on one side or both (several texts of a picture, several clips of
    a recording), as in MIL-NCE (Miech et al. 2020, equation 1). Then every pair of its instances is
    positive, and these are one sum, as in MIL-NCE; unlike there, the two directions stay apart:
    with `M` instances of `A`, `N` of `B`,

        L_AB = 1/2 mean_i (LSE_mjn s_imjn + LSE_njm s_jmin) - mean_i LSE_mn s_imin.

    A pair of which a row has only one half is left out of both directions, for that row and that
    pair alone.

    Reads, for each pair: `A>B`, `B>A`: Float[Array, "B D"] or Float[Array, "B M D"] (`N` of the
    other), unit rows; `log_scale/A-B`: Float[Array, ""]; and where it is there `has/A`: Bool[Array,
    "B"], or `has_A` of the batch. From the batch id: Int[Array, "B"].

    Attributes:
      pairs: as in `vision-text`.
      weights: pair -> w; 1 for those not named.
      duplicates: what other rows with the same id are, see `PairObjective`; rows of several
        instances cannot have "positive".
      implementation: of `contrastive_loss`; rows of several instances cannot have "reference".

    Raises:
      ValueError: when called with rows of several instances, and an option that they cannot have.
    """

    pairs: tuple[str, ...] = ("vision-text",)
    weights: dict[str, Weight] = dataclasses.field(default_factory=dict)
    duplicates: Literal["diagonal", "positive", "mask"] = "diagonal"
    implementation: str | None = None

    masks_missing: ClassVar[Masks] = "by batch"

    def __post_init__(self):
        check(bool(self.pairs), "pairs", "must name at least one, as in 'vision-text'")
        for pair in self.pairs:
            check(
                len(pair.split("-")) == 2,
                "pairs",
                f"{pair!r} must be two modalities, as in 'vision-text'",
            )
        for pair, weight in self.weights.items():
            check(
                pair in self.pairs,
                f"weights.{pair}",
                f"is not among the pairs ({', '.join(self.pairs)})",
            )
            check(weight >= 0, f"weights.{pair}", f"{weight!r} must be >= 0")

    @property
    def batch_keys(self) -> tuple[str, ...]:
        return () if self.duplicates == "diagonal" else ("group_id",)

    @property
    def reads(self) -> tuple[str, ...]:
        sides = [pair.split("-") for pair in self.pairs]
        return tuple(
            name for a, b in sides for name in (f"{a}>{b}", f"{b}>{a}", f"log_scale/{a}-{b}")
        )

    def check_data(self, data: DataConfig) -> None:
        """Raises ConfigError for an option that rows of several instances cannot have, where the
        task's data has such rows."""
        if data.texts_per_row > 1:
            why = f"is for rows of one instance (texts a row: {data.texts_per_row}); must be"
            check(
                self.duplicates != "positive",
                "duplicates",
                f"'positive' {why} 'diagonal' or 'mask'",
            )
            check(
                self.implementation != "reference",
                "implementation",
                f"'reference' {why} None or another",
            )

    def __call__(self, outputs, batch, state, context):
        del context
        total = jnp.float32(0)
        metrics = {}
        for pair in self.pairs:
            a, b = pair.split("-")
            u = outputs[f"{a}>{b}"]
            v = outputs[f"{b}>{a}"]
            log_scale = outputs[f"log_scale/{pair}"]
            loss = self._loss(outputs, batch, a, b, u, v, log_scale)
            total += self.weights.get(pair, 1.0) * loss
            metrics |= {
                f"{pair}/loss": loss,
                f"{pair}/scale": jnp.exp(jax.lax.stop_gradient(log_scale)),
            }
        return Loss(total / len(self.pairs), metrics), state

    def _loss(
        self, outputs, batch, a: str, b: str, u: jax.Array, v: jax.Array, log_scale: jax.Array
    ) -> jax.Array:
        both = whole_rows(outputs, batch, (a, b))
        if u.ndim == 3 or v.ndim == 3:
            return self._bags(
                u if u.ndim == 3 else u[:, None],
                v if v.ndim == 3 else v[:, None],
                log_scale,
                both,
                batch,
            )
        targets = (
            Diagonal()
            if self.duplicates == "diagonal"
            else SameId(batch["group_id"], duplicates=self.duplicates)
        )
        targets = targets if both is None else PairMask(targets, row_valid=both, col_valid=both)
        return contrastive_loss(
            u, v, log_scale, targets=targets, implementation=self.implementation
        )

    def _bags(
        self,
        u: jax.Array,
        v: jax.Array,
        log_scale: jax.Array,
        both: jax.Array | None,
        batch: Mapping[str, jax.Array],
    ) -> jax.Array:
        """The loss of rows of several instances: u [B, M, D], v [B, N, D], both bool [B] or
        None."""
        if self.duplicates == "positive":
            raise ValueError(
                "duplicates: 'positive' is for rows of one instance; with several it must be "
                "'diagonal' or 'mask'"
            )
        m = u.shape[1]
        n = v.shape[1]
        f32 = jnp.promote_types(jnp.float32, u.dtype)
        own = jnp.einsum(
            "bmd,bnd->bmn", u, v, preferred_element_type=f32, precision=jax.lax.Precision.HIGHEST
        ) * jnp.exp(log_scale)
        positive = jax.nn.logsumexp(own, axis=(1, 2))
        every = jnp.ones(len(u), bool) if both is None else both
        targets: Any = Unpaired(jnp.repeat(every, m), jnp.repeat(every, n))
        mask = self.duplicates == "mask"
        if mask:  # takes out the row's own instances too, which come back below
            ids = batch["group_id"]
            targets = PairMask(
                targets, row_group=jnp.repeat(ids, m), col_group=jnp.repeat(ids, n), drop="same"
            )
        sides = competing(
            u.reshape(-1, u.shape[-1]),
            v.reshape(-1, v.shape[-1]),
            log_scale,
            targets,
            self.implementation,
        )
        total = jnp.float32(0)
        for side, instances in zip(sides, (m, n)):
            side = jax.nn.logsumexp(side.reshape(-1, instances), axis=1)
            total += 0.5 * ((jnp.logaddexp(side, positive) if mask else side) - positive)
        return jnp.sum(jnp.where(every, total, 0.0)) / jnp.maximum(every.sum(), 1)
