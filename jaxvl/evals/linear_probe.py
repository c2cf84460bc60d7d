"""Linear probe: how well a linear classifier on frozen image embeddings tells classes apart."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxvl.config import Count, Weight, check
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.probing import ProbeOptions, expected_accuracy, hold_out
from jaxvl.evals.ranking import put
from jaxvl.sharding.mesh import batch_sharding, batch_shards, replicated


@EVALUATORS.register("linear_probe")
@dataclasses.dataclass(frozen=True)
class LinearProbe(ProbeOptions):
    """Multinomial logistic regression with an L2 penalty on frozen features, by L-BFGS on the whole
    mesh.

    Features are standardised (mean and deviation of each over the training images). The penalty is
    the one of the grid that is most accurate on a held-out part of the train source (equal ones:
    the strongest); the classifier is then fitted to all of it.

    Figures, of the test source: `acc@1`, `mean_class_acc@1` (every class weighs the same),
    `acc@1_chance`, `acc@1_majority` (of always saying the train source's commonest class),
    `classes`, `images`, `train_images`, `skipped/CAUSE`; `l2` that was chosen, `validation_acc@1`
    with it, `train_acc@1`, and `iterations` of the last fit. Equal scores count by the probability
    of the right one.

    Attributes:
      features: `embedding`: what is compared with texts; `mean_tokens`: the mean of the image
        encoder's tokens, before projections.
      l2: penalties to choose from: a / 2 |W|^2 beside the mean cross-entropy; the bias is free.
      validation: share of the train source that is held out to choose.
      iterations: most steps of one fit.
    """

    features: Literal["embedding", "mean_tokens"] = "embedding"
    l2: tuple[Weight, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    validation: float = 0.2
    iterations: Count = 500

    def __post_init__(self):
        super().__post_init__()
        check(
            len(self.l2) > 0 and min(self.l2) > 0,
            "l2",
            f"{self.l2!r} must be one penalty > 0 or several",
        )
        check(
            0 < self.validation < 1,
            "validation",
            f"{self.validation!r} is a share; must be in (0, 1)",
        )
        check(self.iterations >= 1, "iterations", f"{self.iterations!r} must be >= 1")

    @property
    def figures(self) -> tuple[str, ...]:
        return (*super().figures, "l2", "validation_acc@1", "iterations")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        super().check(encoders)
        if self.features == "embedding":
            encoders.check_embeds(texts=False)
        else:
            encoders.token_shape()

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises ConfigError for a label that a source does not have, DataError where there is
        nothing to learn from."""
        if self.features == "embedding":
            encode = lambda source, config: encoders.images(source, column=self.image, memo=config)
        else:
            encode = lambda source, _: encoders.features(source, mean=True, column=self.image)
        train, test, names = self.both(encode)
        mean = train.rows.mean(0, dtype=np.float64)
        deviation = train.rows.std(0, dtype=np.float64)
        ready = lambda rows: ((rows - mean) / np.where(deviation > 1e-6, deviation, 1.0)).astype(
            np.float32
        )
        x = ready(train.rows)
        held = hold_out(train.labels, self.validation)
        data = shard(x, train.labels, encoders.mesh)
        fit_part = functools.partial(
            fit, data, classes=len(names), iterations=self.iterations, mesh=encoders.mesh
        )
        chosen = max(self.l2)
        accuracy = 0.0
        start = None
        if held.any():
            accuracy = -1.0
            for l2 in sorted(
                self.l2, reverse=True
            ):  # from the strongest on; each fit starts where the last one ended
                start = fit_part(~held, l2, start=start)
                found = float(expected_accuracy(start.logits(x[held]), train.labels[held]).mean())
                if found > accuracy:
                    chosen = l2
                    accuracy = found
        last = fit_part(np.ones(len(x), bool), chosen, start=start)
        more = {
            "l2": chosen,
            "validation_acc@1": accuracy,
            "iterations": last.iterations,
            "train_acc@1": expected_accuracy(last.logits(x), train.labels).mean(),
        }
        return self.result(encoders, last.logits(ready(test.rows)), train, test, names, more)


class Fit(NamedTuple):
    """A fitted classifier: weight float32 [D, C], bias float32 [C], steps taken, and the largest
    entry of the gradient."""

    weight: np.ndarray
    bias: np.ndarray
    iterations: int
    gradient: float

    def logits(self, x: np.ndarray) -> np.ndarray:
        """[n, D] -> [n, C]."""
        return x @ self.weight + self.bias


class Sharded(NamedTuple):
    """x float32 [N, D], labels int32 [N] over the batch axes of the mesh, N padded; and how many
    rows are real."""

    x: jax.Array
    labels: jax.Array
    rows: int


def shard(x: np.ndarray, labels: np.ndarray, mesh: Mesh) -> Sharded:
    """Rows and labels on the mesh."""
    padding = -len(x) % batch_shards(mesh)
    place = lambda a: put(
        np.concatenate([a, np.zeros((padding, *a.shape[1:]), a.dtype)]), batch_sharding(mesh)
    )
    return Sharded(place(x), place(labels.astype(np.int32)), len(x))


def fit(
    data: Sharded,
    use: np.ndarray,
    l2: float,
    *,
    classes: int,
    iterations: int,
    mesh: Mesh,
    start: Fit | None = None,
) -> Fit:
    """Minimises mean cross-entropy + l2 / 2 |W|^2 over the rows that `use` (bool [rows]) allows.

    Stops where no entry of the gradient is above 1e-5, or after `iterations`. One compilation for
    all `use` and `l2`.
    """
    weights = np.zeros(len(data.x), np.float32)
    weights[: data.rows] = use / use.sum()
    first = (
        (np.zeros((data.x.shape[1], classes), np.float32), np.zeros(classes, np.float32))
        if start is None
        else start[:2]
    )
    with jax.set_mesh(mesh):
        first = tuple(put(a, replicated(mesh)) for a in first)
        weights = put(weights, batch_sharding(mesh))
        out = _minimise(
            data.x,
            data.labels,
            weights,
            put(np.float32(l2), replicated(mesh)),
            first,
            iterations,
            replicated(mesh),
        )
    weight, bias, steps, gradient = map(np.asarray, out)
    return Fit(weight, bias, int(steps), float(gradient))


@functools.partial(jax.jit, static_argnums=(5, 6))
def _minimise(x, labels, weights, l2, start, iterations, everywhere):
    def objective(params):
        weight, bias = params
        logits = jnp.matmul(x, weight, precision=jax.lax.Precision.HIGHEST) + bias
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.where(weights > 0, losses, 0.0) @ weights + l2 / 2 * jnp.square(weight).sum()

    solver = optax.lbfgs(memory_size=10)
    value_and_grad = optax.value_and_grad_from_state(objective)
    largest = lambda tree: jnp.maximum(*(jnp.abs(a).max() for a in tree))

    def going(carry):
        _, _, step, gradient = carry
        return (step < iterations) & (gradient > 1e-5)

    def body(carry):
        params, state, step, _ = carry
        value, gradient = value_and_grad(params, state=state)
        updates, state = solver.update(
            gradient, state, params, value=value, grad=gradient, value_fn=objective
        )
        return optax.apply_updates(params, updates), state, step + 1, largest(gradient)

    params, _, steps, gradient = jax.lax.while_loop(
        going, body, (start, solver.init(start), jnp.int32(0), jnp.float32(jnp.inf))
    )
    return jax.tree.map(
        lambda a: jax.lax.with_sharding_constraint(a, everywhere), (*params, steps, gradient)
    )
