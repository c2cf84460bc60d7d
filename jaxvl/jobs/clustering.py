"""k-means on the whole mesh: Lloyd's iterations from k-means++ seeds."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvl.evals.ranking import put, unit_rows

BLOCK = 1024  # rows at a time on one device: 4 MiB of distances to 1,000 centres
FULL = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Clusters:
    """A clustering.

    Attributes:
      labels: int32 [n], cluster of each row.
      centres: float32 [k, D].
      inertia: sum of squared distances of the rows to their centres.
      iterations: done; `max` of them where the labels had not settled.
    """

    labels: np.ndarray
    centres: np.ndarray
    inertia: float
    iterations: int


def kmeans(
    rows: np.ndarray,
    k: int,
    mesh: Mesh,
    *,
    seed: int = 0,
    spherical: bool = False,
    iterations: int = 100,
    first: np.ndarray | None = None,
) -> Clusters:
    """Lloyd's algorithm (1982) from k-means++ seeds (Arthur & Vassilvitskii 2007).

    A cluster that loses all its rows takes the row that is farthest from its own centre. Equal
    arguments give equal results, on any mesh up to rounding.

    Args:
      rows: float32 [n, D].
      spherical: rows and centres have length 1 (Dhillon & Modha 2001); the nearest centre is then
        the one with the largest cosine.
      iterations: at most.
      first: float32 [k, D], the first centres; None: drawn by `seed`.

    Raises:
      ValueError: fewer rows than clusters.
    """
    if len(rows) < k:
        raise ValueError(f"{len(rows)} rows cannot make {k} clusters")
    rows = np.asarray(rows, np.float32)
    if spherical:
        rows = unit_rows(rows)
    block = max(1, min(BLOCK, -(-len(rows) // mesh.size)))
    unit = block * mesh.size
    padded = -(-len(rows) // unit) * unit
    sharded = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    everywhere = NamedSharding(mesh, PartitionSpec())
    whole = np.zeros((padded, rows.shape[1]), np.float32)
    whole[: len(rows)] = rows
    with jax.set_mesh(mesh):
        x = put(whole, sharded)
        real = put(np.arange(padded) < len(rows), sharded)
        if first is None:
            first = _seeds(x, real, k, seed, everywhere)
        centres = put(np.asarray(first, np.float32), everywhere)
        labels = put(np.full(padded, -1, np.int32), sharded)
        done = 0
        while done < iterations:
            done += 1
            labels, distances, sums, counts, moved = _assign(mesh, block, x, real, labels, centres)
            if int(moved) == 0:
                break
            centres = _centres(sums, counts, centres, spherical)
            empty = np.flatnonzero(np.asarray(counts) == 0)
            if len(empty):
                far = _farthest(x, distances, len(empty), everywhere)
                centres = centres.at[empty].set(far)
        labels, distances, *_ = _assign(mesh, block, x, real, labels, centres)
        labels, inertia = _fetch(everywhere, labels, distances)
        found = np.asarray(labels)[: len(rows)]
        return Clusters(found, np.asarray(centres), float(inertia), done)


@functools.partial(jax.jit, static_argnums=(2, 4))
def _seeds(
    x: jax.Array, real: jax.Array, k: int, seed: int, everywhere: NamedSharding
) -> jax.Array:
    """k-means++: each centre is a row, drawn in proportion to the squared distance to the nearest
    one before. float32 [k, D].

    A row is drawn by adding Gumbel noise to the logarithm of its weight and taking the largest.
    """
    root = jax.random.key(seed)

    def drawn(i: jax.Array, weight: jax.Array) -> jax.Array:
        noise = jax.random.gumbel(jax.random.fold_in(root, i), weight.shape)
        log = jnp.where(weight > 0, jnp.log(jnp.maximum(weight, 1e-30)), -1e30)
        return x[jnp.argmax(jnp.where(real, log + noise, -jnp.inf))]

    def add(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        nearest, centres = carry
        centre = drawn(i, nearest)
        distance = jnp.square(x - centre).sum(1)
        return jnp.minimum(nearest, distance), centres.at[i].set(centre)

    centre = drawn(jnp.int32(0), jnp.ones(len(x)))
    centres = jnp.zeros((k, x.shape[1])).at[0].set(centre)
    _, centres = jax.lax.fori_loop(1, k, add, (jnp.square(x - centre).sum(1), centres))
    return jax.lax.with_sharding_constraint(centres, everywhere)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _assign(
    mesh: Mesh, block: int, x: jax.Array, real: jax.Array, before: jax.Array, centres: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Labels [n], squared distances [n], sums [k, D] and counts [k] of the clusters, and how many
    labels are new."""

    def local(x, real, before, centres):
        squares = jnp.square(centres).sum(1)

        def step(carry, rows):
            sums, counts = carry
            x, real = rows
            products = jnp.einsum("nd,kd->nk", x, centres, precision=FULL)
            label = jnp.argmin(squares - 2 * products, axis=1).astype(jnp.int32)
            distance = jnp.square(x - centres[label]).sum(1)
            member = jax.nn.one_hot(label, len(centres)) * real[:, None]
            sums += jnp.einsum("nk,nd->kd", member, x, precision=FULL)
            return (sums, counts + member.sum(0)), (label, jnp.where(real, distance, 0.0))

        zeros = jnp.zeros_like(centres), jnp.zeros(len(centres))
        split = jax.tree.map(lambda a: a.reshape(-1, block, *a.shape[1:]), (x, real))
        (sums, counts), (labels, distances) = jax.lax.scan(step, zeros, split)
        labels = labels.reshape(-1)
        distances = distances.reshape(-1)
        moved = ((labels != before) & real).sum()
        sums, counts, moved = jax.lax.psum((sums, counts, moved), mesh.axis_names)
        return labels, distances, sums, counts, moved

    spread = PartitionSpec(mesh.axis_names)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(spread, spread, spread, PartitionSpec()),
        out_specs=(spread, spread, PartitionSpec(), PartitionSpec(), PartitionSpec()),
        check_vma=False,
    )(x, real, before, centres)


@functools.partial(jax.jit, static_argnums=3)
def _centres(sums: jax.Array, counts: jax.Array, before: jax.Array, spherical: bool) -> jax.Array:
    """Means of the clusters; of an empty one the centre stays."""
    means = jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], before)
    if not spherical:
        return means
    lengths = jnp.linalg.norm(means, axis=1, keepdims=True)
    return jnp.where(lengths > 1e-12, means / jnp.maximum(lengths, 1e-12), before)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _farthest(x: jax.Array, distances: jax.Array, n: int, everywhere: NamedSharding) -> jax.Array:
    """The n rows that are farthest from their centres."""
    return jax.lax.with_sharding_constraint(x[jax.lax.top_k(distances, n)[1]], everywhere)


@functools.partial(jax.jit, static_argnums=0)
def _fetch(
    everywhere: NamedSharding, labels: jax.Array, distances: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return jax.lax.with_sharding_constraint(labels, everywhere), distances.sum()
