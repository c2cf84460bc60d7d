"""Linkage: against scikit-learn, and noisy duplicates in which neither modality is enough."""

import jax
import numpy as np
import pytest
from known_answers import encoders, toy, unit

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.evals.linkage import Linkage, adjusted_rand, agglomerate, pooled
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=4, fsdp=2))
ONE = make_mesh(devices=jax.devices()[:1])
TEXT = "name/en"


def test_adjusted_rand_and_clusters_are_those_of_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for one, other in ((4, 4), (1, 3), (30, 2), (30, 30)):
        a, b = rng.integers(0, one, 40), rng.integers(0, other, 40)
        want = metrics.adjusted_rand_score(a, b)
        assert adjusted_rand(a, b) == pytest.approx(want, abs=1e-12)
    assert adjusted_rand(np.zeros(5), np.ones(5)) == adjusted_rand(range(5), range(5)) == 1
    rows = unit(40, 6)
    for options in (dict(n_clusters=7), dict(n_clusters=None, distance_threshold=0.8)):
        peer = cluster.AgglomerativeClustering(metric="cosine", linkage="average", **options)
        found = agglomerate(rows, options.get("distance_threshold"), 7)
        assert adjusted_rand(found, peer.fit_predict(rows)) == 1


def noisy(seed):
    """An evaluator of 12 things, four noisy records of each, and encoders whose tables hold the
    records' own vectors."""
    rng = np.random.default_rng(seed)
    things = np.repeat(unit(12, 16, seed), 4, 0)
    tables = []
    for _ in range(2):
        rows = things + 0.32 * rng.normal(size=things.shape)
        tables.append(np.float32(rows / np.linalg.norm(rows, axis=1, keepdims=True)))
    return tables, np.arange(48) // 4


class Things:
    """Records 0 … 47 whose thing is a column."""

    def __new__(cls, things):
        source = toy(list(range(48)))
        column = source.records.column
        source.records.column = lambda name: things if name == "parity" else column(name)
        read = source.records.read
        source.records.read = lambda i, columns=None: {
            **read(i, columns), "parity": int(things[i])}  # fmt: skip
        return source


@pytest.mark.parametrize("mesh", [MESH, ONE], ids=["8 devices", "1 device"])
def test_figures_are_those_of_plain_numpy(mesh):
    (image, text), things = noisy(0)
    evaluator = Linkage(source=Things(things), text=TEXT, label="parity")
    model = encoders(mesh, image, text)
    evaluator.check(model)
    got = evaluator.run(model).metrics
    z = image.astype(np.float64) + text
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    others = np.arange(48) % 4 > 0
    nearest = (z[others] @ z[~others].T).argmax(1)
    assert got["exemplar_acc"] == pytest.approx((nearest == things[others]).mean())
    assert (got["records"], got["classes"], got["clusters"]) == (48, 12, 12)
    assert got["exemplar_acc_chance"] == pytest.approx(1 / 12)
    assert set(got) <= set(evaluator.figures)
    rows = pooled(image, text)
    np.testing.assert_allclose(rows, z, atol=1e-6)


def test_pooled_records_are_linked_better_than_either_modality():
    found = []
    for seed in range(3):
        (image, text), things = noisy(seed)
        model = encoders(ONE, image, text)
        options = dict(source=Things(things), text=TEXT, label="parity")
        of = {p: Linkage(pool=p, **options).run(model).metrics for p in ("both", "image", "text")}
        found.append([[of[p][f] for p in of] for f in ("exemplar_acc", "adjusted_rand")])
    found = np.array(found)  # [seeds, figures, pools]
    print("accuracy and adjusted Rand: both, image, text:", found.round(3).tolist())
    assert (found[..., 0] > found[..., 1:].max(-1) + 0.05).all()
    assert (found[:, 0, 0] > 0.7).all()


def test_what_cannot_be_linked_is_told():
    model = encoders(ONE, unit(64, 4), unit(64, 4))
    alone = Linkage(source=toy(list(range(9))), text=TEXT)
    with pytest.raises(DataError, match="no two records of one class_label"):
        alone.run(model)
    with pytest.raises(ConfigError, match="^pool: 'sum' must be one of"):
        Linkage(source=toy([1]), pool="sum")
