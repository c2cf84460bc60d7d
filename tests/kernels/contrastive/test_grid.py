"""Grids of devices: where each stands, that every pair is met once, and what travels."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contrastive_cases import CASES, daily, unit_rows
from contrastive_oracle import check, loss_and_gradients
from jax.sharding import NamedSharding, PartitionSpec
from test_contrastive_mesh import check_case, mesh_of, run
from test_routes import array, chips

from jaxvl.bench.contrastive import compiled, data_mesh, main, operands, temporary
from jaxvl.hlo import collectives, read
from jaxvl.kernels.contrastive import Chunked, routes, streamed_scores
from jaxvl.kernels.contrastive.bundle import fold
from jaxvl.kernels.contrastive.reductions import CrossEntropy
from jaxvl.kernels.contrastive.scores import LateInteraction, Tokens
from jaxvl.sharding.topology import compile_only_devices


def stand(shape, slices=1, kind="TPU v4"):
    """The grid of shuffled chips, and the coordinates at its places."""
    devices = chips(shape, slices, kind)
    shuffled = np.random.default_rng(0).permutation(len(devices))
    devices = [devices[i] for i in shuffled]
    places = routes.grid_of_devices(array(devices, (-1,)))
    assert sorted(places.flat) == list(range(len(devices)))
    return places, np.array([devices[i].coords for i in places.flat]).reshape(*places.shape, 3)


@pytest.mark.parametrize(
    "shape, side",
    [
        ((4, 4, 1), (4, 4)),
        ((16, 16, 1), (16, 16)),
        ((4, 4, 4), (8, 8)),
        ((8, 8, 16), (32, 32)),
        ((2, 4, 1), (4, 2)),
        ((2, 2, 1), (2, 2)),
        ((3, 4, 1), (4, 3)),
        ((7, 1, 1), (7, 1)),
        ((1, 1, 1), (1, 1)),
    ],
)
@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5 lite"])
def test_a_grid_is_as_square_as_can_be_and_its_rows_are_boxes(shape, side, kind):
    places, where = stand(shape, kind=kind)
    assert sorted(places.shape[1:]) == sorted(side)
    for row in where[0]:
        box = np.ptp(row, axis=0) + 1
        assert math.prod(box) == len(row), "a row of the grid is a box of neighbours"


def test_the_rows_and_columns_of_a_square_are_those_of_the_grid():
    _, where = stand((16, 16, 1))
    fixed = [np.ptp(where[0, 0], axis=0).tolist(), np.ptp(where[0, :, 0], axis=0).tolist()]
    assert sorted(fixed) == [[0, 15, 0], [15, 0, 0]]


@pytest.mark.parametrize("slices", [2, 4])
def test_rows_of_the_grid_lie_within_slices_and_columns_cross_them_alike(slices):
    devices = chips((4, 4, 1), slices)
    places = routes.grid_of_devices(array(devices, (slices, 16)))
    # 2 x 16 as 4 x 8 or 8 x 4; 4 x 16 as 8 x 8.
    assert places.shape[0] == slices and places[0].size == 16
    assert slices * places.shape[1] + places.shape[2] == {2: 12, 4: 16}[slices]
    for number, part in enumerate(places):
        assert {devices[i].slice_index for i in part.flat} == {number}
        same = [devices[i].coords for i in part.flat]
        assert same == [devices[i].coords for i in places[0].flat], "a block crosses to its like"


def test_devices_without_wires_stand_as_the_mesh_has_them():
    for shape, names in (((8, 1), None), ((2, 4), None), ((2, 3), None), ((7,), ("data",))):
        mesh = mesh_of(shape, names or ("data", "fsdp"))
        with jax.set_mesh(mesh):
            places = routes.grid(mesh.axis_names)
        assert list(places.flat) == list(range(mesh.size))
        assert places.shape == {8: (1, 4, 2), 6: (1, 3, 2), 7: (1, 7, 1)}[mesh.size]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8])
def test_parts_are_joined_in_their_order(count):
    """Products of matrices may not change places."""
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(count, 2, 2))
    found = fold(lambda a, b: jax.tree.map(jnp.matmul, a, b), {"p": jnp.asarray(parts, "float32")})
    want = functools.reduce(np.matmul, parts)
    np.testing.assert_allclose(found["p"], want, rtol=1e-5, atol=1e-5)
    assert fold(None, ()) == ()


# --------------------------------------------------------------------------------------------------
# Every pair once


@pytest.mark.parametrize("case", [daily(case) for case in CASES])
def test_every_target_over_slices(case, monkeypatch):
    """2 slices of 2 x 2, in an order that is not the mesh's; `test_every_target_on_a_mesh` has one
    slice of 4 x 2."""
    places = np.random.default_rng(9).permutation(8).reshape(2, 2, 2)
    monkeypatch.setattr(routes, "grid", lambda axes: places)
    check_case(case, (4, 2), "grid", seed=5)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("sizes", [(1,), (2,), (3,), (5,), (6,), (7,), (2, 3), (3, 2), (2, 2, 2)])
def test_grids_of_any_number(sizes, kind):
    """Primes are grids of one column."""
    names = ("data", "fsdp", "x")[: len(sizes)]
    for case in ("same_id_smooth", "mask_keep"):
        rng = np.random.default_rng(6)
        targets, dense = CASES[case][0](42, 42, rng)
        u = unit_rows(rng, 42, 6)
        v = unit_rows(rng, 42, 6)
        how = dict(collective="grid", mesh_axes=names, implementation=Chunked(8, 16))
        got = run(mesh_of(sizes, names), u, v, 1.5, targets, kind, bias=-1.0, **how)
        want = loss_and_gradients(u, v, np.float32(1.5), dense, kind, bias=-1.0)
        check(got[:4], want[:4], 1.5)


@pytest.mark.parametrize("places", [(1, 1, 8), (8, 1, 1), (1, 8, 1), (2, 1, 4), (4, 2, 1)])
def test_grids_of_any_shape(places, monkeypatch):
    order = np.random.default_rng(3).permutation(8).reshape(places)
    monkeypatch.setattr(routes, "grid", lambda axes: order)
    rng = np.random.default_rng(7)
    targets, dense = CASES["mask_keep"][0](24, 24, rng)
    u = unit_rows(rng, 24, 6)
    v = unit_rows(rng, 24, 6)
    got = run(mesh_of((2, 4)), u, v, 1.5, targets, collective="grid")
    check(got[:4], loss_and_gradients(u, v, np.float32(1.5), dense)[:4], 1.5)


# --------------------------------------------------------------------------------------------------
# What the TPUs' compiler makes of it

ROWS = 128
WIDTH = 768


def travelling(topology, rows, kind="softmax"):
    """The collectives of loss and gradients in a grid, and the scheduled program's devices."""
    mesh = data_mesh(compile_only_devices(topology))
    shapes = operands(rows * mesh.size, WIDTH, jnp.bfloat16, mesh)
    program = compiled(kind, shapes, mesh, implementation="pallas_tpu", collective="grid")
    return collectives(read(program), mesh.size), mesh.size


@pytest.mark.parametrize(
    "topology, rows, kind, grid",
    [
        ("v5e:2x4", ROWS, "softmax", (4, 2)),
        ("v5e:4x4", ROWS, "sigmoid", (4, 4)),
        pytest.param("v5e:16x16", ROWS, "softmax", (16, 16), marks=pytest.mark.slow),
        pytest.param("v4:8x8x16", ROWS, "softmax", (32, 32), marks=pytest.mark.slow),
        pytest.param("v5e:8x8", 1024, "softmax", (8, 8), marks=pytest.mark.slow),
    ],
)
def test_what_travels_in_a_grid(tpu_compiler, topology, rows, kind, grid):
    """Blocks are gathered once for both passes; gradients return as reduce-scatters, in float32;
    all the rest are vectors."""
    found, devices = travelling(topology, rows, kind)
    assert math.prod(grid) == devices
    block = rows * WIDTH * 2
    blocks = [(c.kind, c.groups.shape[1], c.size / block) for c in found if c.size >= block]
    expected = [("all-gather", k, k) for k in grid] + [("reduce-scatter", k, 2 * k) for k in grid]
    for (*what, size), (*expected_what, expected_size) in zip(sorted(blocks), sorted(expected)):
        assert what == expected_what
        # The compiler fills tiles up.
        assert expected_size <= size <= 1.01 * expected_size
    assert len(blocks) == len(expected) and all(c.times == 1 for c in found)
    vectors = sum(c.size for c in found if c.size < block)
    assert vectors < 0.02 * sum(grid) * 3 * block


@pytest.mark.slow
@pytest.mark.parametrize("slices", [2, 4])
def test_a_block_crosses_between_slices_once(tpu_compiler, slices):
    """There in bfloat16, its gradient back in float32."""
    found, _ = travelling(f"{slices}*v5e:4x4", ROWS)
    block = ROWS * WIDTH * 2
    crossing = [(c.kind, c.size / block) for c in found if c.between_slices and c.size >= block]
    assert sorted(crossing) == [("all-gather", slices), ("reduce-scatter", 2 * slices)]


@pytest.mark.slow
@pytest.mark.parametrize("topology, side", [("v5e:8x8", 8), ("v5e:16x16", 16)])
def test_tokens_are_gathered_once_and_their_gradients_scattered(tpu_compiler, topology, side):
    """Of scores of tokens (FILIP), by automatic differentiation; temporaries do not grow."""
    mesh = data_mesh(compile_only_devices(topology))
    rows = 32
    batch = NamedSharding(mesh, PartitionSpec("data"))

    def tokens(count):
        shape = (rows * mesh.size, count, 256)
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=batch)

    def loss(u, v):
        score = LateInteraction(10.0)
        return streamed_scores(score, Tokens(u), Tokens(v), CrossEntropy(), 16).loss()

    with jax.set_mesh(mesh):
        program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(tokens(50), tokens(32)).compile()
    found = collectives(read(program), mesh.size)
    blocks = sorted((c.kind, c.size, c.times) for c in found if c.size > 2**18)
    sizes = [side * rows * count * 256 * 2 for count in (32, 50)]
    kinds = ("all-gather", "reduce-scatter")
    assert blocks == [(kind, size, 1) for kind in kinds for size in sizes]
    assert temporary(program) < 4 * 2**20


@pytest.mark.slow
def test_the_loss_bytes_grow_with_the_root_of_the_devices(tpu_compiler):
    rows = main(["--scaling", "v5e:4x4,v5e:16x16", "--collective", "grid,ring"])
    grid, ring = ([r for r in rows if r["implementation"] == k] for k in ("grid", "ring"))
    assert 3.8 < grid[1]["received_mib"] / grid[0]["received_mib"] < 4.2
    assert ring[1]["received_mib"] / ring[0]["received_mib"] > 14
    assert [r["chosen"] for r in grid] == [None, "*"]
