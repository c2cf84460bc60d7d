"""What a plan says against what a real run on this machine's CPU holds."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from real_step import has_counts, held
from training import tiny

from jaxvl import plan
from jaxvl.data.feed import fed_shapes
from jaxvl.planning.measure import Setting, measure, vocabulary_of
from jaxvl.sharding.mesh import batch_sharding, make_mesh
from jaxvl.training.build import build_model, draw_state, fresh_state

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("devices, fsdp", [(1, 1), (8, 1), (8, 4)])
def test_state_and_batch_are_what_a_run_holds(devices, fsdp):
    changes = dict(mesh=dict(data=-1, fsdp=fsdp))
    experiment = tiny.experiment(**changes)
    figures = measure(experiment, Setting.of(f"cpu:{devices}", {}))
    assert figures.devices == devices and figures.memory is None and figures.fits
    [step] = figures.steps
    assert step.roofline is None and step.examples_per_second is None
    mesh = make_mesh(experiment.mesh, jax.devices()[:devices])
    before = held(mesh.devices.flat)
    with jax.set_mesh(mesh):
        model = build_model(experiment, vocabulary_of(experiment))
        fresh, _, shardings = fresh_state(experiment, model, mesh)
        state = draw_state(fresh, 0, shardings, mesh)
        jax.block_until_ready(state)
        with_state = held(mesh.devices.flat)
        shapes = fed_shapes(experiment.tasks["pairs"].data)
        rows = {name: np.ones(s.shape, s.dtype) for name, s in shapes.items()}
        batch = jax.device_put(rows, batch_sharding(mesh))
        with_batch = held(mesh.devices.flat)
    for empty, some, all_ in zip(before, with_state, with_batch):
        assert figures.state.total == pytest.approx(some - empty, rel=0.1)
        # The step's other argument is the numbers of its tasks.
        assert step.bytes.batch == pytest.approx(all_ - some, rel=0.1)
    assert step.bytes.state == figures.state.total
    del state, batch


def test_the_command_plans_for_this_machine(tmp_path, capsys):
    config = tiny.config_file(tmp_path / "config.py")
    written = tmp_path / "plan.json"
    options = [f"--config={config}", "--topology=cpu:8", f"--json={written}"]
    assert plan.main([*options, "--config.mesh.fsdp=2"]) == 0
    printed = capsys.readouterr().out
    assert "8 x cpu:8" in printed and "no published figures" in printed
    figures = json.loads(written.read_text())
    assert figures["mesh"] == {"data": 4, "fsdp": 2} and figures["fits"] is True
    [step] = figures["steps"]
    assert step["name"] == "pairs" and step["roofline"] is None and step["rows"] == 16
    reduced = [c for c in step["collectives"] if c["kind"] == "all-reduce"]
    assert any(c["axes"] == "data x fsdp" for c in reduced)
    assert figures["state"]["total"] == sum(v for k, v in figures["state"].items() if k != "total")
    paths = [p["path"] for p in figures["sharded"]]
    assert len(paths) == len(set(paths)) and "log_scale" in paths
    assert sum(np.prod(p["shape"]) for p in figures["sharded"]) == figures["parameters"]


def test_more_cpus_than_there_are(tmp_path, capsys):
    config = tiny.config_file(tmp_path / "config.py")
    assert plan.main([f"--config={config}", "--topology=cpu:16"]) == 2
    assert "JAX_NUM_CPU_DEVICES=16" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not has_counts, reason="glibc from 2.33 on only")
@pytest.mark.parametrize(
    "devices, mesh",
    [
        (1, {}),
        (4, dict(data=4)),
        (4, dict(fsdp=4)),
        (8, dict(data=2, fsdp=2, tensor=2)),
    ],
    ids=["one", "data", "fsdp", "data x fsdp x tensor"],
)
def test_a_plans_bytes_are_what_a_run_takes(devices, mesh):
    """Of a ViT of width 256 on a batch of 128, whose temporaries are 3/4 of a GiB: what a
    process holds for arrays, and allocates in a step, is what `measure` says, to 10 %."""
    side, rows = 64, 128
    picture = dict(name="picture", size=side)
    tower = dict(width=256, depth=4, heads=4, pool="mean")
    changes = dict(
        model=dict(
            name="dual_encoder",
            image=dict(name="vit", variant="Ti/8", **tower),
            text=dict(name="text_transformer", variant="Ti", **tower),
            embed_dim=64,
        ),
        preprocess=dict(image_size=side),
        tasks=dict(pairs=tiny.task(batch=rows, fields={**tiny.FIELDS, "image": picture})),
        mesh=mesh,
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)  # the compiler as a run has it
    done = subprocess.run(
        [sys.executable, "tests/planning/real_step.py", str(devices), json.dumps(changes)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    planned = figures["planned"]
    assert planned["temporaries"] > 2**29, "too small to be told from what else a process holds"
    kept = planned["state"] + planned["batch"]
    assert kept == pytest.approx(figures["held"], rel=0.1), figures
    taken = planned["temporaries"] + planned["output"]
    assert taken == pytest.approx(figures["step"], rel=0.1), figures
    real = figures["held"] + figures["step"]
    assert planned["total"] == pytest.approx(real, rel=0.1), figures


def test_the_peak_is_what_the_compiler_sets_aside(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # or headings are broken into lines
    config = tiny.config_file(tmp_path / "config.py")
    options = [f"--config={config}", "--topology=cpu:2", "--peak"]
    assert plan.main([*options, f"--json={tmp_path / 'plan.json'}"]) == 0
    [step] = json.loads((tmp_path / "plan.json").read_text())["steps"]
    most = step["peak"]
    assert most["bytes"] == sum(row["bytes"] for row in most["live"])
    assert 0.9 * most["allocated"] < most["bytes"] <= most["allocated"]
    assert most["allocated"] == pytest.approx(step["bytes"]["temporaries"], rel=0.01)
    printed = capsys.readouterr().out
    assert "GiB at the peak of pairs" in printed
    largest = most["live"][0]
    assert largest["shape"] in printed
    assert all(row["operation"] for row in most["live"] if row["bytes"] > 0.05 * most["bytes"])
