import gc
import random
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from jaxvl.data.cache import Cache, size_of

N = 400
ONE = np.zeros(1000, np.uint8)


def hits(cache, epochs, first=0, seed=0):
    """Share of the values that are found, in the last half of so many permutations of `N` keys."""
    generator = random.Random(seed)
    found = []
    for epoch in range(epochs):
        keys = list(range(first, first + N))
        generator.shuffle(keys)
        for key in keys:
            if epoch >= epochs / 2:
                found.append(cache.get(key) is not None)
            if cache.get(key) is None:
                cache.put(key, ONE.copy())
    return sum(found) / len(found)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_an_epoch_finds_nearly_the_share_that_fits(share):
    """Dropping the least recently used one would find about half the square of it: 0.5 %, 3 %, 15
    %."""
    cache = Cache(int(share * N) * (size_of(ONE) + 300))
    held = cache.limit // (size_of(ONE) + 232) / N
    assert held >= share
    assert 0.85 * held < hits(cache, 40) <= held + 0.02


def test_all_that_fits_is_kept():
    cache = Cache(2 * N * (size_of(ONE) + 300))
    assert hits(cache, 4) == 1.0 and len(cache) == N


def test_the_cache_follows_when_other_values_are_asked_for():
    cache = Cache(N // 4 * (size_of(ONE) + 300))
    hits(cache, 4)
    assert hits(cache, 100, first=10**6, seed=1) > 0.2
    assert sum(cache.get(key) is not None for key in range(N)) < 10


@pytest.mark.parametrize("limit", [0, 5_000, 50_000])
def test_the_limit_holds_whatever_the_sizes(limit):
    cache = Cache(limit)
    sizes = random.Random(0)
    for key in range(2000):
        cache.put(key, bytes(sizes.randrange(1, 9000)))
        assert cache.used <= limit
    assert cache.used == sum(
        size_of(key) + size_of(cache.get(key)) + 200
        for key in range(2000)
        if cache.get(key) is not None
    )
    assert (len(cache) > 0) == (limit > 0)


def test_a_value_is_kept_once():
    cache = Cache(10_000)
    for value in (1, 2):
        cache.put("a", value)
    assert cache.get("a") == 1 and len(cache) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda i: np.zeros(100 + i, np.uint8),
        lambda i: np.zeros((100, 50), np.uint8)[i % 7],  # a view of 5,000 bytes
        lambda i: f"caption number {i}",
        lambda i: "ein schöner Stern ★ " * 3 + str(i),
        lambda i: ((f"name {i}",), tuple(f"keyword {i} {j}" for j in range(6)), ()),
        lambda i: {"text": ((f"name {i}",), (), ()), "image": np.zeros((8, 8, 4), np.uint8)},
        lambda i: [b"x" * (40 + i % 9), None],
    ],
)
def test_sizes_are_those_of_the_memory(make):
    """Measured by Python's allocator; entry and key included."""
    cache = Cache(10**9)
    gc.collect()
    tracemalloc.start()
    try:
        for i in range(3000):
            cache.put(i, make(i))
        gc.collect()
        measured, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.75 * measured < cache.used < 1.5 * measured


def test_the_size_of_a_picture_is_that_of_its_pixels():
    for mode, each in (("RGB", 4), ("RGBA", 4), ("L", 1)):
        assert 0 <= size_of(Image.new(mode, (100, 80))) - 8000 * each < 500
