"""Symile against brute force, and on what no pair of modalities shows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvl.config import ConfigError
from jaxvl.models.base import InputSpec
from jaxvl.models.functional import functional
from jaxvl.models.imp import ImpConfig
from jaxvl.objectives import Context
from jaxvl.objectives.clip import SymmetricSoftmax
from jaxvl.objectives.symile import Symile

NAMES = ("image", "text", "audio")


def value_of(objective, outputs, batch, key=0):
    """The objective's loss, compiled as one program."""
    of = jax.jit(lambda outputs, batch: objective(outputs, batch, {}, at(jax.random.key(key)))[0])
    return of(outputs, batch).value


def at(key):
    return Context(key, jnp.int32(0), jnp.float32(0))


def rows(b, d, seed=0, names=NAMES):
    rng = np.random.default_rng(seed)
    found = {name: rng.normal(size=(b, d)).astype(np.float32) for name in names}
    return {name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in found.items()} | {
        "log_scale": np.float32(1.3)
    }


def all_tuples(outputs, names, valid=None):
    """Every negative of the product, in float64, tuple by tuple."""
    z = {n: outputs[n].astype(np.float64) for n in names}
    scale = np.exp(np.float64(outputs["log_scale"]))
    b = len(z[names[0]])
    valid = np.ones(b, bool) if valid is None else valid
    losses = []
    for anchor in names:
        others = [n for n in names if n != anchor]
        for i in np.flatnonzero(valid):
            logits = {}
            for js in itertools.product(np.flatnonzero(valid), repeat=len(others)):
                logits[js] = scale * np.sum(
                    z[anchor][i] * np.prod([z[o][j] for o, j in zip(others, js)], axis=0)
                )
            losses.append(
                np.log(np.sum(np.exp(list(logits.values())))) - logits[(i,) * len(others)]
            )
    return np.mean(losses)


@pytest.mark.parametrize("names", [NAMES, (*NAMES, "touch")], ids=["three", "four"])
def test_all_tuples_equal_brute_force(names):
    outputs = rows(5, 6, names=names)
    loss = value_of(Symile(modalities=names, negatives="n2"), outputs, {})
    np.testing.assert_allclose(loss, all_tuples(outputs, names), rtol=1e-5)


def test_rows_that_lack_a_modality_neither_anchor_nor_compete():
    outputs = rows(6, 6)
    has = np.array([1, 1, 0, 1, 1, 0], bool)
    loss = value_of(Symile(negatives="n2"), outputs, {"has_text": has})
    np.testing.assert_allclose(loss, all_tuples(outputs, NAMES, has), rtol=1e-5)
    shuffled = value_of(Symile(), outputs, {"has_text": has})
    changed = {**outputs, "text": np.where(has[:, None], outputs["text"], 7.0).astype(np.float32)}
    again = value_of(Symile(), changed, {"has_text": has})
    np.testing.assert_allclose(again, shuffled, rtol=1e-6)


def test_rows_without_sound_of_a_model_with_many_modalities_do_not_count():
    pairs = ("vision-text", "vision-audio", "audio-text")
    config = ImpConfig(
        width=16,
        depth=1,
        heads=2,
        hidden=16,
        patch=8,
        patch_frames=1,
        most_frames=1,
        most_pixels=8,
        waveform_patch=32,
        most_samples=64,
        most_words=4,
        inputs=("image", "waveform", "text"),
        pairs=pairs,
        embed_dim=8,
        projection_hidden=8,
    )
    model = functional(config, InputSpec(8, 4, 20))
    params, rest = model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    has = jnp.array([True, True, False, True, True, False])
    batch = dict(
        image=rng.normal(size=(6, 8, 8, 3)).astype(np.float32),
        text=rng.integers(2, 20, (6, 4)),
        waveform=rng.normal(size=(6, 64)).astype(np.float32),
    )
    names = ("vision>text", "text>vision", "audio>vision")
    objective = Symile(modalities=names, negatives="n2", scale="log_scale/vision-text")
    outputs = jax.jit(model.apply)(params, rest, {**batch, "has_waveform": has})[0]
    loss = value_of(objective, outputs, {**batch, "has_waveform": has})
    want = all_tuples(
        {n: np.asarray(outputs[n]) for n in names} | {"log_scale": outputs[objective.scale]},
        names,
        np.asarray(has),
    )
    np.testing.assert_allclose(loss, want, rtol=1e-5)


def test_shuffled_negatives_are_those_of_the_drawn_permutations():
    outputs = rows(7, 5)
    key = jax.random.key(3)
    b = 7
    loss = value_of(Symile(), outputs, {}, key=3)
    z = {n: outputs[n].astype(np.float64) for n in NAMES}
    scale = np.exp(np.float64(1.3))
    losses = []
    for i, anchor in enumerate(NAMES):
        others = [n for n in NAMES if n != anchor]
        keys = jax.random.split(jax.random.fold_in(key, i), 2)
        orders = [np.asarray(jax.random.permutation(k, b)) for k in keys]
        logits = scale * z[anchor] @ (z[others[0]][orders[0]] * z[others[1]][orders[1]]).T
        np.fill_diagonal(logits, scale * np.sum(z[anchor] * z[others[0]] * z[others[1]], axis=1))
        losses.append(np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits)))
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)


def learn_xor(loss_of, bits=2, width=8, steps=200, runs=16):
    """Unit tables [R, 2^bits, D] of a, b and c = a xor b, learned by `loss_of` in R runs of their
    own, and R scales."""
    tx = optax.adam(0.05)
    n = 2**bits

    def embed(params, words):
        return {
            k: (params[k] / jnp.linalg.norm(params[k], axis=1, keepdims=True))[words[k]]
            for k in NAMES
        } | {"log_scale": params["log_scale"]}

    def step(carry, key):
        params, state = carry
        a, b = jax.random.randint(key, (2, 64), 0, n)
        words = dict(zip(NAMES, (a, b, a ^ b)))
        updates, state = tx.update(jax.grad(lambda p: loss_of(embed(p, words), key))(params), state)
        return (optax.apply_updates(params, updates), state), None

    def learn(key):
        first, *keys = jax.random.split(key, steps + 1)
        params = {
            k: jax.random.normal(jax.random.fold_in(first, i), (n, width))
            for i, k in enumerate(NAMES)
        } | {"log_scale": jnp.float32(0)}
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.stack(keys))
        return embed(params, {k: jnp.arange(n) for k in NAMES})

    return jax.jit(jax.vmap(learn))(jax.random.split(jax.random.key(1), runs))


def right_words(scores):
    """Share of (a, b) whose best c [R, A, B, C] is a xor b, float64 [R]."""
    a, b = np.indices(scores.shape[1:3])
    return (scores.argmax(-1) == (a ^ b)).mean((1, 2))


@pytest.mark.slow
def test_symile_learns_exclusive_or_and_pairs_stay_at_chance():
    z = learn_xor(lambda z, key: Symile()(z, {}, {}, at(key))[0].value)
    right = right_words(np.asarray(jnp.einsum("rad,rbd,rcd->rabc", *(z[k] for k in NAMES))))
    assert right.mean() >= 0.99

    def pairwise(z, key):
        pairs = (("image", "text"), ("image", "audio"), ("text", "audio"))
        batch = {"group_id": jnp.arange(64)}
        return sum(
            SymmetricSoftmax()(
                {"image": z[a], "text": z[b], "log_scale": z["log_scale"]}, batch, {}, at(key)
            )[0].value
            for a, b in pairs
        )

    z = learn_xor(pairwise)
    of_image, of_text = (jnp.einsum("rad,rcd->rac", z[k], z["audio"]) for k in ("image", "text"))
    right = right_words(np.asarray(of_image[:, :, None] + of_text[:, None]))
    error = right.std() / np.sqrt(len(right))
    assert abs(right.mean() - 1 / 4) < 3 * error and error < 0.05, (right, error)
    assert jnp.exp(z["log_scale"]).max() < 1  # from 1: there is nothing to tell apart by


def test_two_modalities_are_refused():
    with pytest.raises(ConfigError, match="three or more"):
        Symile(modalities=("image", "text"))
