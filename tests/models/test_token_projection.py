"""Tokens in a space of their own: a map of each input's, unit vectors, masks."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvl.config import ConfigError
from jaxvl.models.base import Encoded
from jaxvl.models.heads.token_projection import TokenProjectionConfig


def test_every_token_is_mapped_to_a_unit_vector():
    widths = {"image": 5, "text": 7}
    config = TokenProjectionConfig(reads=("image", "text"), dim=3)
    head = config.build(widths, nnx.Rngs(params=0))
    rng = np.random.default_rng(0)
    tokens = {name: rng.normal(size=(2, 4, width)) for name, width in widths.items()}
    mask = np.arange(4) < np.array([[4], [2]])
    encoded = {
        name: Encoded(jnp.float32(x[:, 0]), jnp.float32(x), mask if name == "text" else None)
        for name, x in tokens.items()
    }
    found = head(encoded, {}, train=True, key=None, progress=None)
    assert found.keys() == {"image", "text", "text_mask"}
    np.testing.assert_array_equal(found["text_mask"], mask)
    for name, x in tokens.items():
        want = x @ np.float64(head.map[name].kernel[...])
        want /= np.linalg.norm(want, axis=-1, keepdims=True)
        np.testing.assert_allclose(found[name], want, atol=1e-5)
    with pytest.raises(ConfigError, match="reads: 'image' must be a list of inputs"):
        TokenProjectionConfig(reads="image")
