"""How the devices of a mesh stand in a ring, so that neighbours have a link, and in a grid, so that
its rows are boxes of neighbours.

A mesh's axes say who shares what, not who is wired to whom. On TPUs the devices of a slice are a
grid: their ring goes through it row by row and back along the first column, every hop one link
long. A v5e with more than 16 chips has no other way: its compiler runs a permutation beside the
arithmetic only where every message stays in one row or column and does not cross the edge of the
grid (found by compiling for it; libtpu 0.0.42).

     0   1   2   3        4 x 4 chips: the numbers are positions in the ring
    15   6   5   4
    14   7   8   9
    13  12  11  10

Between slices (TPU) or hosts (GPU) the links are slow: they are a ring of their own, in which the
fast ones turn (`ring.Ring`). There, and between the GPUs of a host, is a switch, through which a
ring in one direction sends and receives as fast as it can; a link between TPUs carries as much
again in the other.

The grid of R x C devices (`grid.Grid`) is the squarest that the sides of a slice permit, each cut
in two: its rows are boxes of neighbours, its columns the devices that stand alike in these boxes.
Of 16 x 16 chips these are the rows and columns of the slice; of 8 x 8 x 16 rows are boxes of 32.
Of equally square ones it is the one whose rows and columns are gathered fastest: whole sides of a
torus have their links in both directions, and devices that stand k apart share theirs with k - 1
other columns ("How To Scale Your Model", part 3, jax-ml.github.io/scaling-book/sharding).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax._src import mesh as jax_mesh  # the mesh with its devices, which a trace may not ask for

Coordinates = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Rings:
    """How the devices of some mesh axes, taken as one in row-major order, stand in rings.

    Attributes:
      places: Int[…], indices into the axes: along the last dimension neighbours in the fastest
        ring, along the first in the slowest.
      ways: of each dimension, 2 where links carry as much the one way as the other at once, 1 where
        there is a switch.
    """

    places: np.ndarray
    ways: tuple[int, ...]


def concrete_mesh() -> jax.sharding.Mesh | None:
    """The mesh that is set, with its devices; None where there is none."""
    mesh = jax_mesh.get_concrete_mesh()
    return None if mesh is None or mesh.empty else mesh


def mesh_devices() -> list[jax.Device]:
    """The devices of the mesh that is set."""
    mesh = concrete_mesh()
    return [] if mesh is None else list(mesh.devices.flat)


def rings(axes: Sequence[str]) -> Rings:
    """The rings over mesh axes.

    Where devices do not tell where they are, as on a CPU, every axis is a ring, the first the
    slowest.
    """
    devices = _devices(axes)
    if devices is None:
        shape = jax.sharding.get_abstract_mesh().shape
        return by_axis([shape[axis] for axis in axes])
    return of_devices(devices)


def grid(axes: Sequence[str]) -> np.ndarray:
    """The grid over mesh axes: indices into the axes, taken as one in row-major order, as
    Int[slices, grid rows of a slice, devices of a grid row]. Devices that do not tell where they
    are stand in the order of the axes."""
    devices = _devices(axes)
    if devices is None:
        shape = jax.sharding.get_abstract_mesh().shape
        return _squarest(np.arange(math.prod(shape[axis] for axis in axes)), 1, wraps=False)[None]
    return grid_of_devices(devices)


def grid_of_devices(devices: np.ndarray) -> np.ndarray:
    """As `grid`, for an array of devices with one dimension for each axis."""
    flat = list(devices.flat)
    members = _near(flat)
    if len({len(group) for group in members}) != 1:
        members = [list(range(len(flat)))]
    boxes = [_cells([_coordinates(flat[i]) for i in group]) for group in members]
    if len({None if box is None else box.shape for box in boxes}) != 1 or boxes[0] is None:
        boxes = [np.arange(len(group)) for group in members]
    cut = [_squarest(box, len(members), _wraps(flat[0])) for box in boxes]
    return np.array([np.array(group)[places] for group, places in zip(members, cut)])


Cut = tuple[tuple[int, int], ...]  # of each side: parts, and devices of a part


def _squarest(cells: np.ndarray, slices: int, wraps: bool) -> np.ndarray:
    """The devices of a box as [grid rows, devices of a row], the rows boxes."""
    cuts = itertools.product(*([(n // d, d) for d in _divisors(n)] for n in cells.shape))
    best = min(cuts, key=lambda cut: _cost(cut, slices, wraps))
    places = cells.reshape(list(itertools.chain.from_iterable(best)))
    sides = range(places.ndim)
    places = places.transpose(*sides[::2], *sides[1::2])
    return places.reshape(math.prod(parts for parts, _ in best), -1)


def _cost(cut: Cut, slices: int, wraps: bool) -> tuple[int, float]:
    """Blocks that a device holds, and seconds in which it gathers them within a slice, in units of
    a block on a link; `wraps`: whether the ends of a side have a link."""
    column = math.prod(parts for parts, _ in cut)
    row = math.prod(size for _, size in cut)
    of_row = sum(2 if wraps and parts == 1 else 1 for parts, size in cut if size > 1)
    of_column = sum((1 + wraps) / size for parts, size in cut if parts > 1)
    seconds = (row - 1) / (of_row or 1) + (column - 1) / (of_column or 1)
    return slices * column + row, seconds


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _devices(axes: Sequence[str]) -> np.ndarray | None:
    """The devices along mesh axes, with a dimension for each; None where the mesh has none yet."""
    mesh = concrete_mesh()
    if mesh is None:
        return None
    # Of the other axes any index will do: their groups lie alike.
    first = tuple(slice(None) if a in axes else 0 for a in mesh.axis_names)
    order = [a for a in mesh.axis_names if a in axes]
    return mesh.devices[first].transpose([order.index(a) for a in axes])


def by_axis(sizes: Sequence[int]) -> Rings:
    """Every axis a ring, one way, which holds fewer blocks at a time."""
    sizes = [n for n in sizes if n > 1]
    return Rings(np.arange(np.prod(sizes, dtype=int)).reshape(sizes), (1,) * len(sizes))


def of_devices(devices: np.ndarray) -> Rings:
    """As `rings`, for an array of devices with one dimension for each axis."""
    flat = list(devices.flat)
    platform = flat[0].platform
    members = _near(flat)
    if platform == "cpu" or len({len(group) for group in members}) != 1:
        return by_axis(devices.shape)
    found = []
    for group in members:
        where = [_coordinates(flat[i]) for i in group]
        ring = _ring(where, _wraps(flat[0]))
        found.append([group[i] for i in ring])
    places = np.array(found)
    ways = (1, 2 if platform == "tpu" else 1)
    kept = [i for i, n in enumerate(places.shape) if n > 1]
    return Rings(places.reshape([places.shape[i] for i in kept]), tuple(ways[i] for i in kept))


def _near(devices: Sequence[jax.Device]) -> list[list[int]]:
    """Indices of the devices of each slice (TPU) or host (GPU); of a CPU, all."""
    names = {"tpu": _slice, "gpu": lambda device: device.process_index}
    name = names.get(devices[0].platform, lambda _: 0)
    groups: dict[int, list[int]] = {}
    for i, device in enumerate(devices):
        groups.setdefault(name(device), []).append(i)
    return list(groups.values())


def _wraps(device: jax.Device) -> bool:
    """Whether the ends of a row of such chips have a link."""
    return device.platform == "tpu" and "lite" not in device.device_kind


def _slice(device: jax.Device) -> int:
    """Of a TPU; where there is one alone, devices do not name it."""
    try:
        return device.slice_index or 0
    except AttributeError:
        return 0


def _coordinates(device: jax.Device) -> Coordinates:
    """None of a GPU."""
    try:
        return tuple(device.coords or ())
    except AttributeError:
        return ()


def _cells(where: Sequence[Coordinates]) -> np.ndarray | None:
    """Indices of the devices at these coordinates as the box that they fill, sides of one left out;
    None where they fill none."""
    kept = [axis for axis in zip(*where) if len(set(axis)) > 1]
    values = [sorted(set(axis)) for axis in kept]
    sizes = [len(v) for v in values]
    places = [tuple(v.index(x) for v, x in zip(values, place)) for place in zip(*kept)]
    if not kept or len(set(places)) != len(where) or math.prod(sizes) != len(where):
        return None
    cells = np.empty(sizes, int)
    for i, place in enumerate(places):
        cells[place] = i
    return cells


def _ring(where: Sequence[Coordinates], wraps: bool) -> Sequence[int]:
    """The order in which devices at these coordinates stand in a ring; as given where they fill no
    grid. `wraps`: whether the ends of a row have a link."""
    at = _cells(where)
    if at is None:
        return range(len(where))
    sizes = at.shape
    if len(sizes) == 1:
        line = range(sizes[0])
        # Without a link between its ends: every other device, and the others on the way back.
        return [at[x] for x in (line if wraps else [*line[::2], *line[1::2][::-1]])]
    even = [i for i, n in enumerate(sizes) if n % 2 == 0]
    rows = even[0] if even else 0
    path = list(_snake([n for i, n in enumerate(sizes) if i != rows]))
    cycle = [(y, x) for y in range(sizes[rows]) for x in _turning(range(1, len(path)), y)]
    cycle = [(0, 0), *cycle, *((y, 0) for y in reversed(range(1, sizes[rows])))]
    return [at[(*path[x][:rows], y, *path[x][rows:])] for y, x in cycle]


def _turning(line: range, times: int) -> range:
    return line[::-1] if times % 2 else line


def _snake(sizes: Sequence[int]) -> list[Coordinates]:
    """The cells of a grid, each a neighbour of the one before."""
    if not sizes:
        return [()]
    rest = _snake(sizes[1:])
    rows = ((i, rest[::-1] if i % 2 else rest) for i in range(sizes[0]))
    return list(itertools.chain.from_iterable([(i, *cell) for cell in row] for i, row in rows))
