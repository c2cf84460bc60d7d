"""Symile: contrast of three or more modalities at once."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxvl.config import check
from jaxvl.kernels.contrastive import Diagonal, PairMask, contrastive_loss
from jaxvl.objectives import OBJECTIVES, Loss, Masks, Objective, whole_rows


@OBJECTIVES.register("symile")
@dataclasses.dataclass(frozen=True)
class Symile(Objective):
    """Contrast by the multilinear inner product (Saporta et al. 2024, arXiv 2411.01053, eq. 4 and
    algorithm 1).

        L = mean over anchors a of  - mean_i log softmax_j(exp(log_scale) <a_i, b_j, c_j>)_i,    <a,
                                    b, c> = sum_d a_d b_d c_d

    It sees what no pair of modalities shows, as c = a xor b. `j = i` is the true tuple; the others
    are made of rows of the batch.

    Reads the outputs named by `modalities`: Float[Array, "B D"], and `scale`: Float[Array, ""];
    where it is there, `has_NAME` of the batch or, of an output such as `vision>text`, the output
    `has/vision`: Bool[Array, "B"]: a row that lacks a modality neither anchors nor competes.

    Attributes:
      modalities: names of three or more model outputs of one width.
      negatives: `n`: B - 1 of them, the rows of every other modality permuted independently; `n2`:
        all B^(M-1) - 1 tuples (M - 1 modalities other than the anchor), for small batches.
      scale: name of the model output that holds the log-scale.
      implementation: of `contrastive_loss`.
    """

    modalities: tuple[str, ...] = ("image", "text", "audio")
    negatives: Literal["n", "n2"] = "n"
    scale: str = "log_scale"
    implementation: str | None = None

    masks_missing: ClassVar[Masks] = "by batch"

    batch_keys: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        names = self.modalities
        check(
            len(set(names)) == len(names) >= 3,
            "modalities",
            f"{list(names)!r} must be three or more different outputs; for two use 'clip'",
        )

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.modalities, self.scale)

    def __call__(self, outputs, batch, state, context):
        rows = [outputs[name].astype(jnp.float32) for name in self.modalities]
        whole = whole_rows(outputs, batch, [name.split(">")[0] for name in self.modalities])
        metrics = {}
        losses = []
        for i, name in enumerate(self.modalities):
            others = [r for k, r in enumerate(rows) if k != i]
            make = self._shuffled if self.negatives == "n" else self._all
            columns, targets = make(others, whole, jax.random.fold_in(context.key, i))
            loss = contrastive_loss(
                rows[i],
                columns,
                outputs[self.scale],
                targets=targets,
                directions="rows",
                implementation=self.implementation,
            )
            losses.append(loss)
            metrics[f"{name}/loss"] = loss
        return Loss(sum(losses) / len(losses), metrics), state

    def _shuffled(
        self, others: Sequence[jax.Array], whole: jax.Array | None, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Columns: the B true tuples, of which a row sees its own, then B shuffled ones, of which
        it sees all but the one in its place."""
        b = len(others[0])
        keys = jax.random.split(key, len(others))
        orders = [jax.random.permutation(k, b) for k in keys]
        mixed = functools.reduce(operator.mul, (r[order] for r, order in zip(others, orders)))
        columns = jnp.concatenate([functools.reduce(operator.mul, others), mixed])
        place = jnp.arange(b)
        zero = jnp.zeros(b, jnp.int32)
        targets = PairMask(Diagonal(), row_group=zero, col_group=jnp.concatenate([zero + 1, zero]))
        targets = PairMask(
            targets, row_group=place, col_group=jnp.concatenate([zero - 1, place]), drop="same"
        )
        if whole is None:
            return columns, targets
        valid = functools.reduce(operator.and_, (whole[order] for order in orders))
        return columns, PairMask(
            targets, row_valid=whole, col_valid=jnp.concatenate([whole, valid])
        )

    def _all(
        self, others: Sequence[jax.Array], whole: jax.Array | None, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Columns: the B true tuples, then all others in the order of their indices."""
        del key
        b = len(others[0])
        grid = jnp.stack(jnp.meshgrid(*[jnp.arange(b)] * len(others), indexing="ij"), -1).reshape(
            -1, len(others)
        )
        true = (grid == grid[:, :1]).all(1)
        order = jnp.argsort(~true, stable=True)
        grid = grid[order]
        columns = functools.reduce(operator.mul, (r[grid[:, k]] for k, r in enumerate(others)))
        if whole is None:
            return columns, Diagonal()
        return columns, PairMask(Diagonal(), row_valid=whole, col_valid=whole[grid].all(1))
