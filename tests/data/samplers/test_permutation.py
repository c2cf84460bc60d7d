"""Permutations against the definition, and their quality against NumPy's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxvl.data.samplers.permutation import RANKED, below, keys, multiply_high, permute, scramble

MASK = 2**64 - 1


@given(st.integers(1, 3000), st.integers(0, MASK))
@settings(max_examples=60, deadline=None)
def test_a_permutation_takes_every_number_once(n, seed):
    out = permute(np.arange(n), np.array([n]), keys(seed))
    np.testing.assert_array_equal(np.sort(out), np.arange(n))


@given(
    st.lists(
        st.tuples(st.integers(1, 2**62), st.integers(0, MASK), st.floats(0, 1, exclude_max=True)),
        min_size=1,
    )
)
@settings(max_examples=60, deadline=None)
def test_rows_of_any_size_are_their_own(rows):
    n = np.array([size for size, _, _ in rows])
    key = np.concatenate([keys(seed) for _, seed, _ in rows])
    x = np.array([int(share * size) % size for size, _, share in rows])
    out = permute(x, n, key)
    assert (out >= 0).all() and (out < n).all()
    alone = [permute(x[i : i + 1], n[i : i + 1], key[i : i + 1])[0] for i in range(len(rows))]
    assert out.tolist() == alone


@given(st.integers(0, MASK), st.integers(0, MASK))
@settings(max_examples=100, deadline=None)
def test_multiply_high_is_that_of_integers(x, y):
    assert multiply_high(np.array([x], np.uint64), np.array([y], np.uint64))[0] == x * y >> 64


def test_scramble_is_splitmix64():
    """Against the generator written down in Python's integers; its first outputs of seed 1234567
    are published."""
    state = 1234567
    expected = []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        expected.append(int(scramble(np.array([state], np.uint64))[0]))
    assert expected == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def permutations(n, count, seed=0):
    """int [count, n]: permutations of successive keys."""
    key = np.repeat(keys(seed, np.arange(count)), n)
    return permute(np.tile(np.arange(n), count), np.array([n]), key).reshape(count, n)


def p_value(values, cells, expected):
    """Of a chi-squared test that `values` are even over `cells`."""
    counts = np.bincount(values, minlength=cells)
    return stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue


def quality(found):
    """p-values of what must be even in random permutations int [count, n]."""
    count, n = found.shape
    pairs = count / (n * (n - 1)) * (1 - np.eye(n)).ravel()
    steps = np.diff(found, axis=1) % n
    even = np.full(n * n, 1.0)
    out = {
        "place": p_value((np.arange(n) * n + found).ravel(), n * n, even * count / n),
        "first two": p_value(found[:, 0] * n + found[:, 1], n * n, pairs),
        "ends": p_value(found[:, 0] * n + found[:, -1], n * n, pairs),
        "step": p_value(steps.ravel(), n, np.r_[0, np.full(n - 1, steps.size / (n - 1))]),
        "next permutation": p_value(
            found[:-1, 0] * n + found[1:, 0], n * n, even * (count - 1) / (n * n)
        ),
    }
    return out


@pytest.mark.parametrize("n", [3, 5, 16, 64, RANKED + 1, 200])
def test_permutations_are_as_even_as_numpys(n):
    count = 600_000 // n
    ours = quality(permutations(n, count))
    numpys = quality(np.random.default_rng(0).permuted(np.tile(np.arange(n), (count, 1)), axis=1))
    assert min(numpys.values()) > 1e-4, "the test itself"
    assert min(ours.values()) > 1e-4, ours


def test_a_poor_permutation_is_told():
    count = 5000
    n = 16
    rotations = (np.arange(n) + np.random.default_rng(0).integers(0, n, (count, 1))) % n
    assert quality(rotations)["first two"] < 1e-9


def test_neighbours_are_far_apart_in_a_large_permutation():
    n = 10**10
    out = permute(np.arange(100_000) + 123_456_789, np.array([n]), keys(1))
    assert stats.kstest(out / n, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(out[:-1], out[1:])[0, 1]) < 0.02
    other = permute(np.arange(100_000) + 123_456_789, np.array([n]), keys(2))
    assert abs(np.corrcoef(out, other)[0, 1]) < 0.02


def test_below_is_even():
    out = below(keys(0, np.arange(100_000)), np.array([7]))
    assert p_value(out, 7, np.full(7, len(out) / 7)) > 1e-4
