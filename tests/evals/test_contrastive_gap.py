"""Figures of the contrastive gap, on embeddings whose figures are known."""

import jax
import numpy as np
import pytest
from known_answers import encoders, toy, unit

from jaxvl.data.records import DataError
from jaxvl.evals.gap import Gap, distances, spectrum
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=4, fsdp=2))
ONE = make_mesh(devices=jax.devices()[:1])
TABLE = unit(64, 16)


def run(images, texts, mesh=MESH):
    evaluator = Gap(toy(range(64)), text="name/en")
    got = evaluator.run(encoders(mesh, images, texts)).metrics
    assert set(got) == set(evaluator.figures) - {"skipped/*"}
    return got


def test_equal_towers_have_no_gap():
    got = run(TABLE, TABLE)
    assert got["centroid_distance"] == pytest.approx(0, abs=1e-6)
    assert got["alignment"] == pytest.approx(0, abs=1e-6)
    assert got["separability"] == pytest.approx(0.5)
    assert got["uniformity"] == pytest.approx(got["cross_uniformity"], abs=1e-6)
    assert got["pairs"] == 64


def test_cones_that_point_apart_are_told_apart():
    shift = np.zeros(16, np.float32)
    shift[0] = 3.0
    far = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    images = far(TABLE + shift)
    texts = far(TABLE - shift)
    got = run(images, texts)
    want = np.linalg.norm(images.mean(0) - texts.mean(0))
    assert got["centroid_distance"] == pytest.approx(want, rel=1e-5) and want > 1
    assert got["separability"] == 1.0
    assert got["variance_1"] > 0.5 > run(TABLE, TABLE)["variance_1"]
    same = run(images, texts, ONE)
    for name, value in got.items():
        assert same[name] == pytest.approx(value, abs=1e-5), name


def test_distances_in_a_loop():
    images, texts = unit(9, 5).astype(np.float64), unit(9, 5, seed=1).astype(np.float64)
    got = distances(images, texts)

    def potential(x, y):
        others = [(i, j) for i in range(9) for j in range(9) if i != j]
        return np.log(np.mean([np.exp(-2 * np.sum((x[i] - y[j]) ** 2)) for i, j in others]))

    within = (potential(images, images) + potential(texts, texts)) / 2
    assert got["uniformity"] == pytest.approx(within)
    assert got["cross_uniformity"] == pytest.approx(potential(images, texts))
    assert got["alignment"] == pytest.approx(
        np.mean([np.sum((images[i] - texts[i]) ** 2) for i in range(9)])
    )


def test_spectrum():
    corners = np.concatenate([np.eye(4), -np.eye(4)])
    assert spectrum(corners)["effective_rank"] == pytest.approx(4)
    assert spectrum(corners)["variance_1"] == pytest.approx(0.25)
    line = np.outer([-1.0, 2.0, 5.0], [0.6, 0.8])
    assert spectrum(line)["effective_rank"] == pytest.approx(1)
    assert spectrum(np.ones((3, 2))) == {
        "effective_rank": 1.0,
        "variance_1": 1.0,
        "variance_5": 1.0,
        "variance_10": 1.0,
    }


def test_too_few_pairs():
    with pytest.raises(DataError, match="has 3 images with a caption; needs 4"):
        Gap(toy(range(3)), text="name/en").run(encoders(MESH, TABLE, TABLE))
