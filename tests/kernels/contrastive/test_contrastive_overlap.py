"""What the TPUs' compiler makes of the ring: every block is on its way while a kernel runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvl.bench.contrastive import loss_and_gradients, main
from jaxvl.hlo import collectives, read
from jaxvl.sharding.topology import compile_only_devices

WIDTH = 768


def program(devices, shape, rows, kind="softmax"):
    """The scheduled program of loss and gradients over a ring."""
    names = ("data", "fsdp")[: len(shape)]
    mesh = Mesh(np.array(devices).reshape(shape), names, axis_types=(AxisType.Auto,) * len(shape))

    def struct(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    u = struct((rows * mesh.size, WIDTH), jnp.bfloat16, PartitionSpec(names))
    scalar = struct((), jnp.float32, PartitionSpec())
    with jax.set_mesh(mesh):
        step = loss_and_gradients(kind, implementation="pallas_tpu", collective="ring")
        made = read(step.lower(u, u, scalar, scalar).compile())
    assert made.scheduled
    return made


def blocks(made, devices, rows):
    """The messages that are as large as a block, in bfloat16; nothing larger travels."""
    size = rows * WIDTH * 2
    messages = collectives(made, devices)
    assert max(m.size for m in messages) == size
    assert {m.kind for m in messages} <= {"collective-permute", "all-reduce"}
    return [m for m in messages if m.size == size]


@pytest.mark.parametrize(
    "topology, shape, rows",
    [
        ("v5e:4x4", (16,), 256),
        pytest.param("v5e:4x4", (4, 4), 4096, marks=pytest.mark.slow),
        pytest.param("v5e:16x16", (16, 16), 256, marks=pytest.mark.slow),
        pytest.param("v5p:4x4x4", (64,), 1024, marks=pytest.mark.slow),
        pytest.param("v5p:4x4x4", (4, 16), 4096, marks=pytest.mark.slow),
        pytest.param("v6e:4x4", (16,), 4096, marks=pytest.mark.slow),
        pytest.param("v4:4x4x4", (64,), 1024, marks=pytest.mark.slow),
    ],
)
def test_a_kernel_runs_while_a_block_travels(tpu_compiler, topology, shape, rows):
    devices = compile_only_devices(topology)
    found = blocks(program(devices, shape, rows), len(devices), rows)
    assert all(m.kernels for m in found), [m for m in found if not m.kernels]
    # Forward v travels, backward v for one gradient and u for the other: n - 1 blocks each, and one
    # that a loop sends for nothing. The first two of v are kept for the backward pass.
    n = int(np.prod(shape))
    assert sum(m.times for m in found) == 3 * n - 2
    # Both ways at once: as many to the one side as to the other.
    sides = {}
    for m in found:
        first = tuple(m.groups[0])
        sides[first] = sides.get(first, 0) + m.times
    assert sorted(sides.values()) == [(3 * n - 2) // 2] * 2


@pytest.mark.slow
@pytest.mark.parametrize("slices", [2, 4])
def test_blocks_cross_between_slices_while_the_ring_in_them_turns(tpu_compiler, slices):
    compile_only_devices("v5e:4x4")  # tells the compiler that there is no TPU here
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:4x4", num_slices=slices
    ).devices
    rows = 1024
    found = blocks(program(devices, (slices, 16), rows), len(devices), rows)
    between = [m for m in found if m.between_slices]
    within = [m for m in found if not m.between_slices]
    assert all(len(m.kernels) >= 4 for m in between), between
    assert all(m.kernels for m in within)
    # Every one of the three passes, but for blocks that the backward pass still has of the forward.
    assert 2 * (slices - 1) <= sum(m.times for m in between) <= 3 * (slices - 1)
    assert sum(m.times for m in within) >= 3 * slices * 15


@pytest.mark.slow
def test_what_devices_receive_as_they_become_more(tpu_compiler):
    rows = main(["--scaling", "v5e:2x2,v5e:2x4", "--width", "128"])
    ring, gather = ([r for r in rows if r["implementation"] == k] for k in ("ring", "all-gather"))
    block = 128 * 128 * 2 / 2**20
    for r in ring:
        # Forward, and two passes backward, less a block or two that are kept of the first.
        n = r["devices"]
        assert 3 * (n - 1) * block * 0.7 < r["received_mib"] < 3 * n * block * 1.2
        assert r["hidden"] > 0.9
    assert all(r["hidden"] < 0.1 for r in gather)
