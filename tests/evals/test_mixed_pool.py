"""A pool of pictures and texts, and neighbours among pictures: against plain loops in float64."""

import jax
import numpy as np
import pytest
from known_answers import encoders, toy, unit

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.evals.image_knn import ImageKnn, average_precision
from jaxvl.evals.mixed_pool import MixedPool
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=4, fsdp=2))
ONE = make_mesh(devices=jax.devices()[:1])
IMAGE = unit(64, 6, seed=1)
TEXT = unit(64, 6, seed=2)
LABELS = [(7 * i) % 11 for i in range(30)]
COLUMNS = dict(query="name/en", document="name/de")


@pytest.fixture(scope="module", params=[MESH, ONE], ids=["8 devices", "1 device"])
def model(request):
    return encoders(request.param, IMAGE, TEXT)


def test_share_of_the_wrong_modality(model):
    """All names of a class are one text here, so a query's document is its own text: the nearest
    candidates are documents, unless pictures are nearer."""
    evaluator = MixedPool(source=toy(LABELS, broken=(4,)), group="class_label", **COLUMNS)
    evaluator.check(model)
    got = evaluator.run(model).metrics
    kept = np.delete(np.array(LABELS), 4)
    pool = np.concatenate([IMAGE[kept], TEXT[kept]]).astype(np.float64)
    scores = TEXT[kept].astype(np.float64) @ pool.T
    best = np.argsort(-scores, 1, kind="stable")[:, :10]
    assert got["wrong_modality@10"] == pytest.approx((best >= len(kept)).mean(), abs=0.01)
    assert got["wrong_modality_chance"] == 0.5
    right = [max(row[: len(kept)][kept == k]) for row, k in zip(scores, kept)]
    better = [(row > r + 1e-6).sum() for row, r in zip(scores, right)]
    assert got["r@10"] == pytest.approx((np.array(better) < 10).mean(), abs=1e-6)
    assert (got["queries"], got["candidates"]) == (29, 58)
    assert {f.split("/")[0] for f in got} <= {f.split("/")[0] for f in evaluator.figures}


def test_pictures_that_look_away_leave_documents_alone():
    away = encoders(ONE, -TEXT, TEXT)
    evaluator = MixedPool(source=toy(LABELS), depth=1, **COLUMNS)
    assert evaluator.run(away).metrics["wrong_modality@1"] == 1.0
    with pytest.raises(ConfigError, match=r"^document: \['text'\] also ask"):
        MixedPool(source=toy(LABELS), query="text", document=("a", "text"))


def test_map_is_that_of_a_loop(model):
    evaluator = ImageKnn(source=toy([*LABELS, 40]), depth=8)
    evaluator.check(model)
    got = evaluator.run(model).metrics
    assert got["nn_acc"] == 1 and got["map@8"] == pytest.approx(1), "of a class all are equal"
    assert (got["queries"], got["images"]) == (30, 31)
    of_parity = ImageKnn(source=toy(list(range(30))), label="parity", depth=8).run(model).metrics
    rows = IMAGE[:30].astype(np.float64)
    scores = rows @ rows.T
    np.fill_diagonal(scores, -np.inf)
    values = []
    for i in range(30):
        right = (np.argsort(-scores[i])[:8] % 2) == i % 2
        values.append(sum(right[: k + 1].mean() * right[k] for k in range(8)) / 8)
    assert of_parity["map@8"] == pytest.approx(np.mean(values), abs=1e-6)


def test_average_precision_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    right = rng.random((5, 20)) < 0.3
    right[:, 3] = True
    scores = -np.arange(20.0)
    want = [metrics.average_precision_score(row, scores) for row in right]
    np.testing.assert_allclose(average_precision(right, right.sum(1)), want, atol=1e-12)
    assert average_precision(right, np.zeros(5, int)).shape == (5,)


def test_pictures_of_which_none_are_of_one_class_are_refused():
    with pytest.raises(DataError, match="no two pictures of one class"):
        ImageKnn(source=toy(list(range(9)))).run(encoders(ONE, IMAGE, TEXT))
