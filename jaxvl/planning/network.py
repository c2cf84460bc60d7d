"""How long collectives take on the links between devices.

A slice of TPUs is a torus (or, where a side is not closed, a grid) of chips; each chip has two
links for each side of it. GPUs of a host hang on one switch. Between slices or hosts there is the
data centre's network, with a share of it for each chip.

    collective          bytes through a chip's links, of a part of S bytes and a group of N
    all-gather          S (N - 1) / N
    reduce-scatter      S (N - 1) / N
    all-reduce          2 S (N - 1) / N
    all-to-all          along a side of C chips, S C / 8 through each link of a ring, twice that
                        of a row
    permute             S times the most links that a part crosses

A group has all links of the sides along which its chips differ, in both directions if the side is a
ring. Where every k-th chip of a side is in the group, k groups share its links. After "How To Scale
Your Model", part 3 (jax-ml.github.io/scaling-book/sharding). Latency is not counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from jaxvl.hlo import Collective
from jaxvl.sharding.topology import Topology

MOST_GROUPS = 64  # that are looked at; the groups of a collective are alike


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Of a collective, one execution: `inside` a slice or host, and `between` them."""

    inside: float
    between: float


class Network:
    """The links of a mesh of devices.

    Args:
      topology: parsed; of a known chip.
      devices: in the order of the mesh.
    """

    def __init__(self, topology: Topology, devices: Sequence[jax.Device]):
        self.chip = topology.chip
        per_slice = len(devices) // topology.slices
        if self.chip.ring:
            self.places = np.array([device.coords for device in devices])
            numbers = [device.slice_index for device in devices] if topology.slices > 1 else 0
            self.domains = np.broadcast_to(numbers, len(devices))
        else:
            self.places = np.arange(len(devices))[:, None]
            self.domains = np.array([device.process_index for device in devices])
        self.sides = self.places.max(0) + 1
        self.several = per_slice < len(devices) or len(set(self.domains.tolist())) > 1

    def seconds(self, collective: Collective) -> Seconds:
        """The slowest of its groups."""
        if collective.between_slices:
            return Seconds(0.0, collective.sent / self.chip.nic)
        groups = collective.groups[:MOST_GROUPS]
        if collective.kind == "collective-permute":
            return self._permute(collective.size, collective.groups)
        each = [self._group(collective, group) for group in groups]
        return Seconds(
            max((s.inside for s in each), default=0.0), max((s.between for s in each), default=0.0)
        )

    def _group(self, collective: Collective, group: np.ndarray) -> Seconds:
        domains = self.domains[group]
        inner = group[domains == domains[0]]
        number = len(set(domains.tolist()))
        twice = 2 if collective.kind == "all-reduce" else 1
        size = collective.size
        whole = collective.kind == "all-to-all"
        between = twice * (number - 1) / number * size / (1 if whole else len(inner))
        if len(inner) == 1:
            return Seconds(0.0, between / self.chip.nic)
        share = size * twice * (len(inner) - 1) / len(inner)
        if not self.chip.ring:
            return Seconds(share / self.chip.link, between / self.chip.nic)
        if whole:
            return Seconds(self._all_to_all(size, inner), between / self.chip.nic)
        lanes = sum(directions / spacing for _, directions, spacing in self._sides(inner))
        return Seconds(share / (lanes * self.chip.link), between / self.chip.nic)

    def _all_to_all(self, size: float, group: np.ndarray) -> float:
        slowest = 0.0
        for chips, directions, spacing in self._sides(group):
            crossed = size * chips / (8 if directions == 2 else 4)
            slowest = max(slowest, crossed * spacing / self.chip.link)
        return slowest

    def _sides(self, group: np.ndarray) -> list[tuple[int, int, int]]:
        """(chips, directions, spacing) of the sides along which a group extends."""
        found = []
        for side, column in zip(self.sides, self.places[group].T):
            values = np.unique(column)
            if len(values) == 1:
                continue
            spacing = int(np.diff(values).min())
            closed = side % self.chip.ring == 0 and len(values) * spacing == side
            found.append((len(values), 2 if closed else 1, spacing))
        return found

    def _permute(self, size: float, pairs: np.ndarray) -> Seconds:
        if not pairs.size:
            return Seconds(0.0, 0.0)
        across = self.domains[pairs[:, 0]] != self.domains[pairs[:, 1]]
        between = size / self.chip.nic if across.any() else 0.0
        inside = pairs[~across]
        if not inside.size:
            return Seconds(0.0, between)
        if not self.chip.ring:
            return Seconds(size / self.chip.link, between)
        way = np.abs(self.places[inside[:, 0]] - self.places[inside[:, 1]])
        closed = self.sides % self.chip.ring == 0
        way = np.where(closed, np.minimum(way, self.sides - way), way)
        return Seconds(size * int(way.max()) / self.chip.link, between)
