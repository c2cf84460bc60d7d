"""A class head keeps what it said before: distillation of logits."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxvl.config import Count, Range, Scale
from jaxvl.objectives import OBJECTIVES, Loss, Objective


@OBJECTIVES.register("logit_distillation")
@dataclasses.dataclass(frozen=True)
class LogitDistillation(Objective):
    """Softened probabilities of a teacher are targets of the student (Hinton et al. 2015, arXiv
    1503.02531, section 2; of the old classes alone as in learning without forgetting, Li & Hoiem
    2016, arXiv 1606.09282).

        L = T^2 mean_i sum_k q_ik (log q_ik - log p_ik)
        q, p = softmax_k(logits / T) of teacher and student, k < classes

    No gradient reaches the teacher.

    Reads `logits/HEAD`: Float[Array, "B K"]; from the batch the entry `teacher` of the same shape.

    Attributes:
      head: name of the model's head.
      teacher: what a hook `teach` has found, as "last/logits/HEAD".
      classes: the first so many; None: all.
      temperature: T, 2 as in learning without forgetting.
    """

    head: str
    teacher: str
    classes: Annotated[Count, Range(2, 1_048_576)] | None = None
    temperature: Scale = 2.0

    @property
    def reads(self) -> tuple[str, ...]:
        return (f"logits/{self.head}",)

    @property
    def batch_keys(self) -> tuple[str, ...]:
        return (self.teacher,)

    def __call__(self, outputs, batch, state, context):
        del context
        student = outputs[f"logits/{self.head}"]
        teacher = jax.lax.stop_gradient(batch[self.teacher])
        log_p, log_q = (
            jax.nn.log_softmax(x[:, : self.classes].astype(jnp.float32) / self.temperature)
            for x in (student, teacher)
        )
        loss = self.temperature**2 * jnp.mean(jnp.sum(jnp.exp(log_q) * (log_q - log_p), -1))
        agrees = jnp.mean(log_p.argmax(-1) == log_q.argmax(-1))
        return Loss(loss, {"agrees": agrees}), state
