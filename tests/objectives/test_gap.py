"""The contrastive gap: released equations in float64, and two towers of one shape that it moves
together."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from objective_checks import call, compare, embeddings, nce, same_on_a_mesh

from jaxvl.config import ConfigError
from jaxvl.objectives.clip import SymmetricSoftmax
from jaxvl.objectives.gap import ContrastiveGap


def example(b=7, d=5, seed=0):
    image, text = embeddings((b, d), (b, d), seed=seed)
    return {"image": image, "text": text, "log_scale": np.log(4.0)}


def potential(x, y, rate):
    """log mean over i != j."""
    distances = np.square(x[:, None] - y[None]).sum(-1)
    others = ~np.eye(len(x), dtype=bool)
    return np.log(np.exp(-rate * distances[others]).mean())


def released(o, uniformity=1.0, alignment=1.0, cross=1.0, rate=2.0):
    """The loss as in the authors' code, whose sums over i < j are those over i != j, halved."""
    u = o["image"]
    v = o["text"]
    return (
        nce(u, v, np.exp(o["log_scale"]))
        + uniformity * (potential(u, u, rate) + potential(v, v, rate)) / 2
        + alignment * np.square(u - v).sum(1).mean()
        + cross * potential(u, v, rate)
    )


@pytest.mark.parametrize(
    "options",
    [{}, dict(cross=0.0, rate=1.5), dict(uniformity=0.5, alignment=3.0)],
    ids=["all", "without cross", "weights"],
)
def test_released_equations(options):
    compare(ContrastiveGap(**options), example(), {}, lambda o: released(o, **options))


def test_without_weights_it_is_clip():
    outputs = {k: jnp.asarray(x, jnp.float32) for k, x in example().items()}
    objective = ContrastiveGap(uniformity=0.0, alignment=0.0, cross=0.0)
    want = call(SymmetricSoftmax(), outputs, {}).value
    np.testing.assert_allclose(call(objective, outputs, {}).value, want, rtol=1e-6)


def test_two_rows_and_equal_rows_are_finite():
    row = np.array([[1.0, 0.0]])
    outputs = {"image": np.repeat(row, 2, 0), "text": np.repeat(row, 2, 0), "log_scale": 0.0}
    compare(ContrastiveGap(), outputs, {}, released)  # every distance is 0


def test_devices():
    same_on_a_mesh(ContrastiveGap(), example(b=24), {})


def test_refusals():
    with pytest.raises(ConfigError, match=r"cross: -1.0 must be >= 0"):
        ContrastiveGap(cross=-1.0)
    with pytest.raises(ConfigError, match="rate: 0.0 must be > 0"):
        ContrastiveGap(rate=0.0)


# Two towers of one shape, both of which see the same things; only where they begin differs.

THINGS = 64
WIDTH = 32


def towers(objective, seed, steps=200):
    """Unit rows of both towers for things that they were not trained on, float32 [2, N, D]."""
    draw, left, right = jax.random.split(jax.random.key(seed), 3)
    things = jax.random.normal(draw, (4 * THINGS, 16))
    # A constant input is the cone that towers of many layers begin in.
    things = jnp.concatenate([things, jnp.full((4 * THINGS, 1), 6.0)], 1)
    unseen = things[:THINGS]
    seen = things[THINGS:]
    params = {
        "image": jax.random.normal(left, (17, WIDTH)) / 4,
        "text": jax.random.normal(right, (17, WIDTH)) / 4,
        "log_scale": jnp.float32(np.log(1 / 0.07)),
    }
    tx = optax.adam(1e-2)

    def embed(params, things):
        rows = {}
        for name in ("image", "text"):
            x = things @ params[name]
            rows[name] = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        return {**rows, "log_scale": jax.lax.stop_gradient(params["log_scale"])}

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(lambda p: objective(embed(p, seen), {}, {}, None)[0].value)(params)
        updates, state = tx.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, steps)
    rows = embed(params, unseen)
    return jnp.stack([rows["image"], rows["text"]])


def figures(objective):
    """(centroid distance, uniformity, recall at 1) of three seeds, float64 [3, 3]."""
    rows = jax.jit(jax.vmap(lambda seed: towers(objective, seed)))(jnp.arange(3))
    found = []
    for image, text in np.asarray(rows, np.float64):
        distance = np.linalg.norm(image.mean(0) - text.mean(0))
        spread = (potential(image, image, 2.0) + potential(text, text, 2.0)) / 2
        right = (image @ text.T).argmax(1) == np.arange(THINGS)
        found.append((distance, spread, right.mean()))
    return np.array(found)


@pytest.mark.slow
def test_gap_stays_under_clip_and_closes_with_the_terms():
    plain = figures(SymmetricSoftmax())
    added = figures(ContrastiveGap())
    print("clip", plain.round(3).tolist(), "gap", added.round(3).tolist())
    assert (plain[:, 0] > 0.03).all(), plain
    assert (added[:, 0] < 0.25 * plain[:, 0]).all(), (plain, added)
    assert (added[:, 1] < plain[:, 1]).all(), (plain, added)
    assert (added[:, 2] >= plain[:, 2] - 1 / THINGS).all(), (plain, added)
