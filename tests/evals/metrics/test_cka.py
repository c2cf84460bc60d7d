"""CKA from blocks of rows against the definition with n x n kernels in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxvl.config import choose
from jaxvl.evals.metrics.cka import cka
from jaxvl.models import HEADS
from jaxvl.models.base import Encoded

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


# --------------------------------------------------------------------------------------------------
# Encoder pairs

CONCEPTS = 12  # numbers that picture and text have in common
NOISE = (0.1, 0.5, 1.0, 2.0)  # of image encoders, from the one that fits best


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pairs_are_ranked_as_projectors_between_them_are(seed):
    """Image encoders that see more or less of what the texts say: the larger CKA, the larger the
    R@1 of projectors on frozen features, on pairs that were not trained with."""
    rng = np.random.default_rng(seed)
    concepts = rng.normal(size=(1536, CONCEPTS))
    mix = lambda x, width: np.tanh(x @ rng.normal(size=(x.shape[1], width)) / 3).astype("f4")
    text = mix(concepts, 24)
    reads = ("image", "text")
    head = choose(HEADS, dict(name="token_projector", reads=reads, dim=32, dropout=0.0), "head")
    graph, first = nnx.split(
        head.build(dict(image=32, text=24), nnx.Rngs(params=seed), jnp.float32)
    )
    optimiser = optax.adamw(3e-3)

    def rows(params, image, text):
        encoded = {n: Encoded(x, x[:, None]) for n, x in dict(image=image, text=text).items()}
        module = nnx.merge(graph, params, copy=True)
        return module(encoded, {}, train=True, key=None, progress=None)

    def loss(params, image, text):
        found = rows(params, image, text)
        logits = 20 * found["image"] @ found["text"].T
        both = (jax.nn.log_softmax(logits, axis) for axis in (0, 1))
        return -sum(jnp.diagonal(x).mean() for x in both)

    @jax.jit
    def trained(params, image, text):
        def step(carry, batch):
            params, state = carry
            slope = jax.grad(loss)(params, image[batch], text[batch])
            change, state = optimiser.update(slope, state, params)
            return (optax.apply_updates(params, change), state), None

        batches = jax.random.randint(jax.random.key(seed), (200, 64), 0, 1024)
        (params, _), _ = jax.lax.scan(step, (params, optimiser.init(params)), batches)
        found = rows(params, image[1024:], text[1024:])
        return (found["image"] @ found["text"].T).argmax(1) == jnp.arange(512)

    recall, alike = [], []
    for noise in NOISE:
        seen = concepts + noise * rng.normal(size=concepts.shape)
        image = mix(seen, 32)
        recall.append(float(trained(first, jnp.asarray(image), jnp.asarray(text)).mean()))
        alike.append(cka(blocks(image, text, 100)).unbiased)
    print(seed, np.round(recall, 3), np.round(alike, 3), flush=True)
    assert recall == sorted(recall, reverse=True) and recall[0] > 2 * recall[-1]
    assert alike == sorted(alike, reverse=True)
