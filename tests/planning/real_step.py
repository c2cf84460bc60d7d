"""A step of the miniature, as planned and as run, in this process: JSON on the last line.

    python tests/planning/real_step.py DEVICES CHANGES    # of the miniature, as JSON

Devices are simulated, and share the process' memory: all figures are of all of them together.
"""

import ctypes
import gc
import json
import pathlib
import sys

import jax
import numpy as np

from jaxvl.data.feed import fed_shapes
from jaxvl.planning.measure import Setting, measure, vocabulary_of
from jaxvl.sharding.mesh import batch_sharding, make_mesh
from jaxvl.training.build import build_model, draw_state, fresh_state, make_tasks
from jaxvl.training.checkpoint import abstract_state
from jaxvl.training.compile import compile_turns

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from training import tiny  # noqa: E402

STEPS = 3  # the first of which also loads code and starts threads


def held(devices):
    """Bytes of live arrays on each device; views of one buffer once."""
    gc.collect()
    buffers = {}
    for array in jax.live_arrays():
        for shard in array.addressable_shards:
            key = shard.device.id, shard.data.unsafe_buffer_pointer()
            buffers[key] = max(buffers.get(key, 0), shard.data.nbytes)
    return [sum(size for (at, _), size in buffers.items() if at == d.id) for d in devices]


def planned(experiment, devices):
    """Bytes by kind, as `jaxvl.plan` prints them of a device, of all devices."""
    plan = measure(experiment, Setting.of(f"cpu:{devices}", {}))
    [step] = plan.steps
    kinds = ("state", "batch", "temporaries", "output", "code", "total")
    return {kind: devices * getattr(step.bytes, kind) for kind in kinds}


def grown(take, *args):
    """What `take` gives, and the bytes by which the process grows at most meanwhile."""
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = status("VmRSS")
    given = jax.block_until_ready(take(*args))
    return given, status("VmHWM") - before


def status(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def run(experiment, devices):
    """Bytes of the arrays between steps, and by which the process grows in each step."""
    mesh = make_mesh(experiment.mesh, jax.devices()[:devices])
    shapes = fed_shapes(experiment.tasks["pairs"].data)
    rows = {name: np.ones(s.shape, s.dtype) for name, s in shapes.items()}
    with jax.set_mesh(mesh):
        model = build_model(experiment, vocabulary_of(experiment))
        fresh, shapes, places = fresh_state(experiment, model, mesh)
        turns = experiment.schedule.build(["pairs"], experiment.steps).turns
        tasks = make_tasks(experiment)
        abstract = abstract_state(shapes, places)
        [program] = compile_turns(experiment, tasks, turns, model, abstract, places, mesh)
        step = program.bind(program.turns[0], ["pairs"], mesh)
        state = draw_state(fresh, 0, places, mesh)
        batch = jax.block_until_ready(jax.device_put(rows, batch_sharding(mesh)))
        jax.block_until_ready(state)
        figures = {"held": sum(held(mesh.devices.flat)), "grown": []}
        for _ in range(STEPS):
            (state, _), growth = grown(step, state, (batch,))
            figures["grown"].append(growth)
    return figures


if __name__ == "__main__":
    number = int(sys.argv[1])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", number)
    miniature = tiny.experiment(**json.loads(sys.argv[2]))
    print(json.dumps({"planned": planned(miniature, number), **run(miniature, number)}))
