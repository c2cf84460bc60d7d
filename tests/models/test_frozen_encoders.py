"""Projectors on frozen encoders: values and slopes against float64, features in place of inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx
from small_models import INPUTS, SMALL_TEXT, SMALL_VIT, batch_of, model_of

from jaxvl.config import ConfigError, choose
from jaxvl.models import HEADS, MODELS
from jaxvl.models.base import Encoded
from jaxvl.models.frozen_encoders import features_of
from jaxvl.models.heads import Heads

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
B, T, D, E = 4, 5, 6, 3
MASK = np.arange(T) < np.array([5, 3, 1, 2])[:, None]
PROJECTOR = dict(name="token_projector", reads=("image", "text"), dim=16, dropout=0.0)
SMALL = dict(
    name="frozen_encoders",
    image=dict(SMALL_VIT, depth=1, pool="mean"),
    text=dict(SMALL_TEXT, depth=1, pool="mean"),
    heads=dict(joint=PROJECTOR, bare=dict(name="encoded", reads=("image", "text"))),
)


def gelu64(x):
    return 0.5 * x * (1 + scipy.special.erf(x / np.sqrt(2)))


def norm64(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["norm/scale"] + p["norm/bias"]


def linear64(p, name, x):
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def patch64(p, x):
    x = norm64(p, x)
    return linear64(p, "straight", x) + linear64(p, "down", gelu64(linear64(p, "up", x)))


def mlp64(p, x):
    hidden = linear64(p, "up", x)
    return norm64(p, hidden + linear64(p, "down", gelu64(hidden)))


KINDS = dict(patch=patch64, mlp=mlp64)


def projector64(options, params, pooled, tokens):
    """The release's equations, as in the docstring of the head."""
    part = lambda name: {
        path.removeprefix(f"{name}/only/"): value
        for path, value in params.items()
        if path.startswith(f"{name}/")
    }
    kinds = dict(dict(tokens="patch", pooled="patch"), **options)
    row = 0.0
    if kinds["tokens"] != "none":
        projected = KINDS[kinds["tokens"]](part("tokens"), tokens)
        row = (projected * MASK[..., None]).sum(1) / MASK.sum(1)[:, None]
    if kinds["pooled"] != "none":
        of_pooled = KINDS[kinds["pooled"]]
        after = kinds.get("order") == "after"
        row = of_pooled(part("pooled"), row) if after else row + of_pooled(part("pooled"), pooled)
    return row / np.linalg.norm(row, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(tokens="mlp", pooled="none"),
        dict(tokens="none", pooled="mlp"),
        dict(tokens="patch", pooled="mlp", order="after"),
    ],
    ids=str,
)
def test_values_and_slopes_are_those_of_float64(options):
    node = dict(name="token_projector", reads="image", dim=E, dropout=0.0, **options)
    module = choose(HEADS, node, "head").build(dict(image=D), nnx.Rngs(params=0), jnp.float32)
    graph, params = nnx.split(module)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda v: v + 0.2 * rng.normal(size=v.shape).astype(np.float32), params)
    given = [rng.normal(size=s).astype(np.float32) for s in ((B, D), (B, T, D))]
    weight = rng.normal(size=(B, E)).astype(np.float32)

    def loss(params, pooled, tokens):
        head = nnx.merge(graph, params, copy=True)
        encoded = {"image": Encoded(pooled, tokens, jnp.asarray(MASK))}
        row = head(encoded, {}, train=True, key=None, progress=None)[""]
        return (row * weight).sum(), row

    grad = quick_jit(jax.grad(loss, (0, 1, 2), has_aux=True))
    slopes, row = grad(params, *map(jnp.asarray, given))
    by_path = lambda state: {
        "/".join(map(str, path)): np.float64(v[...]) for path, v in nnx.to_flat_state(state)
    }
    arrays = dict(by_path(params), pooled_=np.float64(given[0]), tokens_=np.float64(given[1]))

    def out64(arrays):
        return projector64(options, arrays, arrays["pooled_"], arrays["tokens_"])

    np.testing.assert_allclose(row, out64(arrays), atol=1e-5)
    found = dict(by_path(slopes[0]), pooled_=slopes[1], tokens_=slopes[2])
    for path, value in arrays.items():
        direction = rng.normal(size=value.shape)
        ends = [
            (np.float64(weight) * out64({**arrays, path: value + step * direction})).sum()
            for step in (1e-6, -1e-6)
        ]
        slope = (np.float64(found[path]) * direction).sum()
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-6, atol=2e-4, err_msg=path)
    assert not np.asarray(slopes[2])[~MASK].any(), "padding is not read"


def test_features_stand_for_what_they_are_of():
    """What encoders give, read from the batch, is embedded like pictures and texts themselves."""
    model, _ = model_of(SMALL)
    params, rest = quick_jit(model.init)(jax.random.key(0))
    batch = batch_of(B, INPUTS)
    apply = lambda params, batch: model.apply(params, rest, batch)[0]
    run = quick_jit(apply)
    direct = run(params, batch)
    cached = {
        path.removeprefix("bare/"): value for path, value in direct.items() if "bare/" in path
    }
    assert cached["image_tokens"].shape == (B, 16, 32) and cached["text_mask"].min() == 0
    assert set(cached) == {
        f"{n}_{p}" for n in ("image", "text") for p in ("pooled", "tokens", "mask")
    }
    found = run(params, cached)
    for name in ("image", "text"):
        np.testing.assert_allclose(found[name], direct[name], atol=1e-6)
    slopes = quick_jit(jax.grad(lambda p: apply(p, cached)["image"][:, 0].sum()))(params)
    used = {path for path, slope in slopes.items() if np.any(slope)}
    assert used and all(path.startswith("heads/joint/") for path in used), "encoders do not run"


def test_a_vector_or_tokens_are_enough():
    config = choose(MODELS, SMALL, "model")
    plan = Heads(config.heads, config.input_widths)
    heads = plan.build(nnx.Rngs(params=0), jnp.float32)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.normal(size=(2, 3, 32)), jnp.float32)
    mask = jnp.asarray([[1.0, 1, 1], [1, 0, 0]])

    @quick_jit
    def run(**batch):
        encoded = {"image": features_of("image", batch, jnp.float32)}
        options = dict(train=False, key=None, progress=None)
        return plan.run(heads, encoded, batch, **options)["joint/image"]

    mean = jnp.stack([tokens[0].mean(0), tokens[1, 0]])
    whole = run(image_tokens=tokens, image_mask=mask, image_pooled=mean)
    np.testing.assert_allclose(run(image_tokens=tokens, image_mask=mask), whole, atol=1e-6)
    lone = run(image_pooled=mean)
    np.testing.assert_allclose(lone, run(image_pooled=mean, image_tokens=mean[:, None]), atol=1e-6)
    assert np.abs(lone - whole).max() > 1e-3
    assert features_of("image", dict(text_pooled=mean), jnp.float32) is None


@pytest.mark.parametrize(
    "changes, problem",
    [
        (dict(heads={}), "model.heads: must have a head 'joint'"),
        (
            dict(heads=dict(joint=dict(PROJECTOR, reads="image"))),
            r"heads.joint.reads: gives no out",
        ),
        (dict(features=dict(image=4)), "features.image: is an input of the model already"),
        (dict(max_scale=2.0), "max_scale: 2.0 is below init_scale"),
        (dict(heads=dict(joint=dict(PROJECTOR, tokens="none", pooled="none"))), "tokens: 'none'"),
        (
            dict(heads=dict(joint=dict(PROJECTOR, pooled="none", order="after"))),
            "order: 'after' needs perceptrons",
        ),
    ],
)
def test_what_does_not_fit_is_named(changes, problem):
    with pytest.raises(ConfigError, match=problem):
        choose(MODELS, {**SMALL, **changes}, "model")
