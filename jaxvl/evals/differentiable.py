"""An evaluator's own functions of a model: on the mesh, with gradients, by any named output.

`Encoders.apply` runs a function of the model and of some rows. Inside it everything is
differentiable, so that an evaluator can optimise inputs (textual inversion, adversarial examples)
or ask for gradients (Grad-CAM):

    def saliency(model, pixels, tokens):                 # float [b, S, S, 3], int [b, T]
        def score(pixels):
            return jnp.sum(model.image(pixels) * model.text(tokens))
        return jnp.abs(jax.grad(score)(pixels)).sum(-1)  # [b, S, S]

    maps = encoders.apply(saliency, pixels, tokens)      # float32 [n, S, S]
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from jaxvl.aliases import Arrays, Tree
from jaxvl.config import ConfigError, check
from jaxvl.evals.ranking import put
from jaxvl.sharding.mesh import batch_sharding, batch_shards, replicated

if TYPE_CHECKING:
    from jaxvl.evals.encoders import Encoders

Function = Callable[..., Tree]
Embed = Callable[[Tree, jax.Array], jax.Array]
Outputs = Callable[[Tree, Arrays], Arrays]


@dataclasses.dataclass(frozen=True)
class Functions:
    """A model as functions of its weights, jit-able; None for what it cannot do.

    Attributes:
      image: `(weights, float32 [B, S, S, 3] normalised) -> [B, D]` unit rows.
      text: `(weights, int32 [B, T]) -> [B, D]` unit rows.
      outputs: `(weights, batch as the model takes it) -> named outputs`.
      caption: `(weights, float32 [B, S, S, 3] normalised, *generation.split(), index int32 [B],
        prompt) -> int32 [B, T]`; index: of the records; the prompt is int32 [B, T] or None.
      score: `(weights, float32 [B, S, S, 3] normalised, int32 [B, K, T], begin int32 [B]) ->
        float32 [B, K, 3]`; see `Encoders.scores`.
      tokens: `(weights, float32 [B, S, S, 3] normalised) -> [B, P, D]`, the image encoder's tokens.
    """

    image: Embed | None
    text: Embed | None
    outputs: Outputs | None = None
    caption: Callable[..., jax.Array] | None = None
    score: Callable[[Tree, jax.Array, jax.Array, jax.Array], jax.Array] | None = None
    tokens: Embed | None = None


@dataclasses.dataclass(frozen=True)
class BoundModel:
    """A model with its weights, inside `Encoders.apply`.

    Attributes:
      weights: any pytree; `dataclasses.replace(model, weights=…)` is the model with others, as with
        a word vector that is optimised.
      functions: see `Functions`.
    """

    weights: Tree
    functions: Functions

    def image(self, pixels: jax.Array) -> jax.Array:
        """pixels float [b, S, S, 3], normalised -> rows [b, D]."""
        return self.functions.image(self.weights, pixels)

    def text(self, tokens: jax.Array) -> jax.Array:
        """tokens int [b, T] -> rows [b, D]."""
        return self.functions.text(self.weights, tokens)

    def outputs(self, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """The model's named outputs of a batch of normalised inputs, not in training."""
        if self.functions.outputs is None:
            raise ConfigError("name", "needs a model that gives named outputs")
        return self.functions.outputs(self.weights, batch)


def apply(encoders: Encoders, function: Function, rows: tuple[np.ndarray | jax.Array, ...]) -> Tree:
    """`function(model, *rows)`, compiled once for each function and shape.

    Args:
      function: `(BoundModel, *some of the rows) -> pytree of [b, …]`; it must treat rows
        independently of each other, and be the same object at each call, else it is compiled again.
      rows: arrays [n, …]. Of numpy arrays `encoders.batch` rows are taken at a time, sharded over
        the mesh, the last ones repeated to fill a batch. Of jax arrays all are taken at once, and
        the result has a derivative with respect to them.

    Returns:
      numpy arrays [n, …], the same in every process; of jax arrays such arrays.

    Raises:
      ValueError: no rows, or of unequal lengths; a result that is not [b, …].
    """
    lengths = {jnp.shape(a)[:1] for a in rows}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(f"rows: lengths {sorted(lengths)} do not fit; must be equal and >= 1")
    n = lengths.pop()[0]
    compiled = _compiled(encoders, function)
    traced = any(isinstance(a, jax.core.Tracer) for a in rows)
    if not all(isinstance(a, np.ndarray) for a in rows):
        # A mesh can be set only where nothing is traced; there the caller has set it, or none.
        with contextlib.nullcontext() if traced else jax.set_mesh(encoders.mesh):
            return _checked(compiled(encoders.weights, *rows), n)
    parts = []
    with jax.set_mesh(encoders.mesh):
        for start in range(0, n, encoders.batch):
            taken = np.minimum(np.arange(start, start + encoders.batch), n - 1)
            batch = [put(a[taken], batch_sharding(encoders.mesh)) for a in rows]
            out = _checked(compiled(encoders.weights, *batch), encoders.batch)
            parts.append(jax.tree.map(lambda a: np.asarray(a)[: n - start], out))  # noqa: B023
    return jax.tree.map(lambda *a: np.concatenate(a), *parts)


def _compiled(encoders: Encoders, function: Function) -> Callable:
    if function not in encoders.applied:

        def run(weights: Tree, *rows: jax.Array) -> Tree:
            sharding = batch_sharding(encoders.mesh)
            if len(rows[0]) % batch_shards(encoders.mesh) == 0:
                rows = jax.lax.with_sharding_constraint(rows, (sharding,) * len(rows))
            return function(BoundModel(weights, encoders.functions), *rows)

        encoders.applied[function] = jax.jit(run, out_shardings=replicated(encoders.mesh))
    return encoders.applied[function]


def _checked(out: Tree, n: int) -> Tree:
    for leaf in jax.tree.leaves(out):
        if jnp.shape(leaf)[:1] != (n,):
            raise ValueError(
                f"function: a result of shape {jnp.shape(leaf)} for {n} rows; must be ({n}, …)"
            )
    return out


def of_output(
    outputs: Outputs | None,
    weights: Tree,
    name: str,
    given: tuple[str, jax.ShapeDtypeStruct],
    others: Mapping[str, jax.ShapeDtypeStruct],
) -> Embed:
    """`(weights, rows of one input) -> float32 rows of the model's output `name``.

    The model is called with zeros for its other inputs; what only they need is never computed.

    Args:
      outputs: see `Encoders`.
      weights: or their shapes.
      given: name and shape of the input.
      others: names and shapes of the other inputs.

    Raises:
      ConfigError: at `output`; the model has no such output, or it depends on another input.
    """
    if outputs is None:
        raise ConfigError("output", "needs a model that gives named outputs")
    own, shape = given

    def call(weights: Tree, rows: jax.Array, blanks: Mapping[str, jax.Array]) -> jax.Array:
        found = outputs(weights, {own: rows, **blanks})
        known = ", ".join(sorted(found))
        check(name in found, "output", f"{name!r} is not among the model's outputs ({known})")
        return found[name]

    rows = jax.eval_shape(call, weights, shape, others)
    one_each = rows.ndim >= 2 and rows.shape[0] == shape.shape[0]
    check(one_each, "output", f"{name!r} has shape {rows.shape}; must be one row for each {own}")
    jaxpr = jax.make_jaxpr(call)(weights, shape, others).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True])
    of_others = dict(zip(sorted(others), used[len(used) - len(others) :]))
    for other, is_used in of_others.items():
        check(not is_used, "output", f"{name!r} depends on {other}, not on {own} alone")

    def encode(weights: Tree, rows: jax.Array) -> jax.Array:
        blanks = {k: jnp.zeros((len(rows), *s.shape[1:]), s.dtype) for k, s in others.items()}
        return call(weights, rows, blanks).astype(jnp.float32)

    return encode
