"""Several runs' embeddings joined, and MCL's stages: a hard feature that the first one lacks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_answers import encoders, pair, toy, unit

from jaxvl.config import ConfigError
from jaxvl.data.samplers.per_cluster import ClusterOrder
from jaxvl.evals.ensemble import Ensemble, joined
from jaxvl.evals.linear_probe import LinearProbe, fit, shard
from jaxvl.jobs.clustering import kmeans
from jaxvl.kernels.contrastive import contrastive_loss
from jaxvl.nn.norms import l2_normalize
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=4, fsdp=2))
ONE = make_mesh(devices=jax.devices()[:1])
PROBE = LinearProbe(**pair([k % 10 for k in range(60)], [k % 10 for k in range(30)]), gallery=0)


class Saved:
    """What a tokenizer is told from another by."""

    def __init__(self, tokenizer, text):
        self.encode = tokenizer.encode
        self.to_json = lambda: text


def stage(seed, mesh=MESH, text="a", open_run=None):
    out = encoders(mesh, unit(64, 6, seed), unit(64, 4, seed + 50))
    out.tokenizer = Saved(out.tokenizer, text)
    out.open_run = open_run
    return out


@pytest.mark.parametrize("mesh", [MESH, ONE], ids=["8 devices", "1 device"])
def test_rows_are_those_of_all_runs_after_each_other(mesh):
    several = [stage(seed, mesh) for seed in (0, 1, 2)]
    whole = joined(several)
    source = toy(list(range(20)))
    rows = whole.images(source.records).rows
    each = [e.images(source.records).rows.astype(np.float64) for e in several]
    np.testing.assert_allclose(rows, np.concatenate(each, 1) / np.sqrt(3), atol=1e-6)
    np.testing.assert_allclose((rows**2).sum(1), 1, atol=1e-5)
    texts = [f"word {k}" for k in range(9)]
    each = [e.texts(texts).astype(np.float64) for e in several]
    np.testing.assert_allclose(whole.texts(texts), np.concatenate(each, 1) / np.sqrt(3), atol=1e-6)


def test_the_evaluator_opens_the_other_runs():
    known = {"runs/a": stage(0), "runs/b": stage(1)}
    own = stage(2, open_run=known.__getitem__)
    ensemble = Ensemble(runs=tuple(known), evaluator=PROBE)
    ensemble.check(own)
    got = ensemble.run(own).metrics
    assert got == PROBE.run(joined([*known.values(), own])).metrics
    assert (ensemble.figures, ensemble.every) == (PROBE.figures, 0)
    assert ensemble.sources == PROBE.sources
    known["runs/b"] = stage(1, text="another")
    with pytest.raises(ConfigError, match=r"^runs\[1\]: has another tokenizer"):
        ensemble.run(own)
    wrong = Ensemble(runs=("runs/a",), evaluator=dataclasses.replace(PROBE, label="no"))
    with pytest.raises(ConfigError, match=r"^evaluator.label: 'no'"):
        wrong.check(own)
    with pytest.raises(ConfigError, match="^runs: .* no other run can be opened"):
        ensemble.run(stage(2))


# --------------------------------------------------------------------------------------------------
# MCL's proof: colour is easy, the digit is hard

KINDS = 5  # of each
BATCH = 32
STEPS = 500


def two_features(seed, n=1000):
    """Colour and digit of each record, and two views [n, 10] in which colour is three times as loud
    as the digit."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(0, KINDS, n)
    digit = rng.integers(0, KINDS, n)
    code = np.concatenate([3.0 * np.eye(KINDS)[colour], np.eye(KINDS)[digit]], 1)
    mix = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    views = [(code + 0.1 * rng.normal(size=code.shape)) @ mix for _ in range(2)]
    return colour, digit, [view.astype(np.float32) for view in views]


def embed(params, x):
    return l2_normalize(x @ params["first"] @ params["second"])


def loss(params, data):
    rows = [embed(params, x) for x in data]
    return contrastive_loss(*rows, jnp.log(8.0), directions="mean", implementation="reference")


@jax.jit
def trained(params, batches):
    """Parameters after a step of momentum on each batch."""

    def step(carry, data):
        params, velocity = carry
        slope = jax.grad(loss)(params, data)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, slope)
        return (jax.tree.map(lambda p, v: p - 0.05 * v, params, velocity), velocity), None

    still = jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(step, (params, still), batches)[0][0]


def embeddings_after(views, records, seed):
    """Of a fresh encoder of two dimensions, trained on batches of these records [STEPS, BATCH]."""
    a, b = jax.random.split(jax.random.key(seed))
    params = {
        "first": 0.2 * jax.random.normal(a, (10, 64)),
        "second": 0.2 * jax.random.normal(b, (64, 2)),
    }
    params = trained(params, tuple(jnp.asarray(view[records]) for view in views))
    return np.asarray(embed(params, views[0]))


def probed(x, labels):
    """Accuracy of a linear probe on the half that it has not seen."""
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    seen = np.arange(len(x)) < len(x) // 2
    found = fit(shard(x, labels, ONE), seen, 1e-4, classes=KINDS, iterations=200, mesh=ONE)
    return float((found.logits(x).argmax(1) == labels)[~seen].mean())


def digits_learnt(seed):
    """Accuracy on the digit after one stage, of two joined, and of two joined of which the second
    has batches of all clusters; on the colour of two joined."""
    colour, digit, views = two_features(seed)
    anything = np.random.default_rng(seed).integers(0, len(digit), (2, STEPS, BATCH))
    one = embeddings_after(views, anything[0], seed)
    clusters = kmeans(one, KINDS, ONE, spherical=True).labels
    order = ClusterOrder(clusters, seed, BATCH, dropped=True)
    records = order(np.arange(STEPS * BATCH)).reshape(STEPS, BATCH)
    assert (clusters[records] == clusters[records[:, :1]]).all(), "a batch mixes clusters"
    two, plain = (embeddings_after(views, r, seed + 10) for r in (records, anything[1]))
    both, without = (np.concatenate([one, other], 1) for other in (two, plain))
    return probed(one, digit), probed(both, digit), probed(without, digit), probed(both, colour)


def test_a_second_stage_learns_what_the_first_did_not():
    found = np.array([digits_learnt(seed) for seed in range(3)])
    print("digit after one stage, two, two without clusters; colour:", found.round(3).tolist())
    one, both, without, colour = found.T
    assert (one < 0.4).all()
    assert (both > 0.9).all()
    assert (both > without + 0.3).all()
    assert (colour > 0.95).all()
