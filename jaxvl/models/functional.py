"""A model seen from outside `models/`: pure functions of flat dicts of arrays.

The modules are Flax NNX; nothing beyond this file and `models/`, `nn/`, `adapters/` knows that.
Parameters and other state (batch-norm statistics) are flat dicts `"image/blocks/0/conv/kernel" ->
Array`, which sort, mask by regular expression, shard and save without further ado.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvl.config import ConfigError, resolve_call
from jaxvl.nn.random import adapters_draw_from

Arrays = dict[str, jax.Array]


def _flat(state: nnx.State) -> dict[str, nnx.Variable]:
    return {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


class AdapterConfig(Protocol):
    """What `functional` asks of an adapter, see `jaxvl.adapters`."""

    trains: str

    def attach(self, label: str, model: nnx.Module, rngs: nnx.Rngs) -> None: ...


@dataclasses.dataclass(frozen=True)
class Functional:
    """A built model as functions.

    Attributes:
      graphdef: NNX's static half.
      axes: logical axes of each parameter, path -> names.
      params: shapes and dtypes of the parameters, path -> ShapeDtypeStruct.
      rest: the same for non-trained state.
      locked: paths that the optimiser must not touch: of a locked tower (LiT), or of whatever is
        frozen beside adapters.
      call: the module's `__call__`, for its options.
      methods: names of the module's public methods, which `apply` can run.
    """

    graphdef: Any
    axes: Mapping[str, tuple[str, ...] | None]
    params: Mapping[str, jax.ShapeDtypeStruct]
    rest: Mapping[str, jax.ShapeDtypeStruct]
    locked: frozenset[str]
    call: Callable[..., Any]
    methods: frozenset[str]
    _build: Callable[[jax.Array], nnx.Module]
    _templates: tuple[nnx.State, nnx.State]

    def options(self, node: Mapping[str, Any], path: str) -> dict[str, Any]:
        """Options of the call in training from a config's `node`. Raises ConfigError at `path` for
        one that the model has not."""
        return resolve_call(self.call, node, path, given=("train", "key"))

    def init(self, key: jax.Array) -> tuple[Arrays, Arrays]:
        """Fresh (params, rest); jit-able, so that they can be born sharded."""
        _, params, rest = nnx.split(self._build(key), nnx.Param, ...)
        return self._arrays(params), self._arrays(rest)

    def apply(
        self, params: Arrays, rest: Arrays, *args: Any, method: str = "__call__", **kwargs: Any
    ) -> tuple[Any, Arrays]:
        """`module.method(*args, **kwargs)` -> (its result, the new non-trained state)."""
        module = nnx.merge(
            self.graphdef,
            *(self._state(t, a) for t, a in zip(self._templates, (params, rest))),
            copy=True,
        )
        with adapters_draw_from(kwargs.get("key") if kwargs.get("train") else None):
            out = getattr(module, method)(*args, **kwargs)
        return out, self._arrays(nnx.split(module, nnx.Param, ...)[2])

    @staticmethod
    def _arrays(state: nnx.State) -> Arrays:
        return {path: variable[...] for path, variable in _flat(state).items()}

    @staticmethod
    def _state(template: nnx.State, arrays: Arrays) -> nnx.State:
        return nnx.from_flat_state(
            [
                (path, v.replace(arrays["/".join(map(str, path))]))
                for path, v in nnx.to_flat_state(template)
            ]
        )


def functional(
    config: Any,
    inputs: Any,
    dtype: Any = jnp.float32,
    adapters: Mapping[str, AdapterConfig] = {},
) -> Functional:
    """Builds a model configuration into pure functions, without allocating anything.

    Args:
      config: a registered model configuration (`models.MODELS`).
      inputs: `models.InputSpec`.
      dtype: compute dtype; parameters are float32.
      adapters: label -> adapter, added to the model in this order. The model's own parameters are
        drawn as without, and locked but for those that an adapter `trains`.

    Raises:
      ConfigError: sizes that do not fit together (from the configuration's `check_inputs`); at
        `adapters.LABEL`, an adapter that does not fit the model.
    """
    config.check_inputs(inputs)

    def build(key: jax.Array) -> nnx.Module:
        rngs = nnx.Rngs(params=key)
        module = config.build(inputs, rngs, dtype=dtype)
        for label, adapter in adapters.items():
            try:
                adapter.attach(label, module, rngs)
            except ConfigError as error:
                raise error.under(f"adapters.{label}") from None
        return module

    module = nnx.eval_shape(build, jax.random.key(0))
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    shapes = [
        {p: jax.ShapeDtypeStruct(v.shape, v.dtype) for p, v in _flat(s).items()}
        for s in (params, rest)
    ]
    axes = {path: variable.get_metadata().get("axes") for path, variable in _flat(params).items()}
    is_locked = getattr(module, "locked", lambda path: False)
    beside = [r"(^|/)adapter/", *(adapter.trains for adapter in adapters.values())]
    frozen = lambda path: adapters and not any(re.search(pattern, path) for pattern in beside)
    locked = frozenset(path for path in shapes[0] if is_locked(path) or frozen(path))
    methods = frozenset(
        name
        for name, _ in inspect.getmembers(type(module), inspect.isfunction)
        if not name.startswith("_")
    )
    return Functional(
        graphdef, axes, *shapes, locked, type(module).__call__, methods, build, (params, rest)
    )
