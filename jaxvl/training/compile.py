"""The compiled steps of a run: one for each signature, what it learns and what it costs.

The signature of a turn is those of its tasks (`Task.signature`) with their weights. Tasks that
differ only in where their data comes from share a program: the task's number, from which its random
keys and its guard follow, is an argument.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval
from jax.sharding import Mesh
from jax.stages import Traced

from jaxvl.aliases import Arrays
from jaxvl.config import check
from jaxvl.data.feed import SIGNAL, fed_shapes
from jaxvl.models.functional import Bounds, Functional
from jaxvl.nn.stack import keep_activations
from jaxvl.sharding.mesh import batch_sharding, replicated
from jaxvl.tasks import Task
from jaxvl.training.build import make_forward
from jaxvl.training.compiler import compiler_options
from jaxvl.training.cost import Cost, cost, count_flops, recomputes_layers
from jaxvl.training.experiment import Experiment
from jaxvl.training.forward import Forward
from jaxvl.training.optim import learning_rate, optimiser
from jaxvl.training.schedule import Turn
from jaxvl.training.state import TrainState, subset
from jaxvl.training.step import Metrics, Part, Step, Update, make_step
from jaxvl.training.teachers import Teacher


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step.

    Attributes:
      turns: that it serves.
      step: see `make_step`.
      learns: paths of the parameters that it moves.
      cost: of one step.
      seconds: that it took to trace and compile.
    """

    turns: tuple[Turn, ...]
    step: Step
    learns: frozenset[str]
    cost: Cost
    seconds: float

    def bind(
        self, turn: Turn, names: Sequence[str], mesh: Mesh
    ) -> Callable[..., tuple[TrainState, tuple[Metrics, ...]]]:
        """The step of one of its turns: (state, batches) -> (state, metrics). `names`: of all
        tasks."""
        numbers = np.array([names.index(t) for t in turn.tasks], np.int32)
        numbers = jax.make_array_from_callback(numbers.shape, replicated(mesh), lambda _: numbers)
        return lambda state, batches: self.step(state, batches, numbers)


def compile_turns(
    experiment: Experiment,
    tasks: Mapping[str, Task],
    turns: Sequence[Turn],
    model: Functional,
    abstract: TrainState,
    shardings: TrainState,
    mesh: Mesh,
    teachers: Mapping[str, Teacher] = {},
) -> list[Program]:
    """One program for each signature, under `jax.set_mesh(mesh)`, which may be of devices that are
    not here.

    Raises:
      ConfigError: an objective reads what the model or the data does not give.
    """
    programs = []
    options = compiler_options(experiment.compiler, mesh)
    for found in trace_turns(experiment, tasks, turns, model, abstract, shardings, mesh, teachers):
        began = time.perf_counter()
        compiled = found.traced.lower().compile(compiler_options=options or None)
        costs = cost(found.traced, compiled, found.model_flops)
        seconds = found.seconds + time.perf_counter() - began
        programs.append(Program(found.turns, compiled, found.learns, costs, seconds))
    return programs


@dataclasses.dataclass(frozen=True)
class TracedStep:
    """A step that is not compiled yet: `turns` and `learns` as of `Program`, `model_flops` without
    recomputation (None: it has none), `seconds` of tracing."""

    turns: tuple[Turn, ...]
    traced: Traced
    learns: frozenset[str]
    model_flops: float | None
    seconds: float

    @property
    def needed_flops(self) -> float:
        """FLOP of the step without recomputation."""
        return count_flops(self.traced.jaxpr) if self.model_flops is None else self.model_flops


def trace_turns(
    experiment: Experiment,
    tasks: Mapping[str, Task],
    turns: Sequence[Turn],
    model: Functional,
    abstract: TrainState,
    shardings: TrainState,
    mesh: Mesh,
    teachers: Mapping[str, Teacher] = {},
) -> Iterator[TracedStep]:
    """The first half of `compile_turns`."""
    update = make_update(experiment, model)

    def make(parts: Sequence[Part]) -> Step:
        return make_step(parts, update, list(tasks))

    for same in by_signature(tasks, turns):
        turn = same[0]
        began = time.perf_counter()
        parts = []
        batches = []
        for name, weight in zip(turn.tasks, turn.weights):
            shapes = fed_shapes(tasks[name].config.data)
            batches.append(
                {
                    k: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=batch_sharding(mesh))
                    for k, s in shapes.items()
                }
            )
            rows = {k: s for k, s in batches[-1].items() if k != SIGNAL}
            forward = make_forward(experiment, tasks[name], model, teachers)
            parts.append(make_part(forward, weight, update, abstract, rows))
        numbers = jax.ShapeDtypeStruct((len(parts),), np.int32, sharding=replicated(mesh))
        traced = jax.jit(make(parts), donate_argnums=0, out_shardings=(shardings, None)).trace(
            abstract, tuple(batches), numbers
        )
        model_flops = _model_flops(traced, parts, make, (abstract, tuple(batches), numbers))
        learns = frozenset().union(*(part.learns for part in parts))
        yield TracedStep(tuple(same), traced, learns, model_flops, time.perf_counter() - began)


def by_signature(tasks: Mapping[str, Task], turns: Sequence[Turn]) -> list[list[Turn]]:
    """The turns in groups that share a program."""
    shared: dict[tuple, list[Turn]] = {}
    for turn in turns:
        signature = tuple(tasks[task].signature for task in turn.tasks)
        shared.setdefault((signature, turn.weights), []).append(turn)
    return list(shared.values())


def _model_flops(
    traced: Any,
    parts: Sequence[Part],
    make: Callable[[Sequence[Part]], Step],
    shapes: tuple[Any, ...],
) -> float | None:
    """FLOP of the step without recomputation, from a second trace; None where the step recomputes
    nothing."""
    if not recomputes_layers(traced.jaxpr) and all(
        part.task.config.microbatches == 1 for part in parts
    ):
        return None
    whole = []
    for part in parts:
        config = dataclasses.replace(part.task.config, microbatches=1)
        task = dataclasses.replace(part.task, config=config)
        forward = dataclasses.replace(part.forward, task=task)
        whole.append(dataclasses.replace(part, forward=forward))
    with keep_activations():
        return count_flops(jax.make_jaxpr(make(whole))(*shapes))


def make_update(experiment: Experiment, model: Functional) -> Update:
    tx, trained = optimiser(experiment.optim, model.axes, model.frozen)
    rate = learning_rate(experiment.optim, experiment.steps)
    bounds: Mapping[str, Bounds] = {}
    if experiment.optim.clamp == "update":
        bounds = model.bounds
        problem = "'update': no parameter of the model has a bound (max_scale); must be 'loss'"
        check(bool(bounds), "optim.clamp", problem)
    return Update(tx, trained, rate, experiment.optim, experiment.guard, bounds, model.axes)


def make_part(
    forward: Forward,
    weight: float,
    update: Update,
    abstract: TrainState,
    batch: dict[str, jax.ShapeDtypeStruct],
) -> Part:
    """A task as part of a step, checked.

    Raises:
      ConfigError: an objective reads what the model or the data does not give; nothing that is
        trained has an effect on the loss.
    """
    task = forward.task
    trained = update.trained

    def loss(params, state, batch, key):
        whole = {**state.params, **params}
        outputs, batch, context = forward.undivided(state, whole, batch, key)
        return task.loss(outputs, batch, state.objective_state, context)[0]

    # An array could not be made on devices that are not here.
    key = jax.eval_shape(lambda: jax.random.key(0))
    used = used_parameters(loss, subset(abstract.params, trained), abstract, batch, key)
    check(
        bool(used),
        f"tasks.{task.name}.objectives",
        "the loss depends on no parameter that is trained",
    )
    learns = frozenset(p for p, yes in trained.items() if yes)
    return Part(forward, weight, used if update.optim.unused == "skip" else learns)


def used_parameters(loss: Callable[..., jax.Array], params: Arrays, *args: Any) -> frozenset[str]:
    """The `params` through which `loss(params, *args)` has a derivative; all may be shapes.

    Exact as far as programs tell: what the tangent of the loss needs of the parameters' tangents,
    once everything else is removed from it. So a parameter counts as unused behind a
    `stop_gradient` or an integer, and as used where only its numbers make the derivative 0. A
    `custom_vjp` is taken to use all that goes into it.
    """

    def tangent(params, tangents, *args):
        return jax.jvp(lambda p: loss(p, *args), (params,), (tangents,))[1]

    jaxpr = jax.make_jaxpr(tangent)(params, params, *args).jaxpr
    _, needed = partial_eval.dce_jaxpr(jaxpr, [True])
    of_tangents = needed[
        len(params) : 2 * len(params)
    ]  # a dict's leaves are in the order of its sorted keys
    return frozenset(p for p, yes in zip(sorted(params), of_tangents) if yes)
