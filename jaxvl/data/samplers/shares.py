"""Exact shares of several streams in closed form: which stream a row is of, and which of its rows.

Streams are leaves of a binary tree. A node deals row i of its own to one side where the nearest
integer to `share * i` grows, and to the other side elsewhere. A stream's rows among the first n are
thus a rounded share of a rounded share … The tree is Huffman's: a node has at most 2/3 of its
parent unless it is a leaf, so the roundings add up to at most 1.5 rows. Shares are multiples of
2^-62, so they hold for as many rows.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from jaxvl.data.samplers.permutation import multiply_high

BITS = 62
ONE = 2**BITS
_UP = np.array([2], np.uint64)  # 64 - BITS


@dataclasses.dataclass(frozen=True)
class _Node:
    """Two sides, each another node or the number of a stream.

    Attributes:
      share: of the first side, in 2^-62.
    """

    share: int
    first: _Node | int
    second: _Node | int


class Shares:
    """How rows are dealt to streams.

    Args:
      weights: of the streams, >= 0 and not all 0. A stream of weight 0 gets no rows.
    """

    def __init__(self, weights: Sequence[float]):
        self.streams = len(weights)
        heap: list[tuple[Fraction, int, _Node | int]] = []
        for stream, weight in enumerate(weights):
            if weight > 0:
                heap.append((Fraction(weight), stream, stream))
        if not heap:
            raise ValueError("weights: one must be > 0")
        heapq.heapify(heap)
        while len(heap) > 1:
            less, second, lighter = heapq.heappop(heap)
            more, first, heavier = heapq.heappop(heap)
            share = round(more / (less + more) * ONE)
            node = _Node(min(share, ONE - 1), heavier, lighter)
            heapq.heappush(heap, (less + more, min(first, second), node))
        self._root = heap[0][2]

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of rows int64 [n]: the stream of each, int64 [n], and which of the stream's rows it is,
        int64 [n]."""
        rows = np.asarray(rows, np.int64)
        streams = np.zeros(len(rows), np.int64)
        places = np.zeros(len(rows), np.int64)
        todo: list[tuple[_Node | int, np.ndarray, np.ndarray]] = [
            (self._root, np.arange(len(rows)), rows)
        ]
        while todo:
            node, where, own = todo.pop()
            if isinstance(node, int):
                streams[where] = node
                places[where] = own
                continue
            before = _rounded(own, node.share)
            to_first = _rounded(own + 1, node.share) > before
            todo.append((node.first, where[to_first], before[to_first]))
            todo.append((node.second, where[~to_first], (own - before)[~to_first]))
        return streams, places

    def counts(self, n: int) -> tuple[int, ...]:
        """Rows of each stream among the first n."""
        out = [0] * self.streams
        todo: list[tuple[_Node | int, int]] = [(self._root, n)]
        while todo:
            node, rows = todo.pop()
            if isinstance(node, int):
                out[node] = rows
                continue
            first = (rows * node.share + ONE // 2) >> BITS
            todo.append((node.first, first))
            todo.append((node.second, rows - first))
        return tuple(out)


def _rounded(rows: np.ndarray, share: int) -> np.ndarray:
    """int64 [n]: the nearest integers to `rows * share / 2^62`."""
    factor = np.array([share], np.uint64)
    rows = rows.astype(np.uint64)
    # The product has 124 bits; with 2 bits more at the factor's end, its upper word is the
    # quotient.
    quotient = multiply_high(rows, factor << _UP)
    rest = rows * (factor << _UP)
    return (quotient + (rest >> np.array([63], np.uint64))).astype(np.int64)
