"""Patches that are left out in training (FLIP, Li et al. 2022), and positions in images of another
size (CLIPA, Li et al. 2023)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import DUAL, INPUTS, SMALL_VIT, batch_of, model_of, with_options

from jaxvl.config import ConfigError, choose
from jaxvl.models import IMAGE_ENCODERS, MODELS
from jaxvl.models.base import ROW_KEYS
from jaxvl.models.functional import functional
from jaxvl.nn.embeddings import sincos_2d
from jaxvl.nn.patches import Patches, drop_tokens
from jaxvl.training import step

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
B, P = 3, 16
KEYS = jax.random.split(jax.random.key(5), B)


def encoder(**changes):
    """(functional, parameters away from their initial values) of an image encoder."""
    config = choose(IMAGE_ENCODERS, {**SMALL_VIT, "depth": 1, **changes}, "image")
    model = functional(config, INPUTS)
    rng = np.random.default_rng(0)
    return model, {
        path: jnp.asarray(rng.normal(size=s.shape) * 0.2, jnp.float32)
        for path, s in model.params.items()
    }


def images(size=32, rows=B):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.normal(size=(rows, size, size, 3)), jnp.float32)


def kept_by(key, kept):
    """Places that a row keeps: those of the largest draws, in order."""
    draw = np.asarray(jax.random.uniform(key, (P,)))
    return np.sort(np.argsort(-draw, kind="stable")[:kept])


def numpy_tokens(params, image, places, class_token):
    """What enters the transformer of one row, float64: [K (+ 1), D]."""
    image = np.asarray(image, np.float64)
    kernel = np.asarray(params["patches/kernel"], np.float64)
    positions = np.asarray(params["positions"], np.float64)
    rows = []
    if class_token:
        rows.append(np.asarray(params["class_token"], np.float64) + positions[0])
        positions = positions[1:]
    for place in places:
        y, x = divmod(int(place), 4)
        patch = image[8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
        embedded = np.einsum("hwc,hwcd->d", patch, kernel)
        rows.append(embedded + np.asarray(params["patches/bias"], np.float64) + positions[place])
    return np.stack(rows)


@pytest.mark.parametrize("pool", ["mean", "cls", "map"])
def test_kept_patches_enter_with_their_own_positions(pool):
    """With layers that add nothing, the tokens that come out are those that go in, normalised."""
    model, params = encoder(pool=pool)
    still = {
        path: jnp.zeros_like(v) if path.endswith(("out/kernel", "out/bias", "down/kernel")) else v
        for path, v in params.items()
    }
    still = {p: jnp.zeros_like(v) if p.endswith("down/bias") else v for p, v in still.items()}
    image = images()

    @quick_jit
    def tokens(params):
        out, _ = model.apply(params, {}, image, train=True, drop=0.75, row_keys=KEYS)
        return out.tokens

    got = tokens(still)
    assert got.shape == (B, 4 + (pool == "cls"), 32)
    for row in range(B):
        want = numpy_tokens(params, image[row], kept_by(KEYS[row], 4), pool == "cls")
        want = (want - want.mean(1, keepdims=True)) / np.sqrt(want.var(1, keepdims=True) + 1e-6)
        want = want * np.asarray(params["norm/scale"]) + np.asarray(params["norm/bias"])
        np.testing.assert_allclose(got[row], want, atol=2e-4)


@pytest.mark.parametrize("changes", [{}, dict(positions="sincos", pool="mean", scan=False)])
def test_share_0_and_evaluation_are_the_plain_model(changes):
    model, params = encoder(**changes)
    image = images()

    @quick_jit
    def all_ways(params):
        plain = model.apply(params, {}, image, train=True)[0].pooled
        zero = model.apply(params, {}, image, train=True, drop=0.0, row_keys=KEYS)[0].pooled
        evaluated = model.apply(params, {}, image, drop=0.75, row_keys=KEYS)[0].pooled
        dropped = model.apply(params, {}, image, train=True, drop=0.75, row_keys=KEYS)[0].pooled
        return plain, zero, evaluated, dropped

    plain, zero, evaluated, dropped = all_ways(params)
    np.testing.assert_array_equal(plain, zero)
    np.testing.assert_array_equal(plain, evaluated)
    assert np.abs(plain - dropped).max() > 1e-2


@pytest.mark.parametrize("changes", [dict(pool="cls"), dict(pool="map", remat="full", depth=2)])
def test_gradients_reach_kept_pixels_and_positions_alone(changes):
    model, params = encoder(**changes)

    @quick_jit
    def gradients(params, image):
        def loss(params, image):
            out, _ = model.apply(params, {}, image, train=True, drop=0.5, row_keys=KEYS)
            return (out.pooled * jnp.arange(32.0)).sum()

        return jax.grad(loss, (0, 1))(params, image)

    of_params, of_image = gradients(params, images())
    by_patch = np.abs(of_image).reshape(B, 4, 8, 4, 8, 3).max((2, 4, 5)).reshape(B, P)
    used = np.zeros(P, bool)
    for row in range(B):
        kept = kept_by(KEYS[row], 8)
        used[kept] = True
        assert (by_patch[row][kept] > 0).all()
        assert (np.delete(by_patch[row], kept) == 0).all()
    positions = np.abs(of_params["positions"]).max(1)
    first = len(positions) - P
    np.testing.assert_array_equal(positions[first:] > 0, used)
    assert (positions[:first] > 0).all()


def test_what_a_row_keeps_depends_on_nothing_beside_it():
    """Two chunks give the gradient of the undivided batch, and rows in another order theirs."""
    node = with_options(DUAL, image__pool="cls", image__depth=1, text__depth=1)
    model, _ = model_of(node)
    params, rest = model.init(jax.random.key(0))
    batch = {**batch_of(4), "place": jnp.arange(4)}

    def encode(params, rest, chunk, key):
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(3)))(chunk["place"])
        given = {"image": chunk["image"], "text": chunk["text"], ROW_KEYS: keys}
        options = dict(train=True, key=key, drop=dict(image=0.5))
        return model.apply(params, rest, given, **options)

    def objectives(outputs):
        logits = outputs["image"] @ outputs["text"].T * jnp.exp(outputs["log_scale"])
        return -jax.nn.log_softmax(logits)[jnp.arange(4), jnp.arange(4)].sum(), outputs["image"]

    @quick_jit
    def three(params):
        order = jnp.array([2, 0, 3, 1])
        other = {name: value[order] for name, value in batch.items()}
        key = jax.random.key(1)
        return (
            step._whole(encode, objectives, params, rest, batch, key),
            step._chunked(2, encode, objectives, params, rest, batch, key),
            step._whole(encode, objectives, params, rest, other, key)[1][jnp.argsort(order)],
        )

    whole, parts, moved = three(params)
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-5)
    np.testing.assert_allclose(whole[1], moved, atol=1e-6)
    for path in whole[2]:
        np.testing.assert_allclose(whole[2][path], parts[2][path], atol=1e-5, err_msg=path)


def test_what_a_row_keeps_is_the_same_on_every_mesh():
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices")
    keys = jax.random.split(jax.random.key(7), 8)
    values = jnp.arange(8 * 6 * 2.0).reshape(8, 6, 2)
    patches = Patches(values, jnp.broadcast_to(jnp.arange(6)[:, None], (8, 6, 1)))
    drop = quick_jit(lambda patches, keys: drop_tokens(patches, 0.5, keys))
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for one, many in zip(drop(patches, keys)[:2], drop(*jax.device_put((patches, keys), rows))[:2]):
        np.testing.assert_array_equal(one, many)


MOE = dict(router=dict(name="token_choice", top=2), experts=4, last=1, span="row")


def test_the_step_costs_as_many_operations_as_tokens_are_kept():
    """Of a stack with experts too: what is dropped is not routed."""
    image = jax.ShapeDtypeStruct((8, 64, 64, 3), jnp.float32)
    inputs = dataclasses.replace(INPUTS, image_size=64)

    def flops(drop, **changes):
        config = choose(IMAGE_ENCODERS, {**SMALL_VIT, "pool": "mean", **changes}, "image")
        model = functional(config, inputs)

        def loss(params, image, keys):
            out, _ = model.apply(params, {}, image, train=True, drop=drop, row_keys=keys)
            routing = sum(v.sum() for k, v in (out.routing or {}).items() if "loss" in k)
            return out.pooled.sum() + routing

        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))
        return jax.jit(jax.grad(loss)).lower(model.params, image, keys).cost_analysis()["flops"]

    # 64 patches; attention falls with the square, everything else in proportion.
    assert 0.40 < flops(0.5, scan=False) / flops(0.0, scan=False) < 0.52
    assert flops(0.75, scan=False) / flops(0.0, scan=False) < 0.27
    routed = dict(scan=False, moe=MOE)
    assert flops(0.5, **routed) / flops(0.0, **routed) < 0.55


def test_positions_of_other_sizes_are_those_of_the_same_places():
    """sincos at half the side: a patch lies in the middle of four."""
    small, width = sincos_2d(2, 16, of=4), 16
    omega = 1.0 / 10_000.0 ** (np.arange(4) / 3)
    for place, row in enumerate(small):
        y, x = (2 * c + 0.5 for c in divmod(place, 2))
        want = [f(a * omega) for a in (x, y) for f in (np.sin, np.cos)]
        np.testing.assert_allclose(row, np.concatenate(want), atol=1e-6)
    np.testing.assert_array_equal(sincos_2d(4, width, of=4), sincos_2d(4, width))
    model, params = encoder(positions="sincos", pool="mean")
    assert quick_jit(model.apply)(params, {}, images(16))[0].tokens.shape == (B, 4, 32)


def test_who_cannot_drop_says_so():
    config = choose(MODELS, DUAL, "model")
    config.check_task(None, dict(drop=dict(image=0.5)))
    with pytest.raises(
        ConfigError, match=r"encode.drop.text: is no input that can lose tokens .*image"
    ):
        config.check_task(None, dict(drop=dict(text=0.5)))
    with pytest.raises(ConfigError, match=r"encode.drop.image: 1.0 is a share of the tokens"):
        config.check_task(None, dict(drop=dict(image=1.0)))
    model, params = encoder()
    with pytest.raises(ValueError, match="token dropping is random in training"):
        model.apply(params, {}, images(), train=True, drop=0.5)
