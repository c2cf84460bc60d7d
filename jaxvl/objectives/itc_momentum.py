"""Image-text contrast with a momentum teacher and its queues (ALBEF)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxvl.config import Count, check
from jaxvl.kernels.contrastive import Diagonal, PairMask, SameId, SoftTargets, contrastive_loss
from jaxvl.objectives import OBJECTIVES, Loss
from jaxvl.objectives.distilled import Distilled
from jaxvl.objectives.pairs import pair_metrics
from jaxvl.objectives.queues import check_room, enqueued, places


@OBJECTIVES.register("itc_momentum")
@dataclasses.dataclass(frozen=True)
class MomentumContrast(Distilled):
    """Each image is compared with the teacher's texts of this batch and of earlier ones, each text
    with its images; targets are mixed with the teacher's own similarities (ALBEF, Li et al. 2021,
    arXiv 2107.07651, sections 3.2 and 3.4).

        keys_v = [v' of the batch, image queue],  keys_w = [w' of the batch, text queue]
        y_i = (1 - alpha) onehot_i + alpha softmax(scale v'_i . keys_w)         without gradient
        L = 1/2 (mean_i CE(y_i, softmax(scale v_i . keys_w)) + the same of texts and images)

    v, w are the embeddings of the model, v', w' those of the teacher. After the loss v' and w' take
    the place of the oldest rows of the queues. Places that no batch has reached do not compete (the
    release begins with random unit rows in them).

    Reads image, text: Float[Array, "B D"], unit rows; log_scale: Float[Array, ""]; from the batch
    TEACHER/image, TEACHER/text: Float[Array, "B D"], unit rows of a hook `teach`; where
    `duplicates` asks for it, group_id: Int[Array, "B"].

    State: image_queue, text_queue: Float[Array, "Q D"], sharded by rows; group_queue: Int[Array,
    "Q"], with `duplicates`; place: Int[Array, ""], where the next row goes; filled: Int[Array, ""].

    Attributes:
      queue: Q rows (the paper: 65,536), at least a batch.
      teacher: label of the hook.
      duplicates: what other rows of one group are, of the batch or of the queues: "diagonal":
        negatives (the paper's pretraining); "positive": positives too, with equal shares (the
        release's retrieval); "mask": neither (not from the paper).
      alpha, ramp: see `Distilled`.
    """

    queue: Count = 65_536
    teacher: str = "momentum"
    duplicates: Literal["diagonal", "positive", "mask"] = "diagonal"

    reads: ClassVar[tuple[str, ...]] = ("image", "text", "log_scale")
    state_axes: ClassVar[dict[str, tuple[str | None, ...]]] = {
        "image_queue": ("queue", None),
        "text_queue": ("queue", None),
        "group_queue": ("queue",),
    }

    def __post_init__(self):
        super().__post_init__()
        known = ("diagonal", "positive", "mask")
        check(
            self.duplicates in known,
            "duplicates",
            f"{self.duplicates!r} is not valid; must be one of {', '.join(known)}",
        )

    def check_data(self, data):
        check_room(self.queue, data)

    @property
    def batch_keys(self) -> tuple[str, ...]:
        groups = () if self.duplicates == "diagonal" else ("group_id",)
        return (f"{self.teacher}/image", f"{self.teacher}/text", *groups)

    def init_state(self, spec):
        state = places()
        for side in ("image", "text"):
            width = spec.batch[f"{self.teacher}/{side}"].shape[-1]
            state[f"{side}_queue"] = jnp.zeros((self.queue, width), jnp.float32)
        if self.duplicates != "diagonal":
            state["group_queue"] = jnp.zeros(self.queue, jnp.int32)
        return state

    def __call__(self, outputs, batch, state, context):
        new = {side: batch[f"{self.teacher}/{side}"].astype(jnp.float32) for side in _OTHER}
        if self.duplicates != "diagonal":
            new["group"] = batch["group_id"].reshape(-1).astype(jnp.int32)
        b = len(new["image"])
        keys = {name: jnp.concatenate([x, state[f"{name}_queue"]]) for name, x in new.items()}
        there = jnp.arange(b + self.queue) < b + state["filled"]
        hard = PairMask(self._positives(new, keys), col_valid=there)
        scale = outputs["log_scale"]
        total = jnp.float32(0)
        for side, other in _OTHER.items():
            total += self._one_side(outputs[side], keys[other], scale, hard, new[side], context)
        rows = {f"{name}_queue": x for name, x in new.items()}
        return Loss(total / 2, self._metrics(outputs, state, context)), enqueued(state, rows)

    def _positives(self, new: dict[str, jax.Array], keys: dict[str, jax.Array]) -> Any:
        """Which of the keys are a row's own."""
        if self.duplicates == "diagonal":
            return Diagonal()
        return SameId(new["group"], keys["group"], duplicates=self.duplicates)

    def _one_side(self, u, keys, log_scale, hard, teacher, context):
        """The loss of rows `u` against keys of the other side; `teacher`: its rows of u."""
        loss = lambda targets: contrastive_loss(
            u, keys, log_scale, targets=targets, directions="rows"
        )
        if not self.alpha:
            return loss(hard)
        # The share of soft targets changes from step to step, and a target's weight does not.
        soft = SoftTargets(teacher, keys, jnp.exp(log_scale), targets=hard)
        return self.mixed(loss(hard), loss(soft), context)

    def _metrics(self, outputs, state, context) -> dict[str, jax.Array]:
        figures = pair_metrics(outputs)
        return {**figures, "filled": state["filled"], "alpha": self.soft_share(context)}


_OTHER = {"image": "text", "text": "image"}
