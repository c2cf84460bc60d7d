"""What the entry refuses, and that it says which argument and why."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvl.kernels.contrastive import (
    Chunked,
    Diagonal,
    KPerRow,
    Mixup,
    PairMask,
    SameId,
    SoftTargets,
    contrastive_loss,
    plan,
)

U = np.eye(4, 8, dtype=np.float32)


def call(u=U, v=U, log_scale=0.0, **options):
    return contrastive_loss(
        jnp.asarray(u),
        jnp.asarray(v),
        jnp.float32(log_scale) if np.ndim(log_scale) == 0 else log_scale,
        **options,
    )


@pytest.mark.parametrize(
    ("message", "options"),
    [
        (r"u: shape \(4,\) is not valid; must be \(rows, width\)", dict(u=U[:, 0])),
        (r"v: width 7 does not fit; must be u's width 8", dict(v=U[:, :7])),
        (r"u: dtype int32 is not valid", dict(u=U.astype(np.int32))),
        (r"log_scale: shape \(1,\) is not valid; must be a scalar", dict(log_scale=jnp.ones(1))),
        (r"bias: shape \(2,\)", dict(bias=jnp.ones(2))),
        (r"kind: 'hinge' is not valid; must be one of", dict(kind="hinge")),
        (r"directions: 'both' is not valid", dict(directions="both")),
        (r"implementation: 'cudnn' is not known; must be one of", dict(implementation="cudnn")),
        (r"collective: 'tree' is not valid", dict(collective="tree")),
        (r"mesh_axes: 'data' is a text", dict(mesh_axes="data")),
        (r"mesh_axes: 'model' is not an axis of the mesh", dict(mesh_axes=("model",))),
        (r"targets: .* must be Diagonal, SameId", dict(targets="diagonal")),
        (r"u: 4 rows, but v has only 3; Diagonal needs", dict(v=U[:3])),
        (r"offset: 1 is not valid for u of 4 and v of 4 rows", dict(targets=Diagonal(1))),
        (r"ids: shape \(3,\) does not fit; must be \(4,\)", dict(targets=SameId(np.arange(3)))),
        (
            r"ids: dtype float32 is not valid; must be an integer",
            dict(targets=SameId(np.zeros(4, np.float32))),
        ),
        (r"other: is required", dict(v=U[:2], targets=SameId(np.arange(4)))),
        (r"v: 4 rows do not fit; must be k \* rows of u = 2 \* 4 = 8", dict(targets=KPerRow(2))),
        (r"lam: shape \(2,\)", dict(targets=Mixup(np.arange(4), np.ones(2, np.float32)))),
        (r"p, q: shapes", dict(targets=SoftTargets(U[:3], U))),
        (r"similarity: 'softmax' targets", dict(targets=SoftTargets(U, U), kind="sigmoid")),
        (
            r"weight: \(1.0, 0.0\) is not valid for kind='sigmoid'",
            dict(
                targets=SoftTargets(U, U, 1.0, weight=(1.0, 0.0), similarity="linear"),
                kind="sigmoid",
            ),
        ),
        (r"keep: .* must be bool\(4, 4\)", dict(targets=PairMask(keep=np.ones((4, 4))))),
    ],
)
def test_wrong_arguments(message, options):
    with pytest.raises(ValueError, match=message):
        call(**options)


@pytest.mark.parametrize(
    ("message", "build"),
    [
        (
            r"label_smoothing: 1.0 is not valid; must be a Python number in \[0, 1\)",
            lambda: Diagonal(label_smoothing=1.0),
        ),
        (r"duplicates: 'drop' is not valid", lambda: SameId(np.arange(3), duplicates="drop")),
        (r"k: 0 is not valid", lambda: KPerRow(0)),
        (r"reduction: 'sum' is not valid", lambda: KPerRow(2, reduction="sum")),
        (r"columns: 'x' is not valid", lambda: Mixup(np.arange(3), 1.0, columns="x")),
        (r"weight: 1.5 is not valid", lambda: SoftTargets(U, U, weight=1.5)),
        (r"drop: 'all' is not valid", lambda: PairMask(drop="all")),
        (r"row_group, col_group: give both or neither", lambda: PairMask(row_group=np.arange(3))),
        (r"rows: 0 is not valid", lambda: Chunked(0)),
    ],
)
def test_wrong_targets(message, build):
    with pytest.raises(ValueError, match=message):
        build()


def test_targets_are_pytrees():
    for target in (
        Diagonal(),
        SameId(jnp.arange(3)),
        KPerRow(2),
        Mixup(jnp.arange(3), 0.5),
        SoftTargets(U, U),
        PairMask(SameId(jnp.arange(3))),
    ):
        leaves, tree = jax.tree.flatten(target)
        assert type(jax.tree.unflatten(tree, leaves)) is type(target)


def test_plan_says_what_runs():
    assert plan((4, 4, 8)).implementation == "chunked"
    assert plan((4, 4, 8), implementation="reference").implementation == "reference"
