"""From a batch to the model's outputs: hooks, preparation, the model's call.

batch -> hooks (what they find is put into the batch) -> model inputs -> outputs
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxvl.aliases import Arrays, Leaf, Tree, Weights
from jaxvl.before import Before
from jaxvl.data.config import POSITION
from jaxvl.models.base import ROW_KEYS
from jaxvl.models.functional import Functional
from jaxvl.models.generate import Generation, TextShape, generate
from jaxvl.objectives import Context, StateSpec
from jaxvl.sharding.chunks import join, take
from jaxvl.tasks import Task
from jaxvl.training.state import TrainState
from jaxvl.training.teachers import Teacher


@dataclasses.dataclass(frozen=True)
class Forward:
    """A task's way through the model in training.

    Attributes:
      task: the task; or, where several share the step, one of them.
      model: that is trained.
      options: of the model's call.
      teachers: of the run, by their keys.
      steps: of the run.
      average: name of the run's average that is a teacher.
    """

    task: Task
    model: Functional
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    teachers: Mapping[str, Teacher] = dataclasses.field(default_factory=dict)
    steps: int = 1
    average: str | None = None

    def context(self, step: jax.Array, key: jax.Array) -> Context:
        return Context(key, step, step.astype(jnp.float32) / self.steps)

    def hooked(self, state: TrainState, batch: Arrays, keys: Keys) -> Arrays:
        """The batch, and what the task's hooks find for it, without gradient."""
        if not self.task.hooks:
            return batch
        models = BoundModels(self, state)
        for label, hook in self.task.hooks.items():
            key = jax.random.fold_in(keys.objective, zlib.crc32(label.encode()))
            with jax.named_scope(f"before/{label}"):
                found = self._found(hook, models, batch, key, keys.prepare)
            found = jax.lax.stop_gradient(found)
            batch = {**batch, **{f"{label}/{name}": value for name, value in found.items()}}
        return batch

    def _found(
        self, hook: Before, models: BoundModels, batch: Arrays, key: jax.Array, prepare_key
    ) -> Arrays:
        found = {}
        if type(hook).rows is not Before.rows:
            row_keys = _row_keys(key, batch[POSITION])

            def of_rows(rows):
                part, keys = rows
                inputs = self.task.prepare(part, prepare_key)
                return hook.rows(models, inputs, jax.random.wrap_key_data(keys))

            rows = (batch, jax.random.key_data(row_keys))
            found |= _in_chunks(self.task.config.microbatches, of_rows, rows)
        return {**found, **hook.whole({**batch, **found}, key)}

    def outputs(
        self, params: Arrays, model_state: Arrays, rows: Arrays, keys: Keys, progress: jax.Array
    ) -> tuple[Arrays, Arrays]:
        """The model's outputs of some rows with what objectives take from single rows, and the
        model's other state after the call."""
        # Prepared here, so that float pictures exist of the rows that are encoded, and of no
        # others.
        inputs = self.task.inputs(rows, keys.prepare)
        given = {**inputs, ROW_KEYS: _row_keys(keys.rows, rows[POSITION])}
        with jax.named_scope("model"):
            outputs, model_state = self.model.apply(
                params,
                model_state,
                given,
                train=True,
                key=keys.model,
                progress=progress,
                **self.options,
            )
        return self.task.per_row(outputs, inputs), model_state

    def undivided(
        self, state: TrainState, params: Arrays, batch: Arrays, key: jax.Array
    ) -> tuple[Arrays, Arrays, Context]:
        """Outputs of a whole batch in one part, the batch with what hooks find, and the context of
        the objectives."""
        keys = split_keys(key)
        context = self.context(state.step, keys.objective)
        batch = self.hooked(state, batch, keys)
        outputs, _ = self.outputs(params, state.model_state, batch, keys, context.progress)
        return outputs, batch, context

    def spec(self, state: TrainState, batch: Mapping[str, jax.ShapeDtypeStruct]) -> StateSpec:
        """What the states of the task's objectives may depend on; `state`, which needs none of
        theirs, and `batch` are shapes."""

        def both(state, batch, key):
            outputs, batch, _ = self.undivided(state, state.params, batch, key)
            return outputs, batch

        key = jax.eval_shape(lambda: jax.random.key(0))
        outputs, batch = jax.eval_shape(both, state, batch, key)
        return StateSpec(outputs, batch, self.steps)


@dataclasses.dataclass(frozen=True)
class Keys:
    """Random keys of one task in one step.

    Attributes:
      model: of the model's call; each chunk has another.
      rows: of what the model draws row by row, in whatever chunk the row is.
    """

    prepare: jax.Array
    model: jax.Array
    objective: jax.Array
    rows: jax.Array


def split_keys(key: jax.Array) -> Keys:
    prepare, model, objective = jax.random.split(key, 3)
    # Far from the keys of chunks, which are fold_in(model, chunk).
    return Keys(prepare, model, objective, rows=jax.random.fold_in(model, 2**31))


class BoundModels:
    """See `before.Models`."""

    def __init__(self, forward: Forward, state: TrainState):
        self._forward = forward
        self._state = state
        self.student = Bound(forward.model, (state.params, state.model_state))

    def __getitem__(self, name: str) -> Bound:
        teacher = self._forward.teachers[name]
        if teacher.is_run_average:
            weights = self._state.weights(self._forward.average)
        else:
            weights = self._state.teachers[name]
        return Bound(teacher.model, weights)


class Bound:
    """See `before.BoundModel`."""

    def __init__(self, model: Functional, weights: Weights):
        self._model = model
        self._weights = weights
        self.pad_id = model.spec.pad_id
        self.eos_id = model.spec.eos_id

    def outputs(self, inputs: Arrays) -> Arrays:
        return self._model.apply(*self._weights, inputs)[0]

    def apply(self, *args: Tree, method: str, **options: Tree) -> Tree:
        return self._model.apply(*self._weights, *args, method=method, **options)[0]

    def generate(
        self, image: jax.Array, length: int, keys: jax.Array | None = None, **how: Leaf
    ) -> tuple[jax.Array, jax.Array]:
        kv_cache, cross_kv = self.apply(image, length, method="prefill")
        step = lambda kv_cache, *args: self.apply(kv_cache, cross_kv, *args, method="decode_step")
        config = Generation(method="greedy" if keys is None else "sample", **how)
        texts = TextShape(len(image), length, self.eos_id, self.pad_id)
        tokens = generate(step, kv_cache, config, texts, keys=keys).tokens
        chosen = jnp.arange(length) < length - 1  # the last place is EOS's without a choice
        return tokens, (tokens != self.pad_id) & chosen


def _row_keys(key: jax.Array, position: jax.Array) -> jax.Array:
    """One key a row, from its place in the stream: [B]."""
    of_row = position.reshape(len(position), -1)[:, 0]
    return jax.vmap(functools.partial(jax.random.fold_in, key))(of_row)


def _in_chunks(n: int, function, rows):
    if n == 1:
        return function(rows)
    of_chunk = lambda i: function(jax.tree.map(lambda x: take(x, i, n), rows))
    return jax.tree.map(join, jax.lax.map(of_chunk, jnp.arange(n)))
