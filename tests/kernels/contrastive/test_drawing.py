"""Negatives drawn from similarities: how often each, never from the own group, the same however the
batch is cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxvl.kernels.contrastive import draw_negatives
from jaxvl.sharding.mesh import MeshConfig, batch_sharding, make_mesh

M, D = 8, 4
DRAWS = 3000
SCALE = 3.0
GROUP = np.array([0, 1, 2, 0, 3, 4, 5, 0])
rng = np.random.default_rng(0)
U, V = (
    x / np.linalg.norm(x, axis=1, keepdims=True)
    for x in rng.normal(size=(2, M, D)).astype(np.float32)
)


@functools.cache
def drawn():
    """int [DRAWS, 2, M]: columns of rows, rows of columns."""
    draw = lambda key: jnp.stack(draw_negatives(U, V, SCALE, jnp.asarray(GROUP), key))
    return np.asarray(
        jax.jit(lambda keys: jax.lax.map(draw, keys))(jax.random.split(jax.random.key(0), DRAWS))
    )


def expected(side):
    """Softmax over the rows of other groups, float64 [M, M]."""
    logits = SCALE * (U @ V.T).astype(np.float64)
    logits = logits if side == 0 else logits.T
    weight = np.where(GROUP[:, None] == GROUP[None], 0.0, np.exp(logits))
    return weight / weight.sum(1, keepdims=True)


@pytest.mark.parametrize("side", [0, 1])
def test_frequencies_are_the_softmax(side):
    share = expected(side)
    for row in range(M):
        seen = np.bincount(drawn()[:, side, row], minlength=M)
        possible = share[row] > 0
        assert seen[~possible].sum() == 0, "of the own group"
        found = stats.chisquare(seen[possible], DRAWS * share[row][possible])
        assert found.pvalue > 1e-5, (row, seen, DRAWS * share[row])
        uniform = stats.chisquare(seen[possible])
        assert uniform.pvalue < 1e-5, "the test could not tell it from a uniform draw"


def test_rows_draw_independently():
    """The same pair is drawn in both directions no more often than by chance."""
    rows, cols = drawn()[:, 0, 1], drawn()[:, 1, 2]
    together = np.mean((rows == 2) & (cols == 1))
    apart = expected(0)[1, 2] * expected(1)[2, 1]
    assert abs(together - apart) < 5 * np.sqrt(apart * (1 - apart) / DRAWS)


def test_blocks_and_devices_change_nothing():
    n = 32
    rng = np.random.default_rng(2)
    u, v = rng.normal(size=(2, n, D)).astype(np.float32)
    group = rng.integers(0, 12, n).astype(np.int32)
    key = jax.random.key(3)
    draw = jax.jit(draw_negatives, static_argnames="block")
    whole = draw(u, v, SCALE, group, key)
    for block in (5, 8):
        jax.tree.map(
            np.testing.assert_array_equal, draw(u, v, SCALE, group, key, block=block), whole
        )
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    with jax.set_mesh(mesh):
        there = [jax.device_put(x, batch_sharding(mesh)) for x in (u, v, group)]
        spread = draw(*there[:2], SCALE, there[2], key)
    jax.tree.map(np.testing.assert_array_equal, spread, whole)


def test_a_batch_of_one_group_has_no_negatives():
    found = draw_negatives(U, V, SCALE, jnp.zeros(M, jnp.int32), jax.random.key(0))
    for index in found:
        np.testing.assert_array_equal(index, -1)


def test_no_gradient_goes_through():
    draw = lambda u: sum(
        x.astype(jnp.float32).sum()
        for x in draw_negatives(u, V, SCALE, jnp.asarray(GROUP), jax.random.key(0))
    )
    np.testing.assert_array_equal(jax.grad(draw)(jnp.asarray(U)), 0.0)
