"""Log-sum-exp of each row and column, against float64, on every implementation that this machine
has, and on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contrastive_cases import quick_jit, unit_rows
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxvl.kernels.contrastive import (
    Chunked,
    PairMask,
    PallasTpu,
    SameId,
    Unpaired,
    contrastive_logsumexp,
    contrastive_loss,
)

M = 21
N = 34
SCALE = 1.5
CHUNKED = Chunked(8, 16)
INTERPRETED = PallasTpu(interpret=True)


def example(case):
    """u, v, targets, and bool [M, N]: which pairs compete."""
    rng = np.random.default_rng(0)
    u = np.asarray(unit_rows(rng, M, 6))
    v = np.asarray(unit_rows(rng, N, 6))
    keep = np.ones((M, N), bool)
    targets = Unpaired()
    if case != "all":
        row_valid = rng.random(M) < 0.7
        col_valid = rng.random(N) < 0.7
        targets = Unpaired(jnp.asarray(row_valid), jnp.asarray(col_valid))
        keep &= row_valid[:, None] & col_valid
    if case == "groups":
        row = rng.integers(0, 4, M)
        col = rng.integers(0, 4, N)
        targets = PairMask(
            targets, row_group=jnp.asarray(row), col_group=jnp.asarray(col), drop="same"
        )
        keep &= row[:, None] != col
    return u, v, targets, keep


def expected(u, v, keep):
    """In float64: both directions, and the gradients of a weighted sum of them; 0 for a row that
    has nothing to compare."""
    s = np.exp(np.float64(SCALE)) * u.astype(np.float64) @ v.astype(np.float64).T
    e = np.where(keep, np.exp(s), 0.0)
    sides = [np.log(np.where(t > 0, t, 1.0)) for t in (e.sum(1), e.sum(0))]
    share = lambda axis: np.divide(
        e, e.sum(axis, keepdims=True), out=np.zeros_like(e), where=e.sum(axis, keepdims=True) > 0
    )
    ds = share(1) * np.arange(M)[:, None] + share(0) * np.arange(N)
    return *sides, np.exp(SCALE) * ds @ v, np.exp(SCALE) * ds.T @ u, (ds * s).sum()


def got(u, v, targets, mesh=None, **options):
    @quick_jit
    def step(u, v, log_scale, targets):
        def total(u, v, log_scale):
            row, col = contrastive_logsumexp(u, v, log_scale, targets=targets, **options)
            return row @ jnp.arange(M) + col @ jnp.arange(N), (row, col)

        (_, sides), grads = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(
            u, v, log_scale
        )
        return *sides, *grads

    if mesh is None:
        return step(u, v, jnp.float32(SCALE), targets)
    with jax.set_mesh(mesh):
        return step(u, v, jnp.float32(SCALE), targets)


def compare(have, want):
    for a, b in zip(have, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * max(np.abs(b).max(), 1e-3))


@pytest.mark.parametrize("case", ["all", "valid", "groups"])
@pytest.mark.parametrize("implementation", [CHUNKED, INTERPRETED], ids=["chunked", "pallas"])
def test_equals_float64(case, implementation):
    u, v, targets, keep = example(case)
    compare(got(u, v, targets, implementation=implementation), expected(u, v, keep))


@pytest.mark.parametrize("case", ["all", "groups"])
@pytest.mark.parametrize("collective", ["ring", "gather", "grid"])
def test_on_a_mesh_that_does_not_divide_the_rows(case, collective):
    u, v, targets, keep = example(case)
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    compare(
        got(u, v, targets, mesh, implementation=CHUNKED, collective=collective),
        expected(u, v, keep),
    )


def test_what_it_does_not_do_is_refused():
    u, v, _, _ = example("all")
    with pytest.raises(ValueError, match="'reference' has no log-sum-exp"):
        contrastive_logsumexp(u, v, jnp.float32(0), implementation="reference")
    with pytest.raises(ValueError, match="Unpaired is of kind='softmax'"):
        contrastive_loss(
            u, u, jnp.float32(0), targets=Unpaired(), kind="sigmoid", bias=jnp.float32(0)
        )
    with pytest.raises(ValueError, match="targets: SameId is not valid; must be Unpaired"):
        contrastive_logsumexp(u, u, jnp.float32(0), targets=SameId(jnp.arange(M)))
    with pytest.raises(ValueError, match="row_valid, col_valid: PairMask cannot have them here"):
        contrastive_logsumexp(
            u, u, jnp.float32(0), targets=PairMask(Unpaired(), row_valid=jnp.ones(M, bool))
        )
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    inside = jax.shard_map(
        lambda u: contrastive_logsumexp(u, u, jnp.float32(0))[0],
        in_specs=P("data"),
        out_specs=P("data"),
    )
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="not for the inside of shard_map"):
        jax.eval_shape(inside, jax.ShapeDtypeStruct((16, 6), jnp.float32))


@pytest.mark.parametrize("implementation", [CHUNKED, INTERPRETED], ids=["chunked", "pallas"])
def test_a_row_with_nothing_to_compare_has_no_gradient(implementation):
    u, v, _, _ = example("all")
    row = jnp.zeros(M, int).at[3].set(1)
    col = jnp.zeros(N, int)
    targets = PairMask(
        Unpaired(), row_group=row, col_group=col, drop="same"
    )  # only row 3 may be compared

    def finite(u, v):
        sides = contrastive_logsumexp(
            u, v, jnp.float32(SCALE), targets=targets, implementation=implementation
        )
        return sum(jnp.maximum(side, -1e30).sum() for side in sides), sides

    (du, dv), (rows, cols) = jax.grad(finite, (0, 1), has_aux=True)(jnp.asarray(u), jnp.asarray(v))
    assert np.flatnonzero(np.isfinite(rows)).tolist() == [3] and np.isfinite(cols).all()
    assert np.flatnonzero(np.abs(du).sum(1)).tolist() == [3] and np.isfinite(dv).all()
