"""Against Philox written down from its paper, in Python's own integers."""

import numpy as np
import pytest

from jaxvl.data.draws import Uniforms, derive
from jaxvl.training.schedule import Weighted

MASK = 2**64 - 1


def philox(key, counter):
    """Four words of Philox-4x64-10 (Salmon et al. 2011): key of two words, counter of four."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c0, 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c2, 2**64)
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = (k0 + 0x9E3779B97F4A7C15) & MASK
        k1 = (k1 + 0xBB67AE8584CAA73B) & MASK
    return [c0, c1, c2, c3]


@pytest.mark.parametrize("n", [1, 4, 10])
@pytest.mark.parametrize("position", [0, 1, 12345, 2**40])
def test_the_counter_is_the_position(n, position):
    key = derive(7, "row", "text")
    blocks = -(-n // 4)
    first = position * blocks + 1  # NumPy counts up before it draws
    words = [
        word
        for block in range(blocks)
        for word in philox((key & MASK, key >> 64), (first + block, 0, 0, 0))
    ]
    expected = [(word >> 11) * 2.0**-53 for word in words[:n]]
    assert Uniforms(7, "row", "text", n=n)(np.array([position])).tolist() == [expected]


def test_who_else_draws_changes_nothing():
    uniforms = Uniforms(0, "a", n=5)
    whole = uniforms(np.arange(100))
    some = np.array([3, 4, 5, 90, 17, 18, 2])
    np.testing.assert_array_equal(uniforms(some), whole[some])
    assert uniforms(np.array([], int)).shape == (0, 5)


def test_no_two_purposes_and_no_two_seeds_share_numbers():
    purposes = [
        ("row", "image"),
        ("row", "text"),
        ("row", "text", 1),
        ("schedule",),
        ("data", "a"),
        ("data", "b"),
        ("data", 1),
        ("data", "1"),
    ]
    seeds = [0, 1, 2, 2**32, 2**64, 2**64 + 1, *(derive(0, "data", name) for name in "ab")]
    drawn = [
        tuple(Uniforms(seed, *purpose, n=4)(np.arange(20)).reshape(-1))
        for seed in seeds
        for purpose in purposes
    ]
    assert len({number for numbers in drawn for number in numbers}) == len(drawn) * 80


def test_the_schedule_draws_other_numbers_than_the_loader_and_another_seed_other_ones():
    def turns(seed):
        sequence = Weighted({"a": 1.0, "b": 1.0}, seed=seed).build(["a", "b"], 2000)
        return np.array([sequence.task(step) for step in range(2000)])

    # The loader's first number of batch i was that of the schedule at step i.
    shared = np.array(
        [np.random.Generator(np.random.Philox(key=[3, i])).random() >= 0.5 for i in range(2000)]
    )
    for other in (turns(4), shared):
        assert abs((turns(3) == other).mean() - 0.5) < 5 * 0.5 / 2000**0.5
