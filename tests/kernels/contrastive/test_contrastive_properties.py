"""What holds for any input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from contrastive_cases import quick_jit, unit_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvl.kernels.contrastive import (
    Chunked,
    Diagonal,
    KPerRow,
    Mixup,
    SameId,
    SoftTargets,
    contrastive_loss,
)

sizes = st.sampled_from([1, 3, 9])
seeds = st.integers(0, 2**31)
scales = st.floats(-5, 7)
kinds = st.sampled_from(["softmax", "sigmoid"])
quick = settings(max_examples=15, deadline=None)


def rows(seed, n, d=5):
    rng = np.random.default_rng(seed)
    return unit_rows(rng, n, d), unit_rows(rng, n, d), rng


@functools.partial(quick_jit, static_argnames=("implementation", "kind"))
def compiled(u, v, log_scale, targets, bias, implementation, kind):
    return contrastive_loss(
        u, v, log_scale, targets=targets, bias=bias, implementation=implementation, kind=kind
    )


@functools.partial(quick_jit, static_argnames=("implementation", "kind"))
def downhill(u, v, log_scale, targets, bias, implementation, kind):
    return jax.value_and_grad(compiled.__wrapped__, (0, 1))(
        u, v, log_scale, targets, bias, implementation, kind
    )


def loss(
    u, v, log_scale, implementation=Chunked(4, 8), targets=Diagonal(), bias=0.0, kind="softmax"
):
    return float(
        compiled(u, v, jnp.float32(log_scale), targets, jnp.float32(bias), implementation, kind)
    )


def near(a, b, log_scale):
    assert abs(a - b) <= 1e-5 * max(1, abs(a)) + 2.0**-22 * np.exp(log_scale), (a, b)


@quick
@given(seeds, sizes, scales, kinds, st.sampled_from([0.0, 0.3]))
def test_tiles_do_not_change_the_loss(seed, n, log_scale, kind, smoothing):
    u, v, rng = rows(seed, n)
    targets = SameId(jnp.asarray(rng.integers(0, 5, n)), label_smoothing=smoothing)
    one = loss(u, v, log_scale, "reference", kind=kind, targets=targets)
    near(one, loss(u, v, log_scale, kind=kind, targets=targets), log_scale)
    assert np.isfinite(one)


@quick
@given(seeds, sizes, scales, kinds)
def test_order_of_the_batch_does_not_matter(seed, n, log_scale, kind):
    u, v, rng = rows(seed, n)
    order = rng.permutation(n)
    near(
        loss(u, v, log_scale, kind=kind), loss(u[order], v[order], log_scale, kind=kind), log_scale
    )


@quick
@given(seeds, sizes, scales, kinds)
def test_sides_can_be_swapped(seed, n, log_scale, kind):
    u, v, _ = rows(seed, n)
    near(loss(u, v, log_scale, kind=kind), loss(v, u, log_scale, kind=kind), log_scale)


@quick
@given(seeds, sizes, scales, kinds)
def test_targets_that_mean_the_same_agree(seed, n, log_scale, kind):
    u, v, rng = rows(seed, n)
    plain = loss(u, v, log_scale, kind=kind)
    p = unit_rows(rng, n, 3)
    q = unit_rows(rng, n, 3)
    for targets in (
        SameId(jnp.arange(n)),
        SameId(jnp.arange(n), duplicates="mask"),
        KPerRow(1),
        Mixup(jnp.asarray(rng.permutation(n)), 1.0),
        SoftTargets(p, q, weight=0.0, similarity="linear"),
    ):
        near(plain, loss(u, v, log_scale, kind=kind, targets=targets), log_scale)


@quick
@given(seeds, st.sampled_from([2, 9]), st.floats(-3, 4))
def test_softmax_is_not_negative_and_blind_to_a_shift(seed, n, log_scale):
    u, v, _ = rows(seed, n)
    value = loss(u, v, log_scale)
    assert value >= 0
    near(value, loss(u, v, log_scale, bias=3.0), log_scale)
    assert loss(u, v, log_scale, targets=SameId(jnp.zeros(n, jnp.int32), duplicates="mask")) == 0


@quick
@given(seeds, st.sampled_from([2, 7]), st.floats(0.0, 2.0), kinds)
def test_a_step_against_the_gradient_lowers_the_loss(seed, n, log_scale, kind):
    u, v, _ = rows(seed, n)

    options = (Diagonal(label_smoothing=0.1), jnp.float32(0.0), Chunked(4, 8), kind)
    value, (du, dv) = downhill(u, v, jnp.float32(log_scale), *options)
    slope = float(jnp.vdot(du, du) + jnp.vdot(dv, dv))
    step = 1e-3
    after = compiled(u - step * du, v - step * dv, jnp.float32(log_scale), *options)
    assert float(after) <= float(value) - 0.5 * step * slope + 1e-6 * abs(float(value))
