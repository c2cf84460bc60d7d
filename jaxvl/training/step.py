"""One compiled training step of one task.

    batch -> prepare (augment, normalise) -> encode (in chunks, if asked) -> objectives -> gradient -> guard -> update

With `microbatches` > 1 the encoders run chunk by chunk while the objectives see the whole batch: embeddings first, then
the gradient with respect to the embeddings, then the encoders again with that gradient as their cotangent (GradCache,
Gao et al. 2021). So every negative of the batch counts, and the result equals that of the undivided batch (batch
normalisation apart, whose statistics are those of a chunk).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxvl.models.functional import Functional
from jaxvl.sharding import constrain
from jaxvl.tasks import Task
from jaxvl.training.cost import Cost, cost
from jaxvl.training.guard import GuardConfig, judge
from jaxvl.training.optim import OptimConfig, ema_decay
from jaxvl.training.state import TrainState, subset

Metrics = dict[str, jax.Array]


def make_step(
    task: Task,
    model: Functional,
    tx: optax.GradientTransformation,
    trained: dict[str, bool],
    rate: Callable[[jax.Array], jax.Array],
    optim: OptimConfig,
    guard: GuardConfig,
    task_id: int,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """`step(state, batch) -> (state, metrics)`, to be jitted with the state donated.

    Metrics (float32 []): `loss`, each objective's `loss/NAME` and own figures, `lr`, `norm/{gradient,update,parameters}`,
    `skipped` (of this task so far) and `skipped_in_a_row`.
    """

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step), task_id)
        prepare_key, model_key, objective_key = jax.random.split(key, 3)
        inputs = task.prepare(batch, prepare_key)
        fixed = {p: v for p, v in state.params.items() if not trained[p]}

        def encode(params, rest, chunk, chunk_key):
            return model.apply({**params, **fixed}, rest, chunk, train=True, key=chunk_key)

        def objectives(outputs):
            return task.loss(outputs, inputs, state.aux, objective_key)

        params = subset(state.params, trained)
        n = task.config.microbatches
        accumulate = _whole if n == 1 else lambda *a: _chunked(n, *a)
        loss, (metrics, aux), gradient, rest = accumulate(encode, objectives, params, state.rest, inputs, model_key)

        norm = optax.global_norm(gradient)
        ok, guard_state = judge(guard, state.guard[task.name], loss, norm)
        update, opt_state = tx.update(gradient, state.opt_state, params)
        lr = rate(state.step)
        update = jax.tree.map(lambda u: -lr * u, update)
        new = {**optax.apply_updates(params, update), **fixed}
        average = None if state.ema is None else _average(state.ema, new, ema_decay(optim, state.step))

        def keep(new, old):
            return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)

        metrics = {
            "loss": loss, **metrics, "lr": lr, "norm/gradient": norm, "norm/update": optax.global_norm(update),
            "norm/parameters": optax.global_norm(params), "skipped": guard_state.skipped, "skipped_in_a_row": guard_state.in_a_row,
        }  # fmt: skip
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=keep(new, state.params),
            rest=keep(rest, state.rest),
            opt_state=keep(opt_state, state.opt_state),
            ema=None if average is None else keep(average, state.ema),
            aux=keep(aux, state.aux),
            guard={**state.guard, task.name: guard_state},
        )
        return state, {k: jnp.asarray(v, jnp.float32) for k, v in metrics.items()}

    return step


def _average(ema, params, decay):
    return {p: e + (1 - decay) * (params[p] - e) for p, e in ema.items()}


def _whole(encode, objectives, params, rest, inputs, key):
    """Loss and gradient of the undivided batch."""

    def loss_of(params):
        outputs, new_rest = encode(params, rest, inputs, key)
        loss, extra = objectives(outputs)
        return loss, (extra, new_rest)

    (loss, (extra, rest)), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
    return loss, extra, gradient, rest


def _chunked(n: int, encode, objectives, params, rest, inputs, key):
    """The same with the encoders run on `n` chunks in turn."""
    chunks = jax.tree.map(lambda x: _divide(x, n), inputs)
    keys = jax.random.split(key, n)
    shapes, _ = jax.eval_shape(encode, params, rest, jax.tree.map(lambda x: x[0], chunks), keys[0])
    per_row = {name: s.ndim > 0 for name, s in shapes.items()}  # rows of the batch; else scalars, the same in each chunk

    def forward(rest, chunk):
        outputs, rest = encode(params, rest, *chunk)
        return rest, outputs

    rest, stacked = jax.lax.scan(forward, rest, (chunks, keys))
    outputs = {k: _join(v) if per_row[k] else v[0] for k, v in stacked.items()}
    real = {k: v for k, v in outputs.items() if jnp.issubdtype(v.dtype, jnp.inexact)}  # no gradient goes through what is counted
    (loss, extra), cotangent = jax.value_and_grad(lambda real: objectives({**outputs, **real}), has_aux=True)(real)
    # A scalar output reaches the loss once, so its cotangent is shared out over the chunks.
    cotangents = {k: _divide(c, n) if per_row[k] else jnp.broadcast_to(c / n, (n,)) for k, c in cotangent.items()}

    def backward(total, chunk):
        (inputs, key), ct = chunk
        _, pull = jax.vjp(lambda p: {k: v for k, v in encode(p, rest, inputs, key)[0].items() if k in ct}, params)
        return jax.tree.map(jnp.add, total, pull(ct)[0]), None

    gradient, _ = jax.lax.scan(backward, jax.tree.map(jnp.zeros_like, params), ((chunks, keys), cotangents))
    return loss, extra, gradient, rest


def _divide(x: jax.Array, n: int) -> jax.Array:
    """[B, ...] -> [n, B/n, ...] with every device's rows dealt over all chunks, so that no row changes its device."""
    x = x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1)
    return constrain(x, None, "batch", *[None] * (x.ndim - 2))


def _join(x: jax.Array) -> jax.Array:
    """Inverse of `_divide`."""
    x = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    return constrain(x, "batch", *[None] * (x.ndim - 1))


def compile_step(
    step: Callable[..., Any], state: TrainState, batch: dict[str, jax.ShapeDtypeStruct], shardings: TrainState
) -> tuple[Any, Cost]:
    """The step compiled ahead of time, with the state donated and laid out as it came in; and its cost."""
    traced = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)).trace(state, batch)
    compiled = traced.lower().compile()
    return compiled, cost(traced, compiled)
