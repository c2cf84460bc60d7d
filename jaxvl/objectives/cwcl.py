"""Continuously weighted contrast."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax

from jaxvl.kernels.contrastive import SoftTargets, contrastive_loss
from jaxvl.objectives import OBJECTIVES, Loss
from jaxvl.objectives.pairs import PairObjective, pair_metrics, pairs


@OBJECTIVES.register("cwcl")
@dataclasses.dataclass(frozen=True)
class ContinuouslyWeighted(PairObjective):
    """Contrast in which every pair counts by how alike its anchors are (CWCL, Srinivasan et al.
    2023, arXiv 2309.14580, equations 4 to 6): the sum of both directions.

        w_ij = (1 + cos(p_i, p_j)) / 2,   without a gradient
        L_pq = - 1/B sum_i  1 / (sum_j w_ij)  sum_j w_ij log softmax_j(exp(log_scale) p_i . q_j)
        L_qp = - mean_i log softmax_j(exp(log_scale) q_i . p_j)_i
        L    = L_pq + L_qp

    p is the modality whose encoder knows what is alike: trained before, and frozen (`lock` of the
    dual encoder). Reads and options: `PairObjective`; label smoothing moves both directions'
    targets, `duplicates` those of L_qp.

    Attributes:
      anchor: p; the other modality is q.
      alike: the entry of unit rows Float[Array, "B R"] that says what is alike: a model output, or
        an entry of the batch (a teacher's embedding); None: the output p, as in the paper.
    """

    anchor: Literal["image", "text"] = "image"
    alike: str | None = None

    def __call__(self, outputs, batch, state, context):
        del context
        image, text = pairs(outputs)
        rows = self._rows_alike(outputs, batch)
        targets = SoftTargets(
            rows,
            rows,
            targets=self.targets(batch),
            weight=(1.0, 0.0) if self.anchor == "image" else (0.0, 1.0),
            similarity="linear",
        )
        loss = contrastive_loss(
            image,
            text,
            outputs["log_scale"],
            targets=targets,
            directions="sum",
            implementation=self.implementation,
        )
        return Loss(loss, pair_metrics(outputs)), state

    def _rows_alike(self, outputs, batch) -> jax.Array:
        """Unit rows of which the weights are made. Raises ValueError where nothing has the name
        `alike`."""
        name = self.alike or self.anchor
        rows = outputs[name] if name in outputs else batch.get(name)
        if rows is None:
            raise ValueError(
                f"alike: {name!r} is neither a model output nor a batch entry (outputs: "
                f"{', '.join(sorted(outputs))}; batch: {', '.join(sorted(batch))})"
            )
        return jax.lax.stop_gradient(rows.reshape(-1, rows.shape[-1]))
