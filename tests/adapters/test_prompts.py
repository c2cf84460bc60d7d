"""Prompts against plain concatenation, layer by layer; prefixes against attention in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from jaxvl.adapters import ADAPTERS
from jaxvl.config import choose
from jaxvl.models import MODELS, InputSpec
from jaxvl.models.functional import functional
from jaxvl.nn.attention import Attention
from jaxvl.nn.prompts import Prefix, Prompts
from jaxvl.nn.transformer import Sizes, StackOptions, Transformer

SIZES = Sizes(8, 3, 2, 12)
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
N = 2


@functools.cache
def stack_of(scan=True, causal=False):
    return Transformer(SIZES, StackOptions(scan=scan), rngs=nnx.Rngs(params=0))


def prompted(scan, **options):
    """A stack with the weights of `stack_of`, and prompts that are not small."""
    stack = Transformer(SIZES, StackOptions(scan=scan), rngs=nnx.Rngs(params=0))
    options = {**dict(tokens=N, width=8, after=1, mode="insert", std=0.7), **options}
    prompts = Prompts(**options, rngs=nnx.Rngs(params=1))
    stack.adapter = nnx.Dict(words=prompts)
    return stack, prompts.tokens[...]


def by_layer(x, mask, causal, put):
    """The plain stack's layers in a loop; `put(l, x)` changes the input of each."""
    graphdef, params = nnx.split(stack_of().blocks)
    for layer in range(SIZES.depth):
        block = nnx.merge(graphdef, jax.tree.map(lambda p, i=layer: p[i], params))
        x = block(put(layer, x), mask=mask, causal=causal)
    return x


X = jax.random.normal(jax.random.key(1), (3, 5, 8))
MASK = jnp.arange(5) < jnp.array([[5], [3], [4]])


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_inserted_prompts(scan, layers):
    """VPT: after [CLS]; each of the first layers has its own, which replace the former's; later
    layers go on with them; none comes out."""
    stack, tokens = prompted(scan, layers=layers)

    def put(layer, x):
        if layer >= layers:
            return x
        rows = jnp.broadcast_to(tokens[layer], (3, N, 8))
        behind = x[:, 1:] if layer == 0 else x[:, 1 + N :]
        return jnp.concatenate([x[:, :1], rows, behind], axis=1)

    mask = jnp.concatenate([MASK[:, :1], jnp.ones((3, N), bool), MASK[:, 1:]], axis=1)
    want = by_layer(X, mask, False, put)
    want = jnp.concatenate([want[:, :1], want[:, 1 + N :]], axis=1)
    got = stack(X, mask=MASK)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(got - stack_of()(X, mask=MASK)).max() > 0.01


@pytest.mark.parametrize("mode", ["replace", "add"])
def test_prompts_in_place_of_words(mode):
    """MaPLe: in causal text, `add` begins with the words that are there."""
    stack, tokens = prompted(True, layers=2, mode=mode)
    if mode == "add":
        assert not np.any(tokens[0])
        tokens = tokens.at[0].set(0.5)
        stack.adapter["words"].tokens[...] = tokens

    def put(layer, x):
        if layer >= 2:
            return x
        there = x[:, 1 : 1 + N] if (mode, layer) == ("add", 0) else 0.0
        rows = jnp.broadcast_to(tokens[layer] + there, (3, N, 8))
        return jnp.concatenate([x[:, :1], rows, x[:, 1 + N :]], axis=1)

    np.testing.assert_allclose(stack(X, causal=True), by_layer(X, None, True, put), atol=1e-5)


def test_what_prompts_have_no_place_in():
    stack, _ = prompted(True, layers=1)
    with pytest.raises(ValueError, match="each position has its own mask"):
        stack(X, mask=jnp.ones((3, 5, 5), bool))
    with pytest.raises(ValueError, match="writes token by token"):
        stack.init_cache(3, 5)
    stack, _ = prompted(True, layers=1, mode="replace", after=4)
    with pytest.raises(ValueError, match=r"4 \+ 2 tokens are more than the sequence's 5"):
        stack(X)


def test_coupled_prompts_are_a_map_of_the_other_stacks():
    node = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=16, depth=2, heads=2, pool="cls"),
        text=dict(name="text_transformer", variant="Ti", width=8, depth=3, heads=2, pool="mean"),
        embed_dim=16,
    )
    shared = dict(name="prompts", paths="^text/", tokens=N, layers=2)
    own = dict(name="prompts", paths="^image/", tokens=N, layers=2)
    inputs = InputSpec(image_size=16, text_length=6, vocab_size=32)

    def build(**adapters):
        chosen = {label: choose(ADAPTERS, node, label) for label, node in adapters.items()}
        return functional(choose(MODELS, node, "model"), inputs, adapters=chosen)

    coupled, apart = build(m={**shared, "coupled": "^image/"}), build(t=shared, i=own)
    params, _ = coupled.init(jax.random.key(0))
    place = "image/encoder/transformer/adapter/m/map"
    added = ["adapter/m/tokens", f"{place}/bias", f"{place}/kernel"]
    assert [p for p in params if "adapter/" in p] == added
    assert coupled.frozen == {p for p in params if p not in added}
    rng = np.random.default_rng(0)
    params |= {p: jnp.asarray(rng.normal(size=params[p].shape), jnp.float32) for p in added}
    tokens, bias, kernel = (params[p] for p in added)
    same = {p: v for p, v in params.items() if p not in added}
    same |= {
        "text/encoder/transformer/adapter/t/tokens": tokens,
        "image/encoder/transformer/adapter/i/tokens": jnp.einsum("jnd,jde->jne", tokens, kernel)
        + bias[:, None],
    }
    batch = dict(image=jnp.ones((2, 16, 16, 3)), text=jnp.ones((2, 6), int))
    got, want = (quick_jit(m.apply)(p, {}, batch)[0] for m, p in ((coupled, params), (apart, same)))
    for name in ("image", "text"):
        np.testing.assert_allclose(got[name], want[name], atol=1e-5)
    loss = lambda tokens, method, x: coupled.apply(
        {**params, added[0]: tokens}, {}, x, method=method
    )[0][0, 0]
    for method, x in (("encode_image", batch["image"]), ("encode_text", batch["text"])):
        gradient = quick_jit(jax.grad(functools.partial(loss, method=method)))
        assert np.abs(gradient(tokens, x=x)).max() > 1e-4, method


def test_images_get_further_tokens_where_texts_begin_with_words():
    """MaPLe: `mode` is that of the texts' stack alone."""
    node = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", width=16, depth=2, heads=2, pool="cls"),
        text=dict(name="text_transformer", variant="Ti", width=8, depth=3, heads=2, pool="mean"),
        embed_dim=16,
    )
    options = dict(name="prompts", paths="^text/", coupled="^image/", layers=2, mode="add")
    inputs = InputSpec(image_size=16, text_length=6, vocab_size=32)
    modes = {}

    def build():
        model = choose(MODELS, node, "model").build(inputs, nnx.Rngs(params=0))
        choose(ADAPTERS, options, "m").attach("m", model, nnx.Rngs(params=1))
        for side, tower in (("text", model.text), ("image", model.image)):
            modes[side] = tower.encoder.transformer.adapter["m"].mode
        return model

    nnx.eval_shape(build)
    assert modes == {"text": "add", "image": "insert"}


@pytest.mark.parametrize("causal", [False, True])
def test_prefix(causal):
    attention = Attention(8, 2, rngs=nnx.Rngs(params=0))
    attention.adapter = nnx.Dict(p=Prefix(3, (2, 4), std=1.0, rngs=nnx.Rngs(params=1)))
    q, k, v = (
        np.asarray(m(X), np.float64) for m in (attention.query, attention.key, attention.value)
    )
    prefix = attention.adapter["p"]
    k, v = (
        np.concatenate([np.broadcast_to(own[...], (3, 3, 2, 4)), there], axis=1)
        for own, there in ((prefix.keys, k), (prefix.values, v))
    )
    seen = np.concatenate([np.ones((3, 5, 3), bool), np.repeat(MASK[:, None], 5, 1)], axis=2)
    if causal:
        seen &= np.concatenate([np.ones((5, 3), bool), np.tril(np.ones((5, 5), bool))], axis=1)
    logits = np.einsum("bthk,bnhk->bhtn", q, k) / 2
    weights = scipy.special.softmax(np.where(seen[:, None], logits, -np.inf), -1)
    want = attention.out(jnp.asarray(np.einsum("bhtn,bnhk->bthk", weights, v), jnp.float32))
    np.testing.assert_allclose(attention(X, mask=MASK, causal=causal), want, atol=1e-5)


def test_prefix_token_by_token():
    attention = Attention(8, 2, rngs=nnx.Rngs(params=0))
    attention.adapter = nnx.Dict(p=Prefix(3, (2, 4), std=1.0, rngs=nnx.Rngs(params=1)))
    want = attention(X, causal=True)
    known = (jnp.zeros((3, 5, 2, 4)),) * 2
    for t in range(5):
        y, known = attention.decode(X[:, t : t + 1], known, jnp.int32(t))
        np.testing.assert_allclose(y[:, 0], want[:, t], atol=1e-5)
    memory = attention.project_kv(X)
    y, _ = attention.decode(X[:, 4:], memory)
    np.testing.assert_allclose(y[:, 0], want[:, 4], atol=1e-5)
