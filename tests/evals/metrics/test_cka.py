"""CKA from blocks of rows against the definition with n x n kernels in float64."""

import numpy as np
import pytest

from jaxvl.evals.metrics.cka import cka

RNG = np.random.default_rng(0)
N = 40
X = RNG.normal(size=(N, 7)) @ RNG.normal(size=(7, 7)) + 5
Y = np.concatenate([X[:, :3] ** 2, RNG.normal(size=(N, 2))], 1) - 3


def blocks(x, y, size=9):
    return ((x[i : i + size], y[i : i + size]) for i in range(0, len(x), size))


def hsic(k, other):
    """tr(K H L H), H = I - 1/n."""
    h = np.eye(len(k)) - 1 / len(k)
    return np.trace(k @ h @ other @ h)


def hsic_1(k, other):
    """Song et al. 2012, equation 5, as it is written there."""
    n = len(k)
    k, other = (a * (1 - np.eye(n)) for a in (k, other))
    one = np.ones(n)
    total = np.trace(k @ other)
    total += (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * one @ k @ other @ one) / (n * (n - 3))


def reference(estimate, x, y):
    k, other = x @ x.T, y @ y.T
    return estimate(k, other) / np.sqrt(estimate(k, k) * estimate(other, other))


@pytest.mark.parametrize("size", [1, 9, 100])
def test_blocks_give_what_the_whole_kernels_give(size):
    found = cka(blocks(X, Y, size))
    np.testing.assert_allclose(found.linear, reference(hsic, X, Y), rtol=1e-10)
    np.testing.assert_allclose(found.unbiased, reference(hsic_1, X, Y), rtol=1e-10)
    assert 0.05 < found.linear < 0.95


def test_what_leaves_it_alone():
    """Itself, rotations, a shift and a scale; another map than those does not."""
    rotation = np.linalg.qr(RNG.normal(size=(7, 7)))[0]
    same = cka(blocks(X, X))
    np.testing.assert_allclose([same.linear, same.unbiased], 1, rtol=1e-12)
    turned = cka(blocks(X, 3 * X @ rotation + 1e3))
    np.testing.assert_allclose([turned.linear, turned.unbiased], 1, rtol=1e-8)
    plain = cka(blocks(X, Y))
    moved = cka(blocks(2 * X @ rotation - 4, Y))
    np.testing.assert_allclose([moved.linear, moved.unbiased], [plain.linear, plain.unbiased])
    stretched = cka(blocks(X * np.linspace(0.1, 10, 7), Y))
    assert abs(stretched.linear - plain.linear) > 0.01


def test_unrelated_features_of_many_columns_are_near_0_without_bias():
    x, y = RNG.normal(size=(30, 60)), RNG.normal(size=(30, 60))
    found = cka(blocks(x, y))
    assert found.linear > 0.5 and abs(found.unbiased) < 0.2


def test_half_precision_far_from_0_loses_nothing():
    x, y = ((a + 500).astype(np.float16) for a in (X, Y))
    expected = reference(hsic, *(np.float64(a) - 500 for a in (x, y)))
    np.testing.assert_allclose(cka(blocks(x, y)).linear, expected, rtol=1e-9)


def test_what_has_no_alignment():
    for x, y, problem in (
        (X[:3], Y[:3], "3 rows; must be at least 4"),
        (X[:0], Y[:0], "0 rows"),
        (np.ones((9, 2)), Y[:9], "do not vary"),
        (X[:9], Y[:8], "a block of 9 rows has 8"),
    ):
        with pytest.raises(ValueError, match=problem):
            cka([(x, y)])
