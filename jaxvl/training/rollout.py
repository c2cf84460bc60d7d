"""What a step does before its gradient where an objective asks: the model writes captions, and a
judge reads them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxvl.models.functional import Arrays, Functional
from jaxvl.models.generate import Generation, generate
from jaxvl.sharding.chunks import join, take
from jaxvl.tasks import Task
from jaxvl.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Judge:
    """What reads images and texts for an objective.

    Attributes:
      source: `initial`, `ema`, or a workdir.
      model: of the judge; its weights lie in the objective's state.
      width: of its embeddings.
      pad_id, eos_id: of the tokenizer.
    """

    source: str
    model: Functional
    width: int
    pad_id: int
    eos_id: int

    def init(self, params: Arrays, rest: Arrays) -> tuple[Arrays, Arrays] | tuple[()]:
        """The weights' place in a fresh state, of a model with `params` and `rest`; those of a
        workdir come into it later."""
        if self.source == "ema":
            return ()
        return (
            jax.tree.map(jnp.copy, (params, rest))
            if self.source == "initial"
            else self.model.init(jax.random.key(0))
        )


class Actor:
    """See `objectives.Actor`; `weights` = (params, rest)."""

    def __init__(
        self,
        model: Functional,
        weights: Any,
        judge: Judge,
        judge_weights: Any,
        batch: Mapping[str, jax.Array],
    ):
        self._model = model
        self._weights = weights
        self._judge = judge
        self._batch = batch
        self._read = functools.partial(judge.model.apply, *judge_weights)
        self.pad_id = judge.pad_id
        self.eos_id = judge.eos_id

    @functools.cached_property
    def _started(self) -> Any:
        return self._model.apply(
            *self._weights, self._batch["image"], self._batch["text"].shape[1], method="prefill"
        )[0]

    def write(self, keys: jax.Array | None = None, **how: Any) -> tuple[jax.Array, jax.Array]:
        (kv_cache, cross_kv), (rows, length) = self._started, self._batch["text"].shape
        step = lambda kv_cache, *args: self._model.apply(
            *self._weights, kv_cache, cross_kv, *args, method="decode_step"
        )[0]
        config = Generation(method="greedy" if keys is None else "sample", **how)
        ids = dict(eos_id=self.eos_id, pad_id=self.pad_id)
        tokens = generate(
            step, kv_cache, config, batch=rows, length=length, keys=keys, **ids
        ).tokens
        return tokens, (tokens != self.pad_id) & (
            jnp.arange(length) < length - 1
        )  # the last place is EOS's without a choice

    def encode_image(self) -> jax.Array:
        return self._read(self._batch["image"], method="encode_image")[0]

    def encode_text(self, tokens: jax.Array) -> jax.Array:
        return self._read(tokens, method="encode_text")[0]


def roll_out(
    task: Task,
    model: Functional,
    judges: Mapping[str, Judge],
    state: TrainState,
    batch: dict[str, jax.Array],
    prepare: Callable[[dict[str, jax.Array]], dict[str, jax.Array]],
    key: jax.Array,
) -> dict[str, jax.Array]:
    """`batch`, and what the objectives' `rollout` adds to it, without gradient; in as many chunks
    as the encoders run in.

    Args:
      judges: by `task/objective`.
      batch: as it came from the loader.
      prepare: rows of it -> model inputs (`Task.prepare`).
      key: of this step's objectives. Rows draw from their own key, as in `Task.prepare`.
    """
    for i, (name, objective) in enumerate(task.objectives.items()):
        slot = f"{task.name}/{name}"
        if slot in judges:
            keys = _row_keys(jax.random.fold_in(key, i), batch["position"])
            written = functools.partial(
                _written, objective, model, judges[slot], state, state.aux[slot], prepare
            )
            with jax.named_scope("rollout"):
                added = _in_chunks(
                    task.config.microbatches, written, (batch, jax.random.key_data(keys))
                )
            batch = {**batch, **jax.lax.stop_gradient(added)}
    return batch


def _row_keys(key: jax.Array, index: jax.Array) -> jax.Array:
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(index)


def _written(
    objective, model: Functional, judge: Judge, state: TrainState, aux, prepare, rows
) -> dict[str, jax.Array]:
    batch, keys = rows
    inputs = prepare(batch)
    judge_weights = aux["judge"] or (state.eval_params, state.eval_rest)
    actor = Actor(model, (state.params, state.rest), judge, judge_weights, inputs)
    return objective.rollout(actor, inputs, aux, jax.random.wrap_key_data(keys))


def _in_chunks(n: int, function, rows):
    if n == 1:
        return function(rows)
    written = jax.lax.map(
        lambda i: function(jax.tree.map(lambda x: take(x, i, n), rows)), jnp.arange(n)
    )
    return jax.tree.map(join, written)
