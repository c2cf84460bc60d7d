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

from jaxvl.models.functional import Arrays, Functional
from jaxvl.sharding import param_shardings
from jaxvl.sharding.mesh import replicated


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
      rest: non-trained state of the model (batch-norm statistics), path -> array.
      opt_state: of the trained parameters.
      ema: moving average of `params` and of the floating-point arrays of `rest`, path -> array; or
        None.
      aux: objective state by `task/objective` (teachers, queues, prototypes).
      guard: one `GuardState` by task.
    """

    step: jax.Array
    rng: jax.Array
    params: Arrays
    rest: Arrays
    opt_state: Any
    ema: Arrays | None
    aux: dict[str, Any]
    guard: dict[str, GuardState]

    @property
    def eval_params(self) -> Arrays:
        """The weights that evaluation and export use: the average where one is kept."""
        return self.params if self.ema is None else {p: self.ema[p] for p in self.params}

    @property
    def eval_rest(self) -> Arrays:
        """The model's other state beside `eval_params`: averaged with them, for batch statistics
        are those of certain weights."""
        return (
            self.rest if self.ema is None else {p: self.ema.get(p, v) for p, v in self.rest.items()}
        )


def init_state(
    model: Functional,
    tx: optax.GradientTransformation,
    trained: dict[str, bool],
    *,
    tasks: dict[str, Any],
    seed: int,
    ema: bool,
    judges: Mapping[str, Any] = {},
) -> TrainState:
    """A fresh state; meant to be jitted with `out_shardings=state_shardings(...)`, so that it is
    born sharded.

    Args:
      tasks: name -> `tasks.Task`; they know the objectives' own state.
      judges: `task/objective` -> `rollout.Judge`, whose weights are part of that objective's state.
    """
    root = jax.random.key(seed)
    params, rest = model.init(jax.random.fold_in(root, 0))
    aux = {}
    for slot, objective in (
        (f"{t}/{o}", objective)
        for t, task in tasks.items()
        for o, objective in task.objectives.items()
    ):
        judge = judges.get(slot)
        aux[slot] = (
            {**objective.init_aux(judge.width), "judge": judge.init(params, rest)}
            if judge
            else objective.init_aux()
        )
    return TrainState(
        step=jnp.int32(0),
        rng=jax.random.key_data(jax.random.fold_in(root, 1)),
        params=params,
        rest=rest,
        opt_state=tx.init(subset(params, trained)),
        ema=start_average(params, rest) if ema else None,
        aux=aux,
        guard={t: GuardState.fresh() for t in tasks},
    )


def start_average(params: Arrays, rest: Arrays) -> Arrays:
    """`TrainState.ema` before the first step: copies, because a step is given the buffers of the
    whole state for good."""
    return {p: jnp.copy(v) for p, v in {**params, **_averaged(rest)}.items()}


def _averaged(rest: Mapping[str, Any]) -> dict[str, Any]:
    """What of `rest` has an average: not what is counted or drawn."""
    return {p: v for p, v in rest.items() if jnp.issubdtype(v.dtype, jnp.floating)}


def saved_form(abstract: TrainState, frame: Mapping[str, Any]) -> TrainState:
    """Shapes of a state as the checkpoint with `frame` holds it. Older ones averaged the parameters
    alone; see `present_form`."""
    if abstract.ema is None or "averages" in frame:
        return abstract
    return dataclasses.replace(
        abstract, ema={p: v for p, v in abstract.ema.items() if p not in abstract.rest}
    )


def present_form(state: TrainState) -> TrainState:
    """A state from a checkpoint of any age: averages that an older one has not begin with what they
    are to follow."""
    if state.ema is None:
        return state
    missing = {p: jnp.copy(v) for p, v in _averaged(state.rest).items() if p not in state.ema}
    return dataclasses.replace(state, ema={**state.ema, **missing}) if missing else state


def subset(params: Arrays, trained: dict[str, bool]) -> Arrays:
    """The parameters that the optimiser works on."""
    return {p: v for p, v in params.items() if trained[p]}


def parameter_of(path: tuple, names: Collection[str]) -> str | None:
    """Which of the parameters `names` a leaf at `path` of a state belongs to, such as
    `mu["image/kernel"]`; None: to none of them."""
    keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey) and k.key in names]
    return keys[-1] if keys else None


def state_shardings(model: Functional, abstract: TrainState, mesh: Mesh) -> TrainState:
    """A `NamedSharding` for every leaf: whatever is named and shaped like a parameter (moments,
    average) lies as it does.

    Raises:
      ValueError: a parameter without logical axes.
    """
    by_path = param_shardings(model.axes, {p: v.shape for p, v in model.params.items()}, mesh)
    whole = replicated(mesh)

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = parameter_of(path, by_path)
        return by_path[name] if name and model.params[name].shape == leaf.shape else whole

    return jax.tree_util.tree_map_with_path(place, abstract)
