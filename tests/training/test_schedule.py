"""Schedules are pure functions of the step."""

import collections

import pytest

from jaxvl.config import ConfigError
from jaxvl.training.schedule import RoundRobin, Stages, Weighted


def test_round_robin_follows_the_intervals():
    sequence = RoundRobin({"b": 2, "c": 3}).build(["a", "b", "c"], 100)
    by_hand = []
    for r in range(1, 13):  # the released loop: a counter per task
        by_hand += [t for t, n in (("a", 1), ("b", 2), ("c", 3)) if r % n == 0]
    assert [sequence(i) for i in range(len(by_hand))] == by_hand


def test_weighted_has_the_asked_shares_and_does_not_depend_on_history():
    sequence = Weighted({"a": 3.0, "b": 1.0}, seed=5).build(["a", "b", "never"], 100)
    draws = [sequence(i) for i in range(4000)]
    counts = collections.Counter(draws)
    assert counts["never"] == 0
    assert abs(counts["a"] / 4000 - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5
    assert [sequence(i) for i in (3999, 7, 42)] == [draws[i] for i in (3999, 7, 42)]


def test_stages_run_one_after_the_other():
    sequence = Stages((("low", 3.0), ("high", 1.0))).build(["high", "low"], 8)
    assert [sequence(i) for i in range(8)] == ["low"] * 6 + ["high"] * 2


@pytest.mark.parametrize("schedule", [RoundRobin({"paris": 2}), Weighted({"paris": 1.0}), Stages((("paris", 1.0),))])
def test_unknown_task(schedule):
    with pytest.raises(ConfigError, match=r"schedule\.\w+\.paris: no such task; did you mean 'pairs'\? \(tasks: pairs\)"):
        schedule.build(["pairs"], 10)
