"""The head that records are matched by: its outputs in float64, padding, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvl.config import ConfigError, choose
from jaxvl.models import HEADS
from jaxvl.models.base import Encoded

B, T, P, D, E, DIM = 3, 4, 5, 6, 7, 4
MASK = np.arange(T) < [[4], [2], [1]]


def head(**options):
    node = dict(name="entity_matching", dim=DIM, **options)
    widths = dict(image=E, image_2=E, text=D, text_2=D)
    return choose(HEADS, node, "head").build(widths, nnx.Rngs(params=0), jnp.float32)


def encoded(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {
        "image": Encoded(draw(B, E), draw(B, P, E)),
        "text": Encoded(draw(B, D), draw(B, T, D), jnp.asarray(MASK)),
    }


def call(module, given):
    return module(given, {}, train=False, key=None, progress=None)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_outputs_in_float64():
    module = head()
    flat = nnx.to_flat_state(nnx.state(module))
    p = {"/".join(map(str, path)): np.float64(v[...]) for path, v in flat}
    given = encoded()
    found = jax.jit(lambda e: call(module, e))(given)
    linear = lambda name, x: np.float64(x) @ p[f"{name}/kernel"] + p[f"{name}/bias"]
    for side, other in (("image", "text"), ("text", "image")):
        x, y = given[side], given[other]
        want = {
            "": unit(linear(f"{side}/whole", x.pooled)),
            "_wanted": unit(linear(f"{side}/wanted", x.pooled)),
            "_keys": linear(f"{side}/key", x.tokens),
            "_values": linear(f"{side}/value", x.tokens),
            "_queries": linear(f"{side}/query", x.tokens),
        }
        whole = linear(f"{side}/across", x.pooled)
        context = np.zeros((B, DIM))
        for i in range(B):
            tokens = linear(f"{other}/across", y.tokens[i])
            tokens = tokens if y.mask is None else tokens[MASK[i]]
            share = np.exp(linear("relate", tokens) @ whole[i])
            seen = np.maximum(linear("relate", share @ tokens / share.sum()), 0)
            a = whole[i] * np.tanh(linear("gate", whole[i])) + seen
            a = (a - a.mean()) / np.sqrt(a.var() + 1e-6)
            context[i] = unit(a * p["norm/scale"] + p["norm/bias"])
        for kind, value in (want | {"_context": context}).items():
            name = f"mention/{side}{kind}"
            np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=name)
    np.testing.assert_array_equal(found["mention/text_mask"], MASK)
    assert not any(name.startswith("entity/") for name in found)


def test_entities_are_read_by_the_same_parameters():
    module = head()
    mention, entity = encoded(0), encoded(1)
    both = {**mention, "image_2": entity["image"], "text_2": entity["text"]}
    found = call(module, both)
    alone = call(module, entity)
    for name, value in alone.items():
        np.testing.assert_array_equal(found[name.replace("mention", "entity")], value)


def test_what_is_refused():
    with pytest.raises(ConfigError, match="entity: .* must be an image and a text"):
        head(entity=("image_2",))
    with pytest.raises(ConfigError, match="entity: 'text_2' must be as wide as 'image'"):
        head(entity=("text_2", "image_2"))
