"""Schedules against closed forms, optimisers against optax's own, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvl.config import ConfigError
from jaxvl.training.optim import OptimConfig, ema_decay, learning_rate, optimiser

AXES = {"image/kernel": ("embed", "mlp"), "image/bias": ("mlp",), "text/kernel": ("embed", "mlp")}


def parameters():
    keys = jax.random.split(jax.random.key(0), len(AXES))
    return {
        p: jax.random.normal(k, (4, 3) if len(a) == 2 else (3,))
        for k, (p, a) in zip(keys, AXES.items())
    }


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("linear", lambda t: 1 - (t - 10) / 90),
        ("cosine", lambda t: 0.5 * (1 + np.cos(np.pi * (t - 10) / 90))),
        ("rsqrt", lambda t: np.sqrt(10 / (t - 10 + 10))),
        ("constant", lambda t: 1.0),
    ],
)
def test_schedules(schedule, expected):
    rate = learning_rate(OptimConfig(lr=0.5, schedule=schedule, warmup=10), 100)
    for t in (10, 37, 99):
        np.testing.assert_allclose(rate(t), 0.5 * expected(t), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose([rate(t) for t in range(3)], [0.05, 0.1, 0.15], rtol=1e-5)


def test_cooldown_reaches_the_final_rate():
    rate = learning_rate(
        OptimConfig(lr=1.0, schedule="constant", warmup=0, cooldown=10, final_lr=0.1), 100
    )
    np.testing.assert_allclose([rate(80), rate(95), rate(100)], [1.0, 0.55, 0.1], rtol=1e-5)


def test_adamw_equals_optax():
    config = OptimConfig(name="adamw", b2=0.95, weight_decay=0.1, clip_norm=None)
    tx, _ = optimiser(config, AXES)
    theirs = optax.adamw(
        1.0, b2=0.95, weight_decay=0.1, mask={p: p.endswith("kernel") for p in AXES}
    )
    params = parameters()
    ours_state = tx.init(params)
    their_state = theirs.init(params)
    for i in range(3):
        grads = {p: jnp.sin(v + i) for p, v in params.items()}
        ours, ours_state = tx.update(grads, ours_state, params)
        expected, their_state = theirs.update(grads, their_state, params)
        for p in params:
            np.testing.assert_allclose(-ours[p], expected[p], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor", "lion", "muon"])
def test_every_optimiser_descends(name):
    tx, _ = optimiser(OptimConfig(name=name, weight_decay=0.01), AXES)
    params = parameters()
    loss = lambda p: sum(jnp.sum(v**2) for v in p.values())

    @jax.jit
    def step(params, state):
        update, state = tx.update(jax.grad(loss)(params), state, params)
        return {p: v - 0.02 * update[p] for p, v in params.items()}, state

    before = loss(params)
    state = tx.init(params)
    for _ in range(20):
        params, state = step(params, state)
    assert loss(params) < 0.9 * before


def test_muon_makes_matrices_orthogonal():
    tx, _ = optimiser(OptimConfig(name="muon", clip_norm=None), AXES)
    params = parameters()
    update, _ = tx.update({p: jnp.cos(v) for p, v in params.items()}, tx.init(params), params)
    values = np.linalg.svd(np.asarray(update["image/kernel"]), compute_uv=False)
    assert values.max() / values.min() < 2, "the singular values of a Muon update are nearly equal"


def test_frozen_and_scaled_parameters():
    config = OptimConfig(
        freeze="^text/|image/kernel", lr_scale=(("bias$", 0.5),), clip_norm=None, name="lion"
    )
    tx, trained = optimiser(config, AXES)
    assert trained == {"image/kernel": False, "image/bias": True, "text/kernel": False}
    params = {"image/bias": jnp.ones(3)}
    update, _ = tx.update({"image/bias": jnp.ones(3)}, tx.init(params), params)
    np.testing.assert_allclose(update["image/bias"], 0.5)  # Lion's update is a sign


def test_patterns_that_match_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"optim\.freeze: 'imgae' matches no parameter"):
        optimiser(OptimConfig(freeze="imgae"), AXES)
    with pytest.raises(ConfigError, match=r"decay: '\(' is not a regular expression"):
        OptimConfig(decay="(")


def test_ema_starts_short():
    np.testing.assert_allclose(
        [ema_decay(0.99, t) for t in (0, 10, 10_000)], [0.1, 11 / 20, 0.99], rtol=1e-6
    )
