"""From a config to a model and the first state; needs no data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxvl.config import ConfigError, check
from jaxvl.data.config import DataConfig
from jaxvl.data.tokenizers import Tokenizer
from jaxvl.models.functional import Functional, functional
from jaxvl.tasks import VISUAL, Task
from jaxvl.training.experiment import Experiment
from jaxvl.training.forward import Forward
from jaxvl.training.optim import optimiser
from jaxvl.training.state import TrainState, init_state, state_shardings
from jaxvl.training.teachers import Teacher

# For programs that run once. On the CPU it halves the time to compile a first state; at 0 some
# parameters differ in their last bit.
QUICK = {"xla_backend_optimization_level": 1}


class Vocabulary(NamedTuple):
    """What a model has to know of a tokenizer."""

    vocab_size: int
    pad_id: int
    eos_id: int | None


def build_model(experiment: Experiment, tokenizer: Tokenizer | Vocabulary) -> Functional:
    """Raises ConfigError where model, tokenizer and inputs do not fit, be it those of one task
    only, or the model has not a task's options."""
    inputs = experiment.inputs(tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id)
    try:
        model = functional(
            experiment.model,
            inputs,
            jnp.dtype(experiment.dtype),
            freeze=experiment.optim.freeze,
            adapters=experiment.adapters,
        )
    except ConfigError as error:
        raise error if error.key.startswith("adapters.") else error.under("model") from None
    start = experiment.model.capabilities(inputs).start_id
    if isinstance(tokenizer, Tokenizer) and start is not None:
        check(
            start == tokenizer.cls_id,
            "model.start_id",
            f"{start} is not what the tokenizer begins texts with ({tokenizer.cls_id})",
        )
    for name, task in experiment.tasks.items():
        options = model.options(task.encode, f"tasks.{name}.encode")
        try:
            experiment.model.check_task(task.data, options)
        except ConfigError as error:
            raise error.under(f"tasks.{name}") from None
        for field, size in picture_sizes(task.data).items():
            try:
                experiment.model.check_inputs(dataclasses.replace(inputs, image_size=size))
            except ConfigError as error:
                raise ConfigError(
                    f"tasks.{name}.data.fields.{field}.size",
                    f"{size} does not fit the model: {error}",
                ) from None
    return model


def picture_sizes(data: DataConfig) -> dict[str, int]:
    """Side in pixels of the pictures and frames that a model reads, by their batch entry."""
    entries = data.entries
    return {
        name: entries[name].shape[-2]
        for name, modality in data.inputs.items()
        if modality in VISUAL
    }


def make_forward(
    experiment: Experiment, task: Task, model: Functional, teachers: Mapping[str, Teacher] = {}
) -> Forward:
    """A task's way through the model. Raises ConfigError for options that the model's call has
    not."""
    options = model.options(task.config.encode, f"tasks.{task.name}.encode")
    average = experiment.optim.main_average
    return Forward(task, model, options, teachers, experiment.steps, average)


def make_tasks(experiment: Experiment) -> dict[str, Task]:
    return {
        name: Task(name, config, experiment.preprocess) for name, config in experiment.tasks.items()
    }


def fresh_state(
    experiment: Experiment, model: Functional, mesh: Mesh, teachers: Mapping[str, Teacher] = {}
) -> tuple[Callable[..., TrainState], TrainState, TrainState]:
    """A function that makes the first state, the state's shapes, and its shardings on `mesh`. The
    function draws by the experiment's seed, or by one that it is given as `seed`.

    Raises:
      ConfigError: an objective reads what the model or the data does not give.
    """
    tasks = make_tasks(experiment)
    tx, trained = optimiser(experiment.optim, model.axes, model.frozen)
    make = functools.partial(
        init_state,
        model,
        tx,
        trained,
        tasks=tasks,
        seed=experiment.seed,
        averages=list(experiment.optim.averages),
        teachers=teachers,
    )
    stateful = {
        name: task
        for name, task in tasks.items()
        if any(objective.keeps_state for objective in task.objectives.values())
    }
    specs = {}
    if stateful:
        stateless = jax.eval_shape(functools.partial(make, specs={}))
        for name, task in stateful.items():
            shapes = task.config.data.shapes.items()
            batch = {k: jax.ShapeDtypeStruct(s.shape, s.dtype) for k, s in shapes}
            forward = make_forward(experiment, task, model, teachers)
            specs[name] = forward.spec(stateless, batch)
    fresh = functools.partial(make, specs=specs)
    shapes = jax.eval_shape(fresh)
    zero1 = experiment.optim.zero1
    how = dict(teachers=teachers, tasks=tasks, zero1=zero1)
    return fresh, shapes, state_shardings(model, shapes, mesh, **how)


def draw_state(
    fresh: Callable[..., TrainState], seed: int, shardings: TrainState, mesh: Mesh
) -> TrainState:
    """The first state, born sharded.

    The program runs once, and is compiled with little effort where that changes no bit. The seed is
    an argument, so that runs of other seeds find the program in the cache.
    """
    options = QUICK if mesh.devices.flat[0].platform == "cpu" else None
    program = jax.jit(fresh, out_shardings=shardings, compiler_options=options)
    return program(seed=np.uint32(seed))
