"""Seconds of collectives on tori and switches, against closed forms."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxvl.chips import CHIPS
from jaxvl.hlo import Collective
from jaxvl.planning.network import Network
from jaxvl.sharding.topology import parse_topology


@dataclasses.dataclass(frozen=True)
class Chip:
    coords: tuple[int, ...]
    slice_index: int = 0
    process_index: int = 0


def torus(name, sides, slices=1):
    places = itertools.product(range(slices), *(range(n) for n in reversed(sides)))
    chips = [Chip(tuple(reversed(place)), index) for index, *place in places]
    size = "x".join(map(str, sides))
    return Network(parse_topology(f"{slices}*{name}:{size}"), chips)


def along(network, axis):
    """Groups of all chips that differ along a side alone."""
    places = network.places
    others = np.delete(places, axis, 1)
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, other in enumerate(others.tolist()):
        alike.setdefault(tuple(other), []).append(i)
    return np.array(list(alike.values()))


def collective(kind, size, groups):
    return Collective(kind, "x", "y", size, 1, np.asarray(groups))


LINK = CHIPS["v5e"].link
SIZE = 1.6e6


def test_a_full_side_is_a_ring_with_both_directions():
    network = torus("v5e", (16, 16))
    groups = along(network, 0)
    gather = network.seconds(collective("all-gather", SIZE, groups)).inside
    assert gather == pytest.approx(SIZE * 15 / 16 / (2 * LINK))
    reduce = network.seconds(collective("all-reduce", SIZE, groups)).inside
    assert reduce == pytest.approx(2 * gather)
    scatter = network.seconds(collective("reduce-scatter", SIZE, groups)).inside
    assert scatter == pytest.approx(gather)


def test_a_side_that_is_not_closed_has_one_direction():
    network = torus("v5e", (4, 4))
    seconds = network.seconds(collective("all-gather", SIZE, along(network, 0))).inside
    assert seconds == pytest.approx(SIZE * 3 / 4 / LINK)
    # v4 closes sides of 4 by its optical switches.
    network = torus("v4", (4, 4, 4))
    seconds = network.seconds(collective("all-gather", SIZE, along(network, 0))).inside
    assert seconds == pytest.approx(SIZE * 3 / 4 / (2 * CHIPS["v4"].link))


def test_a_whole_slice_has_the_links_of_all_sides():
    network = torus("v5e", (16, 16))
    seconds = network.seconds(collective("all-gather", SIZE, np.arange(256)[None])).inside
    assert seconds == pytest.approx(SIZE * 255 / 256 / (4 * LINK))


def test_groups_of_every_fourth_chip_share_their_links():
    network = torus("v5e", (16, 16))
    rows = along(network, 0)
    every = np.concatenate([rows[:, i::4] for i in range(4)])
    seconds = network.seconds(collective("all-gather", SIZE, every)).inside
    assert seconds == pytest.approx(SIZE * 3 / 4 / (2 * LINK) * 4)


def test_an_exchange_on_a_ring_crosses_a_quarter_of_it():
    network = torus("v5e", (16, 16))
    seconds = network.seconds(collective("all-to-all", SIZE, along(network, 0))).inside
    # Counted out: chip i sends SIZE / 16 to each other one, the short way round; the half of those
    # to the opposite chip goes each way.
    load = 0.0
    for source, target in itertools.product(range(16), range(16)):
        steps = (target - source) % 16
        share = SIZE / 16 * (0.5 if steps == 8 else 1.0)
        if 0 < steps <= 8 and 0 in [(source + s) % 16 for s in range(steps)]:
            load += share  # it crosses the link from chip 0 to chip 1
    assert seconds == pytest.approx(load / LINK)


def test_a_permute_takes_as_long_as_its_longest_way():
    network = torus("v5e", (16, 16))
    by_one = [(i, i ^ 1) for i in range(256)]
    assert network.seconds(collective("collective-permute", SIZE, by_one)).inside == SIZE / LINK
    row = along(network, 0)[0]
    ring = [(int(row[i]), int(row[(i + 1) % 16])) for i in range(16)]
    assert network.seconds(collective("collective-permute", SIZE, ring)).inside == SIZE / LINK
    open_side = torus("v5e", (4, 4))
    row = along(open_side, 0)[0]
    ring = [(int(row[i]), int(row[(i + 1) % 4])) for i in range(4)]
    seconds = open_side.seconds(collective("collective-permute", SIZE, ring)).inside
    assert seconds == pytest.approx(3 * SIZE / LINK)  # the last goes back all the way


def test_between_slices_each_chip_sends_its_share():
    network = torus("v5e", (4, 4), slices=2)
    whole = np.arange(32)[None]
    seconds = network.seconds(collective("all-reduce", SIZE, whole))
    assert seconds.between == pytest.approx(2 * 1 / 2 * SIZE / 16 / CHIPS["v5e"].nic)
    assert seconds.inside == pytest.approx(2 * 15 / 16 * SIZE / (2 * LINK))
    pairs = np.array([[i, i + 16] for i in range(16)])
    seconds = network.seconds(collective("all-reduce", SIZE, pairs))
    assert seconds.between == pytest.approx(SIZE / CHIPS["v5e"].nic) and seconds.inside == 0
    sent = Collective("all-reduce", "x", "y", int(SIZE), 1, np.array([[0, 1]]), between_slices=True)
    assert network.seconds(sent).between == pytest.approx(SIZE / CHIPS["v5e"].nic)


def test_gpus_of_a_host_hang_on_a_switch():
    chips = [Chip((0,), process_index=i // 8) for i in range(16)]
    network = Network(parse_topology("h200:1x2x8"), chips)
    gpu = CHIPS["h200"]
    inside = network.seconds(collective("all-gather", SIZE, np.arange(16).reshape(2, 8)))
    assert inside.inside == pytest.approx(SIZE * 7 / 8 / gpu.link) and inside.between == 0
    both = network.seconds(collective("all-reduce", SIZE, np.arange(16)[None]))
    assert both.between == pytest.approx(2 * 1 / 2 * SIZE / 8 / gpu.nic)
