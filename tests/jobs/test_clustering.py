"""k-means against scikit-learn and float64 numpy; 8 devices as one."""

import jax
import numpy as np
import pytest
from sklearn.cluster import KMeans as Peer

from jaxvl.jobs.clustering import kmeans
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
ONE = make_mesh(devices=jax.devices()[:1])
DRAW = np.random.default_rng(0)
BLOBS = np.concatenate([DRAW.normal(3 * DRAW.normal(size=6), 1.0, (41, 6)) for _ in range(5)])
BLOBS = BLOBS.astype(np.float32)


@pytest.mark.parametrize("mesh", [MESH, ONE], ids=["8 devices", "1 device"])
def test_lloyd_is_that_of_scikit_learn(mesh):
    first = BLOBS[[0, 1, 2, 100, 150, 200]]
    peer = Peer(6, init=first, n_init=1, max_iter=100, tol=0, algorithm="lloyd").fit(BLOBS)
    found = kmeans(BLOBS, 6, mesh, first=first)
    np.testing.assert_array_equal(found.labels, peer.labels_)
    np.testing.assert_allclose(found.centres, peer.cluster_centers_, atol=1e-5)
    np.testing.assert_allclose(found.inertia, peer.inertia_, rtol=1e-5)


def spherical_reference(x, centres, iterations):
    """Dhillon & Modha (2001), float64."""
    x = x.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    centres = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    for _ in range(iterations):
        labels = (x @ centres.T).argmax(1)
        sums = np.stack([x[labels == c].sum(0) for c in range(len(centres))])
        centres = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return (x @ centres.T).argmax(1), centres


def test_spherical_k_means_is_that_of_the_paper():
    first = BLOBS[[0, 25, 50, 100, 150, 200]]
    unit = first / np.linalg.norm(first, axis=1, keepdims=True)
    found = kmeans(BLOBS, 6, MESH, spherical=True, first=unit)
    labels, centres = spherical_reference(BLOBS, first.astype(np.float64), 100)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.centres, centres, atol=1e-5)
    euclidean = kmeans(BLOBS, 6, MESH, first=first)
    assert (euclidean.labels != labels).any()


def test_eight_devices_give_what_one_gives_and_a_seed_gives_the_same_again():
    many, one, again = (kmeans(BLOBS, 6, mesh, seed=3) for mesh in (MESH, ONE, MESH))
    np.testing.assert_array_equal(many.labels, one.labels)
    np.testing.assert_allclose(many.centres, one.centres, atol=1e-5)
    np.testing.assert_array_equal(many.centres, again.centres)
    other = kmeans(BLOBS, 6, ONE, seed=4)
    assert (one.labels != other.labels).any()


def test_seeds_are_drawn_by_squared_distance():
    """Of a crowd and five lone points far away, each lone one is a centre; drawn evenly, it would
    be one in one of 34 cases."""
    rows = DRAW.normal(0, 0.01, BLOBS.shape).astype(np.float32)
    rows[:5] += 100 * np.eye(6, dtype=np.float32)[:5]
    labels = kmeans(rows, 6, ONE, seed=3, iterations=1).labels
    assert len(set(labels[:6])) == 6 and len(set(labels[5:])) == 1


def test_a_cluster_without_rows_takes_the_farthest_one():
    rows = np.repeat(np.arange(5), 41)[:, None] * np.ones(6) + DRAW.normal(0, 0.01, BLOBS.shape)
    rows[7] = 50.0
    first = np.concatenate([rows[::41], np.full((1, 6), -500.0)])
    found = kmeans(rows, 6, ONE, first=first)
    expected = np.repeat(np.arange(5), 41)
    expected[7] = 5
    np.testing.assert_array_equal(found.labels, expected)
    np.testing.assert_allclose(found.centres[5], 50.0)


def test_too_few_rows():
    with pytest.raises(ValueError, match="3 rows cannot make 4 clusters"):
        kmeans(BLOBS[:3], 4, ONE)
