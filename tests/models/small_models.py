"""Shared by the tests of models."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import pytest

from jaxvl.config import choose
from jaxvl.interop.mapping import ConversionError
from jaxvl.interop.peers import peer
from jaxvl.models import MODELS, InputSpec
from jaxvl.models.functional import functional

INPUTS = InputSpec(image_size=32, text_length=12, vocab_size=50, pad_id=0, eos_id=1)

SMALL_VIT = dict(name="vit", variant="Ti/8", width=32, depth=2, heads=4)
SMALL_TEXT = dict(name="text_transformer", variant="Ti", width=24, depth=3, heads=2)
SMALL_NET = dict(
    name="efficientnet",
    stem=16,
    stages=("fused_r2_k3_s2_e2_o16", "mbconv_r2_k3_s2_e3_o24_se0.25"),
    drop_connect=0.0,
)
SMALL_BERT = dict(
    name="bert",
    variant="tiny",
    width=32,
    depth=3,
    heads=4,
    positions=16,
    dropout=0.0,
    attention_dropout=0.0,
)

ALIGN = dict(name="align", image=SMALL_NET, text=SMALL_BERT, init_temperature=0.1)
DUAL = dict(name="dual_encoder", image=SMALL_VIT, text=SMALL_TEXT, embed_dim=16)
MODELS_SMALL = {"align": ALIGN, "dual_encoder": DUAL}


@functools.cache
def _model(text, inputs, dtype, freeze):
    config = choose(MODELS, json.loads(text), "model")
    return functional(config, inputs, dtype, freeze), config


def model_of(node, inputs=INPUTS, dtype="float32", freeze=None):
    """(Functional, configuration) of a config node; kept, as tests ask for the same again."""
    return _model(json.dumps(node), inputs, dtype, freeze)


def count(node, inputs=INPUTS):
    """Parameters, without allocating any."""
    return sum(math.prod(s.shape) for s in model_of(node, inputs)[0].params.values())


def batch_of(size=8, inputs=INPUTS, seed=0):
    """Random images and texts with EOS and padding of several lengths."""
    keys = jax.random.split(jax.random.key(seed), 3)
    shape = (size, inputs.image_size, inputs.image_size, inputs.channels)
    lengths = jax.random.randint(keys[0], (size, 1), 3, inputs.text_length)
    column = jnp.arange(inputs.text_length)
    tokens = jax.random.randint(keys[1], (size, inputs.text_length), 2, inputs.vocab_size)
    tokens = jnp.where(
        column < lengths, tokens, jnp.where(column == lengths, inputs.eos_id, inputs.pad_id)
    )
    return dict(image=jax.random.normal(keys[2], shape), text=tokens)


def with_options(node, **changes):
    """`node` with `image.depth=3`-like changes (written `image__depth`)."""
    node = json.loads(json.dumps(node))
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = node
        for parent in parents:
            target = target[parent]
        target[last] = value
    return node


def torch_and_transformers():
    """Both modules; skips the test (or file) where they are not installed."""
    try:
        return peer("torch"), peer("transformers")
    except ConversionError as error:
        pytest.skip(str(error), allow_module_level=True)
