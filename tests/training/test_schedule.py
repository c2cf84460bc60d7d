"""Schedules are pure functions of the step: against the released loop, closed forms and counts."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvl.config import ConfigError, choose, to_dict
from jaxvl.training.schedule import SCHEDULES, RoundRobin, Stages, Summed, Turn, Weighted


def names(sequence, steps):
    return [sequence(i).tasks[0] for i in steps]


def released_loop(intervals, total):
    """IMP's loop as released: a counter per loader."""
    count = collections.Counter()
    step = 0
    order = []
    while step < total:
        for task, interval in intervals.items():
            count[task] += 1
            if count[task] % interval:
                continue
            order.append(task)
            step += 1
    return order[:total]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 200))
@settings(deadline=None, max_examples=50)
def test_round_robin_is_the_released_loop(intervals, total):
    intervals = {f"task{i}": n for i, n in enumerate(intervals)}
    sequence = RoundRobin(intervals).build(list(intervals), total)
    assert names(sequence, range(total)) == released_loop(intervals, total)


def test_weighted_has_the_asked_shares_and_does_not_depend_on_history():
    sequence = Weighted({"a": 3.0, "b": 1.0}, seed=5).build(["a", "b", "never"], 100)
    draws = names(sequence, range(4000))
    counts = collections.Counter(draws)
    assert counts["never"] == 0
    assert abs(counts["a"] / 4000 - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5
    assert names(sequence, (3999, 7, 42)) == [draws[i] for i in (3999, 7, 42)]


def test_weights_change_at_given_steps():
    """A curriculum as Ola's: from half of the run on, `new` joins and `old` goes on at a
    quarter."""
    config = Weighted({"old": ((0.0, 1.0), (0.5, 0.25)), "new": ((0.0, 0.0), (0.5, 0.75))}, seed=1)
    sequence = config.build(["old", "new"], 4000)
    assert set(names(sequence, range(2000))) == {"old"}
    share = names(sequence, range(2000, 4000)).count("new") / 2000
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / 2000) ** 0.5


@given(st.integers(0, 999))
@settings(deadline=None, max_examples=30)
def test_weights_go_linearly_between_points(step):
    config = Weighted(
        {"a": ((0.0, 2.0), (0.2, 1.0), (1.0, 1.0)), "b": ((0.0, 0.0), (0.6, 3.0))}, between="linear"
    )
    a = 2 - step / 200 if step < 200 else 1.0
    b = min(step / 600, 1.0) * 3
    np.testing.assert_allclose(config.build(["a", "b"], 1000).weights(step), [a, b], rtol=1e-12)


def test_weights_by_size_see_all_records_equally_often():
    sequence = Weighted("size").build(["small", "large"], 8000, {"small": 10.0, "large": 30.0})
    share = names(sequence, range(8000)).count("large") / 8000
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / 8000) ** 0.5
    Weighted("size").build(["small", "large"], 8000)  # checked before the sizes are known


def test_stages_run_one_after_the_other():
    sequence = Stages((("low", 3.0), ("high", 1.0))).build(["high", "low"], 8)
    assert names(sequence, range(8)) == ["low"] * 6 + ["high"] * 2


def test_summed_runs_all_tasks_at_every_step():
    sequence = Summed({"b": 0.5}).build(["a", "b"], 10)
    assert {sequence(i) for i in range(10)} == set(sequence.turns) == {Turn(("a", "b"), (1.0, 0.5))}


def test_every_turn_that_comes_is_announced():
    for schedule in (
        RoundRobin({"b": 2}),
        Weighted({"a": 1.0, "b": 1.0}),
        Stages((("b", 1.0),)),
        Summed(),
    ):
        sequence = schedule.build(["a", "b"], 20)
        assert {sequence(i) for i in range(20)} <= set(sequence.turns)


def test_a_curriculum_survives_the_config_file():
    node = dict(name="weighted", weights=dict(a=1, b=[[0, 0], [0.5, 2]]), between="linear")
    schedule = choose(SCHEDULES, node, "schedule")
    assert schedule == Weighted({"a": 1.0, "b": ((0.0, 0.0), (0.5, 2.0))}, "linear")
    assert choose(SCHEDULES, to_dict(schedule), "schedule") == schedule


UNKNOWN = [
    RoundRobin({"paris": 2}),
    Weighted({"paris": 1.0}),
    Stages((("paris", 1.0),)),
    Summed({"paris": 1.0}),
]


@pytest.mark.parametrize("schedule", UNKNOWN)
def test_unknown_task(schedule):
    with pytest.raises(
        ConfigError,
        match=r"schedule\.\w+\.paris: no such task; did you mean 'pairs'\? \(tasks: pairs\)",
    ):
        schedule.build(["pairs"], 10)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: RoundRobin({"a": 0}), r"intervals\.a: 0 must be >= 1 round"),
        (lambda: Weighted({"a": -1.0}), r"weights\.a: -1\.0 must be >= 0"),
        (
            lambda: Weighted({"a": ((0.5, 1.0),)}),
            r"weights\.a: .* the first point must be at share 0",
        ),
        (
            lambda: Weighted({"a": ((0.0, 1.0), (0.5, 1.0), (0.2, 1.0))}),
            r"weights\.a: .* the shares must ascend",
        ),
        (
            lambda: Weighted({"a": ((0.0, 1.0), (0.5, 0.0))}).build(["a"], 10),
            r"schedule\.weights: at share 0\.5 of the run no task",
        ),
        (lambda: Summed({"a": 0.0}), r"weights\.a: 0\.0 must be > 0"),
        (lambda: Stages((("a", 0.0),)), r"shares: 'a' has share 0\.0"),
    ],
)
def test_impossible_values(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
