"""The routers' losses and health as an objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvl.config import ConfigError, resolve
from jaxvl.nn.moe import MoeOutput
from jaxvl.objectives import OBJECTIVES


def test_weighted_losses_and_health():
    health = {
        "load": jnp.array([[0.5, 0.5, 0, 0], [0.25] * 4]),
        "dead": jnp.array([[0, 0, 1.0, 1], [0] * 4]),
        "dropped": jnp.array([0.2, 0.0]),
        "overflow": jnp.zeros(2),
        "entropy": jnp.ones(2),
        "load/vision": jnp.array([[1.0, 0, 0, 0]] * 2),
        "load/text": jnp.full((2, 4), 0.25),
        "weight/text": jnp.array([[0.1, 0.2, 0.3, 0.4], [0.3, 0.2, 0.1, 0.4]]),
    }
    outputs = MoeOutput(
        jnp.zeros((6, 3, 2)), {"balance": jnp.float32(2.0), "z": jnp.float32(3.0)}, health
    ).by_row()
    assert outputs["moe/loss/z"].shape == (6,) and outputs["moe/health/load"].shape == (6, 2, 4)
    objective = resolve(OBJECTIVES["routing"], dict(losses=dict(balance=0.01, z=0.1)))
    assert objective.reads == ("moe/loss/balance", "moe/loss/z")
    loss, _ = objective(outputs, {}, (), jax.random.key(0))
    np.testing.assert_allclose(loss.value, 0.01 * 2 + 0.1 * 3, rtol=1e-6)
    want = dict(
        balance=2, z=3, dead=2, dropped=0.1, load_most=2, load_entropy=(np.log(2) + np.log(4)) / 2
    )
    want |= {
        "load/0": 0.375,
        "load/3": 0.125,
        "load_entropy/vision": 0,
        "load_entropy/text": np.log(4),
    }
    want |= {"weight/text/0": 0.2, "weight/text/3": 0.4}
    for name, value in want.items():
        np.testing.assert_allclose(loss.metrics[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
    # Each example carries its share, so that the cotangents of a batch encoded in parts add up to
    # that of the whole.
    gradient = jax.grad(lambda o: objective(o, {}, (), None)[0].value)(outputs)
    np.testing.assert_allclose(gradient["moe/loss/z"], np.full(6, 0.1 / 6), rtol=1e-6)
    assert objective.__class__().reads == ()


def test_negative_weights_are_refused():
    with pytest.raises(ConfigError, match=r"losses.balance: -1.0 must be >= 0"):
        resolve(OBJECTIVES["routing"], dict(losses=dict(balance=-1.0)))
