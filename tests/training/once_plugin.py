"""For runs that are killed: an objective that has each step tell what it learns from, and a process
that kills itself.

`JAXVL_TEST_KILL=WHEN:STEP:PROCESS` is where it does. `save`: while it writes the checkpoint of that
step. `take`: when it takes the batch of that step of its own life, counted from 1.
"""

import dataclasses
import itertools
import os
import signal
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxvl.data.feed import Feed
from jaxvl.objectives import OBJECTIVES, Loss, Objective
from jaxvl.training.checkpoint import Checkpoints

BITS = 0xFFFFFF  # what a float32 holds exactly


@OBJECTIVES.register("row_ids")
@dataclasses.dataclass(frozen=True)
class RowIds(Objective):
    """Its figures are the last 24 bits of `group_id` of every row of the global batch."""

    reads: ClassVar[tuple[str, ...]] = ()
    batch_keys: ClassVar[tuple[str, ...]] = ("group_id",)

    def __call__(self, outputs, batch, state, context):
        ids = batch["group_id"] & BITS
        return Loss(jnp.float32(0), {f"row{r}": ids[r] for r in range(len(ids))}), state


def kill_at(when: str, step: int, process: int) -> None:
    """Lets this process end without a word at that moment, where it is the one that is named."""
    taken = itertools.count(1)
    save = Checkpoints.save
    take = Feed.take

    def die() -> None:
        if jax.process_index() == process:
            os.kill(os.getpid(), signal.SIGKILL)

    def saving(self, at, *args):
        started = save(self, at, *args)
        if at == step:
            die()
        return started

    def taking(self, **options):
        if next(taken) == step:
            die()
        return take(self, **options)

    if when == "save":
        Checkpoints.save = saving
    else:
        Feed.take = taking


if os.environ.get("JAXVL_TEST_KILL"):
    moment, at, number = os.environ["JAXVL_TEST_KILL"].split(":")
    kill_at(moment, int(at), int(number))
