"""Who makes the others wait is named, with what it spends its time on; nobody where all are alike."""

import jax
import numpy as np
import pytest

from jaxvl.sharding import hosts
from jaxvl.training import stragglers
from jaxvl.training.stragglers import Stragglers

WINDOW = 40.0
# Milliseconds: waits, writes, read, decode, transform, transfer; microseconds of a device, and which.
QUIET = [0, 0, 0, 0, 0, 0, 4000, 0]


class Timed:
    """A `Probe` that has been run so often, and was told its times."""

    alone = True

    def __init__(self, devices=()):
        self.count = 0

    def run(self):
        self.count += 1

    def forget(self):
        self.count = 0

    def slowest(self):
        return 0.004, 1


@pytest.fixture
def looks(monkeypatch):
    """Looks at one table of numbers after another, `WINDOW` seconds apart."""
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(stragglers, "Probe", Timed)
    now = [1000.0]
    monkeypatch.setattr(stragglers.time, "monotonic", lambda: now[0])
    ours = Stragglers({})

    def look(*rows, seconds=WINDOW, probes=3):
        now[0] += seconds
        for _ in range(probes):
            ours.probe()
        return ours.look(np.array(rows, np.int64))

    return look


def test_one_that_waits_for_its_data(looks):
    slow = [20_000, 0, 70_000, 10_000, 0, 0, 4000, 0]
    (one,) = looks(QUIET, slow, QUIET)
    assert (one.process, one.part, one.seconds, one.others, one.window) == (1, "read", 20, 0, 40)
    assert str(one).startswith(
        "straggler: process 1 of 3 has waited for its data for 20.0 of 40 s, the others for 0.0 s; "
        "most of its input's work: read; try more reader.threads"
    )


def test_only_what_has_come_since_the_last_look_counts(looks):
    slow = [20_000, 0, 70_000, 10_000, 0, 0, 4000, 0]
    assert looks(QUIET, slow, QUIET)
    assert looks(QUIET, slow, QUIET) == []
    (one,) = looks(QUIET, slow, [9_000, 0, 1_000, 3_000, 2_000, 0, 4000, 0])
    assert (one.process, one.part, one.seconds) == (2, "decode", 9)


def test_nobody_where_all_wait_alike(looks):
    slow = [20_000, 0, 70_000, 0, 0, 0, 4000, 0]
    assert looks(slow, slow, slow) == []
    assert looks(QUIET, [3_000, 0, 9_000, 0, 0, 0, 4000, 0], QUIET) == [], (
        "less than a tenth of the time"
    )


def test_one_whose_disk_is_slow(looks, monkeypatch):
    monkeypatch.setattr(hosts, "HOST_NAMES", ["a", "b", "c"])
    (one,) = looks(
        [0, 1_000, 0, 0, 0, 0, 4000, 0],
        [0, 1_500, 0, 0, 0, 0, 4000, 0],
        [0, 12_000, 0, 0, 0, 0, 4000, 0],
    )
    assert str(one) == (
        "slow disk: process 2 of 3 (c) has written its part of the checkpoints for 12.0 s, the "
        "others for 1.2 s"
    )


def device(micros, number=0):
    return [*QUIET[:6], micros, number]


def test_one_that_computes_slowly(looks, monkeypatch):
    monkeypatch.setattr(hosts, "HOST_NAMES", ["a", "b", "c"])
    (one,) = looks(device(4_000), device(4_100), device(6_000, 3))
    assert (one.process, one.part, one.seconds, one.device) == (2, "device", 0.006, 3)
    assert one.others == pytest.approx(0.00405)
    assert str(one) == (
        "slow device: process 2 of 3 (c) takes 6.0 ms for what takes the others 4.0 ms; the "
        "slowest of its devices: number 3"
    )
    (again,) = looks(device(4_000), device(5_500, 1), device(4_000))
    assert (again.process, again.device) == (1, 1), "times do not add up over the looks"


def test_nobody_where_all_compute_alike(looks):
    assert looks(device(9_000), device(9_900), device(9_500)) == []
    assert looks(device(4_000), device(5_000), device(4_000)) == [], "not 1.3 times as long"
    assert looks(device(4_000), device(3_200), device(4_000)) == [], "a fast one is no straggler"


def test_cpus_compute_for_others_too(looks, monkeypatch):
    monkeypatch.setattr(Timed, "alone", False)
    assert looks(device(4_000), device(4_000), device(11_000)) == []
    assert len(looks(device(4_000), device(4_000), device(13_000))) == 1


def test_few_times_say_nothing_yet(looks):
    slow = device(9_000)
    assert looks(QUIET, slow, QUIET, probes=2) == []
    assert len(looks(QUIET, slow, QUIET, probes=1)) == 1, "they have been kept"


def test_looks_are_not_closer_than_the_window(looks):
    slow = [20_000, 9_000, 70_000, 0, 0, 0, 4000, 0]
    assert looks(QUIET, slow, QUIET, seconds=stragglers.WINDOW - 1) == ()
    assert len(looks(QUIET, slow, QUIET, seconds=2)) == 2


def test_writes_are_those_that_orbax_tells_of(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(stragglers, "Probe", Timed)
    jax.monitoring.record_event_duration_secs(stragglers._WRITE, 9.0)  # of an earlier stage
    ours = Stragglers({})
    jax.monitoring.record_event_duration_secs(stragglers._WRITE, 1.5, prefix="x")
    jax.monitoring.record_event_duration_secs("/jax/other", 100.0)
    assert ours.numbers() == [0, 1500, 0, 0, 0, 0, 4000, 1]


def test_a_single_process_says_nothing():
    assert Stragglers({}).numbers() == []
