"""What processes decide together; the others are played."""

import jax
import numpy as np
import pytest

from jaxvl.data.bottlenecks import STAGES
from jaxvl.data.config import DataConfig
from jaxvl.data.feed import SIGNAL
from jaxvl.data.fields.picture import Picture
from jaxvl.data.records import DataError
from jaxvl.data.sources.demo.shapes import Shapes
from jaxvl.sharding import hosts
from jaxvl.sharding.hosts import Signal
from jaxvl.training import agreement, stragglers
from jaxvl.training.agreement import Agreement

PROCESSES = 3


class Feed:
    """What `Agreement` knows of one."""

    config = DataConfig(
        Shapes(), batch=8, fields=dict(image=Picture()), error_budget=0.01, error_minimum=10
    )
    name = "/data/x"
    waited = 0.0
    stage_seconds = dict.fromkeys(STAGES, 0.0)

    def __init__(self):
        self.failure = None
        self.numbers = (1000, {})

    def counts(self):
        return self.numbers

    @property
    def skipped(self):
        return self.numbers[1]


class Others:
    """Processes 0 and 2; this one is 1. They say `numbers` and `texts`; of the numbers the last are
    `Stragglers.numbers`."""

    def __init__(self):
        self.numbers = np.array([[0, 0, 1000, 0] + [0] * (2 + len(STAGES) + 2)] * 2)
        self.texts = ["", ""]
        self.asked = 0

    def gather(self, numbers):
        self.asked += 1
        return np.stack([self.numbers[0], np.asarray(numbers, np.int64), self.numbers[1]])

    def gather_texts(self, text):
        return [self.texts[0], text, self.texts[1]]


@pytest.fixture
def others(monkeypatch):
    others = Others()
    monkeypatch.setattr(agreement.jax, "process_count", lambda: PROCESSES)
    monkeypatch.setattr(hosts, "gather", others.gather)
    monkeypatch.setattr(hosts, "gather_texts", others.gather_texts)
    return others


@pytest.fixture
def stop():
    return hosts.StopSignal()


@pytest.fixture
def feed():
    return Feed()


@pytest.fixture
def ours(stop, feed):
    return Agreement(stop, {"pairs": feed})


def told(signal):
    """Metrics of a step in which `signal` was the largest."""
    return ({SIGNAL: np.float32(signal)},)


def test_nobody_confers_while_nothing_is_the_matter(others, ours):
    for _ in range(100):
        assert ours.after(told(Signal.FINE)) == agreement.Verdict()
    assert others.asked == 0


def test_all_confer_one_step_after_a_call(others, ours):
    ours.after(told(Signal.CALL))
    assert others.asked == 0, "the step has not been computed yet"
    ours.after(told(Signal.CALL))
    assert others.asked == 1
    for _ in range(9):
        ours.after(told(Signal.FINE))
    assert others.asked == 1, "what was said before they conferred is done with"


def test_before_a_save_the_step_itself_is_looked_at(others, ours):
    ours.after(told(Signal.BROKEN), wait=True)
    assert others.asked == 1


def test_a_process_calls_on_a_signal_and_every_few_seconds(others, ours, stop, monkeypatch):
    assert not ours.calling
    stop.name = "SIGTERM"
    assert ours.calling
    stop.name = None
    now = agreement.time.monotonic()
    monkeypatch.setattr(agreement.time, "monotonic", lambda: now + agreement.INTERVAL + 0.1)
    assert ours.calling
    ours.after(told(Signal.CALL), wait=True)
    assert not ours.calling and agreement.INTERVAL <= 5


def test_a_signal_to_one_process_stops_all(others, ours, stop):
    others.numbers[1, 0] = 1
    verdict = ours.after(told(Signal.CALL), wait=True)
    assert verdict.stop and verdict.error is None and stop.name == "a signal to process 2"


def test_the_failure_of_another_process_is_told_with_its_number(others, ours):
    others.numbers[1, 1], others.texts[1] = 1, "task 'pairs': OSError: gone"
    error = ours.after(told(Signal.BROKEN), wait=True).error
    assert (
        isinstance(error, DataError)
        and str(error) == "process 2 of 3 cannot read its data: task 'pairs': OSError: gone"
    )


def test_the_process_that_failed_has_its_own_error(others, ours, feed):
    feed.failure = OSError("gone\nand more")
    assert ours.after(told(Signal.BROKEN), wait=True).error is feed.failure


def test_a_process_that_makes_the_others_wait_is_told_of(others, ours, monkeypatch):
    assert ours.after(told(Signal.CALL), wait=True).slow == ()
    now = stragglers.time.monotonic()
    monkeypatch.setattr(stragglers.time, "monotonic", lambda: now + stragglers.WINDOW + 0.1)
    others.numbers[1, 4] = 20_000  # milliseconds of waits of process 2
    others.numbers[1, 7] = 90_000  # of decoding
    (slow,) = ours.after(told(Signal.CALL), wait=True).slow
    assert (slow.process, slow.part, slow.seconds, slow.others) == (2, "decode", 20.0, 0.0)


def test_bad_records_are_summed_over_the_processes(others, ours, feed):
    feed.numbers = (1000, {"record cannot be read": 20})
    assert ours.after(told(Signal.CALL), wait=True).error is None, "20 of 3,000"
    others.numbers[:, 3] = 40  # bad records
    error = ours.after(told(Signal.CALL), wait=True).error
    assert str(error) == (
        "task 'pairs': /data/x: 100 of 3000 records are bad in all 3 processes (here: "
        "record cannot be read: 20), "
        "more than error_budget 0.01 allows"
    )


def test_one_process_looks_after_every_step(stop, feed):
    ours = Agreement(stop, {"pairs": feed})
    assert ours.after(()) == agreement.Verdict()
    stop.name = "SIGTERM"
    assert ours.after(()) == agreement.Verdict(stop=True)
    feed.numbers = (1000, {"record cannot be read": 100})
    assert "100 of 1000 records are bad (record cannot be read: 100)" in str(ours.after(()).error)


def test_numbers_and_texts_survive_the_way_between_processes(monkeypatch):
    """Of several processes: as jax gathers, in bytes."""
    assert hosts.gather([1, 2**40]).tolist() == [[1, 2**40]] and hosts.gather_texts("ü" * 2000) == [
        "ü" * 1000
    ]
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        hosts.multihost_utils, "process_allgather", lambda x: np.stack([np.zeros_like(x), x])
    )
    assert hosts.gather([-1, 2**40]).tolist() == [[0, 0], [-1, 2**40]]
    assert hosts.gather_texts("größer " * 400)[1] == ("größer " * 400).encode()[:2000].decode(
        errors="ignore"
    )


def test_counts_are_added_up_over_processes(monkeypatch):
    """However much one of them has to tell."""
    many = {"pairs": {f"cause {i}": i for i in range(300)}, "clips": {}}
    assert hosts.add_up(many) == many
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 3)
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", lambda x: np.stack([x, x, x]))
    assert hosts.add_up(many) == {"pairs": {f"cause {i}": 3 * i for i in range(300)}, "clips": {}}


@pytest.mark.parametrize(
    "error, waits",
    [
        (ZeroDivisionError("a bug"), []),
        (jax.errors.JaxRuntimeError("gloo: closed"), [hosts.PATIENCE + 5]),
    ],
)
def test_a_process_that_fails_does_not_wait_for_the_others(monkeypatch, capsys, error, waits):
    """But where a step has failed, it waits to hear from JAX which process was lost; all within a
    minute."""
    waited = []
    left = []

    def leave(status):
        left.append(status)
        raise SystemExit(status)

    def main(argv):
        raise error

    monkeypatch.setattr(hosts.jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(hosts.time, "sleep", waited.append)
    monkeypatch.setattr(hosts.os, "_exit", leave)
    with pytest.raises(SystemExit):
        hosts.run_together(main, [])
    said = capsys.readouterr().err
    assert left == [1] and waited == waits and 2 * hosts.PATIENCE + 5 < 60
    assert str(error) in said and "process 0 of 1 ends with an error; the others follow" in said


def test_a_command_of_one_process_raises_what_it_raises():
    assert hosts.run_together(lambda argv: len(argv), ["a", "b"]) == 2
    with pytest.raises(ZeroDivisionError):
        hosts.run_together(lambda argv: 1 // 0, [])
