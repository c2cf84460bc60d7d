"""A model seen from outside `models/`: pure functions of flat dicts of arrays.

The modules are Flax NNX; nothing beyond this file and `models/`, `nn/`, `adapters/` knows that.
Parameters and other state (batch-norm statistics) are flat dicts `"image/blocks/0/conv/kernel" ->
Array`, which sort, mask by regular expression, shard and save without further ado.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.aliases import Arrays, Leaf, Node, Tree
from jaxvl.config import ConfigError, resolve_call
from jaxvl.models.base import InputSpec, Model
from jaxvl.nn.random import adapters_draw_from


def _flat(state: nnx.State) -> dict[str, nnx.Variable]:
    return {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


class AdapterConfig(Protocol):
    """What `functional` asks of an adapter, see `jaxvl.adapters`."""

    trains: str

    def attach(self, label: str, model: nnx.Module, rngs: nnx.Rngs) -> None: ...


Bounds = tuple[float | None, float | None]


@dataclasses.dataclass(frozen=True)
class Functional:
    """A built model as functions.

    Attributes:
      spec: sizes of the inputs that it was built for.
      graphdef: NNX's static half.
      axes: logical axes of each parameter, path -> names.
      bounds: smallest and largest value of each parameter that has one, path -> (float or None,
        float or None).
      params: shapes and dtypes of the parameters, path -> ShapeDtypeStruct.
      model_state: the same for state that is not trained.
      frozen: paths of parameters and other state that no gradient reaches: parameters that are
        frozen or lie beside adapters, and whatever else encoders hold that are frozen as a whole.
      call: the module's `__call__`, for its options.
      inputs: batch entries that the model encodes; of a module that is no `Model`, none.
      methods: names of the module's public methods, which `apply` can run.
    """

    spec: InputSpec
    graphdef: nnx.GraphDef
    axes: Mapping[str, tuple[str, ...] | None]
    bounds: Mapping[str, Bounds]
    params: Mapping[str, jax.ShapeDtypeStruct]
    model_state: Mapping[str, jax.ShapeDtypeStruct]
    frozen: frozenset[str]
    call: Callable[..., Tree]
    inputs: tuple[str, ...]
    methods: frozenset[str]
    _build: Callable[[jax.Array], nnx.Module]
    _templates: tuple[nnx.State, nnx.State]

    def options(self, node: Node, path: str) -> dict[str, Leaf]:
        """Options of the call in training from a config's `node`. Raises ConfigError at `path` for
        one that the model has not."""
        return resolve_call(self.call, node, path, given=("train", "key", "progress"))

    def init(self, key: jax.Array) -> tuple[Arrays, Arrays]:
        """Fresh (params, model_state); jit-able, so that they can be born sharded."""
        _, params, model_state = nnx.split(self._build(key), nnx.Param, ...)
        return self._arrays(params), self._arrays(model_state)

    def apply(
        self,
        params: Arrays,
        model_state: Arrays,
        *args: Tree,
        method: str = "__call__",
        **kwargs: Tree,
    ) -> tuple[Tree, Arrays]:
        """`module.method(*args, **kwargs)` -> (its result, the new state that is not trained)."""
        params, model_state = (self._without_gradient(arrays) for arrays in (params, model_state))
        module = nnx.merge(
            self.graphdef,
            *(self._state(t, a) for t, a in zip(self._templates, (params, model_state))),
            copy=True,
        )
        with adapters_draw_from(kwargs.get("key") if kwargs.get("train") else None):
            out = getattr(module, method)(*args, **kwargs)
        return out, self._arrays(nnx.split(module, nnx.Param, ...)[2])

    def _without_gradient(self, arrays: Arrays) -> Arrays:
        if not self.frozen:
            return arrays
        stop = jax.lax.stop_gradient
        return {path: stop(v) if path in self.frozen else v for path, v in arrays.items()}

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


class Buildable(Protocol):
    """A configuration that builds a module: a `ModelConfig`, or less than that."""

    def check_inputs(self, inputs: InputSpec | None) -> None: ...

    def build(
        self, inputs: InputSpec | None, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> nnx.Module: ...


def functional(
    config: Buildable,
    inputs: InputSpec | None,
    dtype: DTypeLike = jnp.float32,
    freeze: str | None = None,
    adapters: Mapping[str, AdapterConfig] = {},
) -> Functional:
    """Builds a model configuration into pure functions, without allocating anything.

    Args:
      config: a registered model configuration (`models.MODELS`).
      inputs: what the module is built for.
      dtype: compute dtype; parameters are float32.
      freeze: regular expression of the paths of parameters that are not trained (`optim.freeze`),
        or None. A model's encoders that it covers run as in evaluation in training too.
      adapters: label -> adapter, added to the model in this order. The model's own parameters are
        drawn as without, and frozen but for those that an adapter `trains`.

    Raises:
      ConfigError: sizes that do not fit together (from the configuration's `check_inputs`); at
        `adapters.LABEL`, an adapter that does not fit the model.
    """
    config.check_inputs(inputs)

    trained = [r"(^|/)adapter/", *(adapter.trains for adapter in adapters.values())]

    def is_frozen(path: str) -> bool:
        if adapters and not any(re.search(pattern, path) for pattern in trained):
            return True
        return freeze is not None and re.search(freeze, path) is not None

    def build(key: jax.Array) -> nnx.Module:
        rngs = nnx.Rngs(params=key)
        module = config.build(inputs, rngs, dtype=dtype)
        for label, adapter in adapters.items():
            try:
                adapter.attach(label, module, rngs)
            except ConfigError as error:
                raise error.under(f"adapters.{label}") from None
        if isinstance(module, Model):
            module.freeze(is_frozen)
        return module

    module = nnx.eval_shape(build, jax.random.key(0))
    graphdef, params, model_state = nnx.split(module, nnx.Param, ...)
    shapes = [
        {p: jax.ShapeDtypeStruct(v.shape, v.dtype) for p, v in _flat(s).items()}
        for s in (params, model_state)
    ]
    told = {path: variable.get_metadata() for path, variable in _flat(params).items()}
    axes = {path: metadata.get("axes") for path, metadata in told.items()}
    bounds = {
        path: metadata["bounds"]
        for path, metadata in told.items()
        if metadata.get("bounds", (None, None)) != (None, None)
    }
    frozen = _frozen(module, is_frozen, shapes)
    methods = frozenset(
        name
        for name, _ in inspect.getmembers(type(module), inspect.isfunction)
        if not name.startswith("_")
    )
    return Functional(
        spec=inputs,
        graphdef=graphdef,
        axes=axes,
        bounds=bounds,
        params=shapes[0],
        model_state=shapes[1],
        frozen=frozen,
        call=type(module).__call__,
        inputs=module.inputs if isinstance(module, Model) else (),
        methods=methods,
        _build=build,
        _templates=(params, model_state),
    )


def _frozen(
    module: nnx.Module, is_frozen: Callable[[str], bool], parts: Sequence[Arrays]
) -> frozenset[str]:
    """See `Functional.frozen`; parts: parameters, other state, by path."""
    params, model_state = parts
    encoders = []
    if isinstance(module, Model):
        paths = module.encoder_paths()
        encoders = [f"{paths[name]}/" for name in module.frozen]
    state = (path for path in model_state if path.startswith(tuple(encoders)))
    return frozenset(filter(is_frozen, params)) | frozenset(state)
