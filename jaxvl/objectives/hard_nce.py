"""Contrast with mined negatives beside those of the batch."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxvl.config import Count, check
from jaxvl.data.config import DataConfig
from jaxvl.data.samplers.with_negatives import WithNegatives
from jaxvl.kernels.contrastive import Diagonal, contrastive_loss
from jaxvl.objectives import OBJECTIVES, Loss, Objective


@OBJECTIVES.register("hard_nce")
@dataclasses.dataclass(frozen=True)
class HardNce(Objective):
    """InfoNCE of queries over the targets of the batch and hard negatives as further columns
    (MM-Embed, Lin et al. 2024, arXiv 2411.02571, section 4.1.1).

        L = - mean_i log softmax(exp(log_scale) q_i . [t_1 … t_A, w_1 … w_AW, r_1 … r_AR])_i

    A batch of the sampler `with_negatives` has A anchors and N negatives of each: rows a (1 + N)
    are anchors, whose q and t make the pairs. Of an anchor's negatives the first W give w, of the
    wrong modality, and the others r, of the right one. All anchors share all columns.
    `mine_negatives` with `document` makes such a table, with W = `above`.

    Reads the outputs named by `query`, `target`, `wrong`: Float[Array, "B D"], unit rows;
    log_scale: Float[Array, ""]. Logs the mean cosines of targets and of both kinds of negatives.

    Attributes:
      query, target: outputs of the anchors.
      wrong: output of the first negatives; the others have `target`.
      negatives: N, 2 in the paper.
      wrongs: W, 1 in the paper.
      implementation: of `contrastive_loss`.
    """

    query: str = "text"
    target: str = "image"
    wrong: str = "document"
    negatives: Count = 2
    wrongs: int = 1
    implementation: str | None = None

    def __post_init__(self):
        fits = 0 <= self.wrongs <= self.negatives
        check(fits, "wrongs", f"{self.wrongs!r} must be in [0, {self.negatives}], of the negatives")

    @property
    def reads(self) -> tuple[str, ...]:
        wrong = (self.wrong,) if self.wrongs else ()
        return (self.query, self.target, *wrong, "log_scale")

    def check_data(self, data: DataConfig) -> None:
        """See `Objective`."""
        sampler = data.sampler
        problem = "needs batches of anchors with negatives; must be 'with_negatives'"
        check(isinstance(sampler, WithNegatives), "sampler", problem)
        count = sampler.negatives
        problem = f"{count!r} must be {self.negatives}, as hard_nce has"
        check(count is None or count == self.negatives, "sampler.negatives", problem)
        rows = 1 + self.negatives
        problem = f"{data.batch!r} must be a multiple of {rows}, an anchor with its negatives"
        check(data.batch % rows == 0, "batch", problem)

    def __call__(self, outputs, batch, state, context):
        del batch, context
        query = self._grouped(outputs[self.query])[:, 0]
        target = self._grouped(outputs[self.target])
        width = target.shape[-1]
        right = target[:, 1 + self.wrongs :].reshape(-1, width)
        parts = [target[:, 0], right]
        if self.wrongs:
            wrong = self._grouped(outputs[self.wrong])[:, 1 : 1 + self.wrongs]
            parts.insert(1, wrong.reshape(-1, width))
        loss = contrastive_loss(
            query,
            jnp.concatenate(parts),
            outputs["log_scale"],
            targets=Diagonal(),
            directions="rows",
            implementation=self.implementation,
        )
        return Loss(loss, self._metrics(outputs)), state

    def _grouped(self, rows: jax.Array) -> jax.Array:
        """[A, 1 + N, D]. Raises ValueError for a batch that is of no such groups."""
        size = 1 + self.negatives
        if len(rows) % size:
            raise ValueError(f"batch: {len(rows)} rows are no groups of {size} (1 + negatives)")
        return rows.reshape(-1, size, rows.shape[-1])

    def _metrics(self, outputs) -> dict[str, jax.Array]:
        """Mean cosines of anchors with their own columns."""
        held = jax.lax.stop_gradient(outputs)
        query = self._grouped(held[self.query])[:, 0]
        cosines = jnp.einsum("ad,and->an", query, self._grouped(held[self.target]))
        metrics = {
            "scale": jnp.exp(held["log_scale"]),
            "cosine_target": cosines[:, 0].mean(),
        }
        if self.wrongs < self.negatives:
            metrics["cosine_right"] = cosines[:, 1 + self.wrongs :].mean()
        if self.wrongs:
            wrong = self._grouped(held[self.wrong])[:, 1 : 1 + self.wrongs]
            metrics["cosine_wrong"] = jnp.einsum("ad,and->an", query, wrong).mean()
        return metrics
