"""What the host learns of steps that were not applied, and when."""

import json
import types

import jax.numpy as jnp
import pytest

from jaxvl.data.feed import SIGNAL
from jaxvl.sharding.hosts import Signal
from jaxvl.training.guard import TrainingDiverged, Watch, diverged
from jaxvl.training.schedule import Turn

B = 4


class Steps:
    """Steps of tasks that each have batches of B records one after the other."""

    def __init__(self, watch):
        self.watch = watch
        self.step = 0
        self.given = {}

    def __call__(self, in_a_row, *tasks, signal=None):
        self.step += 1
        feeds = {}
        metrics = []
        for task in tasks:
            first = self.given.get(task, 0)
            self.given[task] = first + B
            feeds[task] = types.SimpleNamespace(latest=((first, first + B),))
            figures = {"skipped_in_a_row": in_a_row, "loss": 1.5, "norm/gradient": 2.0}
            figures |= {} if signal is None else {SIGNAL: signal}
            metrics.append({name: jnp.float32(value) for name, value in figures.items()})
        self.watch.started(self.step, Turn(tasks, (1.0,) * len(tasks)), metrics, feeds)


def told(found):
    return [(judged.bad.step, judged.bad.task, judged.bad.spans) for judged in found]


def test_a_step_is_known_once_the_next_has_started_or_when_it_is_waited_for():
    watch = Watch()
    steps = Steps(watch)
    steps(1, "pairs")
    assert watch.read(3, wait=False) == []
    steps(0, "pairs")
    assert told(watch.read(3, wait=False)) == [(1, "pairs", ((0, 4),))]
    assert watch.first_bad == 1 and watch.ends == {"pairs": 4}
    assert watch.read(3, wait=True) == []
    assert watch.first_bad is None and watch.ends == {"pairs": 8}


def test_each_task_has_a_row_of_its_own_and_joint_tasks_share_one():
    watch = Watch()
    steps = Steps(watch)
    for in_a_row, task in ((1, "a"), (0, "b"), (2, "a"), (1, "b")):
        steps(in_a_row, task)
    found = watch.read(3, wait=True)
    assert told(found) == [(1, "a", ((0, 4),)), (3, "a", ((4, 8),)), (4, "b", ((4, 8),))]
    assert [bad.step for bad in watch.full_row(2)] == [1, 3] and watch.full_row(3) == []
    steps(1, "c", "d")
    assert told(watch.read(3, wait=True)) == [(5, "c", ((0, 4),)), (5, "d", ((0, 4),))]


def test_nothing_is_read_beyond_a_full_row():
    watch = Watch()
    steps = Steps(watch)
    for in_a_row in (1, 2, 0):
        steps(in_a_row, "a")
    watch.read(2, wait=True)
    assert [bad.step for bad in watch.full_row(2)] == [1, 2] and watch.ends == {"a": 8}


def test_rows_that_were_none_are_no_bad_step():
    watch = Watch()
    steps = Steps(watch)
    steps(1, "a", signal=Signal.CALL)
    steps(1, "a", signal=Signal.BROKEN)
    assert [judged.bad.step for judged in watch.read(3, wait=True)] == [1]


def test_a_resumed_run_knows_the_row():
    watch = Watch()
    steps = Steps(watch)
    steps(1, "a")
    watch.read(3, wait=True)
    again = Watch(json.loads(json.dumps(watch.frame())), {"a": 4})
    assert again.rows == watch.rows and again.ends == watch.ends
    Watch(None)  # a checkpoint of before there were rows


def test_the_error_names_task_step_and_figures():
    watch = Watch()
    steps = Steps(watch)
    for in_a_row in (1, 2, 3):
        steps(in_a_row, "pairs")
    found = watch.read(3, wait=True)
    said = r"task 'pairs', step 3: 3 steps in a row .*loss 1\.5, gradient norm 2"
    with pytest.raises(TrainingDiverged, match=said):
        raise diverged(watch.full_row(3), found[-1].figures)
