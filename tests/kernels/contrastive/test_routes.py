"""Rings through meshes: neighbours have a link, slow links are crossed as rarely as can be."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contrastive_cases import CASES, daily, unit_rows
from contrastive_oracle import check, loss_and_gradients
from test_contrastive_mesh import check_case, mesh_of, run

from jaxvl.hlo import collectives, read
from jaxvl.kernels.contrastive import Chunked, contrastive_loss, routes
from jaxvl.kernels.contrastive.bundle import bundle


def chips(shape, slices=1, kind="TPU v4"):
    """As many devices as a topology of this shape has, one slice after the other."""
    return [
        types.SimpleNamespace(platform="tpu", device_kind=kind, coords=list(place), slice_index=s)
        for s in range(slices)
        for place in itertools.product(*(range(n) for n in shape))
    ]


def array(devices, shape):
    out = np.empty(len(devices), object)
    out[:] = devices
    return out.reshape(shape)


@pytest.mark.parametrize(
    "shape", [(4, 4, 1), (16, 16, 1), (4, 4, 4), (8, 8, 16), (2, 4, 1), (2, 2, 1), (3, 4, 1)]
)
def test_every_hop_of_a_slice_is_one_link(shape):
    devices = chips(shape)
    shuffled = np.random.default_rng(0).permutation(len(devices))
    found = routes.of_devices(array([devices[i] for i in shuffled], (-1,)))
    assert found.ways == (2,)
    ring = found.places
    assert sorted(ring) == list(range(len(devices)))
    where = np.array([devices[shuffled[i]].coords for i in ring])
    hops = np.abs(where - np.roll(where, 1, 0)).sum(1)
    assert set(hops) == {1}


def test_a_line_without_a_link_between_its_ends_is_folded():
    where = lambda kind: routes.of_devices(array(chips((8, 1, 1), kind=kind), (-1,))).places
    assert list(where("TPU v5 lite")) == [0, 2, 4, 6, 7, 5, 3, 1]
    assert list(where("TPU v4")) == list(range(8))


@pytest.mark.parametrize("shape", [(2, 8), (16,), (4, 4), (8, 2)])
def test_slices_are_a_ring_of_rings(shape):
    """Whatever axes of the mesh hold them: 2 slices of 2 x 4 chips as data=2 and fsdp=8, …"""
    devices = array(chips((2, 4, 1), slices=2), shape)
    rings = routes.of_devices(devices)
    assert rings.places.shape == (2, 8) and rings.ways == (1, 2)
    found = np.vectorize(lambda i: devices.flat[i].slice_index)(rings.places)
    assert (found == [[0] * 8, [1] * 8]).all()


def test_hosts_of_gpus_are_a_ring_of_rings():
    gpus = [
        types.SimpleNamespace(platform="gpu", device_kind="H100", process_index=i // 8)
        for i in range(16)
    ]
    rings = routes.of_devices(array(gpus, (4, 4)))
    np.testing.assert_array_equal(rings.places, np.arange(16).reshape(2, 8))
    assert rings.ways == (1, 1)


def test_without_wires_every_axis_is_a_ring():
    with jax.set_mesh(mesh_of((2, 1, 4), ("data", "tensor", "fsdp"))):
        rings = routes.rings(("data", "fsdp"))
    np.testing.assert_array_equal(rings.places, np.arange(8).reshape(2, 4))
    assert rings.ways == (1, 1)


def test_a_bundle_is_few_arrays_with_every_bit():
    tree = {
        "y": jnp.ones((4, 2), jnp.bfloat16),
        "nan": jnp.full(4, jnp.nan),
        "label": jnp.arange(4, dtype=jnp.int32) - 2,
        "tiny": jnp.full(4, 1e-45, jnp.float32),
        "short": jnp.arange(4, dtype=jnp.int16),
    }
    arrays, unbundle = bundle(tree)
    assert sorted(a.shape for a in arrays) == [(1, 4), (3, 4), (4, 2)]
    for name, leaf in unbundle(arrays).items():
        assert leaf.dtype == tree[name].dtype
        assert np.asarray(leaf).tobytes() == np.asarray(tree[name]).tobytes()


# --------------------------------------------------------------------------------------------------
# Rings of rings


@pytest.mark.parametrize("case", [daily(case) for case in CASES])
def test_every_target_where_four_slow_rings_hold_two(case, monkeypatch):
    """Both ways, as on TPUs; `test_every_target_on_a_mesh` has 2 x 4, one way."""
    rings = routes.Rings(np.arange(8).reshape(4, 2), (2, 2))
    monkeypatch.setattr(routes, "rings", lambda axes: rings)
    check_case(case, (4, 2), "ring", seed=5)


@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("sizes", [(3,), (5,), (6,), (7,), (2, 3), (3, 2), (2, 2, 2)])
def test_rings_of_any_number(sizes, ways, monkeypatch):
    """Odd ones have no opposite device; from seven on there is a loop. In an order that is not the
    mesh's."""
    names = ("data", "fsdp", "x")[: len(sizes)]
    order = np.random.default_rng(8).permutation(np.prod(sizes)).reshape(sizes)
    rings = routes.Rings(order, (ways,) * len(sizes))
    monkeypatch.setattr(routes, "rings", lambda axes: rings)
    for case in ("diagonal_smooth", "mask_keep"):
        rng = np.random.default_rng(6)
        targets, dense = CASES[case][0](42, 42, rng)
        u = unit_rows(rng, 42, 6)
        v = unit_rows(rng, 42, 6)
        got = run(mesh_of(sizes, names), u, v, 1.5, targets, collective="ring", mesh_axes=names)
        check(got[:4], loss_and_gradients(u, v, np.float32(1.5), dense)[:4], 1.5)


def test_the_same_to_the_last_bit_every_time():
    rng = np.random.default_rng(7)
    u = unit_rows(rng, 64, 16)
    v = unit_rows(rng, 64, 16)
    targets, _ = CASES["same_id"][0](64, 64, rng)
    runs = [run(mesh_of((2, 4)), u, v, 2.0, targets, collective="ring") for _ in range(3)]
    for again in runs[1:]:
        for a, b in zip(runs[0], again):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# Devices along the slow axis -> blocks that one device sends along it in the forward pass (of v),
# and in both (of its gradient as well; blocks of v that arrive outside a loop are kept). A ring of 8
# is a loop, whose last round sends a block of v that nobody needs, and whose first sends gradients
# along before there are any.
CROSSING = {2: (1, 2), 4: (3, 6), 8: (8, 23)}


@pytest.mark.parametrize("shape", [(2, 4), (4, 2), (8,)])
def test_the_slow_axis_is_crossed_by_each_block_once(shape):
    """From the compiled program. The kernels for TPUs send u instead of gradients: see
    `test_contrastive_overlap`."""
    rows = 8
    width = 16
    u = jax.ShapeDtypeStruct((8 * rows, width), jnp.float32)
    mesh = mesh_of(shape, ("data", "fsdp")[: len(shape)])

    def loss(u, v):
        return contrastive_loss(u, v, 1.0, implementation=Chunked(), collective="ring")

    slow = shape[0]
    fast = 8 // slow
    for program, expected in zip((loss, jax.grad(loss, (0, 1))), CROSSING[slow]):
        with jax.set_mesh(mesh):
            compiled = jax.jit(program).lower(u, u).compile()
        crossing = 0
        within = 0
        for c in collectives(read(compiled), 8):
            if c.kind != "collective-permute" or c.size < rows * width * 4:
                continue
            steps = {(b // fast - a // fast) % slow for a, b in c.groups.tolist()}
            assert len(steps) == 1, "a message crosses the slow axis for some and not for others"
            if steps == {0}:
                within += c.times
            else:
                crossing += c.times
        assert crossing == expected
        assert within >= slow * (fast - 1), "the fast ring turns for every block"
