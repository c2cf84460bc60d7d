"""Linear and attentional probes: against scikit-learn, a plain loop, an oracle, an encoder that
knows nothing, and ties."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from known_answers import Records, Toy, encoders, pair, toy, unit

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column
from jaxvl.evals.attentional_probe import AttentionalProbe, compiled
from jaxvl.evals.linear_probe import LinearProbe, fit, shard
from jaxvl.evals.probing import Labelled, expected_accuracy, hold_out
from jaxvl.models.functional import functional
from jaxvl.models.probe import ProbeConfig
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=4, fsdp=2))
ONE = make_mesh(devices=jax.devices()[:1])
TABLE = unit(64, 16)
TRAIN = [k % 10 for k in range(60)]
TEST = [k % 10 for k in range(30)]
QUICK = dict(epochs=12, batch=16, heads=2, learning_rate=2e-2, gallery=0)


def test_fit_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(75, 6)).astype(np.float32)
    labels = rng.integers(0, 4, 75)
    x[np.arange(75), labels] += 1.0
    data = shard(x, labels, MESH)
    for use, l2 in ((np.ones(75, bool), 0.01), (np.arange(75) % 3 > 0, 0.3)):
        got = fit(data, use, l2, classes=4, iterations=300, mesh=MESH)
        peer = linear_model.LogisticRegression(
            C=1 / (l2 * use.sum()), tol=1e-10, max_iter=2000
        ).fit(x[use].astype(np.float64), labels[use])
        assert got.gradient <= 1e-5 and got.iterations < 300
        np.testing.assert_allclose(got.weight.T, peer.coef_, atol=1e-3)
        np.testing.assert_allclose(
            got.bias - got.bias.mean(), peer.intercept_ - peer.intercept_.mean(), atol=1e-3
        )
    again = fit(data, use, l2, classes=4, iterations=300, mesh=MESH, start=got)
    assert again.iterations <= 2  # it starts where the last one ended


def test_linear_probe_of_known_embeddings():
    probe = LinearProbe(**pair(TRAIN, [*TEST, 11, 12], broken=(4,)))
    got = probe.run(encoders(MESH, TABLE, TABLE))
    m = got.metrics
    assert {figure.split("/")[0] for figure in m} == {
        figure.split("/")[0] for figure in probe.figures
    }
    assert m["acc@1"] == m["mean_class_acc@1"] == m["train_acc@1"] == m["validation_acc@1"] == 1.0
    assert (m["classes"], m["images"], m["train_images"], m["acc@1_chance"]) == (10, 29, 60, 0.1)
    assert (
        m["skipped/class is not in the train source"] == 2
        and m["skipped/image cannot be decoded"] == 1
    )
    assert got.gallery[0].items[0].right and got.gallery[0].rank == 1
    same = np.repeat(TABLE[:1], 64, axis=0)
    blind = LinearProbe(**pair(TRAIN, TEST), gallery=0).run(encoders(MESH, same, TABLE)).metrics
    assert (
        blind["acc@1"] == pytest.approx(0.1) and blind["l2"] == 1.0
    )  # ties count by their mean; of equal penalties the strongest


def test_linear_probe_in_numbers_on_one_device_and_eight():
    """Fewer dimensions than classes, so that not all can be told; accuracy by a loop over the same
    classifier."""
    table = unit(64, 3, seed=2)
    probe = LinearProbe(**pair(TRAIN, [*TEST, 1, 1, 2]), l2=(1e-2,), gallery=0)
    eight, one = (probe.run(encoders(mesh, table, TABLE)).metrics for mesh in (MESH, ONE))
    for k in ("acc@1", "mean_class_acc@1", "train_acc@1"):
        assert eight[k] == pytest.approx(one[k]) and 0.1 < eight[k] <= 1
    linear_model = pytest.importorskip("sklearn.linear_model")
    x = table[TRAIN].astype(np.float64)
    scale = lambda rows: (rows - x.mean(0)) / x.std(0)
    peer = linear_model.LogisticRegression(C=1 / (1e-2 * 60), tol=1e-9, max_iter=5000).fit(
        scale(x), TRAIN
    )
    right = peer.predict(scale(table[[*TEST, 1, 1, 2]])) == [*TEST, 1, 1, 2]
    assert eight["acc@1"] == pytest.approx(right.mean())


def test_another_label_and_the_encoders_own_tokens():
    both = pair(range(40), range(40))
    known = encoders(MESH, TABLE, TABLE)
    got = LinearProbe(**both, label="parity", features="mean_tokens", gallery=2, l2=(1e-3,)).run(
        known
    )
    assert (
        got.metrics["classes"] == 2
        and got.metrics["acc@1"] > 0.6
        and {r.text for r in got.gallery} <= {"even", "odd"}
    )
    with pytest.raises(
        ConfigError,
        match=r"label: 'party' is not a column of train; did you mean 'parity'\? \(columns: image, class_label, parity",
    ):
        LinearProbe(**both, label="party").run(known)
    with pytest.raises(
        ConfigError, match="language: 'de': the classes of 'parity' have no names in it"
    ):
        LinearProbe(**both, label="parity", language="de").check(known)
    with pytest.raises(ConfigError, match="train: is required"):
        LinearProbe(both["source"])
    with pytest.raises(ConfigError, match="train: is the test source as well"):
        LinearProbe(both["source"], train=both["source"])
    with pytest.raises(DataError, match="train has one class only"):
        LinearProbe(**pair([3, 3], [3])).run(known)
    assert LinearProbe(**both).sources == (both["source"], both["train"])
    other = encoders(MESH, TABLE, TABLE)
    other._features = None
    with pytest.raises(ConfigError, match="needs a model that has tokens of an image"):
        AttentionalProbe(**both).run(other)


def test_classes_that_two_sources_number_in_different_ways_are_matched_by_name():
    """As folders of pictures do, of which one lacks a class: number 1 is `word 1` in one and `word
    2` in the other."""
    train = toy(TRAIN, name="train")
    test = Toy(
        Records(
            [(k, {}) for k in TEST if k != 1],
            {"en": [f"word {k}" for k in range(10) if k != 1]},
            name="test",
        )
    )
    numbers = [k - (k > 1) for k in TEST if k != 1]
    test.records.column = lambda name: np.array(numbers)
    got = (
        LinearProbe(test, train=train, l2=(1e-3,), gallery=0)
        .run(encoders(ONE, TABLE, TABLE))
        .metrics
    )
    assert (got["acc@1"], got["images"], got["classes"]) == (1.0, 27, 10)


@pytest.mark.parametrize("kind", ["int", "text"])
def test_labels_that_are_numbers_or_texts(kind):
    """Numbers without names, texts that are names; -1 is no class."""
    both = pair([*TRAIN, 3], [*TEST, 3])
    for config in both.values():
        records = config.records
        labels = [
            (-1 if kind == "int" else None) if i == len(records) - 1 else k
            for i, (k, _) in enumerate(records.rows)
        ]
        values = [k if kind == "int" or k is None else f"class {k}" for k in labels]
        records.columns["kind"] = Column(kind, optional=kind == "text")
        records.record = lambda i, columns, values=values, old=records.record: {
            **old(i, columns),
            "kind": values[i],
        }
    got = LinearProbe(**both, label="kind", l2=(1e-3,), gallery=1).run(encoders(ONE, TABLE, TABLE))
    assert (got.metrics["acc@1"], got.metrics["classes"], got.metrics["train_images"]) == (
        1.0,
        10,
        60,
    )
    assert got.metrics["skipped/class is not in the train source"] == 1
    assert got.gallery[0].text in (
        {str(k) for k in range(10)} if kind == "int" else {f"class {k}" for k in range(10)}
    )


def test_hold_out_takes_a_share_of_every_class_and_never_all():
    labels = np.array([0] * 10 + [1] * 5 + [2])
    held = hold_out(labels, 0.4)
    assert (
        np.bincount(labels[held], minlength=3).tolist() == [4, 2, 0]
        and (held == hold_out(labels, 0.4)).all()
    )
    assert np.bincount(labels[hold_out(labels, 0.99)], minlength=3).tolist() == [9, 4, 0]


def test_ties_count_by_their_mean():
    logits = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 3.0, 1.0], [2.0, 2.0, 2.0]])
    np.testing.assert_allclose(
        expected_accuracy(logits, np.array([0, 2, 1, 1])), [1 / 2, 0, 1, 1 / 3]
    )


def test_attentional_probe_finds_the_token_that_matters():
    both = pair(TRAIN, TEST)
    probe = AttentionalProbe(**both, **QUICK)
    got = probe.run(encoders(MESH, TABLE, TABLE)).metrics
    assert set(got) == set(probe.figures) - {"skipped/*"}
    assert (
        got["acc@1"] == got["mean_class_acc@1"] == got["train_acc@1"] == 1.0
        and got["train_loss"] < 0.5
    )
    before = compiled.cache_info().misses
    again = AttentionalProbe(**both, **QUICK).run(encoders(MESH, TABLE, TABLE)).metrics
    assert (
        again == got and compiled.cache_info().misses == before
    )  # the same figures, and nothing compiled
    blind = encoders(MESH, TABLE, TABLE)
    blind._features = jax.jit(
        lambda w, pixels, fault, mean: (jnp.ones((len(pixels), 4, 16)), fault), static_argnums=3
    )
    got = AttentionalProbe(**both, **{**QUICK, "epochs": 2}).run(blind).metrics
    assert got["acc@1"] == pytest.approx(0.1)
    with pytest.raises(
        ConfigError, match="memory_gib: .* the tokens of the 60 images of train take"
    ):
        AttentionalProbe(**both, heads=2, memory_gib=1e-6).run(encoders(MESH, TABLE, TABLE))


def test_attentional_probe_is_a_plain_loop_over_batches_of_any_size():
    """20 rows in batches of 8, 8 and 4 that are padded on the mesh: the parameters of a loop over
    the rows themselves."""
    rng = np.random.default_rng(0)
    train = Labelled(
        rng.normal(size=(20, 4, 16)).astype(np.float32), rng.integers(0, 3, 20), np.arange(20), {}
    )
    config = ProbeConfig(classes=3, memory_width=16, width=16, heads=2)
    options = AttentionalProbe(
        **pair([0], [0]), epochs=2, batch=8, seed=3, label_smoothing=0.1, heads=2
    )
    programs = compiled(
        config,
        "float32",
        options.learning_rate,
        options.weight_decay,
        options.label_smoothing,
        6,
        MESH,
    )
    got, loss = options.fit(programs, train, 8, MESH)

    probe = functional(config, None)
    params, _ = probe.init(jax.random.key(3))
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 1, 6)
    decay = {
        k: k in ("head/kernel", "pooler/query")
        or k.startswith("pooler/attention/")
        and k.endswith("kernel")
        for k in params
    }
    tx = optax.adamw(rate, weight_decay=1e-4, mask=decay)
    moments = tx.init(params)

    @jax.jit
    def value_and_grad(params, x, y):
        def of(params):
            log_p = jax.nn.log_softmax(probe.apply(params, {}, x)[0])
            return -(
                0.9 * jnp.take_along_axis(log_p, y[:, None], 1)[:, 0] + 0.1 * log_p.mean(1)
            ).mean()

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
