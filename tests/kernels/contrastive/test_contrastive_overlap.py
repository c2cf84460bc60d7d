"""What the TPUs' compiler makes of the ring: every block is on its way while a kernel runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvl.bench.contrastive import loss_and_gradients, main
from jaxvl.bench.schedule import collectives, payload
from jaxvl.sharding.topology import compile_only_devices

WIDTH = 768


def program(devices, shape, rows, kind="softmax"):
    """Text of the scheduled program of loss and gradients over a ring."""
    names = ("data", "fsdp")[: len(shape)]
    mesh = Mesh(np.array(devices).reshape(shape), names, axis_types=(AxisType.Auto,) * len(shape))

    def struct(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    u = struct((rows * mesh.size, WIDTH), jnp.bfloat16, PartitionSpec(names))
    scalar = struct((), jnp.float32, PartitionSpec())
    with jax.set_mesh(mesh):
        step = loss_and_gradients(kind, implementation="pallas_tpu", collective="ring")
        text = step.lower(u, u, scalar, scalar).compile().as_text()
    assert "is_scheduled=true" in text
    return text


def blocks(text, rows):
    """The messages that are as large as a block, in bfloat16; nothing larger travels."""
    size = rows * WIDTH * 2
    messages = collectives(text)
    assert max(m.nbytes for m in messages) == size
    assert {m.kind for m in messages} <= {"collective-permute", "all-reduce", "recv"}
    return [m for m in messages if m.nbytes == size]


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
    text = program(compile_only_devices(topology), shape, rows)
    found = blocks(text, rows)
    assert all(m.behind for m in found), [m for m in found if not m.behind]
    # Forward v travels, backward v for one gradient and u for the other: n - 1 blocks each, and one
    # that a loop sends for nothing. The first two of v are kept for the backward pass.
    n = int(np.prod(shape))
    assert sum(m.times for m in found) == 3 * n - 2
    # Both ways at once: as many to the one side as to the other.
    sides = {}
    for m in found:
        sides[m.pairs[0]] = sides.get(m.pairs[0], 0) + m.times
    assert sorted(sides.values()) == [(3 * n - 2) // 2] * 2


@pytest.mark.slow
@pytest.mark.parametrize("slices", [2, 4])
def test_blocks_cross_between_slices_while_the_ring_in_them_turns(tpu_compiler, slices):
    compile_only_devices("v5e:4x4")  # tells the compiler that there is no TPU here
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:4x4", num_slices=slices
    ).devices
    rows = 1024
    found = blocks(program(devices, (slices, 16), rows), rows)
    between = [m for m in found if m.kind == "recv"]
    within = [m for m in found if m.kind == "collective-permute"]
    assert all(len(m.behind) >= 4 for m in between), between
    assert all(m.behind for m in within)
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


def test_a_program_that_waits_is_told_from_one_that_does_not():
    """The reader itself, on a module written by hand."""

    def module(between):
        return f"""HloModule m, is_scheduled=true

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %p = (s32[], f32[8]) parameter(0)
  %x = f32[8]{{0}} get-tuple-element(%p), index=1
  %start = (f32[8]{{0}}, f32[8]{{0}}, u32[]) collective-permute-start(%x), source_target_pairs={{{{0,1}},{{1,0}}}}
{between}
  %done = f32[8]{{0}} collective-permute-done(%start)
  ROOT %t = (s32[], f32[8]) tuple(%p, %done)
}}

%cond (q: (s32[], f32[8])) -> pred[] {{
  %q = (s32[], f32[8]) parameter(0)
  %c = s32[] constant(7)
  %i = s32[] get-tuple-element(%q), index=0
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}}

ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[8] parameter(0)
  %w = (s32[], f32[8]) while(%a), condition=%cond, body=%body
  %g = (f32[16]{{0}}, bf16[4,8]{{1,0:T(8,128)(2,1)S(1)}}) all-gather(%a, %b), dimensions={{0}}
  ROOT %r = f32[8] get-tuple-element(%w), index=1
}}
"""

    kernel = '  %k = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call"'
    other = "  %k = f32[8]{0} add(%x, %x)"
    for line, behind in ((kernel, ("k",)), (other, ())):
        gather, permute = sorted(collectives(module(line)), key=lambda m: m.kind)
        assert (permute.times, permute.nbytes, permute.pairs) == (7, 32, ((0, 1), (1, 0)))
        assert permute.behind == behind
        assert (gather.kind, gather.nbytes, gather.times, gather.behind) == (
            "all-gather",
            128,
            1,
            None,
        )
    assert payload("(bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, s4[32], pred[3], u32[]{:S(2)})") == 87
