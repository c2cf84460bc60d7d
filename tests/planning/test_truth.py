"""What a plan says against what a real run on this machine's CPU holds."""

import gc
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from training import tiny

from jaxvl import plan
from jaxvl.data.feed import fed_shapes
from jaxvl.planning.measure import Setting, measure, vocabulary_of
from jaxvl.sharding.mesh import batch_sharding, make_mesh
from jaxvl.training.build import build_model, draw_state, fresh_state


def held(devices):
    """Bytes of live arrays on each device; views of one buffer once."""
    gc.collect()
    buffers = {}
    for array in jax.live_arrays():
        for shard in array.addressable_shards:
            key = shard.device.id, shard.data.unsafe_buffer_pointer()
            buffers[key] = max(buffers.get(key, 0), shard.data.nbytes)
    return [sum(size for (at, _), size in buffers.items() if at == d.id) for d in devices]


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


RUN = """
import json, sys, jax, numpy as np
jax.config.update("jax_platforms", "cpu")
from jaxvl.planning.measure import Setting, measure, vocabulary_of
from jaxvl.sharding.mesh import make_mesh
from jaxvl.training.build import build_model, draw_state, fresh_state, make_tasks
from jaxvl.training.checkpoint import abstract_state
from jaxvl.training.compile import compile_turns
from jaxvl.data.feed import fed_shapes
from training import tiny

def now(key):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(l for l in lines if l.startswith(key)).split()[1])

changes = json.loads(sys.argv[1])
experiment = tiny.experiment(**changes)
mesh = make_mesh(experiment.mesh, jax.devices()[:1])
with jax.set_mesh(mesh):
    model = build_model(experiment, vocabulary_of(experiment))
    fresh, shapes, shardings = fresh_state(experiment, model, mesh)
    turns = experiment.schedule.build(["pairs"], experiment.steps).turns
    [program] = compile_turns(
        experiment, make_tasks(experiment), turns, model, abstract_state(shapes, shardings),
        shardings, mesh
    )
    state = draw_state(fresh, 0, shardings, mesh)
    batch = {
        k: jax.numpy.asarray(np.ones(s.shape, s.dtype))
        for k, s in fed_shapes(experiment.tasks["pairs"].data).items()
    }
    jax.block_until_ready((state, batch))
    step = program.bind(program.turns[0], ["pairs"], mesh)
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
    before = now("VmRSS")
    jax.block_until_ready(step(state, (batch,)))
    peak = now("VmHWM")
memory = program.step.memory_analysis()
print(json.dumps(dict(
    grown=peak - before,
    temporaries=memory.temp_size_in_bytes,
    output=memory.output_size_in_bytes - memory.alias_size_in_bytes,
)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_temporaries_are_what_a_process_grows_by():
    """One device, temporaries of a few hundred MiB: a ViT of width 256 on a batch of 256."""
    side, rows = 64, 256
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
        mesh=dict(data=1),
    )
    root = pathlib.Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"}
    environment.pop("XLA_FLAGS", None)  # the compiler as a run has it
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(changes)],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    planned = figures["temporaries"] + figures["output"]
    assert planned > 200 * 2**20, "too small to be told from what else a process holds"
    assert planned == pytest.approx(figures["grown"], rel=0.1), figures


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
