"""Auxiliary losses and health in closed form."""

import jax
import jax.numpy as jnp
import moe_oracle as oracle
import numpy as np
import pytest
from flax import nnx

from jaxvl.nn.moe import ExpertChoice, TokenChoice, losses

REAL = jnp.ones((2, 8))


def test_z_loss_of_equal_logits():
    np.testing.assert_allclose(
        losses.router_z(jnp.full((2, 8, 4), 3.0), REAL), (3 + np.log(4)) ** 2, rtol=1e-6
    )
    half = REAL.at[:, 4:].set(0)
    logits = jnp.zeros((2, 8, 4)).at[:, 4:].set(100.0)  # what is padding does not count
    np.testing.assert_allclose(losses.router_z(logits, half), np.log(4) ** 2, rtol=1e-6)


def test_balance_is_one_where_even_and_all_experts_where_one_takes_all():
    even = jnp.full((2, 8, 4), 0.25)
    chosen = jax.nn.one_hot(jnp.arange(16).reshape(2, 8) % 4, 4)
    np.testing.assert_allclose(losses.balance(even, chosen, REAL), 1, rtol=1e-6)
    all_in_one = jax.nn.one_hot(jnp.zeros((2, 8), int), 4)
    np.testing.assert_allclose(losses.balance(all_in_one, all_in_one, REAL), 4, rtol=1e-6)
    np.testing.assert_allclose(
        losses.balance(even, 2 * chosen, REAL), 1, rtol=1e-6
    )  # two choices each
    # d/dP_te = E f_e / S: through the probabilities alone.
    gradient = jax.grad(lambda p: losses.balance(p, chosen[:1], REAL[:1]))(even[:1])
    np.testing.assert_allclose(gradient, 4 * 0.25 / 8 * np.ones((1, 8, 4)), rtol=1e-6)


def test_variation_of_known_amounts():
    np.testing.assert_allclose(losses.variation(jnp.array([[1.0, 3.0]])), (1 / 2) ** 2, rtol=1e-6)
    np.testing.assert_allclose(losses.importance(jnp.full((2, 8, 4), 0.25), REAL), 0, atol=1e-12)


def test_load_is_the_chance_to_stay_among_the_chosen():
    norm = pytest.importorskip("scipy.stats").norm
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(2, 8, 4))
    std = 0.3
    bar = np.sort(clean + std * rng.normal(size=clean.shape), -1)[..., -2]  # two are chosen
    load = norm.sf((bar[..., None] - clean) / std).sum(1)
    want = np.mean([g.var() / g.mean() ** 2 for g in load])
    np.testing.assert_allclose(
        losses.load(jnp.asarray(clean, jnp.float32), jnp.asarray(bar, jnp.float32), std, REAL),
        want,
        rtol=1e-4,
    )


def test_entropies_of_limoe():
    sure = jax.nn.one_hot(jnp.arange(16).reshape(2, 8) % 4, 4)
    np.testing.assert_allclose(losses.local_entropy(sure, REAL), 0, atol=1e-6)
    np.testing.assert_allclose(
        losses.local_entropy(jnp.full((2, 8, 4), 0.25), REAL), np.log(4), rtol=1e-6
    )
    np.testing.assert_allclose(losses.global_entropy(sure, REAL), -np.log(4), rtol=1e-6)
    np.testing.assert_allclose(
        losses.global_entropy(sure, REAL, np.log(3)), 0, atol=1e-6
    )  # more than three are in use: enough
    one = jax.nn.one_hot(jnp.zeros((2, 8), int), 4)
    np.testing.assert_allclose(losses.global_entropy(one, REAL, np.log(3)), np.log(3), rtol=1e-6)
    # A group without tokens of a modality does not count.
    np.testing.assert_allclose(
        losses.global_entropy(sure, REAL.at[1].set(0)), -np.log(4), rtol=1e-6
    )
    assert losses.local_entropy(sure, 0 * REAL) == 0
    assert np.isfinite(jax.grad(lambda p: losses.local_entropy(p, REAL))(one)).all()


def test_noise_is_a_function_of_the_key_and_gives_the_load_loss():
    graphdef, params = oracle.layer_of(TokenChoice(top=2, noise=1.0))
    x = jax.random.normal(jax.random.key(0), (2, 12, oracle.D))
    run = oracle.quick_jit(lambda key: nnx.merge(graphdef, params)(x, train=True, key=key))
    a = run(jax.random.key(1))
    again = run(jax.random.key(1))
    b = run(jax.random.key(2))
    np.testing.assert_array_equal(a.y, again.y)
    assert np.abs(a.y - b.y).max() > 1e-3 and a.losses["load"] > 0
    with pytest.raises(ValueError, match="key: None, but the router's noise"):
        jax.eval_shape(lambda x: nnx.merge(graphdef, params)(x, train=True), x)


def test_health_of_a_router_that_sends_everything_to_one_expert():
    graphdef, params = oracle.layer_of(
        TokenChoice(capacity_factor=1.0), modalities=("image", "text")
    )
    weights = {"/".join(p): v for p, v in nnx.to_flat_state(params)}
    column = jnp.zeros((oracle.D, oracle.E)).at[:, 2].set(50.0)
    weights["router/map/kernel"][...] = column
    x = jnp.ones((2, 12, oracle.D))
    health = oracle.quick_jit(
        lambda x: nnx.merge(graphdef, params)(x, modality=jnp.array([[0], [1]])).health
    )(x)
    np.testing.assert_array_equal(health["load"], [0, 0, 1, 0])
    np.testing.assert_array_equal([health["load/image"], health["load/text"]], [[0, 0, 1, 0]] * 2)
    np.testing.assert_allclose(health["dropped"], 1 - 3 / 12)  # capacity 12 / 4
    np.testing.assert_allclose(health["overflow"], 1 - 3 / 12)
    np.testing.assert_array_equal(health["dead"], [1, 1, 0, 1])
    assert health["entropy"] < 1e-6


def test_health_by_modality_where_experts_choose():
    graphdef, params = oracle.layer_of(ExpertChoice(), modalities=("image", "text", "sound"))
    dict((("/".join(p), v) for p, v in nnx.to_flat_state(params)))["router/map/kernel"][...] = (
        jnp.eye(oracle.D, oracle.E) * 9
    )
    x = jnp.repeat(jnp.eye(oracle.D)[:4], 3, axis=0)[None]  # three tokens for each expert
    modality = jnp.array([[0] * 6 + [1] * 6])
    health = oracle.quick_jit(lambda x: nnx.merge(graphdef, params)(x, modality=modality).health)(x)
    np.testing.assert_allclose(health["load"], [0.25] * 4)
    np.testing.assert_allclose(
        [health[f"load/{m}"] for m in ("image", "text", "sound")],
        [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0] * 4],
    )
    assert health["dropped"] == 0 and not health["dead"].any()


def test_the_weight_tells_specialists_where_experts_choose_within_one_modality():
    graphdef, params = oracle.layer_of(ExpertChoice(), modalities=("image", "text"))
    dict((("/".join(p), v) for p, v in nnx.to_flat_state(params)))["router/map/kernel"][...] = (
        jnp.eye(oracle.D, oracle.E) * 9
    )
    x = jnp.eye(oracle.D)[None, jnp.full(8, 2)]  # eight tokens that are all for the third expert
    health = oracle.quick_jit(
        lambda x: nnx.merge(graphdef, params)(x, modality=jnp.zeros((1, 8), int)).health
    )(x)
    np.testing.assert_allclose(
        [health["load/image"], health["load/text"]], [[0.25] * 4, [0] * 4]
    )  # each takes two of them all the same
    probs = np.exp([0, 0, 9.0, 0])
    np.testing.assert_allclose(
        [health["weight/image"], health["weight/text"]], [probs / probs.sum(), [0] * 4], rtol=1e-5
    )
