"""Figures against scikit-learn's and against closed forms."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    jaccard_score,
    top_k_accuracy_score,
)

from jaxvl.evals.metrics.classification import (
    average_precision,
    f1_macro,
    group_means,
    hits,
    mean_per_class_recall,
    worst_group,
)
from jaxvl.evals.metrics.pairs import best_of, chance, jaccard, pair_scores
from jaxvl.evals.metrics.retrieval import any_among, recall_at_k


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(1, 40))
def test_classification_as_scikit_learn_has_it(seed, classes, n):
    """Some classes are never right, some never predicted."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    scores = rng.normal(size=(n, classes))
    found = np.argsort(-scores, axis=1)
    predicted = found[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are predicted and in no label
        assert hits(found, labels, 1).mean() == pytest.approx(accuracy_score(labels, predicted))
        assert mean_per_class_recall(predicted, labels) == pytest.approx(
            balanced_accuracy_score(labels, predicted)
        )
        theirs = f1_score(
            labels, predicted, average="macro", labels=np.unique(labels)
        )  # as WILDS calls it
        assert f1_macro(predicted, labels) == pytest.approx(theirs)
        for k in range(1, classes):
            if classes > 2:
                theirs = top_k_accuracy_score(labels, scores, k=k, labels=np.arange(classes))
                assert hits(found, labels, k).mean() == pytest.approx(theirs)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 40))
def test_average_precision_as_scikit_learn_has_it(seed, classes, n):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, classes))  # all different
    targets = rng.integers(0, 2, (n, classes))
    got = average_precision(scores, targets)
    for c in range(classes):
        theirs = (
            average_precision_score(targets[:, c], scores[:, c]) if targets[:, c].any() else 0.0
        )
        assert got[c] == pytest.approx(theirs)


def test_groups():
    right = np.array([1, 0, 1, 1, 0, 0], bool)
    groups = np.array([0, 0, 3, 3, 5, 5])
    assert group_means(right, groups) == {0: 0.5, 3: 1.0, 5: 0.0}
    assert worst_group(right, groups) == 0.0 and worst_group(right, groups, (5,)) == 0.5
    assert np.isnan(worst_group(right[:0], groups[:0]))


def test_recall_by_hand():
    """Three queries, four candidates; the second query's right candidates are third and fourth."""
    scores = np.array([[0.9, 0.1, 0.2, 0.3], [0.9, 0.8, 0.2, 0.1], [0.1, 0.2, 0.3, 0.3]])
    positive = np.array([[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]], bool)
    assert [recall_at_k(scores, positive, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])
    owner = np.array([0, 1, 2, 1])  # the same by owners: candidates 1 and 3 belong to query 1
    found = np.array([[0, 3, 2, 1], [0, 2, 3, 1], [2, 3, 1, 0]])
    assert any_among(found, owner, np.arange(3), 2).tolist() == [True, False, True]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_winoground_scores_by_the_paper():
    """Thrush et al. 2022: text, image and group score by strict inequalities."""
    rng = np.random.default_rng(0)
    images = unit(rng.normal(size=(200, 2, 3)))
    texts = unit(rng.normal(size=(200, 2, 3)))
    got = pair_scores(images, texts)
    for n in range(200):
        s = lambda c, i, n=n: float(texts[n, c] @ images[n, i])
        text = s(0, 0) > s(1, 0) and s(1, 1) > s(0, 1)
        image = s(0, 0) > s(0, 1) and s(1, 1) > s(1, 0)
        assert (got.text[n], got.image[n], got.both[n]) == (text, image, text and image)
    np.testing.assert_array_equal(got.text, got.text_strict)
    assert 0 < got.both.mean() < got.text.mean() < 1


def test_ties_and_numbers_that_are_none_in_pairs():
    same = np.ones((1, 1, 2))
    got = pair_scores(same, np.ones((1, 2, 2)))
    assert (got.text[0], got.text_strict[0]) == (
        True,
        False,
    )  # SugarCrepe: the first of equal ones, or none
    got = pair_scores(np.ones((1, 2, 2)), np.ones((1, 2, 2)))
    assert not got.text[0] and not got.image[0]
    got = pair_scores(np.full((1, 1, 2), np.nan), np.ones((1, 2, 2)))
    assert not got.text[0] and not got.image[0] and not got.text_strict[0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_jaccard_as_scikit_learn_has_it(both):
    chosen, right = np.array(both, bool).T
    assert jaccard(chosen, right) == pytest.approx(jaccard_score(right, chosen, zero_division=0))


def test_best_of():
    assert best_of(np.array([0.1, 0.9, 0.5]), 2).tolist() == [False, True, True]
    assert best_of(np.array([0.1, 0.9]), 0).tolist() == [False, False]


@pytest.mark.parametrize("images, texts", [(1, 2), (2, 2), (1, 5)])
def test_chance_of_pairs(images, texts):
    rng = np.random.default_rng(0)
    n = 20_000
    scores = rng.permuted(np.tile(np.arange(images * texts), (n, 1)), axis=1).reshape(
        n, images, texts
    )  # every order is as likely
    got = pair_scores(scores.astype(float), np.tile(np.eye(texts), (n, 1, 1)))
    expected = chance(images, texts)
    for name, share in expected.items():
        assert getattr(got, name).mean() == pytest.approx(share, abs=5 * np.sqrt(0.25 / n)), name
