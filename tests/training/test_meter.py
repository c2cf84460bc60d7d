"""Records of several tasks, and the line that a person sees of them."""

import io
import types

import jax.numpy as jnp
import pytest
from rich.console import Console

from jaxvl.training.meter import ALL, Meter
from jaxvl.training.schedule import Turn
from jaxvl.training.writer import Writer


def feeds(*names):
    return {n: types.SimpleNamespace(rows=4, waited=0.0, steps=0, skipped={}) for n in names}


def figures(loss, skipped=0.0):
    values = {"loss": loss, "lr": 0.1, "norm/gradient": 1.0, "skipped": skipped, "skipped_in_a_row": 0.0}
    return {k: jnp.float32(v) for k, v in values.items()}


def run(meter, sources, turns):
    """Records of `turns`: (tasks, losses)."""
    out = []
    for step, (tasks, losses) in enumerate(turns, 1):
        for task in tasks:
            sources[task].steps += 1
        out += meter.tick(step, Turn(tasks, (1.0,) * len(tasks)), [figures(x, skipped=1.0) for x in losses])
    return out


def test_all_together_is_the_mean_of_the_latest():
    sources = feeds("a", "b")
    records = run(Meter(2, sources), sources, [(("a",), [1.0]), (("a",), [2.0]), (("b",), [5.0]), (("b",), [6.0])])
    assert [(r.step, r.task, r.scalars["loss"]) for r in records] == [(2, "a", 2.0), (2, ALL, 2.0), (4, "b", 6.0), (4, ALL, 4.0)]
    last = records[-1].scalars
    assert (last["loss/a"], last["loss/b"], last["steps/a"], last["steps/b"], last["skipped"]) == (2.0, 6.0, 2.0, 2.0, 2.0)
    assert last["examples_per_second"] * last["seconds_per_step"] == pytest.approx(4)
    assert records[2].scalars["task_steps"] == 2.0


def test_summed_tasks_have_a_record_each():
    sources = feeds("a", "b")
    records = run(Meter(1, sources), sources, [(("a", "b"), [1.0, 3.0])])
    assert [(r.task, r.scalars["loss"]) for r in records] == [("a", 1.0), ("b", 3.0), (ALL, 2.0)]
    assert records[-1].scalars["skipped"] == 1.0, "both skipped the same step"
    assert records[-1].scalars["examples_per_second"] * records[-1].scalars["seconds_per_step"] == pytest.approx(8)


def test_one_task_has_its_own_records_only():
    sources = feeds("a")
    assert [r.task for r in run(Meter(1, sources), sources, [(("a",), [1.0])])] == ["a"]


def test_a_pause_loses_no_figures():
    sources = feeds("a", "b")
    meter = Meter(10, sources)
    run(meter, sources, [(("a",), [1.0])])
    meter.pause()
    assert [r.task for r in meter.flush()] == ["a", ALL]


def test_many_tasks_do_not_overflow_the_line(tmp_path):
    sources = feeds(*(f"a_task_with_a_long_name_{i}" for i in range(20)))
    said = io.StringIO()
    with Writer(tmp_path, 100, tensorboard=False, tasks=20, console=Console(file=said, width=400)) as writer:
        for record in run(Meter(20, sources), sources, [((name,), [1.0]) for name in sources]):
            writer.record(record.step, "train", record.task, record.scalars)
    (line,) = said.getvalue().splitlines()
    assert "all loss 1 (a_task_with… 1, " in line and "… 17 more)" in line and len(line) < 180
