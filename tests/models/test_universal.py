"""OneEncoder's universal projection: values and slopes against float64, modalities that join."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvl.config import ConfigError, choose
from jaxvl.models import HEADS
from jaxvl.models.base import Encoded

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
B, T, D, HEADS_OF = 3, 4, 6, 2
MASK = np.arange(T) < np.array([4, 2, 1])[:, None]
NODE = dict(name="universal", dim=D, depth=2, heads=HEADS_OF, hidden=9, dropout=0.0)
WIDTHS = dict(image=5, text=7)


def built(reads=("image", "text"), **options):
    """The head's graph and parameters, none of them 0."""
    widths = {name: WIDTHS.get(name, 3) for name in reads}
    config = choose(HEADS, dict(NODE, reads=reads, **options), "head")
    graph, params = nnx.split(config.build(widths, nnx.Rngs(params=0), jnp.float32))
    rng = np.random.default_rng(1)
    moved = lambda v: v + 0.2 * rng.normal(size=v.shape).astype(np.float32)
    return graph, jax.tree.map(moved, params)


def called(graph, params, tokens):
    head = nnx.merge(graph, params, copy=True)
    mean = lambda x: x.mean(1)
    encoded = {n: Encoded(mean(x), x, jnp.asarray(MASK)) for n, x in tokens.items()}
    return head(encoded, {}, train=True, key=None, progress=None)


def by_path(state):
    return {"/".join(map(str, k)): np.float64(v[...]) for k, v in nnx.to_flat_state(state)}


def gelu64(x):
    from scipy.special import erf

    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def norm64(p, name, x, layer=None):
    scale, bias = (p[f"{name}/{part}"] for part in ("scale", "bias"))
    if layer is not None:
        scale, bias = scale[layer], bias[layer]
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale + bias


def softmax64(scores, axis=-1):
    weight = np.exp(scores - scores.max(axis, keepdims=True))
    return weight / weight.sum(axis, keepdims=True)


def layer64(p, x, i):
    """A post-norm layer of ReLU, as torch's TransformerEncoderLayer."""
    at = lambda path: p[f"shared/transformer/blocks/{path}"][i]
    q, k, v = (
        np.einsum("btd,dhk->bthk", x, at(f"attention/{n}/kernel")) + at(f"attention/{n}/bias")
        for n in ("query", "key", "value")
    )
    scores = np.einsum("bihk,bjhk->bhij", q, k) / np.sqrt(D / HEADS_OF)
    weight = softmax64(np.where(MASK[:, None, None], scores, -1e30))
    y = np.einsum("bhij,bjhk->bihk", weight, v)
    y = np.einsum("bihk,hkd->bid", y, at("attention/out/kernel")) + at("attention/out/bias")
    x = norm64(p, "shared/transformer/blocks/attention_norm", x + y, i)
    hidden = np.maximum(x @ at("mlp/up/kernel") + at("mlp/up/bias"), 0)
    y = hidden @ at("mlp/down/kernel") + at("mlp/down/bias")
    return norm64(p, "shared/transformer/blocks/mlp_norm", x + y, i)


def universal64(p, name, x, cross):
    """The release's equations, as in the docstring of the head."""
    linear = lambda path, x: x @ p[f"{path}/kernel"] + p[f"{path}/bias"]
    hidden = gelu64(linear(f"align/{name}/up", x))
    z = norm64(p, f"align/{name}/norm", linear(f"align/{name}/down", hidden))
    token = p[f"token/{name}"]
    if cross:
        query = linear("shared/maps/query", token)
        scores = linear("shared/maps/key", z) @ query / np.sqrt(D)
        weight = softmax64(np.where(MASK, scores, -1e30))
        token = np.einsum("bt,btd->bd", weight, linear("shared/maps/value", z))[:, None]
    h = z + token
    y = norm64(p, "shared/norm", h)
    for i in range(2):
        y = layer64(p, y, i)
    row = ((y + h) * MASK[..., None]).sum(1) / MASK.sum(1)[:, None]
    return row / np.linalg.norm(row, axis=-1, keepdims=True)


@pytest.mark.parametrize("fusion", ["add", "cross"])
def test_values_and_slopes_are_those_of_float64(fusion):
    graph, params = built(fusion=fusion)
    rng = np.random.default_rng(2)
    tokens = {n: rng.normal(size=(B, T, w)).astype(np.float32) for n, w in WIDTHS.items()}
    weight = {name: rng.normal(size=(B, D)) for name in WIDTHS}

    def loss(params, tokens):
        rows = called(graph, params, tokens)
        return sum((rows[name] * weight[name]).sum() for name in WIDTHS), rows

    grad = quick_jit(jax.grad(loss, (0, 1), has_aux=True))
    slopes, rows = grad(params, {name: jnp.asarray(x) for name, x in tokens.items()})
    arrays = {**by_path(params), **{f"x/{name}": np.float64(x) for name, x in tokens.items()}}

    def out64(arrays):
        cross = fusion == "cross"
        return {n: universal64(arrays, n, arrays[f"x/{n}"], cross) for n in WIDTHS}

    loss64 = lambda arrays: sum((weight[n] * row).sum() for n, row in out64(arrays).items())
    for name, row in out64(arrays).items():
        np.testing.assert_allclose(rows[name], row, atol=2e-5)
    found = {**by_path(slopes[0]), **{f"x/{name}": slopes[1][name] for name in WIDTHS}}
    for path, value in arrays.items():
        direction = rng.normal(size=value.shape)
        ends = [loss64({**arrays, path: value + step * direction}) for step in (1e-6, -1e-6)]
        slope = (np.float64(found[path]) * direction).sum()
        np.testing.assert_allclose(
            slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-3, atol=3e-4, err_msg=path
        )


def test_a_modality_that_joins_leaves_the_others_as_they_are():
    """By the patterns that the docstring gives, only its own parameters are new and trained."""
    _, params = built()
    graph, more = built(("image", "text", "sound"))
    old, new = by_path(params), by_path(more)
    pattern = re.compile(r"^heads/joint/(align|token)/sound(/|$)")
    joined = {path for path in new if pattern.search(f"heads/joint/{path}")}
    assert joined == new.keys() - old.keys() and len(joined) == 7
    rng = np.random.default_rng(2)
    tokens = {n: jnp.asarray(rng.normal(size=(B, T, w)), jnp.float32) for n, w in WIDTHS.items()}
    sound = jnp.asarray(rng.normal(size=(B, T, 3)), jnp.float32)
    both = quick_jit(functools.partial(called, graph))
    whole, alone = both(more, {**tokens, "sound": sound}), both(more, tokens)
    assert whole.keys() - alone.keys() == {"sound"}
    for name in WIDTHS:
        np.testing.assert_array_equal(whole[name], alone[name])


def test_what_does_not_fit_is_named():
    with pytest.raises(ConfigError, match="heads: 4 must divide dim = 6"):
        choose(HEADS, dict(NODE, reads="image", heads=4), "head")
