"""Finite discrete tokens: sparsemax against a bisection, the head against float64, codes that both
modalities share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from flax import nnx

from jaxvl.config import ConfigError
from jaxvl.kernels.contrastive import contrastive_loss
from jaxvl.models.base import Encoded
from jaxvl.models.heads.codebook import CodebookConfig
from jaxvl.nn.sparsemax import sparsemax


def projected(z):
    """The nearest point of the simplex, float64: the threshold by bisection."""
    low, high = z.max(-1, keepdims=True) - 1, z.max(-1, keepdims=True)
    for _ in range(80):
        middle = (low + high) / 2
        over = np.maximum(z - middle, 0).sum(-1, keepdims=True) > 1
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    return np.maximum(z - low, 0)


def test_sparsemax_is_the_projection_and_its_gradient():
    z = np.random.default_rng(0).normal(size=(50, 9)) * 1.5
    p = np.asarray(jax.jit(sparsemax)(z))
    np.testing.assert_allclose(p, projected(z), atol=1e-6)
    np.testing.assert_allclose(p.sum(-1), 1.0, atol=1e-6)
    assert 0.2 < (p == 0.0).mean() < 0.9, "exact zeros"
    weight = np.random.default_rng(1).normal(size=z.shape)
    gradient = jax.jit(jax.grad(lambda z: (weight * sparsemax(z)).sum()))(z)
    step = 1e-6
    want = np.zeros_like(z)
    for k in range(z.shape[1]):
        ends = [(weight * projected(z + s * step * np.eye(9)[k])).sum(-1) for s in (1, -1)]
        want[:, k] = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(gradient, want, atol=1e-4)


def test_sparsemax_of_two_and_of_large_numbers():
    t = np.linspace(-2, 2, 9)
    got = sparsemax(jnp.stack([t, np.zeros(9)], -1))
    np.testing.assert_allclose(got[:, 0], np.clip((t + 1) / 2, 0, 1), atol=1e-6)
    np.testing.assert_allclose(sparsemax(jnp.array([1e4, 1e4 - 3, -1e4])), [1, 0, 0])
    np.testing.assert_allclose(sparsemax(jnp.ones(4) * 7.0), 0.25)


# --------------------------------------------------------------------------------------------------
# The head


WIDTHS = {"image": 5, "text": 7}
MASK = np.arange(4) < np.array([[4], [2], [3]])


def head_of(**options):
    options = {**dict(reads=("image", "text"), count=11, dim=6, weights=True), **options}
    config = CodebookConfig(**options)
    return nnx.split(config.build(WIDTHS, nnx.Rngs(0)))


def drawn(params):
    """Parameters that are not at their start."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(3)
    return jax.tree.unflatten(tree, [x + 0.3 * rng.normal(size=x.shape) for x in leaves])


def example():
    rng = np.random.default_rng(4)
    tokens = {"image": rng.normal(size=(3, 2, 5)), "text": rng.normal(size=(3, 4, 7))}
    return {
        "image": Encoded(tokens["image"][:, 0], tokens["image"]),
        "text": Encoded(tokens["text"][:, 0], tokens["text"], MASK),
    }


def layer_norm(x, scale, bias):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale + bias


def oracle(flat, name, tokens, mask, temperature, padding):
    """The release's `Query_model` with sparsemax and the maximum, in float64; and the weights."""
    at = lambda rest: np.asarray(flat[f"query/{name}/{rest}"], np.float64)
    x = layer_norm(tokens, at("norm/scale"), at("norm/bias")) @ at("up/kernel") + at("up/bias")
    x = x * 0.5 * (1 + scipy.special.erf(x / np.sqrt(2)))
    x = layer_norm(x, at("inner_norm/scale"), at("inner_norm/bias"))
    q = x @ at("down/kernel") + at("down/bias")
    codes = np.asarray(flat["codes"], np.float64)
    fits = q @ codes.T / np.sqrt(codes.shape[1])
    if mask is not None:
        fits = np.where(mask[..., None], fits, 0.0 if padding == "zero" else -np.inf)
    weights = projected(fits.max(1) / temperature)
    feature = weights @ codes
    return feature / np.linalg.norm(feature, axis=-1, keepdims=True), weights


@pytest.mark.parametrize("padding", ["never", "zero"])
def test_the_head_is_the_release(padding):
    graph, params = head_of(padding=padding, temperature=2.0, least=0.5, until=1.0)
    params = drawn(params)
    flat = {"/".join(map(str, k)): v for k, v in nnx.to_flat_state(params)}
    flat = {path: value[...] for path, value in flat.items()}
    call = jax.jit(
        lambda params, progress: nnx.merge(graph, params)(
            example(), {}, train=True, key=None, progress=progress
        )
    )
    found = call(params, jnp.float32(0.5))
    for name, value in example().items():
        want, weights = oracle(flat, name, value.tokens, value.mask, 1.0, padding)
        np.testing.assert_allclose(found[name], want, atol=1e-5)
        np.testing.assert_allclose(found[f"{name}_weights"], weights, atol=1e-5)
    weight = np.random.default_rng(5).normal(size=(3, 6))
    gradient = jax.grad(lambda p: (call(p, jnp.float32(0.5))["text"] * weight).sum())(params)

    def total(codes):
        text = example()["text"]
        return (
            oracle({**flat, "codes": codes}, "text", text.tokens, MASK, 1.0, padding)[0] * weight
        ).sum()

    codes = np.asarray(flat["codes"], np.float64)
    slope = np.zeros_like(codes)
    for place in np.ndindex(codes.shape):
        moved = np.zeros_like(codes)
        moved[place] = 1e-6
        slope[place] = (total(codes + moved) - total(codes - moved)) / 2e-6
    np.testing.assert_allclose(gradient["codes"][...], slope, atol=1e-4 * np.abs(slope).max())


def test_a_row_of_padding_alone_is_finite():
    graph, params = head_of()
    given = example()
    given["text"] = given["text"]._replace(mask=np.arange(3)[:, None] > np.zeros(4))

    def total(params, text):
        head = nnx.merge(graph, params)
        encoded = {"image": given["image"], "text": given["text"]._replace(tokens=text)}
        found = head(encoded, {}, train=True, key=None, progress=jnp.float32(0.5))
        return found["text"].sum(), found

    run = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    (_, found), slopes = run(params, jnp.asarray(given["text"].tokens, jnp.float32))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((found, slopes)))


def test_the_temperature_falls_by_one_factor_and_stays():
    graph, params = head_of(temperature=1000.0, least=0.01, until=0.5)
    head = nnx.merge(graph, params)
    got = [float(head.temperature(jnp.float32(p))) for p in (0.0, 0.1, 0.2, 0.5, 0.9)]
    np.testing.assert_allclose(got, [1000, 100, 10, 0.01, 0.01], rtol=1e-4)
    assert head.temperature(None) == 0.01


def test_refusals():
    with pytest.raises(ConfigError, match="least: 2.0 must be at most temperature = 1"):
        CodebookConfig(reads="image", temperature=1.0, least=2.0)
    with pytest.raises(ConfigError, match="padding: 'none' is not valid"):
        CodebookConfig(reads="image", padding="none")


# --------------------------------------------------------------------------------------------------
# What it is for


def rows(key, n):
    """Records of three concepts of twelve: a picture's tokens are concepts behind a rotation and
    noise, a text's are their words."""
    keys = jax.random.split(key, 2)
    concepts = jax.vmap(lambda k: jax.random.permutation(k, 12)[:3])(jax.random.split(keys[0], n))
    turn = jax.random.orthogonal(jax.random.key(9), 12)
    image = jax.nn.one_hot(concepts, 12) @ turn
    image = image + 0.1 * jax.random.normal(keys[1], image.shape)
    text = jax.nn.one_hot(concepts[:, ::-1], 12)
    return {"image": Encoded(image[:, 0], image), "text": Encoded(text[:, 0], text)}


def overlap(weights, shift):
    """Mean weight that a picture and the text `shift` rows on give to the same codes, in [0, 1]."""
    image, text = (np.asarray(weights[f"{n}_weights"]) for n in ("image", "text"))
    return np.minimum(image, np.roll(text, shift, 0)).sum(1).mean()


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_matched_pairs_have_codes_in_common(shared):
    """Without a shared codebook the numbers of the codes mean nothing, and the figure is chance."""
    config = CodebookConfig(
        reads=("image", "text"), count=24, dim=16, temperature=10.0, least=0.1, weights=True
    )
    widths = {"image": 12, "text": 12}
    graph, one = nnx.split(config.build(widths, nnx.Rngs(0)))
    _, other = nnx.split(config.build(widths, nnx.Rngs(1)))
    params = (one,) if shared else (one, other)
    tx = optax.adam(3e-3)

    def outputs(params, batch, progress):
        image, text = params[0], params[-1]
        call = lambda p: nnx.merge(graph, p)(batch, {}, train=True, key=None, progress=progress)
        own, theirs = call(image), call(text)
        return {n: (own if n.startswith("image") else theirs)[n] for n in own}

    def loss(params, batch, progress):
        found = outputs(params, batch, progress)
        scale = jnp.log(jnp.float32(10.0))
        return contrastive_loss(found["image"], found["text"], scale, directions="mean")

    @functools.partial(jax.jit, static_argnums=2)
    def run(params, state, steps):
        def step(carry, i):
            params, state = carry
            batch = rows(jax.random.fold_in(jax.random.key(0), i), 32)
            value, slope = jax.value_and_grad(loss)(params, batch, i / steps)
            change, state = tx.update(slope, state, params)
            return (optax.apply_updates(params, change), state), value

        return jax.lax.scan(step, (params, state), jnp.arange(steps))

    (params, _), losses = run(params, tx.init(params), 400)
    found = jax.jit(functools.partial(outputs, progress=None))(params, rows(jax.random.key(7), 64))
    matched, random = overlap(found, 0), overlap(found, 1)
    print(f"shared={shared} loss {losses[-1]:.3f} overlap {matched:.3f} of others {random:.3f}")
    assert losses[-1] < losses[0] - 1
    assert (matched > random + 0.15) == shared
