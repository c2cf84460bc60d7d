"""The fusion head learns to tell pairs from hard negatives, from tokens of generated things."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxvl.before.hard_negatives import HardNegatives
from jaxvl.config import choose
from jaxvl.models import HEADS
from jaxvl.models.base import Encoded
from jaxvl.objectives import Context
from jaxvl.objectives.itm import Matching

B, D, COLOURS, SHAPES = 64, 24, 6, 8
STEPS = 600
HEAD = dict(name="fusion", depth=2, heads=2, hidden=48, negatives="negatives")


def tables():
    draw = np.random.default_rng(0).normal
    return [jnp.asarray(draw(size=(n, D)), jnp.float32) for n in (COLOURS, SHAPES)]


def things(key):
    """A batch of coloured shapes: two words, four patches with noise, and what is alike."""
    colours, shapes = tables()
    a, b, c = jax.random.split(key, 3)
    colour = jax.random.randint(a, (B,), 0, COLOURS)
    shape = jax.random.randint(b, (B,), 0, SHAPES)
    text = jnp.stack([colours[colour], shapes[shape]], 1)
    noise = 0.3 * jax.random.normal(c, (B, 4, D))
    image = (colours[colour] + shapes[shape])[:, None] + noise
    alike = jnp.concatenate([jnp.eye(COLOURS)[colour], jnp.eye(SHAPES)[shape]], 1) / jnp.sqrt(2.0)
    encoded = {"text": Encoded(text[:, 0], text), "image": Encoded(image[:, 0], image)}
    entries = {"momentum/image": alike, "momentum/text": alike}
    return encoded, {**entries, "group_id": colour * SHAPES + shape}


def learned(hook, steps=STEPS):
    """Accuracy of matching on fresh batches, after some steps with a hook's negatives."""
    head = choose(HEADS, HEAD, "head").build(dict(text=D, image=D), nnx.Rngs(params=0))
    graph, params = nnx.split(head)
    tx = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 50, steps))

    def loss(params, key, hook):
        encoded, batch = things(key)
        found = hook.whole(batch, key)
        batch |= {f"negatives/{name}": value for name, value in found.items()}
        model = nnx.merge(graph, params)
        outputs = model(encoded, batch, train=True, key=None, progress=None)
        outputs = {f"fusion/{name}": value for name, value in outputs.items()}
        where = Context(key, jnp.int32(0), jnp.float32(0))
        given, _ = Matching()(outputs, batch, {}, where)
        return given.value, given.metrics["accuracy"]

    def step(carry, key):
        params, state = carry
        (_, accuracy), slope = jax.value_and_grad(loss, has_aux=True)(params, key, hook)
        change, state = tx.update(slope, state, params)
        return (optax.apply_updates(params, change), state), accuracy

    keys = jax.random.split(jax.random.key(1), steps)
    (params, _), course = jax.jit(lambda c: jax.lax.scan(step, c, keys))((params, tx.init(params)))
    fresh = jax.random.split(jax.random.key(2), 20)
    hard = HardNegatives()
    final = jax.jit(lambda p: jax.lax.map(lambda key: loss(p, key, hard)[1], fresh).mean())(params)
    return float(final), np.asarray(course)


@pytest.mark.slow
def test_matching_is_learned_from_hard_negatives():
    """Nine of ten pairs and hard negatives are told apart; a constant answer is right for two of
    three."""
    accuracy, course = learned(HardNegatives())
    print(accuracy, course[::60])
    assert course[:20].mean() < 0.75
    assert accuracy > 0.9
