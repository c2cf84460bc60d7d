"""Records of several tasks, and the line that a person sees of them."""

import io
import time
import types

import jax.numpy as jnp
import pytest
from rich.console import Console

from jaxvl.chips import peak_flops
from jaxvl.data.bottlenecks import STAGES
from jaxvl.training.cost import Cost
from jaxvl.training.goodput import Clock
from jaxvl.training.meter import ALL, Meter, Speed, memory
from jaxvl.training.schedule import Turn
from jaxvl.training.terminal import figures_of
from jaxvl.training.writer import Writer


def feeds(*names):
    return {
        n: types.SimpleNamespace(
            rows=4, stage_seconds=dict.fromkeys(STAGES, 0.0), waited=0.0, steps=0, skipped={}
        )
        for n in names
    }


def figures(loss, skipped=0.0):
    values = {
        "loss": loss,
        "lr": 0.1,
        "norm/gradient": 1.0,
        "skipped": skipped,
        "skipped_in_a_row": 0.0,
    }
    return {k: jnp.float32(v) for k, v in values.items()}


def run(meter, sources, turns):
    """Records of `turns`: (tasks, losses)."""
    out = []
    for step, (tasks, losses) in enumerate(turns, 1):
        for task in tasks:
            sources[task].steps += 1
        out += meter.tick(
            step, Turn(tasks, (1.0,) * len(tasks)), [figures(x, skipped=1.0) for x in losses]
        )
    return out


def test_all_together_is_the_mean_of_the_latest():
    sources = feeds("a", "b")
    records = run(
        Meter(2, sources),
        sources,
        [(("a",), [1.0]), (("a",), [2.0]), (("b",), [5.0]), (("b",), [6.0])],
    )
    assert [(r.step, r.task, r.scalars["loss"]) for r in records] == [
        (2, "a", 2.0),
        (2, ALL, 2.0),
        (4, "b", 6.0),
        (4, ALL, 4.0),
    ]
    last = records[-1].scalars
    assert (last["loss/a"], last["loss/b"], last["steps/a"], last["steps/b"], last["skipped"]) == (
        2.0,
        6.0,
        2.0,
        2.0,
        2.0,
    )
    assert last["examples_per_second"] * last["seconds_per_step"] == pytest.approx(4)
    assert records[2].scalars["task_steps"] == 2.0


def test_summed_tasks_have_a_record_each():
    sources = feeds("a", "b")
    records = run(Meter(1, sources), sources, [(("a", "b"), [1.0, 3.0])])
    assert [(r.task, r.scalars["loss"]) for r in records] == [("a", 1.0), ("b", 3.0), (ALL, 2.0)]
    assert records[-1].scalars["skipped"] == 1.0, "both skipped the same step"
    assert records[-1].scalars["examples_per_second"] * records[-1].scalars[
        "seconds_per_step"
    ] == pytest.approx(8)


def test_the_stage_that_limits_the_input_is_named_where_steps_wait_for_it():
    sources = feeds("a", "b")
    meter = Meter(1, sources)
    sources["a"].stage_seconds = dict(read=1.0, decode=5.0, transform=1.0, transfer=1.0)
    sources["b"].stage_seconds = dict(read=1.0, decode=1.0, transform=0.0, transfer=0.0)
    scalars = run(meter, sources, [(("a", "b"), [1.0, 3.0])])[-1].scalars
    shares = [scalars[f"input_{stage}"] for stage in STAGES]
    assert shares == pytest.approx([0.2, 0.6, 0.1, 0.1]), "of the seconds of both feeds"
    assert "(decode)" in figures_of(ALL, scalars | {"data_wait": 0.3})
    assert "(decode)" not in figures_of(ALL, scalars | {"data_wait": 0.01})
    sources["a"].stage_seconds = dict(read=4.0, decode=5.0, transform=1.0, transfer=1.0)
    scalars = run(meter, sources, [(("a",), [1.0])])[-1].scalars
    assert scalars["input_read"] == 1.0, "of the interval, not of the whole run"


def test_one_task_has_its_own_records_only():
    sources = feeds("a")
    assert [r.task for r in run(Meter(1, sources), sources, [(("a",), [1.0])])] == ["a"]


def test_a_pause_loses_no_figures():
    sources = feeds("a", "b")
    meter = Meter(10, sources)
    run(meter, sources, [(("a",), [1.0])])
    with meter.away("evaluation"):
        pass
    assert [r.task for r in meter.flush()] == ["a", ALL]


def test_rates_and_shares_of_known_times(monkeypatch):
    """Ten seconds of start-up, four steps of two seconds with one of waiting, six of evaluation,
    one at a checkpoint."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock()
    sources = feeds("a")
    now[0] += 10
    turn = Turn(("a",), (1.0,))
    cost = Cost(flops=9e12, model_flops=6e12, state=0, temporary=0, collectives={})
    meter = Meter(2, sources, clock, Speed({turn: cost}, devices=4, peak=3e12))
    records = []
    for step in range(1, 5):
        sources["a"].waited += 1
        now[0] += 2
        records += meter.tick(step, turn, [figures(1.0)])
        if step == 3:
            with meter.away("evaluation"):
                now[0] += 6
            with meter.away("checkpoint"):
                now[0] += 1
    first, second = (record.scalars for record in records)
    for scalars in (first, second):  # neither the evaluation nor the checkpoint is in the rates
        assert scalars["seconds_per_step"] == 2 and scalars["data_wait"] == 0.5
        assert (
            scalars["examples_per_second"] == 2 and scalars["examples_per_second_per_chip"] == 0.5
        )
        assert scalars["tflops_per_chip"] == 6 / 2 / 4
        assert scalars["mfu"] == pytest.approx(6 / 2 / 4 / 3) and scalars["hfu"] == pytest.approx(
            9 / 2 / 4 / 3
        )
    assert first["goodput"] == pytest.approx(2 / 14) and first["goodput_interval"] == 0.5
    assert second["goodput"] == pytest.approx(4 / 25) and second[
        "goodput_interval"
    ] == pytest.approx(2 / 11)
    shares = {
        name: second[f"share_{name}"] for name in ("data", "startup", "evaluation", "checkpoint")
    }
    assert shares == pytest.approx(
        {"data": 4 / 25, "startup": 10 / 25, "evaluation": 6 / 25, "checkpoint": 1 / 25}
    )


def test_without_a_peak_there_is_no_mfu():
    sources = feeds("a")
    turn = Turn(("a",), (1.0,))
    cost = Cost(flops=1e9, model_flops=1e9, state=0, temporary=0, collectives={})
    (record,) = Meter(1, sources, speed=Speed({turn: cost})).tick(1, turn, [figures(1.0)])
    assert record.scalars["tflops_per_chip"] > 0 and not {"mfu", "hfu"} & record.scalars.keys()


def test_memory_is_that_of_the_fullest_device():
    stats = [
        dict(peak_bytes_in_use=3 * 2**30, bytes_limit=4 * 2**30),
        dict(peak_bytes_in_use=2**30, bytes_limit=4 * 2**30),
        None,
    ]
    devices = [types.SimpleNamespace(memory_stats=lambda s=s: s) for s in stats]
    assert memory(devices) == {"memory_gib": 3.0, "memory_share": 0.75}
    assert memory(devices[2:]) == {}, "a CPU tells nothing"


@pytest.mark.parametrize(
    "kind, tflops",
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA GB200", 2500),
        ("NVIDIA B200", 2250),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_device_is_known_by_its_kind(kind, tflops):
    assert peak_flops(kind) == (None if tflops is None else tflops * 1e12)


def test_many_tasks_do_not_overflow_the_line(tmp_path):
    sources = feeds(*(f"a_task_with_a_long_name_{i}" for i in range(20)))
    said = io.StringIO()
    with Writer(
        tmp_path, 100, tensorboard=False, tasks=20, console=Console(file=said, width=400)
    ) as writer:
        for record in run(Meter(20, sources), sources, [((name,), [1.0]) for name in sources]):
            writer.record(record.step, "train", record.task, record.scalars)
    (line,) = said.getvalue().splitlines()
    assert "loss 1 (a_task_with… 1, " in line and "… 17 more)" in line and len(line) < 180
