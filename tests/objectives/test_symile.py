"""Symile against brute force, and on what no pair of modalities shows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvl.config import ConfigError
from jaxvl.objectives.clip import SymmetricSoftmax
from jaxvl.objectives.symile import Symile

NAMES = ("image", "text", "audio")


def rows(b, d, seed=0, names=NAMES):
    rng = np.random.default_rng(seed)
    found = {name: rng.normal(size=(b, d)).astype(np.float32) for name in names}
    return {name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in found.items()} | {"log_scale": np.float32(1.3)}


def all_tuples(outputs, names, valid=None):
    """Every negative of the product, in float64, tuple by tuple."""
    z, scale = {n: outputs[n].astype(np.float64) for n in names}, np.exp(np.float64(outputs["log_scale"]))
    b = len(z[names[0]])
    valid = np.ones(b, bool) if valid is None else valid
    losses = []
    for anchor in names:
        others = [n for n in names if n != anchor]
        for i in np.flatnonzero(valid):
            logits = {}
            for js in itertools.product(np.flatnonzero(valid), repeat=len(others)):
                logits[js] = scale * np.sum(z[anchor][i] * np.prod([z[o][j] for o, j in zip(others, js)], axis=0))
            losses.append(np.log(np.sum(np.exp(list(logits.values())))) - logits[(i,) * len(others)])
    return np.mean(losses)


@pytest.mark.parametrize("names", [NAMES, (*NAMES, "touch")], ids=["three", "four"])
def test_all_tuples_equal_brute_force(names):
    outputs = rows(5, 6, names=names)
    loss, _ = Symile(modalities=names, negatives="n2")(outputs, {}, (), jax.random.key(0))
    np.testing.assert_allclose(loss.value, all_tuples(outputs, names), rtol=1e-5)


def test_rows_that_lack_a_modality_neither_anchor_nor_compete():
    outputs, has = rows(6, 6), np.array([1, 1, 0, 1, 1, 0], bool)
    loss, _ = Symile(negatives="n2")(outputs, {"has_text": jnp.asarray(has)}, (), jax.random.key(0))
    np.testing.assert_allclose(loss.value, all_tuples(outputs, NAMES, has), rtol=1e-5)
    shuffled, _ = Symile()(outputs, {"has_text": jnp.asarray(has)}, (), jax.random.key(0))
    changed = {**outputs, "text": np.where(has[:, None], outputs["text"], 7.0).astype(np.float32)}
    again, _ = Symile()(changed, {"has_text": jnp.asarray(has)}, (), jax.random.key(0))
    np.testing.assert_allclose(again.value, shuffled.value, rtol=1e-6)


def test_shuffled_negatives_are_those_of_the_drawn_permutations():
    outputs, key, b = rows(7, 5), jax.random.key(3), 7
    loss, _ = Symile()(outputs, {}, (), key)
    z, scale, losses = {n: outputs[n].astype(np.float64) for n in NAMES}, np.exp(np.float64(1.3)), []
    for i, anchor in enumerate(NAMES):
        others = [n for n in NAMES if n != anchor]
        keys = jax.random.split(jax.random.fold_in(key, i), 2)
        orders = [np.asarray(jax.random.permutation(k, b)) for k in keys]
        logits = scale * z[anchor] @ (z[others[0]][orders[0]] * z[others[1]][orders[1]]).T
        np.fill_diagonal(logits, scale * np.sum(z[anchor] * z[others[0]] * z[others[1]], axis=1))
        losses.append(np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits)))
    np.testing.assert_allclose(loss.value, np.mean(losses), rtol=1e-5)


def learn_xor(loss_of, steps=200):
    """Tables of embeddings of two bits and their exclusive or, learned by `loss_of`; returns the share of right third bits."""
    tx = optax.adam(0.05)

    def embed(params, bits):
        table = {n: params[n] / jnp.linalg.norm(params[n], axis=1, keepdims=True) for n in NAMES}
        return {n: table[n][bits[n]] for n in NAMES} | {"log_scale": params["log_scale"]}

    @jax.jit
    def step(params, state, key):
        a, b = jax.random.bernoulli(key, 0.5, (2, 64)).astype(jnp.int32)
        bits = dict(zip(NAMES, (a, b, a ^ b)))
        gradient = jax.grad(lambda p: loss_of(embed(p, bits), key))(params)
        updates, state = tx.update(gradient, state)
        return optax.apply_updates(params, updates), state

    keys = jax.random.split(jax.random.key(1), 3)
    params = {n: jax.random.normal(k, (2, 8)) for n, k in zip(NAMES, keys)} | {"log_scale": jnp.float32(0)}
    state = tx.init(params)
    for i in range(steps):
        params, state = step(params, state, jax.random.key(100 + i))
    cases = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    z = embed(params, {n: jnp.array([case[i] for case in cases]) for i, n in enumerate(NAMES)})
    return z, cases


def test_symile_learns_exclusive_or_where_pairs_cannot():
    def score_triples(z, cases):
        s = np.asarray(z["image"] * z["text"] * z["audio"]).sum(1)
        return np.mean([s[cases.index((a, b, a ^ b))] > s[cases.index((a, b, 1 - (a ^ b)))] for a in (0, 1) for b in (0, 1)])

    def score_pairs(z, cases):
        s = np.asarray(z["image"] * z["audio"] + z["text"] * z["audio"]).sum(1)
        return np.mean([s[cases.index((a, b, a ^ b))] > s[cases.index((a, b, 1 - (a ^ b)))] for a in (0, 1) for b in (0, 1)])

    assert score_triples(*learn_xor(lambda z, key: Symile()(z, {}, (), key)[0].value)) >= 0.99

    def pairwise(z, key):
        pairs = (("image", "text"), ("image", "audio"), ("text", "audio"))
        batch = {"id": jnp.arange(64)}
        return sum(
            SymmetricSoftmax()({"image": z[a], "text": z[b], "log_scale": z["log_scale"]}, batch, (), key)[0].value for a, b in pairs
        )

    # Pairs of independent bits hold nothing: at most what a sum of two functions can fit by luck of the four cases.
    assert score_pairs(*learn_xor(pairwise)) <= 0.75


def test_two_modalities_are_refused():
    with pytest.raises(ConfigError, match="three or more"):
        Symile(modalities=("image", "text"))
