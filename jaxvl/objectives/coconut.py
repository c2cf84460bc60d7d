"""What a model has learned before is kept by contrast with the model that it was: COCONUT."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxvl.config import Count, Scale
from jaxvl.kernels.contrastive import PairMask, Unpaired
from jaxvl.nn.norms import l2_normalize
from jaxvl.objectives import OBJECTIVES, Loss, Objective
from jaxvl.objectives.competing import competing


@OBJECTIVES.register("coconut")
@dataclasses.dataclass(frozen=True)
class StudentTeacherContrast(Objective):
    """Supervised contrast of rehearsed rows, whose positives are of the model before the present
    task and whose negatives are of the present one (COCONUT, Cappellazzo et al. 2023, arXiv
    2310.02699, its negative-student positive-teacher loss).

        L = mean_k [ log (sum_p exp(s z_k . t_p) + sum_n exp(s z_k . z_n))
                     - s / |P| sum_p z_k . t_p ]

    z of the student, t of the teacher, s = 1 / temperature; k over the rehearsed rows, p over those
    of k's class, k among them, n over all rows of another class. That k's own teacher is a
    positive, and that new rows are negatives, is not from the paper. No gradient reaches the
    teacher. Without rehearsed rows the loss is 0.

    The rest of the method is in the config: stages, each with the last one as the teacher (`teach`
    with a workdir), rehearsal by the sampler `replay`, the contrast of sounds with texts of all
    rows, `classification`, and `logit_distillation`.

    Reads the output named by `output`: Float[Array, "B D"], made unit vectors here; from the batch
    the entry `teacher`: Float[Array, "B D"], and `label`: Int[Array, "B"].

    Attributes:
      old_classes: rows whose class is below this number are rehearsed: classes are numbered in the
        order in which tasks bring them.
      output: of the model.
      teacher: what the hook has found.
      label: batch entry of the classes.
      temperature: 0.1, not from the paper.
      implementation: of `contrastive_logsumexp`.
    """

    old_classes: Count
    output: str = "audio>text"
    teacher: str = "last/audio>text"
    label: str = "class_label"
    temperature: Scale = 0.1
    implementation: str | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def batch_keys(self) -> tuple[str, ...]:
        return (self.teacher, self.label)

    def __call__(self, outputs, batch, state, context):
        del context
        z = l2_normalize(outputs[self.output])
        t = jax.lax.stop_gradient(l2_normalize(batch[self.teacher]))
        label = batch[self.label]
        rehearsed = (label >= 0) & (label < self.old_classes)
        groups = dict(row_group=label, col_group=label)
        alike = PairMask(Unpaired(rehearsed, rehearsed), **groups, drop="different")
        unlike = PairMask(Unpaired(), **groups, drop="same")
        log_scale = -jnp.log(jnp.float32(self.temperature))
        own, _ = competing(z, t, log_scale, alike, self.implementation)
        others, _ = competing(z, z, log_scale, unlike, self.implementation)
        near, count = class_mean(z, t, label, rehearsed)
        terms = jnp.logaddexp(own, others) - near / self.temperature
        total = jnp.maximum(rehearsed.sum(), 1)
        loss = jnp.sum(jnp.where(rehearsed, terms, 0.0)) / total
        positives = jnp.sum(jnp.where(rehearsed, count, 0.0)) / total
        return Loss(loss, {"rehearsed": rehearsed.mean(), "positives": positives}), state


def class_mean(
    z: jax.Array, t: jax.Array, label: jax.Array, counted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean of z_k . t_p over the rows p that count and are of k's class, 0 where there are none,
    and how many these are: float32 [B] each. O(B D), by sums over classes."""
    b = len(z)
    place = jnp.unique(label, size=b, return_inverse=True)[1].reshape(-1)
    weight = counted.astype(jnp.float32)
    sums = jax.ops.segment_sum(weight[:, None] * t, place, b)[place]
    counts = jax.ops.segment_sum(weight, place, b)[place]
    return jnp.sum(z * sums, -1) / jnp.maximum(counts, 1), counts
