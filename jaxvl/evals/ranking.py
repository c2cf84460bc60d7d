"""Ranks and best candidates by streaming over tiles of the similarity matrix, on the whole mesh.

Queries are sharded over all devices; candidates come tile by tile, so a device holds its share of
the queries, one tile of candidates and one block of scores. The rank of the best positive needs no
sorting: a first pass finds its score, a second one counts the candidates that score higher, or as
high.

Ties. The recall at k of a query is the probability that a right candidate is among the first k when
candidates of equal score stand in random order. An encoder that gives every pair the same score is
therefore at chance exactly, however the candidates happen to be ordered. Scores closer than `TIE`
to the best positive's are equal: float32 cannot order them, and the same row may differ by a few
units in the last place from tile to tile.

Scores that are not numbers never help: NaN is -inf for a right candidate and +inf for a wrong one.

Scores are cosines of unit rows, or what a function makes of a block of queries and a tile of
candidates. Then both may be any tree of arrays of one length, such as tokens with their mask.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jaxvl.aliases import Tree

Score = Callable[[Tree, Tree], jax.Array]  # of m queries and n candidates -> [m, n]; hashable

# of cosine similarities; the rounding error of a float32 product of unit rows stays below it
TIE = 1e-6
TILE = 4096  # candidates at a time
BLOCK = 512  # queries at a time on one device: 8 MiB of scores with such a tile
_NONE = -1  # pads id lists; on the candidates' side it becomes -2, so that padding never matches


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Where the best right candidate of each query stands. All arrays are int64 [M].

    Attributes:
      better: wrong candidates that score higher.
      tied: wrong candidates that score the same.
      tied_right: right candidates that score the same as the best one (itself included).
      right: right candidates.
      candidates: number of candidates N.
    """

    better: np.ndarray
    tied: np.ndarray
    tied_right: np.ndarray
    right: np.ndarray
    candidates: int

    def recall(self, k: int) -> np.ndarray:
        """Probability that a right candidate is among the first `k` under random order of ties,
        float64 [M].

        With m = k - better free places: 1 - C(tied, m) / C(tied + tied_right, m). A query without
        any right candidate counts as missed.
        """
        places = np.clip(k - self.better, 0, None)
        miss = np.ones(len(self.better))
        for i in range(k):
            left = np.maximum(self.tied - i, 0)
            miss = np.where(i < places, miss * left / np.maximum(left + self.tied_right, 1), miss)
        return np.where(self.right > 0, 1.0 - miss, 0.0)

    def rank(self) -> np.ndarray:
        """Expected rank of the best right candidate, from 1, float64 [M]; candidates + 1 where
        there is none."""
        rank = self.better + (self.tied + self.tied_right + 1) / (self.tied_right + 1)
        return np.where(self.right > 0, rank, self.candidates + 1.0)

    def chance(self, k: int) -> float:
        """Mean recall at `k` of an encoder that knows nothing."""
        zero = np.zeros_like(self.better)
        return float(
            np.mean(
                Ranks(
                    zero, self.candidates - self.right, self.right, self.right, self.candidates
                ).recall(k)
            )
        )


def pad_ids(ids: Sequence[Sequence[int]]) -> np.ndarray:
    """Lists of ids (>= 0) of unequal length as int32 [M, K], padded."""
    out = np.full((len(ids), max((len(i) for i in ids), default=1) or 1), _NONE, np.int32)
    for row, values in zip(out, ids):
        row[: len(values)] = values
    return out


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """[..., D] scaled to length 1 along D; a row of zeros stays."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def cosines(q: jax.Array, c: jax.Array) -> jax.Array:
    """Of unit rows [m, D] and [n, D]."""
    return jnp.einsum(
        "md,nd->mn", q, c, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def rank(
    queries: Tree,
    candidates: Tree,
    query_ids: np.ndarray,
    candidate_ids: np.ndarray,
    mesh: Mesh,
    *,
    score: Score = cosines,
    tile: int = TILE,
    block: int = BLOCK,
) -> Ranks:
    """Ranks every query's best right candidate: one that shares an id with it.

    Args:
      queries: float32 [M, D], unit rows; or what `score` reads.
      candidates: float32 [N, D], unit rows; or what `score` reads.
      query_ids: int32 [M] or [M, K] (`pad_ids`).
      candidate_ids: int32 [N] or [N, L].
      mesh: whose devices share the queries.
      score: treats rows independently of each other. Scores closer than `TIE` are equal.
      tile: candidates at a time. block: queries at a time on one device.

    Raises:
      ValueError: shapes that do not fit, or no candidates.
    """
    m, n = _check(queries, candidates, score)
    query_ids, candidate_ids = (
        i.reshape(len(i), i.shape[1] if i.ndim == 2 else 1).astype(np.int32)
        for i in (query_ids, candidate_ids)
    )
    if len(query_ids) != m or len(candidate_ids) != n:
        sizes = f"{m} and {n} rows"
        raise ValueError(
            f"ids of {len(query_ids)} queries and {len(candidate_ids)} candidates do not fit "
            f"{sizes}"
        )
    rows = _Rows(mesh, m, block)
    q = rows.put(queries, 0)
    ids = rows.put(query_ids, _NONE)
    zero = functools.partial(rows.fill, 0, np.int32)
    best = rows.fill(-np.inf, np.float32), zero()
    for part in _tiles(mesh, tile, candidates, candidate_ids):
        best = _best_pass(mesh, rows.block, q, ids, best, part, compare=score)
    counts = zero(), zero(), zero()
    for part in _tiles(mesh, tile, candidates, candidate_ids):
        counts = _count_pass(mesh, rows.block, q, ids, best[0], counts, part, compare=score)
    better, tied, tied_right, right = (rows.fetch(x).astype(np.int64) for x in (*counts, best[1]))
    return Ranks(better, tied, tied_right, right, n)


def top_k(
    queries: Tree,
    candidates: Tree,
    k: int,
    mesh: Mesh,
    *,
    without: tuple[np.ndarray, np.ndarray] | None = None,
    score: Score = cosines,
    tile: int = TILE,
    block: int = BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores float32 [M, k] and positions int32 [M, k] of the best candidates, best first; of equal
    ones the first.

    `k` is cut to the number of candidates. Arguments as in `rank`.

    Args:
      without: ids int32 [M] or [M, K] of queries and [N] or [N, L] of candidates. A candidate that
        shares an id (>= 0) with a query is left out for it; a place that nobody is left for has the
        score -inf.
    """
    m, n = _check(queries, candidates, score)
    k = min(k, n)
    rows = _Rows(mesh, m, block)
    q = rows.put(queries, 0)
    nobody = np.zeros((m, 0), np.int32), np.zeros((n, 0), np.int32)
    query_ids, candidate_ids = (ids.reshape(len(ids), -1) for ids in without or nobody)
    ids = rows.put(query_ids.astype(np.int32), _NONE)
    best = rows.fill(-np.inf, np.float32, k), rows.fill(0, np.int32, k)
    for part in _tiles(mesh, tile, candidates, candidate_ids.astype(np.int32)):
        best = _top_pass(mesh, rows.block, q, ids, best, part, compare=score)
    return rows.fetch(best[0]), rows.fetch(best[1])


def length(tree: Tree) -> int:
    """Rows of what is ranked. Raises ValueError where its arrays have not one length."""
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(f"queries or candidates of lengths {sorted(lengths)} must have one")
    return lengths.pop()[0]


def _check(queries: Tree, candidates: Tree, score: Score) -> tuple[int, int]:
    """How many there are of each."""
    m = length(queries)
    n = length(candidates)
    if score is not cosines:
        if not n:
            raise ValueError("candidates: there are none")
        return m, n
    fits = queries.ndim == 2 == candidates.ndim and queries.shape[1] == candidates.shape[1]
    if not fits or not n:
        raise ValueError(
            f"queries {queries.shape} and candidates {candidates.shape} must be [M, D] and "
            f"[N, D] with N >= 1"
        )
    return m, n


class _Rows:
    """Layout of per-query arrays: padded to full blocks on every device, sharded over all mesh
    axes."""

    def __init__(self, mesh: Mesh, n: int, block: int):
        self.n = n
        self.block = max(1, min(block, -(-n // mesh.size)))
        unit = self.block * mesh.size
        self.padded = max(1, -(-n // unit)) * unit
        self._mesh = mesh
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def put(self, tree: Tree, pad: float) -> Tree:
        def padded(x: np.ndarray) -> jax.Array:
            full = np.full((self.padded, *x.shape[1:]), pad, x.dtype)
            full[: self.n] = x
            return put(full, self._sharding)

        return jax.tree.map(padded, tree)

    def fill(self, value: float, dtype: DTypeLike, *shape: int) -> jax.Array:
        return self.put(np.full((self.n, *shape), value, dtype), value)

    def fetch(self, x: jax.Array) -> np.ndarray:
        return np.asarray(_gather(NamedSharding(self._mesh, PartitionSpec()), x))[: self.n]


def put(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """`x`, which every process holds whole, as a global array."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


@functools.partial(jax.jit, static_argnums=0)
def _gather(sharding: NamedSharding, x: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, sharding)


class _Tile(NamedTuple):
    """Candidates rows [t, D] or a tree of them, ids [t, L], valid [t] (False: padding), positions
    [t] among all candidates."""

    rows: Tree
    ids: jax.Array
    valid: jax.Array
    position: jax.Array


def _tiles(mesh: Mesh, tile: int, candidates: Tree, ids: np.ndarray) -> Iterator[_Tile]:
    """All candidates in equal tiles, each on every device; the last one is padded."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    n = length(candidates)
    tile = min(tile, n)
    ids = np.where(ids == _NONE, -2, ids)
    for start in range(0, n, tile):
        position = np.arange(start, start + tile, dtype=np.int32)
        take = np.minimum(position, n - 1)
        rows = jax.tree.map(lambda x: x[take], candidates)  # noqa: B023
        part = _Tile(rows, ids[take], position < n, position)
        yield jax.tree.map(lambda x: put(x, everywhere), part)


def _blockwise(mesh: Mesh, block: int, body: Callable, rows: Any, tile: Any) -> Any:
    """`body(rows of one block, tile)` over the blocks of every device's rows."""

    def local(rows, tile):
        blocks = jax.tree.map(lambda x: x.reshape(len(x) // block, block, *x.shape[1:]), rows)
        out = jax.lax.map(lambda b: body(b, tile), blocks)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)

    spread = PartitionSpec(mesh.axis_names)
    return jax.shard_map(
        local, mesh=mesh, in_specs=(spread, PartitionSpec()), out_specs=spread, check_vma=False
    )(rows, tile)


def _is_right(q_ids: jax.Array, c_ids: jax.Array) -> jax.Array:
    """bool [m, n]: whether id lists [m, K] and [n, L] share an id; one pair of columns at a
    time."""
    width = c_ids.shape[1]
    if not width:
        return jnp.zeros((len(q_ids), len(c_ids)), bool)

    def add(i, mask):
        return mask | (q_ids[:, i // width, None] == c_ids[None, :, i % width])

    return jax.lax.fori_loop(
        0, q_ids.shape[1] * width, add, jnp.zeros((len(q_ids), len(c_ids)), bool)
    )


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="compare", donate_argnums=4)
def _best_pass(mesh, block, q, q_ids, carry, tile, compare=cosines):
    def body(rows, tile):
        q, q_ids, best, right = rows
        mask = _is_right(q_ids, tile.ids) & tile.valid
        s = compare(q, tile.rows)
        s = jnp.where(mask & ~jnp.isnan(s), s, -jnp.inf)
        return jnp.maximum(best, s.max(1)), right + mask.sum(1, dtype=jnp.int32)

    return _blockwise(mesh, block, body, (q, q_ids, *carry), tile)


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="compare", donate_argnums=5)
def _count_pass(mesh, block, q, q_ids, best, carry, tile, compare=cosines):
    def body(rows, tile):
        q, q_ids, best, better, tied, tied_right = rows
        mask = _is_right(q_ids, tile.ids)
        s = compare(q, tile.rows)
        s = jnp.where(jnp.isnan(s), jnp.where(mask, -jnp.inf, jnp.inf), s)
        gap = jnp.where(
            s == best[:, None], 0.0, s - best[:, None]
        )  # two infinities of one sign are a tie as well
        right = mask & tile.valid
        wrong = ~mask & tile.valid
        equal = jnp.abs(gap) <= TIE
        counts = (wrong & (gap > TIE), wrong & equal, right & equal)
        return tuple(
            x + n.sum(1, dtype=jnp.int32) for x, n in zip((better, tied, tied_right), counts)
        )

    return _blockwise(mesh, block, body, (q, q_ids, best, *carry), tile)


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="compare", donate_argnums=4)
def _top_pass(mesh, block, q, q_ids, carry, tile, compare=cosines):
    def body(rows, tile):
        q, q_ids, score, position = rows
        s = compare(q, tile.rows)
        out = _is_right(q_ids, tile.ids) | ~tile.valid
        s = jnp.where(jnp.isnan(s) | out, -jnp.inf, s)
        score, keep = jax.lax.top_k(jnp.concatenate([score, s], 1), score.shape[1])
        here = jnp.broadcast_to(tile.position, s.shape)
        return score, jnp.take_along_axis(jnp.concatenate([position, here], 1), keep, 1)

    return _blockwise(mesh, block, body, (q, q_ids, *carry), tile)
