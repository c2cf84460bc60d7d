"""Text embeddings moved to images, against plain numpy."""

import numpy as np
import pytest
from known_answers import encoders, toy, unit

from jaxvl.data.records import DataError
from jaxvl.data.tables import PRESENT
from jaxvl.jobs.text_to_image import TextToImage
from jaxvl.sharding.mesh import make_mesh

IMAGE = unit(64, 8, seed=1)
TEXT = unit(64, 8, seed=2)
LABELS = [(7 * i) % 40 for i in range(50)]


class Pairs:
    """Config of an auxiliary source."""

    def __init__(self, labels):
        self.records = toy(labels).records

    def open(self, log):
        return self.records


@pytest.fixture(scope="module")
def model():
    return encoders(make_mesh(), IMAGE, TEXT)


def run(job, model, records):
    job.check(model, records)
    return job.run(model, records)


def test_texts_are_shifted_by_the_mean_gap(model):
    found = run(TextToImage(text="name/en", scale=0.5), model, toy(LABELS, broken=(3,)).records)
    paired = np.delete(np.array(LABELS), 3)
    gap = (np.float64(IMAGE) - TEXT)[paired].mean(0)
    np.testing.assert_allclose(found["embedding"], TEXT[LABELS] + 0.5 * gap, atol=1e-6)
    assert found[PRESENT].all(), "a text without a picture is moved all the same"


def test_texts_are_mapped_by_least_squares(model):
    pairs = Pairs(list(range(40, 64)))
    found = run(TextToImage(text="name/en", how="linear", pairs=pairs), model, toy(LABELS).records)
    x = np.c_[np.float64(TEXT[40:64]), np.ones(24)]
    solved = np.linalg.solve(x.T @ x, x.T @ IMAGE[40:64])  # normal equations
    want = np.c_[np.float64(TEXT), np.ones(64)][LABELS] @ solved
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(found["embedding"], want, atol=1e-5)


def test_noise_has_the_covariance_of_the_gap(model):
    job = TextToImage(text="name/en", how="covariance", factor=3.0)
    texts = np.zeros((40_000, 8))
    pairs = np.float64(TEXT), np.float64(IMAGE)
    moved = job.moved(texts, *pairs)
    gap = pairs[1] - pairs[0]
    np.testing.assert_allclose(moved.mean(0), gap.mean(0), atol=0.05)
    np.testing.assert_allclose(np.cov(moved.T), 9 * np.cov(gap.T), atol=0.15)
    np.testing.assert_array_equal(job.moved(texts, *pairs), moved)
    few = job.moved(texts, pairs[0][:3], pairs[1][:3])
    assert np.linalg.matrix_rank(np.cov(few.T), tol=1e-6) == 2, "of three pairs"


def test_other_pairs_make_another_table():
    """A table of the same records is made anew where the pairs are others."""
    pairs = (None, toy([1], name="first"), toy([1], name="first"), toy([1], name="other"))
    none, first, again, other = (TextToImage(pairs=which).others() for which in pairs)
    assert none is None and first == again != other


def test_pairs_are_needed(model):
    with pytest.raises(DataError, match="no two records have both a picture and a text"):
        run(TextToImage(text="name/en"), model, toy([1, 2], broken=(0,)).records)
