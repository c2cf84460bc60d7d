"""VLM2Vec's loss: queries with an instruction find their targets, at a fixed temperature."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxvl.config import Scale, check
from jaxvl.kernels.contrastive import contrastive_loss
from jaxvl.objectives import OBJECTIVES, Loss, Objective


@OBJECTIVES.register("vlm2vec")
@dataclasses.dataclass(frozen=True)
class InstructedContrast(Objective):
    """InfoNCE of queries alone (VLM2Vec, Jiang et al. 2024, arXiv 2410.05160, equation 1).

        L = - mean_i log softmax_j(q_i . t_j / tau)_i

    Every target of the batch but its own is a negative of a query; targets look for nothing. The
    rest of the method is in the config: an instruction in front of the query (the template of the
    field `caption`), the state of the last token as its vector (`pool="last"`), the adapter `lora`
    of rank 8, batches of many rows in chunks (`microbatches`, GradCache), and parts of a batch that
    are of one task, so that negatives are hard (the samplers `mixture` with `homogeneous`, or
    `per_cluster`).

    Reads query, target: Float[Array, "B D"], unit rows.

    Attributes:
      query, target: outputs of the model.
      temperature: tau; 0.02 as in the paper.
      implementation: of `contrastive_loss`; None: the best that runs here.
    """

    query: str = "text"
    target: str = "image"
    temperature: Scale = 0.02
    implementation: str | None = None

    def __post_init__(self):
        check(
            self.query != self.target,
            "target",
            f"{self.target!r} is the query too; must be another output",
        )

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.query, self.target)

    def __call__(self, outputs, batch, state, context):
        del batch, context
        query = outputs[self.query]
        target = outputs[self.target]
        loss = contrastive_loss(
            query,
            target,
            -jnp.log(jnp.float32(self.temperature)),
            directions="rows",
            implementation=self.implementation,
        )
        cosine = jax.lax.stop_gradient(jnp.sum(query * target, -1)).mean()
        return Loss(loss, {"cosine_pairs": cosine}), state
