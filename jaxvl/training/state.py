"""What a training run carries from step to step, as one pytree; everything in it is saved and
restored together."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from jaxvl.aliases import Arrays, Json, Tree, Weights
from jaxvl.config import ConfigError, check
from jaxvl.models.functional import Functional
from jaxvl.objectives import Objective, ObjectiveState, StateSpec
from jaxvl.sharding import param_shardings
from jaxvl.sharding.mesh import replicated
from jaxvl.sharding.rules import RULES, no_rule, spec
from jaxvl.sharding.spread import spread_sharding
from jaxvl.tasks import Task
from jaxvl.training.teachers import Teacher

FORM = 2  # of a state in a checkpoint
_OLDER_NAMES = {"model_state": "rest", "objective_state": "aux"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class GuardState:
    """Counters of the guard (`guard.py`), kept on the device so that no step waits for the host.

    Attributes:
      skipped: steps whose update was not applied, int32 [].
      in_a_row: of these, the last uninterrupted run, int32 [].
      typical_norm: moving average of the accepted gradient norms, float32 [].
      accepted: steps that went into it, int32 [].
    """

    skipped: jax.Array
    in_a_row: jax.Array
    typical_norm: jax.Array
    accepted: jax.Array

    @classmethod
    def fresh(cls) -> GuardState:
        return cls(jnp.int32(0), jnp.int32(0), jnp.float32(0), jnp.int32(0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """State shared by all tasks.

    Attributes:
      step: steps taken, skipped ones included, int32 [].
      rng: root of all randomness, uint32 key data; steps fold in their number, so it never changes.
      params: path -> float32 array.
      model_state: the model's arrays that are not trained (batch-norm statistics), path -> array.
      opt_state: of the trained parameters.
      ema: moving average of `params` and of the floating-point arrays of `model_state`, path ->
        array; of several averages one such dict by name; or None.
      teachers: name -> (parameters, model state) of a teacher; () where it is the `ema`.
      objective_state: `task/objective` -> what the objective carries on (a queue, prototypes).
      guard: one `GuardState` by task.
    """

    step: jax.Array
    rng: jax.Array
    params: Arrays
    model_state: Arrays
    opt_state: optax.OptState
    ema: Arrays | dict[str, Arrays] | None
    teachers: dict[str, Weights | tuple[()]]
    objective_state: dict[str, ObjectiveState]
    guard: dict[str, GuardState]

    def weights(self, average: str | None) -> Weights:
        """The parameters and the model's other state. Of an average, batch statistics are averaged
        too: they are those of certain weights.

        Args:
          average: name of one (empty: of the only one); None: no average.
        """
        if average is None:
            return self.params, self.model_state
        ema = self.ema[average] if average else self.ema
        params = {p: ema[p] for p in self.params}
        return params, {p: ema.get(p, v) for p, v in self.model_state.items()}


def init_state(
    model: Functional,
    tx: optax.GradientTransformation,
    trained: dict[str, bool],
    *,
    tasks: Mapping[str, Task],
    specs: Mapping[str, StateSpec],
    seed: int,
    averages: Collection[str],
    teachers: Mapping[str, Teacher] = {},
) -> TrainState:
    """A fresh state; meant to be jitted with `out_shardings=state_shardings(...)`, so that it is
    born sharded.

    Args:
      averages: names of the moving averages.
      specs: task -> what the states of its objectives may depend on; of a task that is not named
        the objectives keep none.
    """
    root = jax.random.key(seed)
    params, model_state = model.init(jax.random.fold_in(root, 0))
    objective_state = {}
    for name, task in tasks.items():
        for key, objective in task.objectives.items():
            state = objective.init_state(specs[name]) if name in specs else {}
            objective_state[f"{name}/{key}"] = state
    return TrainState(
        step=jnp.int32(0),
        rng=jax.random.key_data(jax.random.fold_in(root, 1)),
        params=params,
        model_state=model_state,
        opt_state=tx.init(subset(params, trained)),
        ema=start_averages(averages, params, model_state),
        teachers={n: teacher.fresh(params, model_state) for n, teacher in teachers.items()},
        objective_state=objective_state,
        guard={t: GuardState.fresh() for t in tasks},
    )


def start_averages(
    names: Collection[str], params: Arrays, model_state: Arrays
) -> Arrays | dict[str, Arrays] | None:
    """`TrainState.ema` before the first step, of averages with these names (one without a name: an
    empty text): copies, because a step is given the buffers of the whole state for good."""
    followed = {**params, **_averaged(model_state)}
    copies = {name: jax.tree.map(jnp.copy, followed) for name in names}
    return joined_averages(copies)


def joined_averages(averages: Mapping[str, Arrays]) -> Arrays | dict[str, Arrays] | None:
    """Averages by name as `TrainState.ema` holds them."""
    if not averages:
        return None
    return averages[""] if "" in averages else dict(averages)


def _averaged(model_state: Arrays) -> Arrays:
    """What of the model's state has an average: not what is counted or drawn."""
    return {p: v for p, v in model_state.items() if jnp.issubdtype(v.dtype, jnp.floating)}


def saved_form(abstract: TrainState, frame: Mapping[str, Json]) -> TrainState | dict[str, Tree]:
    """Shapes of a state as the checkpoint with `frame` holds it; see `present_form`.

    Checkpoints before form 2 call two parts by other names and have no teachers; the oldest
    averaged the parameters alone.
    """
    if frame.get("form", 1) >= FORM:
        return abstract
    parts = {f.name: getattr(abstract, f.name) for f in dataclasses.fields(abstract)}
    del parts["teachers"]
    for name, older in _OLDER_NAMES.items():
        parts[older] = parts.pop(name)
    # An objective without state had (), where it has {} now.
    parts["aux"] = {slot: state or () for slot, state in parts["aux"].items()}
    if abstract.ema is not None and "averages" not in frame:
        parts["ema"] = {p: v for p, v in abstract.ema.items() if p not in abstract.model_state}
    return parts


def present_form(saved: TrainState | dict[str, Tree]) -> TrainState:
    """A state from a checkpoint of any age: averages that an older one has not begin with what they
    are to follow."""
    if isinstance(saved, TrainState):
        return saved
    parts = dict(saved)
    for name, older in _OLDER_NAMES.items():
        parts[name] = parts.pop(older)
    parts["objective_state"] = {slot: v or {} for slot, v in parts["objective_state"].items()}
    state = TrainState(**parts, teachers={})
    if state.ema is None:
        return state
    averaged = _averaged(state.model_state)
    missing = {p: jnp.copy(v) for p, v in averaged.items() if p not in state.ema}
    return dataclasses.replace(state, ema={**state.ema, **missing})


def subset(params: Arrays, trained: dict[str, bool]) -> Arrays:
    """The parameters that the optimiser works on."""
    return {p: v for p, v in params.items() if trained[p]}


def parameter_of(path: tuple, names: Collection[str]) -> str | None:
    """Which of the parameters `names` a leaf at `path` of a state belongs to, such as
    `mu["image/kernel"]`; None: to none of them."""
    keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey) and k.key in names]
    return keys[-1] if keys else None


def _check_axes(objective: Objective, tree: ObjectiveState, key: str) -> None:
    """Raises ConfigError at `key` for `state_axes` of no array of the state, or without a rule."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = [[k.key for k in path if isinstance(k, jax.tree_util.DictKey)] for path, _ in leaves]
    arrays = sorted({names[-1] for names in named if names})
    for name, axes in objective.state_axes.items():
        problem = f"state_axes: {name!r} is no array of its state (there are: {', '.join(arrays)})"
        check(not arrays or name in arrays, key, problem)
        for axis in axes:
            if axis is not None and axis not in RULES:
                raise ConfigError(key, f"state_axes: {axis!r} of {name!r} {no_rule(axis)}")


def state_shardings(
    model: Functional,
    abstract: TrainState,
    mesh: Mesh,
    *,
    teachers: Mapping[str, Teacher] = {},
    tasks: Mapping[str, Task] = {},
    zero1: bool = False,
) -> TrainState:
    """A `NamedSharding` for every leaf.

    Whatever is named and shaped like a parameter (moments, averages, teachers) lies as it does;
    with `zero1` moments and averages are split over `data` besides. Objectives say where the arrays
    of their state lie.

    Raises:
      ValueError: a parameter without logical axes.
      ConfigError: axes of an objective's state that are of no array, or have no rule.
    """
    whole = replicated(mesh)

    def like_parameters(tree: Any, model: Functional) -> Any:
        shapes = {p: v.shape for p, v in model.params.items()}
        by_path = param_shardings(model.axes, shapes, mesh)

        def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
            name = parameter_of(path, by_path)
            return by_path[name] if name and shapes[name] == leaf.shape else whole

        return jax.tree_util.tree_map_with_path(place, tree)

    def of_objective(objective: Objective, tree: Any, key: str) -> Any:
        _check_axes(objective, tree, key)

        def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
            names = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
            axes = objective.state_axes.get(names[-1]) if names else None
            if axes is None:
                return whole
            return NamedSharding(mesh, spec(axes, shape=leaf.shape, mesh=mesh))

        return jax.tree_util.tree_map_with_path(place, tree)

    of_teachers = {
        name: like_parameters(weights, teachers[name].model if name in teachers else model)
        for name, weights in abstract.teachers.items()
    }
    of_objectives = {
        f"{name}/{key}": of_objective(
            objective,
            abstract.objective_state[f"{name}/{key}"],
            f"tasks.{name}.objectives.{key}",
        )
        for name, task in tasks.items()
        for key, objective in task.objectives.items()
    }
    # Slots of tasks that this run does not name, in a checkpoint of an older version.
    others = {
        slot: jax.tree.map(lambda _: whole, state)
        for slot, state in abstract.objective_state.items()
        if slot not in of_objectives
    }
    plain = dataclasses.replace(abstract, teachers={}, objective_state={})
    placed = like_parameters(plain, model)
    if zero1:

        def split(places: Any, leaves: Any) -> Any:
            return jax.tree.map(
                lambda where, leaf: spread_sharding(where, leaf.shape), places, leaves
            )

        placed = dataclasses.replace(
            placed,
            opt_state=split(placed.opt_state, plain.opt_state),
            ema=split(placed.ema, plain.ema),
        )
    return dataclasses.replace(
        placed,
        teachers=of_teachers,
        objective_state={**of_objectives, **others},
    )
