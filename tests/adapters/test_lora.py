"""LoRA against its equation, merged, frozen beside, under scan and on several devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvl.adapters import ADAPTERS
from jaxvl.adapters.base import merge
from jaxvl.config import ConfigError, choose
from jaxvl.models import MODELS, InputSpec
from jaxvl.models.functional import functional
from jaxvl.nn import adapters as modules
from jaxvl.nn.linear import Linear
from jaxvl.nn.random import adapter_key, adapters_draw_from, split
from jaxvl.sharding import MeshConfig, make_mesh, param_shardings
from jaxvl.training.optim import OptimConfig, optimiser
from jaxvl.training.state import subset

INPUTS = InputSpec(image_size=16, text_length=6, vocab_size=32, pad_id=0, eos_id=1)
VIT = dict(name="vit", variant="Ti/8", width=16, depth=3, heads=2, pool="cls")
TEXT = dict(name="text_transformer", variant="Ti", width=8, depth=2, heads=2, pool="mean")
ALL = dict(
    low=dict(name="lora", paths="attention/|projection$", rank=2, alpha=3.0),
    gated=dict(name="gated_experts", paths="mlp/up$", rank=2),
    narrow=dict(name="bottleneck", paths="mlp/down$", hidden=4),
    words=dict(name="prompts", paths="^text/", coupled="^image/", layers=2, tokens=2),
    before=dict(name="prefix", paths="^text/.*/attention$", tokens=2),
)
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def model_with(adapters, **options):
    towers = dict(image={**VIT, **options}, text={**TEXT, **options})
    node = dict(name="dual_encoder", **towers, embed_dim=16)
    chosen = {label: choose(ADAPTERS, node, label) for label, node in adapters.items()}
    return functional(choose(MODELS, node, "model"), INPUTS, adapters=chosen), chosen


def drawn(model, seed=0):
    """Parameters from one normal distribution, so that nothing is zero."""
    rng = np.random.default_rng(seed)
    return {
        path: jnp.asarray(0.3 * rng.normal(size=shape.shape), jnp.float32)
        for path, shape in sorted(model.params.items())
    }


def batch(rows=8):
    rng = np.random.default_rng(7)
    text = rng.integers(2, 32, (rows, 6))
    text[:, 4:] = 0
    return dict(image=jnp.asarray(rng.normal(size=(rows, 16, 16, 3)), jnp.float32), text=text)


def test_against_numpy_values_and_gradients():
    linear = Linear((2, 3), (4, 5), axes=("heads", "kv", "heads", "kv"), rngs=nnx.Rngs(params=0))
    low = modules.LowRank(linear, rank=2, scale=1.5, dropout=0.0, number=0, rngs=nnx.Rngs(params=1))
    assert not np.any(low.b.kernel[...]) and np.any(low.a.kernel[...])
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 2)), rng.normal(size=(2, 4, 5))
    x, weights = rng.normal(size=(7, 2, 3)), rng.normal(size=(7, 4, 5))
    linear.adapter = nnx.Dict(low=low)

    graphdef, state = nnx.split(linear)

    def loss(a, b):
        changed = nnx.merge(graphdef, state, copy=True)
        changed.adapter["low"].a.kernel[...] = a
        changed.adapter["low"].b.kernel[...] = b
        return (changed(jnp.asarray(x, jnp.float32)) * weights).sum()

    kernel = np.asarray(linear.kernel[...], np.float64)
    changed = kernel + 1.5 * np.einsum("ijr,rkl->ijkl", a, b)
    inner = np.einsum("nij,ijr->nr", x, a)
    grad_b = 1.5 * np.einsum("nr,nkl->rkl", inner, weights)
    grad_a = 1.5 * np.einsum("nij,nkl,rkl->ijr", x, weights, b)
    single = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    value, (got_a, got_b) = loss(*single), jax.grad(loss, (0, 1))(*single)
    np.testing.assert_allclose(
        value, (np.einsum("nij,ijkl->nkl", x, changed) * weights).sum(), rtol=1e-4
    )
    np.testing.assert_allclose(got_a, grad_a, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got_b, grad_b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scan", [True, False])
def test_merged_it_is_the_plain_model(scan):
    """On every linear map: attention kernels of three dimensions, MLPs and projections."""
    lora = dict(low=dict(name="lora", paths=".", rank=2, alpha=3.0))
    model, adapters = model_with(lora, scan=scan)
    plain, _ = model_with({}, scan=scan)
    params = drawn(model)
    merged = merge(adapters, params)
    assert {p: v.shape for p, v in merged.items()} == {p: s.shape for p, s in plain.params.items()}
    kernel = "image/encoder/transformer/blocks/attention/query/kernel"
    assert np.abs(merged[kernel] - params[kernel]).max() > 0.1
    call = lambda model, params: model.apply(params, {}, batch())[0]
    got = quick_jit(functools.partial(call, plain))(merged)
    want = quick_jit(functools.partial(call, model))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_at_first_it_is_the_plain_model_whose_own_parameters_are_drawn_as_without():
    model, _ = model_with(dict(low=ALL["low"]))
    plain, _ = model_with({})
    key = jax.random.key(0)
    params, own = (m.init(key)[0] for m in (model, plain))
    for path, value in own.items():
        np.testing.assert_array_equal(params[path], value, err_msg=path)
    added = [path for path in params if path not in own]
    assert added and all(re.search("/adapter/low/[ab]/kernel$", path) for path in added)
    for path in added:
        assert np.any(params[path]) == path.endswith("a/kernel"), path


def test_all_adapters_under_scan_on_eight_devices_are_those_unrolled_on_one():
    model, _ = model_with(ALL)
    unrolled, _ = model_with(ALL, scan=False)
    params = drawn(model)
    some = {path: value for path, value in params.items() if "adapter/" in path}
    given = batch()

    def loss(model, some, params, given):
        out, _ = model.apply({**params, **some}, {}, given, train=True, key=jax.random.key(3))
        return (out["image"] @ out["text"].T)[jnp.arange(8), jnp.arange(8)[::-1]].sum(), out

    gradient = lambda model: quick_jit(
        jax.value_and_grad(functools.partial(loss, model), has_aux=True)
    )
    (_, want), want_gradient = gradient(unrolled)(some, params, given)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shapes = {path: shape.shape for path, shape in model.params.items()}
    places = param_shardings(model.axes, shapes, mesh)
    spread = [p for p in some if not places[p].is_fully_replicated]
    assert len(spread) > len(some) / 2
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, places)
        some = {path: placed[path] for path in some}
        (_, got), got_gradient = gradient(model)(some, placed, given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)
    for path, value in want_gradient.items():
        np.testing.assert_allclose(got_gradient[path], value, atol=1e-5, err_msg=path)
        assert np.any(value), path


def test_dropout_draws_anew_for_every_map_and_layer(monkeypatch):
    lora = dict(low=dict(name="lora", paths="^image/.*(query|value)$", dropout=0.5))
    model, _ = model_with(lora, scan=False)
    params = drawn(model)
    keys = []
    drop = modules.dropout

    def recorded(x, rate, key, *, train):
        keys.append(None if key is None else tuple(np.asarray(jax.random.key_data(key))))
        return drop(x, rate, key, train=train)

    monkeypatch.setattr(modules, "dropout", recorded)
    image = batch(2)["image"]
    embed = lambda **how: model.apply(params, {}, image, method="encode_image", **how)[0]
    trained = embed(train=True, key=jax.random.key(0))
    assert len(keys) == 6 and len({*keys}) == 6 and None not in keys
    keys.clear()
    plain = embed()
    assert keys == [None] * 6 and np.abs(trained - plain).max() > 1e-3


def test_dropout_scales_what_stays():
    linear = Linear(64, 3, axes=("embed", "mlp"), rngs=nnx.Rngs(params=0))
    low = modules.LowRank(
        linear, rank=64, scale=1.0, dropout=0.25, number=0, rngs=nnx.Rngs(params=1)
    )
    low.a.kernel[...] = jnp.eye(64)
    low.b.kernel[...] = jnp.ones((64, 3))
    with adapters_draw_from(jax.random.key(5)):
        y = low(jnp.ones((200, 64)), jnp.zeros((200, 3)))
    counts = np.asarray(y[:, 0]) * 0.75
    np.testing.assert_allclose(counts, counts.round(), atol=1e-4)
    assert abs(counts.mean() / 64 - 0.75) < 0.02


def test_an_adapter_draws_apart_from_the_layer_it_sits_on():
    key = jax.random.key(5)
    with adapters_draw_from(key):
        own = [adapter_key(number) for number in range(6)]
    drawn = [jax.random.key_data(k).tobytes() for k in (*own, *split(key, 6))]
    assert len(set(drawn)) == 12


def test_all_else_is_frozen_and_has_no_moments():
    low = {**ALL["low"], "trains": "^log_scale$"}
    model, _ = model_with(dict(low=low))
    tx, trained = optimiser(
        OptimConfig(weight_decay=0.1, freeze="^text/"), model.axes, model.frozen
    )
    chosen = {path for path in trained if trained[path]}
    assert chosen == {
        path
        for path in model.params
        if path == "log_scale" or ("/adapter/low/" in path and path.startswith("image/"))
    }
    opt_state = jax.eval_shape(lambda: tx.init(subset(drawn(model), trained)))
    held = {
        k.key for path, _ in jax.tree.leaves_with_path(opt_state) for k in path if hasattr(k, "key")
    }
    assert {path for path in model.params if path in held} == chosen


@pytest.mark.parametrize(
    "adapter, message",
    [
        (
            dict(paths="nothing"),
            r"adapters.a.paths: 'nothing' names no linear map .* \(\d+ can: image",
        ),
        (dict(paths="("), r"a.paths: '\(' is not a regular expression"),
        (dict(paths="query", rank=0), "a.rank: 0 must be >= 1"),
        (dict(paths="query", dropout=1.0), "a.dropout: 1.0 must be"),
        (
            dict(name="prompts", paths="^text/", layers=3),
            "adapters.a.layers: 3 are more than the 2 layers of text/encoder/transformer",
        ),
        (
            dict(name="prompts", paths=".", coupled="^image/"),
            "adapters.a.paths: '.' names 2 transformers; must be one with coupled",
        ),
    ],
)
def test_what_does_not_fit_is_named(adapter, message):
    with pytest.raises(ConfigError, match=message):
        model_with(dict(a={"name": "lora", **adapter}))


def test_one_stack_has_one_set_of_prompts():
    twice = dict(a=dict(name="prompts", paths="^text/"), b=dict(name="prompts", paths="^text/"))
    with pytest.raises(ConfigError, match="adapters.b.paths: text/.* has the adapter 'a' already"):
        model_with(twice)


def test_what_cannot_be_merged_is_named():
    model, adapters = model_with(ALL)
    with pytest.raises(ConfigError, match="adapters.gated.name: gated_experts adapters have no pl"):
        merge(adapters, model.params | drawn(model))
