"""Permutations and random numbers in closed form, for many rows at once.

A permutation of 0 … n - 1 is a Feistel network over Z_a x Z_b with a b >= n and a close to b (Black
and Rogaway 2002, "Ciphers with arbitrary finite domains"). A value that lands outside of 0 … n - 1
goes through the network again ("cycle walking"); fewer than one of sqrt(n) does. A network has too
few states for a small n to look random: there the ranks of n hashes are the permutation. No memory
per value is needed. All arithmetic is integer, so every machine and every version of NumPy gives
the same numbers.
"""

from __future__ import annotations

import functools

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio
MASK = 2**64 - 1
RANKED = 128  # largest n whose permutation is by ranks; a power of two
CHUNK = 2**20  # hashes at once: 8 MB


def _words(*numbers: int) -> list[np.ndarray]:
    """uint64 [1] each. NumPy handles them twice as fast as scalars."""
    return [np.array([number & MASK], np.uint64) for number in numbers]


_MULTIPLY = _words(0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of SplitMix64 (Steele et al. 2014)
_SHIFTS = _words(30, 27, 31)
_ONE, _HALF, _LOW, _GOLDEN, _PLACE = _words(1, 32, 2**32 - 1, GOLDEN, RANKED - 1)
_KEPT = _words(24)[0]  # 40 bits of a round's hash are used: the sum with a half cannot overflow
_ROUNDS = _words(
    *(scale * 0xD1342543DE82EF95 | 1 for scale in (3, 17, 29, 53, 71, 97, 113, 131))
)  # a multiplier each


def scramble(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64: a permutation of uint64 whose output looks random. `x` has at
    least one axis."""
    x = x ^ (x >> _SHIFTS[0])
    x *= _MULTIPLY[0]
    x ^= x >> _SHIFTS[1]
    x *= _MULTIPLY[1]
    x ^= x >> _SHIFTS[2]
    return x


def keys(base: int, *numbers: np.ndarray) -> np.ndarray:
    """uint64 [m]: a key for every row of `numbers` (each int64 [m] or [1]); other bases give other
    keys."""
    key = np.array([base & MASK], np.uint64)
    for number in numbers:
        key = scramble(key + (np.atleast_1d(number).astype(np.uint64) + _ONE) * _GOLDEN)
    return key


def below(random: np.ndarray, n: np.ndarray) -> np.ndarray:
    """int64 [m]: numbers in 0 … n - 1 from random uint64 [m]: the upper half of `random * n`."""
    return multiply_high(random, np.atleast_1d(n).astype(np.uint64)).astype(np.int64)


def multiply_high(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """uint64 [m]: the upper 64 bits of the 128 of x y. Both have at least one axis."""
    x_low = x & _LOW
    x_high = x >> _HALF
    y_low = y & _LOW
    y_high = y >> _HALF
    middle = x_high * y_low + (x_low * y_low >> _HALF)
    other = x_low * y_high + (middle & _LOW)
    return x_high * y_high + (middle >> _HALF) + (other >> _HALF)


def permute(x: np.ndarray, n: np.ndarray, key: np.ndarray) -> np.ndarray:
    """int64 [m]: where the permutation of 0 … n - 1 with a row's key takes x.

    Args:
      x: int64 [m], in 0 … n - 1.
      n: int64 [m] or [1], at most 2^62.
      key: uint64 [m] or [1].
    """
    if len(n) == 1:
        return (_rank if n[0] <= RANKED else _walk)(x, n, key)
    small = n <= RANKED
    if not small.any():
        return _walk(x, n, key)
    if small.all():
        return _rank(x, n, key)
    out = np.empty(len(x), np.int64)
    key = np.broadcast_to(key, x.shape)
    out[small] = _rank(x[small], n[small], key[small])
    out[~small] = _walk(x[~small], n[~small], key[~small])
    return out


def _rank(x: np.ndarray, n: np.ndarray, key: np.ndarray) -> np.ndarray:
    """int64 [m]: the rank of x's hash among those of 0 … n - 1."""
    largest = int(n.max(initial=1))
    places = np.arange(largest, dtype=np.uint64)
    steps = (places + _ONE) * _GOLDEN
    n = np.broadcast_to(n, x.shape).astype(np.uint64)
    key = np.broadcast_to(key, x.shape)
    rows = max(1, CHUNK // largest)
    out = np.empty(len(x), np.int64)
    for first in range(0, len(x), rows):
        part = slice(first, first + rows)
        hashes = scramble(key[part, None] + steps)
        hashes = hashes & ~_PLACE | places  # equal hashes are told apart by their place
        own = np.take_along_axis(hashes, x[part, None], axis=1)
        out[part] = ((hashes < own) & (places < n[part, None])).sum(axis=1)
    return out


def _walk(x: np.ndarray, n: np.ndarray, key: np.ndarray) -> np.ndarray:
    """int64 [m]: through the network until the result is in 0 … n - 1."""
    left, right = _sides_of_one(int(n[0])) if len(n) == 1 else _sides(n)
    n = n.astype(np.uint64)
    out = _network(x.astype(np.uint64), left, right, key)
    outside = (out >= n).nonzero()[0]
    if len(outside):
        n, left, right, key = (np.broadcast_to(each, x.shape) for each in (n, left, right, key))
    while len(outside):
        walked = _network(out[outside], left[outside], right[outside], key[outside])
        out[outside] = walked
        outside = outside[walked >= n[outside]]
    return out.astype(np.int64)


def _sides(n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a and b of the network, uint64 like n: close to each other, with a b >= n."""
    n = n.astype(np.uint64)
    left = np.sqrt(n.astype(np.float64)).astype(np.uint64) + _ONE
    return left, (n + left - _ONE) // left


@functools.lru_cache(1024)
def _sides_of_one(n: int) -> tuple[np.ndarray, np.ndarray]:
    """`_sides` of one number, for small batches: it takes as long as half of the network."""
    return _sides(np.array([n]))


def _network(x: np.ndarray, left: np.ndarray, right: np.ndarray, key: np.ndarray) -> np.ndarray:
    """One pass: x = high * left + low; the rounds change low and high in turn, each by a hash of
    the other."""
    high, low = np.divmod(x, left)
    changed = low
    given = high
    size = left
    other = right
    for multiplier in _ROUNDS:
        hashed = given + key
        hashed *= multiplier
        hashed ^= hashed >> _HALF
        hashed *= _MULTIPLY[1]
        hashed >>= _KEPT
        changed += hashed
        changed %= size
        changed, given = given, changed
        size, other = other, size
    return high * left + low
