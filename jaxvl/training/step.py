"""One compiled training step of one turn: of a task, or of several whose weighted losses are
summed.

    batch -> roll out (only where an objective asks) -> prepare (augment, normalise) and encode (in
    chunks, if asked) -> objectives
          -> gradient -> guard -> update

With `microbatches` > 1 the encoders run chunk by chunk while the objectives see the whole batch:
embeddings first, then the gradient with respect to the embeddings, then the encoders again with
that gradient as their cotangent (GradCache, Gao et al. 2021). So every negative of the batch
counts, and the result equals that of the undivided batch, but for what an encoder takes from its
whole batch (statistics of batch normalisation, experts with `span="batch"`) or draws (dropped
tokens, dropout). Chunks are prepared one by one too, once more in the second pass: of the whole
batch there are only the loader's arrays (pictures uint8) and the outputs, so that memory does not
grow with it otherwise. State that the model keeps between calls (`rest`) goes from chunk to chunk;
the second pass has each chunk meet the state that it met in the first.

Parameters that a turn does not learn (`optim.unused`) keep value, moments and all: their leaves of
the optimiser state are known by the parameter's path. What is not of one parameter goes on: the
average of the weights follows them at every step, and the optimiser's step count is one for all
(see `OptimConfig.unused`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxvl.data.config import POSITION
from jaxvl.data.feed import SIGNAL
from jaxvl.models.base import ROW_KEYS
from jaxvl.models.functional import Functional
from jaxvl.sharding.chunks import join, take
from jaxvl.sharding.hosts import Signal
from jaxvl.tasks import Task
from jaxvl.training.guard import GuardConfig, judge
from jaxvl.training.optim import OptimConfig, ema_decay
from jaxvl.training.rollout import Judge, roll_out
from jaxvl.training.state import GuardState, TrainState, parameter_of, subset

Metrics = dict[str, jax.Array]
Step = Callable[
    [TrainState, tuple[dict[str, jax.Array], ...], jax.Array],
    tuple[TrainState, tuple[Metrics, ...]],
]


@dataclasses.dataclass(frozen=True)
class Part:
    """One task of a turn.

    Attributes:
      task: the task; or, where several share the step, one of them.
      weight: of its loss.
      learns: paths of the parameters that it moves.
      options: of the model's call.
      judges: by `task/objective`, of objectives that have the model write.
    """

    task: Task
    weight: float
    learns: frozenset[str]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    judges: Mapping[str, Judge] = dataclasses.field(default_factory=dict)


def make_step(
    parts: Sequence[Part],
    model: Functional,
    tx: optax.GradientTransformation,
    trained: dict[str, bool],
    rate: Callable[[jax.Array], jax.Array],
    optim: OptimConfig,
    guard: GuardConfig,
    names: Sequence[str],
) -> Step:
    """`step(state, batches, numbers) -> (state, metrics)`, to be jitted with the state donated.

    Args:
      names: of all tasks of the run.

    The step's arguments: one batch for each part; the number of each part's task in `names`, int32
    [parts]. So tasks of one signature can share it.

    Metrics, for each part (float32 []): `loss`, each objective's `loss/NAME` and own figures; and,
    of the step: `summed_loss` where there are several parts, `lr`,
    `norm/{gradient,update,parameters}`, `skipped` (of this task so far), `skipped_in_a_row`. Where
    the batches have a `SIGNAL`, the largest of it. A step with rows that are `BROKEN` leaves the
    whole state as it was, its own number and the guard's counters too.
    """
    learned = frozenset().union(*(part.learns for part in parts))

    def step(
        state: TrainState, batches: tuple[dict[str, jax.Array], ...], numbers: jax.Array
    ) -> tuple[TrainState, tuple[Metrics, ...]]:
        signal, batches = take_signal(batches)
        valid = jnp.bool_(True) if signal is None else signal < Signal.BROKEN
        params = subset(state.params, trained)
        own = []
        total = None
        gradient = {}
        rest = state.rest
        aux = state.aux
        for i, (part, batch) in enumerate(zip(parts, batches)):
            key = jax.random.fold_in(
                jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step), numbers[i]
            )
            loss, (figures, aux), slope, rest = _differentiate(
                part, model, dataclasses.replace(state, rest=rest, aux=aux), batch, key
            )
            own.append({"loss": loss, **figures})
            if part.weight != 1.0:
                loss = part.weight * loss
                slope = {p: part.weight * g for p, g in slope.items()}
            total = loss if total is None else total + loss
            gradient |= {p: gradient[p] + g if p in gradient else g for p, g in slope.items()}

        norm = optax.global_norm(gradient)
        guard_before = _of_number(state.guard, names, numbers[0])
        ok, guard_state = judge(guard, guard_before, total, norm)
        ok &= valid
        guard_state = jax.tree.map(
            lambda new, old: jnp.where(valid, new, old), guard_state, guard_before
        )
        lr = rate(state.step)
        with jax.named_scope("optimiser"):
            gradient = {
                p: gradient[p] if p in gradient else jnp.zeros_like(v) for p, v in params.items()
            }
            update, opt_state = tx.update(gradient, state.opt_state, params)
            update = {p: -lr * u for p, u in update.items() if p in learned}
            new = {**state.params, **optax.apply_updates({p: params[p] for p in update}, update)}
        with jax.named_scope("average"):
            average = (
                None
                if state.ema is None
                else _average(state.ema, {**new, **rest}, ema_decay(optim, state.step))
            )

        def keep(new, old):
            return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)

        shared = {
            "lr": lr,
            "norm/gradient": norm,
            "norm/update": optax.global_norm(update),
            "norm/parameters": optax.global_norm(params),
            "skipped": guard_state.skipped,
            "skipped_in_a_row": guard_state.in_a_row,
        }
        if signal is not None:
            shared[SIGNAL] = signal
        if len(parts) > 1:
            shared["summed_loss"] = total
        state = dataclasses.replace(
            state,
            step=state.step + valid,
            params=keep(new, state.params),
            rest=keep(rest, state.rest),
            opt_state=keep(
                _hold(opt_state, state.opt_state, params.keys() - learned), state.opt_state
            ),
            ema=None if average is None else keep(average, state.ema),
            aux=keep(aux, state.aux),
            guard={
                n: jax.tree.map(
                    lambda a, b, i=i: jnp.where((numbers == i).any(), a, b),
                    guard_state,
                    state.guard[n],
                )
                for i, n in enumerate(names)
            },
        )
        return state, tuple(
            {k: jnp.asarray(v, jnp.float32) for k, v in {**mine, **shared}.items()} for mine in own
        )

    return step


def _differentiate(part: Part, model: Functional, state: TrainState, batch, key):
    """Loss of one part, (figures, aux), gradient of what it learns, and the model's other state."""
    task = part.task
    prepare_key, model_key, objective_key = jax.random.split(key, 3)
    prepare = functools.partial(task.prepare, key=prepare_key)
    batch = roll_out(task, model, part.judges, state, batch, prepare, objective_key)
    fixed = {p: v for p, v in state.params.items() if p not in part.learns}
    row_key = functools.partial(jax.random.fold_in, jax.random.fold_in(model_key, 0))

    def encode(params, rest, rows, rows_key):
        # Prepared here, so that float pictures exist of the rows that are encoded, and of no
        # others.
        inputs = prepare(rows)
        given = {**inputs, ROW_KEYS: jax.vmap(row_key)(rows[POSITION].reshape(-1))}
        with jax.named_scope("model"):
            outputs, rest = model.apply(
                {**params, **fixed}, rest, given, train=True, key=rows_key, **part.options
            )
        return task.per_row(outputs, inputs), rest

    def objectives(outputs):
        return task.loss(outputs, batch, state.aux, objective_key)

    n = task.config.microbatches
    accumulate = _whole if n == 1 else functools.partial(_chunked, n)
    learns = {p: v for p, v in state.params.items() if p in part.learns}
    return accumulate(encode, objectives, learns, state.rest, batch, model_key)


def take_signal(
    batches: Sequence[dict[str, jax.Array]],
) -> tuple[jax.Array | None, list[dict[str, jax.Array]]]:
    """What the processes say with this step, uint8 [], or None where the batches do not have it;
    and the batches without it."""
    signals = [batch[SIGNAL].max() for batch in batches if SIGNAL in batch]
    batches = [
        {name: value for name, value in batch.items() if name != SIGNAL} for batch in batches
    ]
    return functools.reduce(jnp.maximum, signals) if signals else None, batches


def _of_number(
    guards: Mapping[str, GuardState], names: Sequence[str], number: jax.Array
) -> GuardState:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves)[number], *(guards[n] for n in names))


def _hold(new: Any, old: Any, paths: Collection[str]) -> Any:
    """`new` with the leaves of `old` for whatever belongs to the parameters at `paths`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a, b: b if parameter_of(path, paths) else a, new, old
    )


def _average(ema, new, decay):
    return {p: e + (1 - decay).astype(e.dtype) * (new[p] - e) for p, e in ema.items()}


def _whole(encode, objectives, params, rest, batch, key):
    """Loss and gradient of the undivided batch."""

    def loss_of(params):
        outputs, new_rest = encode(params, rest, batch, key)
        loss, extra = objectives(outputs)
        return loss, (extra, new_rest)

    (loss, (extra, rest)), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
    return loss, extra, gradient, rest


def _chunked(n: int, encode, objectives, params, rest, batch, key):
    """The same with the encoders run on `n` chunks in turn: the gradient of that loop, the model's
    state that it hands on included."""
    keys = jax.random.split(key, n)

    def run(params, rest, i):
        return encode(params, rest, jax.tree.map(lambda x: take(x, i, n), batch), keys[i])

    shapes, _ = jax.eval_shape(run, params, rest, jnp.int32(0))
    per_row = {
        name: s.ndim > 0 for name, s in shapes.items()
    }  # rows of the batch; else scalars, the same in each chunk

    def forward(before, i):
        outputs, after = run(params, before, i)
        return after, (outputs, before)

    last, (stacked, befores) = jax.lax.scan(forward, rest, jnp.arange(n))
    outputs = {k: join(v) if per_row[k] else v[0] for k, v in stacked.items()}
    (loss, extra), cotangent = jax.value_and_grad(
        lambda real: objectives({**outputs, **real}), has_aux=True
    )(_real(outputs))

    def backward(carry, now):
        """Adds chunk i's gradient. It meets the state that it met going forward, and what later
        chunks made of the state it left."""
        total, ct_after = carry
        i, before = now
        # A scalar output reaches the loss once, so its cotangent is shared out over the chunks.
        ct = {k: take(c, i, n) if per_row[k] else c / n for k, c in cotangent.items()}

        def differentiable(params, real):
            outputs, after = run(params, {**before, **real}, i)
            return {k: outputs[k] for k in ct}, _real(after)

        _, pull = jax.vjp(differentiable, params, _real(before))
        gradient, ct_before = pull((ct, ct_after))
        return (jax.tree.map(jnp.add, total, gradient), ct_before), None

    zeros = jax.tree.map(jnp.zeros_like, (params, _real(rest)))
    (gradient, _), _ = jax.lax.scan(backward, zeros, (jnp.arange(n), befores), reverse=True)
    return loss, extra, gradient, last


def _real(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Those that a gradient goes through: none does through what is counted."""
    return {k: v for k, v in arrays.items() if jnp.issubdtype(v.dtype, jnp.inexact)}
