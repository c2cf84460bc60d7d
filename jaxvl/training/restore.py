"""Weights from elsewhere: a checkpoint of this or another run, or of `jaxvl.convert`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvl import paths
from jaxvl.config import check, override, recall_plugins, resolve, to_path
from jaxvl.data.tokenizers import Tokenizer
from jaxvl.evals.encoders import Encoders
from jaxvl.models.functional import Functional
from jaxvl.sharding.mesh import make_mesh
from jaxvl.training.build import build_model, fresh_state
from jaxvl.training.checkpoint import Checkpoints, Frame, abstract_state
from jaxvl.training.encode import make_encoders
from jaxvl.training.experiment import Experiment
from jaxvl.training.older import is_older, weights_config, with_saved_tasks
from jaxvl.training.state import TrainState, present_form, saved_form
from jaxvl.training.teacher_models import make_teachers
from jaxvl.training.teachers import Teacher


@dataclasses.dataclass(frozen=True)
class SavedWeights:
    """The evaluation weights of a checkpoint, with what they cannot be used without.

    Attributes:
      frame: see `Run.frame`.
      params, model_state: path -> array, on `mesh`.
    """

    experiment: Experiment
    step: int
    frame: Frame
    tokenizer: Tokenizer
    model: Functional
    mesh: Mesh
    params: dict[str, jax.Array]
    model_state: dict[str, jax.Array]


def restore_weights(
    workdir: paths.Path, step: str | None = None, assignments: Mapping[str, str] = {}
) -> SavedWeights:
    """The weights of a checkpoint, of a run or of `jaxvl.convert`; its config with `assignments`.

    Raises:
      ConfigError: a wrong step or assignment. CheckpointError: no readable checkpoint.
    """
    check(
        step is None or (step.isdecimal() and len(step) <= 10),
        "--step",
        f"{step!r} must be the number of a checkpoint",
    )
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    found, frame = checkpoints.frame(None if step is None else int(step))
    experiment = _saved_experiment(weights_config(frame["config"], workdir), assignments)
    mesh = make_mesh(experiment.mesh)
    tokenizer = Tokenizer.from_json(frame["tokenizer"])
    model = build_model(experiment, tokenizer)
    with jax.set_mesh(mesh):
        _, shapes, shardings = fresh_state(
            experiment, model, mesh, make_teachers(experiment, model, tokenizer)
        )
        if frame.get("weights_only"):
            # The name that weight checkpoints have had from the first.
            parts = [{"params": s.params, "rest": s.model_state} for s in (shapes, shardings)]
            state = checkpoints.restore(lambda _: abstract_state(*parts), found).state
            params = state["params"]
            model_state = state["rest"]
        else:
            abstract = abstract_state(shapes, shardings)
            if is_older(frame["config"]):
                abstract = with_saved_tasks(abstract, checkpoints, found, mesh)
            restored = checkpoints.restore(functools.partial(saved_form, abstract), found)
            state = present_form(restored.state)
            params, model_state = state.weights(experiment.optim.evaluated)
    return SavedWeights(
        experiment, frame["step"], frame, tokenizer, model, mesh, params, model_state
    )


def _saved_experiment(config: Mapping[str, Any], assignments: Mapping[str, str]) -> Experiment:
    """The config of a checkpoint with `assignments`; of its plugins, one that is named anew stands
    for that of the same name."""
    recorded = config.get("plugins", ())
    node = override(
        ConfigDict({key: value for key, value in config.items() if key != "plugins"}), assignments
    ).to_dict()
    return resolve(Experiment, {**node, "plugins": recall_plugins(recorded, node.get("plugins"))})


def restore_encoders(
    workdir: paths.Path, step: str | None = None, assignments: Mapping[str, str] = {}
) -> tuple[Experiment, int, Encoders]:
    """What a checkpoint of a run can encode and write; its config with `assignments`, and the step
    that it is of.

    Raises:
      ConfigError: a wrong step or assignment. CheckpointError: no readable checkpoint.
    """
    saved = restore_weights(workdir, step, assignments)
    encoders = make_encoders(
        saved.experiment,
        saved.model,
        saved.tokenizer,
        saved.mesh,
        (saved.params, saved.model_state),
    )
    return saved.experiment, saved.step, encoders


def seat_teachers(
    state: TrainState, shardings: TrainState, teachers: Mapping[str, Teacher]
) -> TrainState:
    """A fresh state with every teacher's weights in their place."""
    seated = dict(state.teachers)
    for name, teacher in teachers.items():
        if teacher.is_run_average:
            continue
        weights = (state.params, state.model_state)
        if teacher.source not in ("ema", "initial"):
            saved = restore_weights(to_path(teacher.source, f"teachers.{name}.source"))
            weights = (saved.params, saved.model_state)
        copies = jax.tree.map(jnp.copy, weights)
        seated[name] = jax.device_put(copies, shardings.teachers[name])
    return dataclasses.replace(state, teachers=seated)
