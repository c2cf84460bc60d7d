"""The compiled step of one task of a config on one device, with a random batch that stays there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from jaxvl.data.config import DataConfig
from jaxvl.data.feed import SIGNAL
from jaxvl.sharding.mesh import MeshConfig, batch_sharding, make_mesh
from jaxvl.tasks import Task
from jaxvl.training.build import Vocabulary, build_model, draw_state, fresh_state
from jaxvl.training.checkpoint import abstract_state
from jaxvl.training.compile import compile_turns
from jaxvl.training.cost import Cost
from jaxvl.training.experiment import Experiment
from jaxvl.training.schedule import RoundRobin, Turn


@dataclasses.dataclass(frozen=True)
class OneStep:
    """A step that can be taken again and again.

    Attributes:
      take: takes it; returns the loss, float32 [].
      cost: of it.
      batch: rows.
      seconds: that it took to trace and compile.
    """

    take: Callable[[], jax.Array]
    cost: Cost
    batch: int
    seconds: float


def one_step(experiment: Experiment, task: str | None = None) -> OneStep:
    """The step of `task` (None: the first), as a run has it: augmentation, both passes, optimiser,
    average, guard. Objectives of weight 0 are left out."""
    task = task or next(iter(experiment.tasks))
    config = experiment.tasks[task]
    objectives = {key: use for key, use in config.objectives.items() if use.weight}
    config = dataclasses.replace(config, objectives=objectives)
    alone = dict(tasks={task: config}, mesh=MeshConfig(), schedule=RoundRobin())
    experiment = dataclasses.replace(experiment, **alone)
    tasks = {task: Task(task, config, experiment.preprocess)}
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    words = experiment.tokenizer.vocab_size
    with jax.set_mesh(mesh):
        model = build_model(experiment, Vocabulary(words, 0, 1))
        fresh, shapes, shardings = fresh_state(experiment, model, mesh)
        abstract = abstract_state(shapes, shardings)
        turns = [Turn((task,))]
        (program,) = compile_turns(experiment, tasks, turns, model, abstract, shardings, mesh)
        step = program.bind(program.turns[0], [task], mesh)
        held = [draw_state(fresh, experiment.seed, shardings, mesh)]
        rows = random_rows(config.data, words)
        batch = ({k: jax.device_put(v, batch_sharding(mesh)) for k, v in rows.items()},)

    def take() -> jax.Array:
        held[0], (metrics,) = step(held[0], batch)
        return metrics["loss"]

    return OneStep(take, program.cost, config.data.batch, program.seconds)


def random_rows(data: DataConfig, words: int) -> dict[str, np.ndarray]:
    """What a feed gives, of random numbers. Texts are random words that fill three quarters of
    their length, then token 1, then token 0."""
    rng = np.random.default_rng(0)
    batch = {SIGNAL: np.zeros(data.batch, np.uint8)}
    for name, shape in data.shapes.items():
        if shape.dtype == np.uint8:
            batch[name] = rng.integers(0, 256, shape.shape, np.uint8)
        elif shape.dtype == np.bool_:
            batch[name] = np.ones(shape.shape, np.bool_)
        elif np.issubdtype(shape.dtype, np.floating):
            batch[name] = rng.standard_normal(shape.shape).astype(shape.dtype)
        elif len(shape.shape) == 1:
            batch[name] = np.arange(shape.shape[0], dtype=shape.dtype)
        else:
            tokens = rng.integers(3, words, shape.shape).astype(shape.dtype)
            end = max(1, 3 * shape.shape[-1] // 4)
            tokens[..., end] = 1
            tokens[..., end + 1 :] = 0
            batch[name] = tokens
    return batch
