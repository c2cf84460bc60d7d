"""One compiled training step of one turn: of a task, or of several whose weighted losses are
summed.

    batch -> hooks (where a task has any) -> prepare (augment, normalise) and encode (in chunks, if
    asked) -> objectives -> gradient -> guard -> update -> averages, teachers

With `microbatches` > 1 the encoders run chunk by chunk while the objectives see the whole batch:
embeddings first, then the gradient with respect to the embeddings, then the encoders again with
that gradient as their cotangent (GradCache, Gao et al. 2021). So every negative of the batch
counts, and the result equals that of the undivided batch, but for what an encoder takes from its
whole batch (statistics of batch normalisation, experts with `span="batch"`) or draws (dropped
tokens, dropout). Chunks are prepared one by one too, once more in the second pass: of the whole
batch there are only the loader's arrays (pictures uint8) and the outputs, so that memory does not
grow with it otherwise. State that the model keeps between calls (`model_state`)
goes from chunk to chunk; the second pass has each chunk meet the state that it met in the first.

Parameters that a turn does not learn (`optim.unused`) keep value, moments and all: their leaves of
the optimiser state are known by the parameter's path. What is not of one parameter goes on: the
average of the weights follows them at every step, and the optimiser's step count is one for all
(see `OptimConfig.unused`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxvl.aliases import Arrays
from jaxvl.data.feed import SIGNAL
from jaxvl.models.functional import Bounds
from jaxvl.sharding.chunks import join, take
from jaxvl.sharding.hosts import Signal
from jaxvl.sharding.rules import constrain
from jaxvl.sharding.spread import constrain_spread
from jaxvl.tasks import Task
from jaxvl.training.forward import Forward, Keys, split_keys
from jaxvl.training.guard import GuardConfig, judge
from jaxvl.training.optim import OptimConfig, clamp, ema_decay
from jaxvl.training.state import GuardState, TrainState, joined_averages, parameter_of, subset
from jaxvl.training.teachers import moving_average, update_teachers

Metrics = dict[str, jax.Array]
Step = Callable[
    [TrainState, tuple[dict[str, jax.Array], ...], jax.Array],
    tuple[TrainState, tuple[Metrics, ...]],
]


@dataclasses.dataclass(frozen=True)
class Part:
    """One task of a turn.

    Attributes:
      forward: its way to the model's outputs.
      weight: of its loss.
      learns: paths of the parameters that it moves.
    """

    forward: Forward
    weight: float
    learns: frozenset[str]

    @property
    def task(self) -> Task:
        return self.forward.task


@dataclasses.dataclass(frozen=True)
class Update:
    """How gradients become new parameters.

    Attributes:
      tx: optimiser, without its learning rate.
      trained: path -> whether the run trains the parameter.
      rate: step -> learning rate.
      optim: for the decay of the average.
      guard: when a step is not applied.
      bounds: of parameters that are set within them after every update.
      axes: path -> logical axes of the parameters; of those that are not named, the compiler
        decides where gradients lie.
    """

    tx: optax.GradientTransformation
    trained: dict[str, bool]
    rate: Callable[[jax.Array], jax.Array]
    optim: OptimConfig
    guard: GuardConfig
    bounds: Mapping[str, Bounds] = dataclasses.field(default_factory=dict)
    axes: Mapping[str, tuple[str | None, ...]] = dataclasses.field(default_factory=dict)

    def laid_out(self, arrays: Arrays) -> Arrays:
        """Gradients, or parameters, where the optimiser works on them: as the parameters lie, with
        `zero1` split over `data` besides. A gradient so ends as a part on each device
        (reduce-scatter), before its norm is taken."""
        laid_out = dict(arrays)
        for path, array in arrays.items():
            axes = self.axes.get(path)
            if axes is None:
                continue
            split = self.optim.zero1
            laid_out[path] = constrain_spread(array, axes) if split else constrain(array, *axes)
        return laid_out


class _Summed(NamedTuple):
    """What all parts of a step have given.

    Attributes:
      loss: weighted sum of the losses, float32 [].
      gradient: of it, path -> array.
      figures: of each part.
      model_state, objective_state: after them.
    """

    loss: jax.Array
    gradient: Arrays
    figures: list[Metrics]
    model_state: Arrays
    objective_state: dict[str, Any]


def make_step(parts: Sequence[Part], update: Update, names: Sequence[str]) -> Step:
    """`step(state, batches, numbers) -> (state, metrics)`, to be jitted with the state donated.

    Args:
      names: of all tasks of the run.

    The step's arguments: one batch for each part; the number of each part's task in `names`, int32
    [parts]. So tasks of one signature can share it.

    Metrics, for each part (float32 []): `loss`, each objective's `loss/NAME` and own figures; and,
    of the step: `summed_loss` where there are several parts, `lr`,
    `norm/{gradient,update,parameters}`, `norm/gradient/PART` of each part of the model that learns
    (`image`, `text`, `log_scale`: how their parameters' paths begin; their squares add up to that
    of the whole), `norm/typical` (moving average of the gradient's), `skipped` (of this task so
    far), `skipped_in_a_row`. Where the batches have a `SIGNAL`, the largest of it. A step with rows
    that are `BROKEN` leaves the whole state as it was, its own number and the guard's counters too.
    """
    learned = frozenset().union(*(part.learns for part in parts))

    def step(
        state: TrainState, batches: tuple[dict[str, jax.Array], ...], numbers: jax.Array
    ) -> tuple[TrainState, tuple[Metrics, ...]]:
        signal, batches = take_signal(batches)
        valid = jnp.bool_(True) if signal is None else signal < Signal.BROKEN
        summed = _sum_parts(parts, state, batches, numbers)
        summed = summed._replace(gradient=update.laid_out(summed.gradient))
        norm, norms = _norms(summed.gradient)
        guard_before = _of_number(state.guard, names, numbers[0])
        ok, guard_after = judge(update.guard, guard_before, summed.loss, norm)
        ok &= valid
        guard_after = _where(valid, guard_after, guard_before)
        new, change = _updated(state, summed, update, learned, parts)
        kept = _where(ok, new, _changing(state))
        guards = {
            name: _where((numbers == i).any(), guard_after, state.guard[name])
            for i, name in enumerate(names)
        }
        shared = {
            "lr": update.rate(state.step),
            "norm/gradient": norm,
            **{f"norm/gradient/{part}": value for part, value in norms.items()},
            "norm/typical": guard_before.typical_norm,
            "norm/update": optax.global_norm(change),
            "norm/parameters": optax.global_norm(subset(state.params, update.trained)),
            "skipped": guard_after.skipped,
            "skipped_in_a_row": guard_after.in_a_row,
        }
        if signal is not None:
            shared[SIGNAL] = signal
        if len(parts) > 1:
            shared["summed_loss"] = summed.loss
        state = dataclasses.replace(state, step=state.step + valid, guard=guards, **kept)
        metrics = tuple(
            {k: jnp.asarray(v, jnp.float32) for k, v in {**own, **shared}.items()}
            for own in summed.figures
        )
        return state, metrics

    return step


def _norms(gradient: Arrays) -> tuple[jax.Array, Arrays]:
    """Norm of the gradient, and of each part of the model, by the beginning of its paths."""
    squares = {p: jnp.sum(jnp.square(g)) for p, g in sorted(gradient.items())}
    parts: dict[str, list[jax.Array]] = {}
    for path, square in squares.items():
        parts.setdefault(path.partition("/")[0], []).append(square)
    of_parts = {part: jnp.sqrt(sum(some)) for part, some in parts.items()}
    return jnp.sqrt(sum(squares.values())), of_parts


def _sum_parts(
    parts: Sequence[Part],
    state: TrainState,
    batches: Sequence[dict[str, jax.Array]],
    numbers: jax.Array,
) -> _Summed:
    """Losses and gradients of the parts one after the other, each with its weight."""
    figures = []
    total = None
    gradient = {}
    for i, (part, batch) in enumerate(zip(parts, batches)):
        root = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        keys = split_keys(jax.random.fold_in(root, numbers[i]))
        loss, (own, objective_state), slope, model_state = _differentiate(part, state, batch, keys)
        state = dataclasses.replace(state, model_state=model_state, objective_state=objective_state)
        figures.append({"loss": loss, **own})
        if part.weight != 1.0:
            loss = part.weight * loss
            slope = {p: part.weight * g for p, g in slope.items()}
        total = loss if total is None else total + loss
        gradient |= {p: gradient[p] + g if p in gradient else g for p, g in slope.items()}
    return _Summed(total, gradient, figures, state.model_state, state.objective_state)


def _updated(
    state: TrainState,
    summed: _Summed,
    update: Update,
    learned: Collection[str],
    parts: Sequence[Part],
) -> tuple[dict[str, Any], Arrays]:
    """The parts of the state that a step changes, as if it were applied; and the change of the
    parameters."""
    params = subset(state.params, update.trained)
    with jax.named_scope("optimiser"):
        gradient = {p: summed.gradient.get(p, jnp.zeros_like(v)) for p, v in params.items()}
        if update.optim.zero1:
            gradient = update.laid_out(gradient)
            params = update.laid_out(params)
        change, opt_state = update.tx.update(gradient, state.opt_state, params)
        rate = update.rate(state.step)
        change = {p: -rate * u for p, u in change.items() if p in learned}
        moved = clamp(optax.apply_updates({p: params[p] for p in change}, change), update.bounds)
        new = {**state.params, **moved}
        opt_state = _hold(opt_state, state.opt_state, params.keys() - learned)
    with jax.named_scope("average"):
        averages = {}
        for name, decay in update.optim.averages.items():
            before = state.ema[name] if name else state.ema
            followed = {**new, **summed.model_state}
            if update.optim.zero1:
                followed = update.laid_out(followed)
            averages[name] = moving_average(before, followed, ema_decay(decay, state.step))
        forward = parts[0].forward
        context = forward.context(state.step, jax.random.wrap_key_data(state.rng))
        student = (new, summed.model_state)
        teachers = update_teachers(forward.teachers, state.teachers, student, context)
    changed = {
        "params": new,
        "model_state": summed.model_state,
        "opt_state": opt_state,
        "ema": joined_averages(averages),
        "teachers": teachers,
        "objective_state": summed.objective_state,
    }
    return changed, change


def _changing(state: TrainState) -> dict[str, Any]:
    """The parts of the state that `_updated` gives."""
    names = ("params", "model_state", "opt_state", "ema", "teachers", "objective_state")
    return {name: getattr(state, name) for name in names}


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    """`new` where the condition holds, else `old`; leaves that are the same array stay it."""
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(condition, a, b), new, old)


def _differentiate(
    part: Part, state: TrainState, batch: Arrays, keys: Keys
) -> tuple[jax.Array, tuple[Metrics, dict[str, Any]], Arrays, Arrays]:
    """Loss of one part, (figures, objective state), gradient of what it learns, and the model's
    other state."""
    task = part.task
    forward = part.forward
    context = forward.context(state.step, keys.objective)
    batch = forward.hooked(state, batch, keys)
    fixed = {p: v for p, v in state.params.items() if p not in part.learns}

    def encode(params, model_state, rows, model_key):
        rows_keys = dataclasses.replace(keys, model=model_key)
        return forward.outputs({**params, **fixed}, model_state, rows, rows_keys, context.progress)

    def objectives(outputs):
        return task.loss(outputs, batch, state.objective_state, context)

    n = task.config.microbatches
    accumulate = _whole if n == 1 else functools.partial(_chunked, n)
    learns = {p: v for p, v in state.params.items() if p in part.learns}
    return accumulate(encode, objectives, learns, state.model_state, batch, keys.model)


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


def _whole(encode, objectives, params, model_state, batch, key):
    """Loss and gradient of the undivided batch."""

    def loss_of(params):
        outputs, new_state = encode(params, model_state, batch, key)
        loss, extra = objectives(outputs)
        return loss, (extra, new_state)

    (loss, (extra, model_state)), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
    return loss, extra, gradient, model_state


def _chunked(n: int, encode, objectives, params, model_state, batch, key):
    """The same with the encoders run on `n` chunks in turn: the gradient of that loop, the model's
    state that it hands on included."""
    keys = jax.random.split(key, n)

    def run(params, model_state, i):
        return encode(params, model_state, jax.tree.map(lambda x: take(x, i, n), batch), keys[i])

    shapes, _ = jax.eval_shape(run, params, model_state, jnp.int32(0))
    per_row = {
        name: s.ndim > 0 for name, s in shapes.items()
    }  # rows of the batch; else scalars, the same in each chunk

    def forward(before, i):
        outputs, after = run(params, before, i)
        return after, (outputs, before)

    last, (stacked, befores) = jax.lax.scan(forward, model_state, jnp.arange(n))
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

    zeros = jax.tree.map(jnp.zeros_like, (params, _real(model_state)))
    (gradient, _), _ = jax.lax.scan(backward, zeros, (jnp.arange(n), befores), reverse=True)
    return loss, extra, gradient, last


def _real(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Those that a gradient goes through: none does through what is counted."""
    return {k: v for k, v in arrays.items() if jnp.issubdtype(v.dtype, jnp.inexact)}
