"""Ranks by streaming tiles against a brute-force float64 oracle that knows nothing of tiles."""

import dataclasses
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp

from jaxvl.evals import ranking
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
ONE = make_mesh(devices=jax.devices()[:1])


def oracle(queries, candidates, query_ids, candidate_ids):
    """Per query: scores float64 [N] and right bool [N], every pair looked at on its own."""
    scores = queries.astype(np.float64) @ candidates.astype(np.float64).T
    right = np.array(
        [[bool(set(q) & set(c)) for c in candidate_ids] for q in query_ids], bool
    ).reshape(scores.shape)
    return scores, right


def recall_by_permutations(scores, right, k):
    """Share of the orders of tied candidates in which a right one is among the first k: all orders,
    counted."""
    hits = []
    for order in itertools.permutations(range(len(scores))):
        ordered = sorted(order, key=lambda i: -scores[i])  # stable: ties stand as in `order`
        hits.append(any(right[i] for i in ordered[:k]))
    return np.mean(hits)


def counts(scores, right):
    """(better, tied, tied_right) by definition."""
    if not right.any():
        return None
    best = scores[right].max()
    return (
        (scores[~right] > best).sum(),
        (scores[~right] == best).sum(),
        (scores[right] == best).sum(),
    )


# Coordinates on a coarse grid: many exact ties, and products that float32 and float64 both hold
# exactly.
GRID = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])


@st.composite
def problems(draw):
    # Few shapes, so that few programs are compiled; 9 and 33 candidates leave a part of the last
    # tile empty.
    m = draw(st.sampled_from([1, 21]))
    n = draw(st.sampled_from([1, 9, 33]))
    d = 2
    queries = draw(hnp.arrays(np.float32, (m, d), elements=GRID))
    candidates = draw(hnp.arrays(np.float32, (n, d), elements=GRID))
    ids = st.lists(st.integers(0, draw(st.integers(1, 8))), max_size=3)
    return (
        queries,
        candidates,
        draw(st.lists(ids, min_size=m, max_size=m)),
        draw(st.lists(ids, min_size=n, max_size=n)),
    )


def pad_to_three(ids):
    return np.pad(
        ranking.pad_ids(ids), ((0, 0), (0, 3 - ranking.pad_ids(ids).shape[1])), constant_values=-1
    )


@hypothesis.given(problems(), st.sampled_from([8, 64]), st.sampled_from([2, 512]))
@hypothesis.settings(
    deadline=None, max_examples=60, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_counts_equal_brute_force(problem, tile, block):
    queries, candidates, query_ids, candidate_ids = problem
    scores, right = oracle(*problem)
    got = ranking.rank(
        queries,
        candidates,
        pad_to_three(query_ids),
        pad_to_three(candidate_ids),
        MESH,
        tile=tile,
        block=block,
    )
    np.testing.assert_array_equal(got.right, right.sum(1))
    for i, (s, r) in enumerate(zip(scores, right)):
        if r.any():
            assert (got.better[i], got.tied[i], got.tied_right[i]) == counts(s, r)
        else:
            assert got.recall(10)[i] == 0 and got.rank()[i] == len(candidates) + 1


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6), st.integers(1, 4)
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_recall_is_the_share_of_all_orders_of_ties(candidates, k):
    scores = np.array([c[0] for c in candidates], float)
    right = np.array([c[1] for c in candidates])
    if not right.any():
        return
    better, tied, tied_right = (np.array([x]) for x in counts(scores, right))
    ranks = ranking.Ranks(better, tied, tied_right, np.array([right.sum()]), len(scores))
    np.testing.assert_allclose(
        ranks.recall(k), [recall_by_permutations(scores, right, k)], atol=1e-12
    )
    orders = [
        sorted(order, key=lambda i: -scores[i])
        for order in itertools.permutations(range(len(scores)))
    ]
    places = [1 + min(order.index(j) for j in np.flatnonzero(right)) for order in orders]
    np.testing.assert_allclose(ranks.rank(), [np.mean(places)], atol=1e-12)


def unit(rows, width, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_perfect_encoder_is_always_right():
    x = unit(100, 16)
    got = ranking.rank(x, x, np.arange(100), np.arange(100), MESH, tile=7)
    assert got.recall(1).mean() == 1 and (got.rank() == 1).all()


def test_all_equal_encoder_is_at_chance_exactly():
    """100 % would be the answer of counting only strictly better candidates; 0 % that of counting
    ties against."""
    x = np.repeat(unit(1, 24), 50, axis=0)
    got = ranking.rank(x, x, np.arange(50), np.arange(50), MESH, tile=16)
    for k in (1, 5, 10):
        np.testing.assert_allclose(got.recall(k), k / 50, atol=1e-12)
        np.testing.assert_allclose(got.chance(k), k / 50, atol=1e-12)
    np.testing.assert_allclose(got.rank(), 25.5)


def test_chance_with_duplicates_is_hypergeometric():
    """Three of 30 candidates are right: a blind encoder finds one of them in five with 1 -
    C(27,5)/C(30,5)."""
    x = np.repeat(unit(1, 8), 30, axis=0)
    ids = np.arange(30) // 3
    got = ranking.rank(x, x, ids, ids, MESH, tile=4)
    expected = 1 - (27 * 26 * 25 * 24 * 23) / (30 * 29 * 28 * 27 * 26)
    np.testing.assert_allclose(got.recall(5), expected, atol=1e-12)
    assert got.chance(5) == pytest.approx(expected)


def test_random_encoder_is_near_chance():
    n = 2000
    got = ranking.rank(unit(n, 32, 1), unit(n, 32, 2), np.arange(n), np.arange(n), MESH, tile=300)
    for k in (1, 5, 10):
        p = k / n
        assert abs(got.recall(k).mean() - p) < 5 * np.sqrt(p * (1 - p) / n)
    assert abs(np.mean(got.rank()) - (n + 1) / 2) < 5 * n / np.sqrt(12 * n)


def test_eight_devices_equal_one():
    q = unit(77, 16, 3)
    c = unit(203, 16, 4)
    q_ids = np.arange(77) % 20
    c_ids = np.arange(203) % 25
    eight, one = (ranking.rank(q, c, q_ids, c_ids, mesh, tile=50, block=6) for mesh in (MESH, ONE))
    for field in ("better", "tied", "tied_right", "right"):
        np.testing.assert_array_equal(getattr(eight, field), getattr(one, field))
    for a, b in zip(ranking.top_k(q, c, 5, MESH, tile=50), ranking.top_k(q, c, 5, ONE, tile=203)):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_broken_numbers_never_help():
    x = unit(40, 8)
    broken = np.full_like(x, np.nan)
    for q, c in ((broken, x), (x, broken), (broken, broken)):
        assert ranking.rank(q, c, np.arange(40), np.arange(40), MESH).recall(10).mean() == 0
    half = x.copy()
    half[::2] = np.nan
    assert ranking.rank(half, x, np.arange(40), np.arange(40), MESH).recall(1).mean() == 0.5


@pytest.mark.parametrize("tile", [1, 9, 31, 100])
def test_top_k_equals_a_stable_sort(tile):
    rng = np.random.default_rng(0)
    q, c = (rng.integers(-2, 3, size=(n, 2)).astype(np.float32) for n in (13, 31))
    scores, index = ranking.top_k(q, c, 6, MESH, tile=tile, block=2)
    expected = np.argsort(-(q @ c.T), axis=1, kind="stable")[:, :6]
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(q @ c.T, expected, 1))


def test_top_k_of_few_candidates():
    scores, index = ranking.top_k(unit(3, 4), unit(2, 4), 5, MESH)
    assert scores.shape == index.shape == (3, 2)


def test_memory_does_not_grow_with_the_square():
    """The largest array of the compiled passes is one block of scores per device, not queries x
    candidates."""
    q = unit(1024, 8)
    c = unit(2048, 8)
    rows = ranking._Rows(MESH, len(q), 16)
    ids = rows.put(np.arange(1024, dtype=np.int32)[:, None], -1)
    tile = next(ranking._tiles(MESH, 64, c, np.arange(2048, dtype=np.int32)[:, None]))
    carry = rows.fill(-np.inf, np.float32), rows.fill(0, np.int32)
    compiled = ranking._best_pass.lower(
        MESH, rows.block, rows.put(q, 0), ids, carry, tile
    ).compile()
    assert (
        compiled.memory_analysis().temp_size_in_bytes < 16 * 64 * 4 * 16
    )  # a few blocks of [16, 64]


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The best of a candidate's vectors that count, times a factor."""

    factor: float

    def __call__(self, q, c):
        vectors, mask = c
        fit = jnp.where(mask[None], jnp.einsum("md,nkd->mnk", q["x"], vectors), -1.0)
        return self.factor * fit.max(-1)


@pytest.mark.parametrize("mesh", [MESH, ONE], ids=["8 devices", "1 device"])
def test_any_score_of_trees_of_rows(mesh):
    rng = np.random.default_rng(5)
    q = dict(x=unit(13, 4))
    c = unit(3 * 31, 4, 1).reshape(31, 3, 4), rng.random((31, 3)) < 0.6
    fit = np.where(c[1], np.einsum("md,nkd->mnk", q["x"], c[0]), -1.0).max(-1) / 2
    ids = np.arange(13) % 5, np.arange(31) % 7
    how = dict(score=Nearest(0.5), tile=8, block=2)
    ranks = ranking.rank(q, c, *ids, mesh, **how)
    for i, (s, right) in enumerate(zip(fit, ids[0][:, None] == ids[1])):
        assert ranks.better[i] == (s[~right] > s[right].max() + ranking.TIE).sum()
    scores, index = ranking.top_k(q, c, 4, mesh, **how)
    np.testing.assert_allclose(scores, -np.sort(-fit, 1)[:, :4], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(fit, index, 1), scores, atol=1e-6)
    for other in ((q, (c[0], c[1][:3])), (q, (c[0][:0], c[1][:0]))):
        with pytest.raises(ValueError, match="candidates"):
            ranking.rank(*other, *ids, mesh, **how)


@pytest.mark.parametrize("bad", ["width", "no candidates", "ids"])
def test_shapes_are_checked(bad):
    q = unit(4, 3)
    c = unit(5, 3)
    ids = np.arange(5)
    q, c, ids = {
        "width": (unit(4, 2), c, ids),
        "no candidates": (q, c[:0], ids[:0]),
        "ids": (q, c, ids[:3]),
    }[bad]
    with pytest.raises(ValueError, match="candidates"):
        ranking.rank(q, c, np.arange(4), ids, MESH)
