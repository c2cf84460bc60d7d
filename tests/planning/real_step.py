"""A step of the miniature, as planned and as run, in this process: JSON on the last line.

    python tests/planning/real_step.py DEVICES CHANGES    # of the miniature, as JSON

Devices are simulated, and share the process' memory: all figures are of all of them together. What
is allocated is asked of glibc, which maps every larger block by itself and knows how many bytes of
such blocks there were at most; what of it lies in memory is the system's choice.
"""

import ctypes
import gc
import json
import os
import pathlib
import re
import sys
import tempfile

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

MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD
BLOCK = 2**17  # bytes: smaller ones do not count


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


class _MallInfo2(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]


libc = ctypes.CDLL(None)
has_counts = hasattr(libc, "mallinfo2")  # glibc from 2.33 on


def allocated():
    """Bytes of larger blocks that are there now."""
    libc.mallinfo2.restype = _MallInfo2
    return libc.mallinfo2().hblkhd


def most_allocated():
    """Bytes of larger blocks that were there at most, ever; glibc tells it on stderr only."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        libc.malloc_stats()
        os.dup2(kept, 2)
        os.close(kept)
        file.seek(0)
        return int(re.search(rb"max mmap bytes *= *(\d+)", file.read())[1])


def run(experiment, devices):
    """Bytes of the arrays between steps, and how many more were allocated at most in a step."""
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
        batch = jax.device_put(rows, batch_sharding(mesh))
        jax.block_until_ready((state, batch))
        figures = {"held": sum(held(mesh.devices.flat))}
        before, most_before = allocated(), most_allocated()
        jax.block_until_ready(step(state, (batch,)))
        assert most_allocated() > most_before, "compiling took more than the step"
        figures["step"] = most_allocated() - before
    return figures


if __name__ == "__main__":
    libc.mallopt(MMAP_THRESHOLD, BLOCK)
    number = int(sys.argv[1])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", number)
    miniature = tiny.experiment(**json.loads(sys.argv[2]))
    print(json.dumps({"planned": planned(miniature, number), **run(miniature, number)}))
