"""Tiles and collectives by what is known of the chips, and by what was measured on them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from test_contrastive_mesh import mesh_of

from jaxvl import chips
from jaxvl.kernels.contrastive import (
    PallasTpu,
    PallasTriton,
    collectives,
    pallas_tpu,
    pallas_triton,
    plan,
    sizes,
)

TPUS = {k: c for k, c in chips.CHIPS.items() if k[0] in "vt"}
GPUS = {k: c for k, c in chips.CHIPS.items() if k[0] in "abh"}
KINDS = {**chips.CHIPS, "cpu": chips.CPU}


def test_chips_are_known_by_their_kind():
    known = chips.CHIPS
    assert chips.chip_of("TPU v5 lite") is known["v5e"]
    assert chips.chip_of("TPU v5p") is chips.chip_of("TPU v5") is known["v5p"]
    assert chips.chip_of("TPU v6 lite") is known["v6e"]
    assert chips.chip_of("TPU7x") is known["tpu7x"]
    assert chips.chip_of("NVIDIA H200", "gpu") is known["h200"]
    assert chips.chip_of("cpu", "cpu") is chips.CPU
    assert chips.chip_of("Abacus") is chips.UNKNOWN_TPU
    assert chips.chip_of("NVIDIA L4", "gpu") is chips.UNKNOWN_GPU


@pytest.mark.parametrize("kind", TPUS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("width", [64, 768, 2048])
def test_tiles_fit_and_none_that_fits_is_faster(kind, dtype, width):
    chip = TPUS[kind]
    item = jnp.dtype(dtype).itemsize
    shape = (65536, 65536, width)
    blocks = PallasTpu.fitting(shape, dtype, chip)

    def fits(rows, cols, which):
        tile = pallas_tpu.Tile(rows, cols)
        if which == "forward":
            return pallas_tpu.forward_vmem(tile, width, item, 65536) <= chip.vmem
        return pallas_tpu.backward_vmem(tile, width, item, 4) <= chip.vmem

    for which, tile, products in (("forward", blocks.forward, 1), ("backward", blocks.backward, 2)):
        assert fits(tile.rows, tile.cols, which)
        best = sizes.seconds(chip, shape, item, products, tile.rows, tile.cols)
        for rows, cols in sizes.candidates(chip, item):
            if fits(rows, cols, which):
                assert sizes.seconds(chip, shape, item, products, rows, cols) >= best


def test_seconds_by_hand():
    """4 x 8 tiles of 256 x 128, 512 wide: v5e reads 128 KiB in 0.16 us and computes 33.6 MFLOP in
    0.17 us; six times as long in float32."""
    chip = chips.CHIPS["v5e"]
    flop = 2 * 256 * 128 * 512
    read = 1024 * 512 * 2 / 819e9
    got = sizes.seconds(chip, (1024, 1024, 512), 2, 1, 256, 128)
    assert got == pytest.approx(32 * (flop / 197e12 + 0.35e-6) + read)
    got = sizes.seconds(chip, (1024, 1024, 512), 4, 1, 256, 128)
    assert got == pytest.approx(32 * (6 * flop / 197e12 + 0.35e-6) + 2 * read)
    # Too few rows for the operands of the columns: reading counts.
    got = sizes.seconds(chip, (1024, 1024, 512), 2, 1, 128, 128)
    assert got == pytest.approx(64 * (128 * 512 * 2 / 819e9 + 0.35e-6) + read)


@pytest.mark.parametrize("kind", [*GPUS, None])
def test_gpu_tiles_fit_shared_memory(kind):
    chip = GPUS.get(kind, chips.UNKNOWN_GPU)
    for dtype in (jnp.float32, jnp.bfloat16):
        blocks = PallasTriton.fitting(dtype, chip)
        assert pallas_triton.shared_bytes(blocks.tile, jnp.dtype(dtype).itemsize) <= chip.vmem


# --------------------------------------------------------------------------------------------------
# Measured sizes


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes a table and names it in the environment."""

    def write(content):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        monkeypatch.setenv(sizes.VARIABLE, str(path))

    return write


def entry(which, width, **tile):
    return {"pass": which, "dtype": "bfloat16", "width": width, "tile": tile}


def test_measured_tiles_take_the_place_of_the_model(table):
    table(
        {
            "TPU v5 lite": {
                "pallas_tpu": [
                    entry("forward", 1024, rows=256, cols=128),
                    entry("forward", 512, rows=128, cols=128),
                ]
            },
            "NVIDIA H200": {
                "pallas_triton": [entry("backward", 768, rows=64, cols=256, chunk=32, warps=4)]
            },
        }
    )
    chip = chips.CHIPS["v5e"]
    modelled = PallasTpu.fitting((8192, 8192, 768), jnp.bfloat16, chip)
    for width, rows in ((512, 128), (513, 256), (1024, 256)):
        blocks = PallasTpu.fitting((8192, 8192, width), jnp.bfloat16, chip, "TPU v5 lite")
        assert blocks.forward == pallas_tpu.Tile(rows, 128)
        assert blocks.backward.rows > 128, "that pass was not measured"
    for width, kind, dtype in (
        (1025, "TPU v5 lite", jnp.bfloat16),
        (768, "TPU v4", jnp.bfloat16),
        (768, "TPU v5 lite", jnp.float32),
    ):
        blocks = PallasTpu.fitting((8192, 8192, width), dtype, chip, kind)
        assert blocks.forward.cols > 128
    assert modelled == PallasTpu.fitting((8192, 8192, 768), jnp.bfloat16, chip, "another")
    gpu = PallasTriton.fitting(jnp.bfloat16, chips.CHIPS["h200"], 768, "NVIDIA H200")
    assert gpu.tile == pallas_triton.Tile(64, 256, 32, warps=4)


@pytest.mark.parametrize(
    "content, why",
    [
        ("{", "Expecting"),
        ('["TPU v4"]', "'list' object has no attribute"),
        ({"TPU v4": {"pallas_tpu": [{"pass": "forward"}]}}, "'width'"),
        ({"TPU v4": {"pallas_tpu": [entry("sideways", 8, rows=128)]}}, "no pass, dtype and width"),
        ({"TPU v4": {"pallas_tpu": [entry("forward", 8, rows="x")]}}, "no tile of whole numbers"),
    ],
)
def test_a_table_that_is_none_is_refused(table, content, why):
    table(content)
    with pytest.raises(RuntimeError, match=f"JAXVL_BLOCKS: .* is no table of tiles: .*{why}"):
        PallasTpu.fitting((8, 8, 8), jnp.bfloat16, chips.UNKNOWN_TPU, "TPU v4")


# --------------------------------------------------------------------------------------------------
# Collectives


def work(devices, rows, width=768, itemsize=2, grid=None):
    side = max(n for n in range(1, devices + 1) if devices % n == 0 and n * n <= devices)
    grid = grid or (1, devices // side, side)
    return collectives.Work(devices, grid, rows, width, itemsize)


def test_seconds_of_collectives_by_hand():
    chip = dataclasses.replace(
        chips.CHIPS["v5e"], flops=1e12, link=1e9, links=2, hop=1e-6, memory=1e12, nic=1e8
    )
    # 9 devices of 1,000 rows, 100 wide, 2 bytes: a block travels 200 us, 5 products of 0.2 GFLOP
    # in three passes take 333 us each.
    compute = 5 / 3 * 2e8 / 1e12
    small = work(9, 1000, 100)
    ring = collectives.ring_seconds(chip, small)
    assert ring == pytest.approx(3 * (4 * 2 * compute + compute)), "all of it hides"
    gather = collectives.gather_seconds(chip, small)
    assert gather == pytest.approx(3 * (3e-6 + 8 * 2e5 / 2e9 + 9 * compute))
    # Two blocks of each side there in bfloat16, and back in float32, over one of the links.
    grid = collectives.grid_seconds(chip, small)
    hops = 4 * 2 * 2 * 3**0.5 * 1e-6
    assert grid == pytest.approx(hops + 4 * (2e5 + 4e5) / 1e9 + 27 * compute)
    assert collectives.collective(chip, small) == "ring"
    slow = dataclasses.replace(chip, hop=1.0)
    assert collectives.ring_seconds(slow, small) == pytest.approx(3 * 4 * 2, rel=1e-3)
    # 12 hops of latency against 9 and 28.
    assert collectives.collective(slow, small) == "gather"
    # In three slices two blocks cross, 2 ms each: once for every pass, or in both dtypes. The ring
    # hides what its arithmetic is longer than.
    sliced = work(9, 1000, 100, grid=(3, 1, 3))
    assert collectives.gather_seconds(chip, sliced) - gather == pytest.approx(3 * 4e-3)
    assert collectives.grid_seconds(chip, sliced) - grid == pytest.approx(3 * 4e-3)
    ring = collectives.ring_seconds(chip, sliced)
    assert ring == pytest.approx(3 * (max(4e-3, 8 * compute) + compute))


def test_what_does_not_fit_goes_round():
    chip = dataclasses.replace(chips.CHIPS["v5e"], hop=1.0)
    most = int(chip.memory / 256 / (16 * 768 * 2))
    assert collectives.collective(chip, work(16, most)) == "gather"
    assert collectives.collective(chip, work(16, most + 1)) != "gather"
    # 8 blocks of bfloat16, and of float32.
    most = int(chip.memory / 64 / (8 * 768 * (2 + 4)))
    assert collectives.collective(chip, work(16, most)) == "grid"
    assert collectives.collective(chip, work(16, most + 1)) == "ring"


@pytest.mark.parametrize("kind", KINDS)
def test_small_batches_are_gathered_and_large_ones_are_not(kind):
    chip = KINDS[kind]
    assert collectives.collective(chip, work(8, 32, 512)) == "gather"
    assert collectives.collective(chip, work(64, 16384)) == "ring"
    assert collectives.collective(chip, work(256, 4096)) == "ring"


@pytest.mark.parametrize("kind", TPUS)
def test_many_devices_of_few_rows_are_a_grid(kind):
    for devices, rows in ((64, 128), (256, 128), (1024, 32), (1024, 128), (1024, 512)):
        assert collectives.collective(TPUS[kind], work(devices, rows, 512)) == "grid"


def test_the_tiles_are_those_of_the_block_that_a_device_has():
    """128 rows a device: over a ring no tile is larger; a grid's rows are several devices'."""
    sides = {}
    with jax.set_mesh(mesh_of((8, 1))):
        for how in ("ring", "gather", "grid"):
            made = plan(
                (1024, 1024, 256), jnp.bfloat16, implementation="pallas_tpu", collective=how
            )
            sides[how] = (made.blocks.forward.rows, made.blocks.forward.cols)
    assert sides["ring"] == (128, 128)
    assert sides["gather"][0] == 128 and sides["gather"][1] > 128
    assert min(sides["grid"]) > 128


def test_the_collective_follows_the_chip_of_the_mesh():
    with jax.set_mesh(mesh_of((8, 1))):
        assert plan((256, 256, 512)).collective == "gather"
        assert plan((8 * 4096, 8 * 4096, 512)).collective == "ring"
        assert plan((8 * 4096, 8 * 4096, 512), collective="gather").collective == "gather"


def test_a_run_may_say_which_collective():
    with jax.set_mesh(mesh_of((8, 1))):
        for name in ("ring", "grid"):
            with collectives.using(name):
                assert plan((256, 256, 512)).collective == name
                assert plan((256, 256, 512), collective="gather").collective == "gather"
        with collectives.using("ring"), collectives.using("auto"):
            assert plan((256, 256, 512)).collective == "gather"
        assert plan((256, 256, 512)).collective == "gather"
    wrong = pytest.raises(ValueError, match="collective: 'tree' is not valid; must be one of")
    with wrong, collectives.using("tree"):
        pass
