"""Linear and attentional probes: against scikit-learn, a plain loop, an oracle, an encoder that knows nothing, and ties."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from known_answers import corpus, encoders, two_splits, unit

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.evals.attentional_probe import AttentionalProbe, compiled
from jaxvl.evals.linear_probe import LinearProbe, fit, shard
from jaxvl.evals.probing import Labelled, expected_accuracy, hold_out
from jaxvl.models.functional import functional
from jaxvl.models.probe import ProbeConfig
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=4, fsdp=2))
ONE = make_mesh(devices=jax.devices()[:1])
TABLE = unit(64, 16)
TRAIN, TEST = [k % 10 for k in range(60)], [k % 10 for k in range(30)]
QUICK = dict(epochs=12, batch=16, heads=2, learning_rate=2e-2, gallery=0)


def test_fit_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(75, 6)).astype(np.float32), rng.integers(0, 4, 75)
    x[np.arange(75), labels] += 1.0
    data = shard(x, labels, MESH)
    for use, l2 in ((np.ones(75, bool), 0.01), (np.arange(75) % 3 > 0, 0.3)):
        got = fit(data, use, l2, classes=4, iterations=300, mesh=MESH)
        peer = linear_model.LogisticRegression(C=1 / (l2 * use.sum()), tol=1e-10, max_iter=2000).fit(x[use].astype(np.float64), labels[use])
        assert got.gradient <= 1e-5 and got.iterations < 300
        np.testing.assert_allclose(got.weight.T, peer.coef_, atol=1e-3)
        np.testing.assert_allclose(got.bias - got.bias.mean(), peer.intercept_ - peer.intercept_.mean(), atol=1e-3)
    again = fit(data, use, l2, classes=4, iterations=300, mesh=MESH, start=got)
    assert again.iterations <= 2  # it starts where the last one ended


def test_linear_probe_of_known_embeddings():
    toy = two_splits(TRAIN, [*TEST, 11, 12], broken=(4,))
    probe = LinearProbe(toy, "test", train_split="train")
    got = probe.run(encoders(MESH, TABLE, TABLE))
    m = got.metrics
    assert {figure.split("/")[0] for figure in m} == {figure.split("/")[0] for figure in probe.figures}
    assert m["acc@1"] == m["mean_class_acc@1"] == m["train_acc@1"] == m["validation_acc@1"] == 1.0
    assert (m["classes"], m["images"], m["train_images"], m["acc@1_chance"]) == (10, 29, 60, 0.1)
    assert m["skipped/class is not in the train split"] == 2 and m["skipped/image cannot be decoded"] == 1
    assert got.gallery[0].items[0].right and got.gallery[0].rank == 1
    same = np.repeat(TABLE[:1], 64, axis=0)
    blind = LinearProbe(two_splits(TRAIN, TEST), "test", train_split="train", gallery=0).run(encoders(MESH, same, TABLE)).metrics
    assert blind["acc@1"] == pytest.approx(0.1) and blind["l2"] == 1.0  # ties count by their mean; of equal penalties the strongest


def test_linear_probe_in_numbers_on_one_device_and_eight():
    """Fewer dimensions than classes, so that not all can be told; accuracy by a loop over the same classifier."""
    table = unit(64, 3, seed=2)
    probe = LinearProbe(two_splits(TRAIN, [*TEST, 1, 1, 2]), "test", train_split="train", l2=(1e-2,), gallery=0)
    eight, one = (probe.run(encoders(mesh, table, TABLE)).metrics for mesh in (MESH, ONE))
    for k in ("acc@1", "mean_class_acc@1", "train_acc@1"):
        assert eight[k] == pytest.approx(one[k]) and 0.1 < eight[k] <= 1
    linear_model = pytest.importorskip("sklearn.linear_model")
    x = table[TRAIN].astype(np.float64)
    scale = lambda rows: (rows - x.mean(0)) / x.std(0)
    peer = linear_model.LogisticRegression(C=1 / (1e-2 * 60), tol=1e-9, max_iter=5000).fit(scale(x), TRAIN)
    right = peer.predict(scale(table[[*TEST, 1, 1, 2]])) == [*TEST, 1, 1, 2]
    assert eight["acc@1"] == pytest.approx(right.mean())


def test_an_attribute_and_the_encoders_own_tokens():
    toy = two_splits(range(40), range(40))
    probe = lambda **options: LinearProbe(toy, "test", train_split="train", gallery=2, l2=(1e-3,), **options).run(
        encoders(MESH, TABLE, TABLE)
    )
    got = probe(label="parity", features="mean_tokens")
    assert got.metrics["classes"] == 2 and got.metrics["acc@1"] > 0.6 and {r.text for r in got.gallery} <= {"even", "odd"}
    with pytest.raises(ConfigError, match="label: 'party' is not an attribute of the corpus; did you mean 'parity'"):
        probe(label="party")
    with pytest.raises(ConfigError, match="train_split: is required"):
        LinearProbe(toy, "test")
    with pytest.raises(ConfigError, match="train_split: 'test' is the test split as well"):
        LinearProbe(toy, "test", train_split="test")
    with pytest.raises(DataError, match="has one class only"):
        LinearProbe(two_splits([3, 3], [3]), "test", train_split="train").run(encoders(MESH, TABLE, TABLE))
    other = encoders(MESH, TABLE, TABLE)
    other._features = None
    with pytest.raises(ConfigError, match="needs a model that has tokens of an image"):
        AttentionalProbe(toy, "test", train_split="train").run(other)


def test_hold_out_takes_a_share_of_every_class_and_never_all():
    labels = np.array([0] * 10 + [1] * 5 + [2])
    held = hold_out(labels, 0.4)
    assert np.bincount(labels[held], minlength=3).tolist() == [4, 2, 0] and (held == hold_out(labels, 0.4)).all()
    assert np.bincount(labels[hold_out(labels, 0.99)], minlength=3).tolist() == [9, 4, 0]


def test_ties_count_by_their_mean():
    logits = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 3.0, 1.0], [2.0, 2.0, 2.0]])
    np.testing.assert_allclose(expected_accuracy(logits, np.array([0, 2, 1, 1])), [1 / 2, 0, 1, 1 / 3])


def test_attentional_probe_finds_the_token_that_matters():
    toy = two_splits(TRAIN, TEST)
    probe = AttentionalProbe(toy, "test", train_split="train", **QUICK)
    got = probe.run(encoders(MESH, TABLE, TABLE)).metrics
    assert set(got) == set(probe.figures) - {"skipped/*"}
    assert got["acc@1"] == got["mean_class_acc@1"] == got["train_acc@1"] == 1.0 and got["train_loss"] < 0.5
    before = compiled.cache_info().misses
    again = AttentionalProbe(toy, "test", train_split="train", **QUICK).run(encoders(MESH, TABLE, TABLE)).metrics
    assert again == got and compiled.cache_info().misses == before  # the same figures, and nothing compiled
    blind = encoders(MESH, TABLE, TABLE)
    blind._features = jax.jit(lambda w, pixels, fault, mean: (jnp.ones((len(pixels), 4, 16)), fault), static_argnums=3)
    got = AttentionalProbe(toy, "test", train_split="train", **{**QUICK, "epochs": 2}).run(blind).metrics
    assert got["acc@1"] == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="memory_gib: .* the tokens of the 60 images of 'train' take"):
        AttentionalProbe(toy, "test", train_split="train", heads=2, memory_gib=1e-6).run(encoders(MESH, TABLE, TABLE))


def test_attentional_probe_is_a_plain_loop_over_batches_of_any_size():
    """20 rows in batches of 8, 8 and 4 that are padded on the mesh: the parameters of a loop over the rows themselves."""
    rng = np.random.default_rng(0)
    train = Labelled(rng.normal(size=(20, 4, 16)).astype(np.float32), rng.integers(0, 3, 20), np.arange(20), {})
    config = ProbeConfig(classes=3, memory_width=16, width=16, heads=2)
    options = AttentionalProbe(corpus([0]), "test", train_split="train", epochs=2, batch=8, seed=3, label_smoothing=0.1, heads=2)
    programs = compiled(config, "float32", options.learning_rate, options.weight_decay, options.label_smoothing, 6, MESH)
    got, loss = options.fit(programs, train, 8, MESH)

    probe = functional(config, None)
    params, _ = jax.jit(probe.init)(jax.random.key(3))
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 1, 6)
    decay = {k: k in ("head/kernel", "pooler/query") or k.startswith("pooler/attention/") and k.endswith("kernel") for k in params}
    tx = optax.adamw(rate, weight_decay=1e-4, mask=decay)
    moments = tx.init(params)

    @jax.jit
    def value_and_grad(params, x, y):
        def of(params):
            log_p = jax.nn.log_softmax(probe.apply(params, {}, x)[0])
            return -(0.9 * jnp.take_along_axis(log_p, y[:, None], 1)[:, 0] + 0.1 * log_p.mean(1)).mean()

        return jax.value_and_grad(of)(params)

    total = 0.0
    for epoch in range(2):
        order = np.random.default_rng([3, epoch]).permutation(20)
        for part in (order[:8], order[8:16], order[16:]):
            value, gradient = value_and_grad(params, train.rows[part], train.labels[part])
            total += float(value) * len(part) * epoch / 20
            updates, moments = tx.update(gradient, moments, params)
            params = optax.apply_updates(params, updates)
    assert loss == pytest.approx(total, rel=1e-4)
    for k, v in params.items():
        np.testing.assert_allclose(got[k], v, atol=2e-5, err_msg=k)
