"""Products of 8 bits: what stands in the program, how near they are, and first steps with them."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvl.config import ConfigError
from jaxvl.models.bert import BertConfig
from jaxvl.models.text import TextTransformerConfig
from jaxvl.models.vit import ViTConfig
from jaxvl.nn import quantized
from jaxvl.nn.quantized import project_quantized
from jaxvl.nn.transformer import Sizes, StackOptions, Transformer

needs_qwix = pytest.mark.skipif(
    importlib.util.find_spec("qwix") is None, reason="qwix is not installed"
)
FORMS = {"int8": ("i8", "i8"), "fp8": ("f8E4M3FN", "f8E5M2")}  # of values and of gradients


def drawn(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) for shape in shapes]


def on_steps(rows, columns, scales):
    """Float64 [rows, columns] whose largest number in each row and column is 127.5 steps, a step of
    row i being scales[i]; no other number lies in the middle between two."""
    rng = np.random.default_rng(rows)
    x = rng.integers(-120, 120, (rows, columns)) + rng.uniform(-0.4, 0.4, (rows, columns))
    for i in range(max(rows, columns)):
        x[i % rows, i % columns] = 127.5
    return x * np.reshape(scales, (-1, 1))


def rounded(x, scales):
    """The nearest of the steps -128 … 127."""
    scales = np.reshape(scales, (-1, 1))
    return np.clip(np.round(x / scales), -128, 127) * scales


@needs_qwix
def test_int8_products_are_those_of_rounded_operands():
    """Output and gradient of the input, each row with its own scale; the gradient of the kernel is
    of what was not rounded."""
    scales = 2.0 ** -np.arange(4, 10)
    x = on_steps(6, 16, scales)
    w = on_steps(16, 8, 2**-6)
    slope = on_steps(6, 8, scales)
    y, pull = jax.vjp(
        lambda x, w: project_quantized(x, w, "int8"), *(jnp.float32(a) for a in (x, w))
    )
    dx, dw = pull(jnp.float32(slope))
    kernel = rounded(w, 2**-6)
    np.testing.assert_allclose(y, rounded(x, scales) @ kernel, rtol=1e-5)
    np.testing.assert_allclose(dx, rounded(slope, scales) @ kernel.T, rtol=1e-5)
    np.testing.assert_allclose(dw, x.T @ slope, rtol=1e-4)
    assert np.abs(y - x @ w).max() > 1e-3


@needs_qwix
@pytest.mark.parametrize("quantize, error", [("int8", 0.02), ("fp8", 0.08)])
def test_products_of_8_bits_are_near(quantize, error):
    x, w, slope = (jnp.float32(a) for a in drawn((4, 9, 64), (64, 32), (4, 9, 32)))
    y, pull = jax.vjp(lambda x, w: project_quantized(x, w, quantize), x, w)
    want, want_pull = jax.vjp(jnp.matmul, x, w)
    for a, b in zip((y, *pull(slope)), (want, *want_pull(slope))):
        assert jnp.linalg.norm(a - b) < error * jnp.linalg.norm(b)


def products_of(quantize, **options):
    """Types of the operands of the products of a layer's gradient program."""
    options = StackOptions(quantize=quantize, **options)
    graphdef, params = nnx.split(Transformer(Sizes(16, 2, 2, 32), options, rngs=nnx.Rngs(0)))
    loss = lambda p, x: jnp.sum(nnx.merge(graphdef, p)(x) ** 2)
    text = jax.jit(jax.grad(loss)).lower(params, jnp.ones((2, 5, 16))).as_text()
    found = re.findall(r"stablehlo\.dot_general.*: \(tensor<([^>]*)>, tensor<([^>]*)>\)", text)
    return [tuple(shape.rpartition("x")[2] for shape in pair) for pair in found]


@needs_qwix
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("quantize", FORMS)
def test_the_program_has_them(quantize, remat):
    """Of the six maps of a layer, scanned: forward and of the input; `full` computes all but the
    last again. The attention's own products and the gradients of kernels are as before."""
    values, gradients = FORMS[quantize]
    found = products_of(quantize, remat=remat)
    plain = products_of(None, remat=remat)
    forward = 6 if remat == "none" else 11
    eight = [pair for pair in found if pair != ("f32", "f32")]
    assert sorted(eight) == sorted([(values, values)] * forward + [(gradients, values)] * 6)
    assert len(found) == len(plain) and set(plain) == {("f32", "f32")}


@needs_qwix
@pytest.mark.parametrize("quantize", FORMS)
def test_first_steps_are_near_those_without(quantize):
    """Gradient descent on a small tower."""
    x, target = (jnp.float32(a) for a in drawn((8, 5, 16), (8, 5, 16)))

    def losses(quantize):
        options = StackOptions(quantize=quantize)
        graphdef, params = nnx.split(Transformer(Sizes(16, 2, 2, 32), options, rngs=nnx.Rngs(0)))

        @jax.jit
        def step(params):
            loss = lambda p: jnp.mean((nnx.merge(graphdef, p)(x) - target) ** 2)
            value, slope = jax.value_and_grad(loss)(params)
            return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, slope)

        found = []
        for _ in range(20):
            value, params = step(params)
            found.append(float(value))
        return found

    plain = losses(None)
    near = losses(quantize)
    np.testing.assert_allclose(near, plain, rtol=0.03)
    assert near[-1] < 0.8 * near[0] and near != plain


@pytest.mark.parametrize("config", [ViTConfig, TextTransformerConfig, BertConfig])
def test_without_qwix_it_says_what_to_install(monkeypatch, config):
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: None)
    assert config().quantize is None
    with pytest.raises(ConfigError, match=r"^quantize: 'int8' needs qwix, .*jaxvl\[quant\]"):
        config(quantize="int8")
