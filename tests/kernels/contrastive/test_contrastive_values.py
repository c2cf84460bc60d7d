"""Values and gradients of every implementation x target x kind against the float64 oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contrastive_cases import CASES, daily, diagonal, quick_jit, unit_rows
from contrastive_oracle import check, loss_and_gradients

from jaxvl.kernels.contrastive import (
    Chunked,
    Diagonal,
    PallasTpu,
    PallasTriton,
    contrastive_loss,
    pallas_tpu,
    pallas_triton,
)

SMALL_TPU = pallas_tpu.Tile(128, 128)
# The kernels run in Pallas' interpreter; with the smallest tiles that the chips take.
TILES = {
    "reference": "reference",
    "one_tile": "chunked",
    "many_tiles": Chunked(16, 24),
    "pallas_tpu": PallasTpu(SMALL_TPU, SMALL_TPU, interpret=True),
    "pallas_triton": PallasTriton(pallas_triton.Tile(16, 32, 16), segment=4096, interpret=True),
}


@functools.partial(quick_jit, static_argnames=("kind", "directions", "implementation"))
def value_and_gradients(
    u, v, log_scale, bias, targets, kind="softmax", directions="mean", implementation=None
):
    def loss(u, v, log_scale, bias):
        return contrastive_loss(
            u,
            v,
            log_scale,
            targets=targets,
            kind=kind,
            directions=directions,
            bias=bias,
            implementation=implementation,
        )

    value, grads = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(u, v, log_scale, bias)
    return value, *grads


def compare(
    u,
    v,
    log_scale,
    targets,
    dense,
    kind="softmax",
    directions="mean",
    bias=0.0,
    implementation=None,
    floor=1e-30,
):
    got = value_and_gradients(
        u, v, jnp.float32(log_scale), jnp.float32(bias), targets, kind, directions, implementation
    )
    want = loss_and_gradients(u, v, np.float32(log_scale), dense, kind, directions, bias)
    if kind == "softmax":
        assert got[-1] == 0.0, "the softmax does not change under a bias"
        got = got[:-1]
        want = want[:-1]
    check(got, want, log_scale, u.dtype.name, floor)
    assert got[0].dtype == jnp.float32 and got[1].dtype == u.dtype and got[2].dtype == v.dtype


def targets_by_implementation():
    """All cases in all implementations."""
    for case in CASES:
        yield from ((case, implementation) for implementation in ("reference", "many_tiles"))
        yield from (daily(case, name) for name in ("pallas_tpu", "pallas_triton"))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("case, implementation", targets_by_implementation())
def test_every_target(case, implementation, kind):
    build, ratio = CASES[case]
    rng = np.random.default_rng(0)
    m = 150 if implementation == "pallas_tpu" else 37  # more than one tile, not a multiple of it
    n = m * ratio
    d = 12
    targets, dense = build(m, n, rng)
    if case == "mask_keep" and implementation.startswith("pallas"):
        with pytest.raises(ValueError, match="cannot run: PairMask.keep=….*'chunked' take it"):
            value_and_gradients(
                *[jnp.ones((m, d))] * 2,
                jnp.float32(0),
                jnp.float32(0),
                targets,
                kind,
                implementation=TILES[implementation],
            )
        return
    if kind == "sigmoid" and case in ("soft_albef", "soft_masked", "soft_cwcl"):
        with pytest.raises(ValueError, match="similarity|weight"):
            value_and_gradients(
                *[jnp.ones((m, d))] * 2,
                jnp.float32(0),
                jnp.float32(0),
                targets,
                kind,
                implementation=TILES[implementation],
            )
        return
    u = unit_rows(rng, m, d)
    v = unit_rows(rng, n, d)
    compare(u, v, 2.0, targets, dense, kind, "sum", bias=-1.5, implementation=TILES[implementation])


SIZES = {1: "float32", 7: "bfloat16", 129: "bfloat16", 300: "float32"}


def sizes_and_types():
    """Every size in one type; in the other one it is slow."""
    for size, quick in SIZES.items():
        for dtype in ("float32", "bfloat16"):
            yield pytest.param(size, dtype, marks=[] if dtype == quick else [pytest.mark.slow])


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size, dtype", sizes_and_types())
def test_odd_sizes(size, dtype, kind):
    rng = np.random.default_rng(size)
    u = unit_rows(rng, size, 64, dtype)
    v = unit_rows(rng, size, 64, dtype, close_to=u)
    targets, dense = diagonal(size, size, rng, smoothing=0.1)
    floor = (
        1.0 if size == 1 and kind == "softmax" else 1e-30
    )  # one pair has no negatives: all gradients are zero
    for implementation in (
        "chunked",
        Chunked(128, 256),
        TILES["pallas_tpu"],
        PallasTriton(pallas_triton.Tile(64, 128, 32, stages=2), interpret=True),
    ):
        compare(
            u,
            v,
            np.log(10.0),
            targets,
            dense,
            kind,
            bias=-3.0,
            implementation=implementation,
            floor=floor,
        )


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("log_scale", [-5.0, 0.0, 4.6, 7.0])
def test_extreme_scales(log_scale, kind):
    rng = np.random.default_rng(3)
    u = unit_rows(rng, 65, 24)
    v = unit_rows(rng, 65, 24)
    targets, dense = diagonal(65, 65, rng)
    for implementation in (
        "reference",
        Chunked(32, 16),
        TILES["pallas_tpu"],
        TILES["pallas_triton"],
    ):
        compare(u, v, log_scale, targets, dense, kind, implementation=implementation)


@pytest.mark.parametrize("implementation", TILES)
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("what", ["all_equal", "all_zero", "huge_row", "huge_entry"])
def test_degenerate_inputs_stay_finite_and_right(what, kind, implementation):
    rng = np.random.default_rng(1)
    u = np.array(unit_rows(rng, 33, 16))
    v = np.array(unit_rows(rng, 33, 16))
    if what == "all_equal":
        u[:], v[:] = u[0], u[0]
    if what == "all_zero":
        u[:], v[:] = 0, 0
    if what == "huge_row":
        u[4] *= 1e4
    if what == "huge_entry":
        v[7, 3] = 3e7
    size = max(np.abs(u @ v.T).max(), 1.0)
    targets, dense = diagonal(33, 33, rng)
    got = value_and_gradients(
        jnp.asarray(u),
        jnp.asarray(v),
        jnp.float32(1.0),
        jnp.float32(0.0),
        targets,
        kind,
        implementation=TILES[implementation],
    )
    want = loss_and_gradients(u, v, np.float32(1.0), dense, kind)
    # Logits of the outlier's size carry a rounding error of that size.
    check(got[:4], want[:4], 1.0 + np.log(size), floor=1.0 if what == "all_equal" else 1e-30)


def test_close_to_convergence_keeps_digits():
    """A loss of 1e-4 at scale 10: the positive is folded into the pair gradients, whose halves
    cancel, before any rounding."""
    rng = np.random.default_rng(5)
    u = unit_rows(rng, 64, 128)
    v = unit_rows(rng, 64, 128, close_to=u)
    targets, dense = diagonal(64, 64, rng)
    log_scale = jnp.log(jnp.float32(14.0))
    want = loss_and_gradients(u, v, log_scale, dense)
    assert 1e-5 < want[0] < 1e-3
    got = value_and_gradients(
        u, v, log_scale, jnp.float32(0), targets, implementation=Chunked(32, 32)
    )
    assert (
        abs(got[0] - want[0]) < 3e-7
    )  # lse and positive as whole logits would each be rounded by 5e-7
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (u, v))
    got = value_and_gradients(
        *low, log_scale, jnp.float32(0), targets, implementation=Chunked(32, 32)
    )
    want = loss_and_gradients(*low, log_scale, dense)
    for a, b in zip(got[1:3], want[1:3], strict=True):
        assert np.abs(np.asarray(a, np.float64) - b).max() < 1e-2 * np.abs(b).max()


def test_float64_inputs_are_computed_in_float64():
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        u = unit_rows(rng, 21, 8, "float64")
        v = unit_rows(rng, 21, 8, "float64")
        targets, dense = diagonal(21, 21, rng, smoothing=0.1)
        for kind in ("softmax", "sigmoid"):
            want = loss_and_gradients(u, v, 3.0, dense, kind)
            for implementation in ("reference", Chunked(8, 8)):
                got = value_and_gradients(
                    u,
                    v,
                    jnp.float64(3.0),
                    jnp.float64(0.0),
                    targets,
                    kind,
                    implementation=implementation,
                )
                for a, b in zip(got[:4], want[:4], strict=True):
                    assert a.dtype == jnp.float64 and np.abs(a - b).max() < 1e-12 * max(
                        1, np.abs(b).max()
                    )


def test_mean_is_half_of_sum_and_log_scale_is_inverse_temperature():
    rng = np.random.default_rng(4)
    u = unit_rows(rng, 9, 8)
    v = unit_rows(rng, 9, 8)
    scale = jnp.log(1 / jnp.float32(0.07))
    mean, both = (
        value_and_gradients(u, v, scale, scale, Diagonal(), directions=d)[0]
        for d in ("mean", "sum")
    )
    logits = np.asarray(u, np.float64) @ np.asarray(v, np.float64).T / 0.07
    half = [np.mean(np.log(np.exp(x).sum(1)) - np.diag(x)) for x in (logits, logits.T)]
    np.testing.assert_allclose([mean, both], [sum(half) / 2, sum(half)], rtol=1e-5)


def test_a_target_may_be_traced_and_takes_no_gradient():
    rng = np.random.default_rng(6)
    u = unit_rows(rng, 8, 4)
    v = unit_rows(rng, 16, 4)
    moved = quick_jit(
        lambda offset: contrastive_loss(u, v, jnp.float32(1), targets=Diagonal(offset))
    )
    for offset in (0, 3, 8):
        want = loss_and_gradients(u, v, 1.0, diagonal(8, 16, rng, offset=offset)[1])[0]
        np.testing.assert_allclose(moved(offset), want, rtol=1e-5)
