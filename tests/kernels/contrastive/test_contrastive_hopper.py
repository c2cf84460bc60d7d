"""The Hopper kernels by the interpreter of Mosaic GPU against the float64 oracle; when they are
taken; what they cost."""

import jax.numpy as jnp
import numpy as np
import pytest
from contrastive_cases import CASES, diagonal, mixup, unit_rows
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from test_contrastive_values import compare, value_and_gradients

from jaxvl import chips
from jaxvl.kernels.contrastive import (
    Chunked,
    PallasHopper,
    SoftTargets,
    contrastive_loss,
    dispatch,
    hopper_kernels,
    pallas_hopper,
    plan,
    sizes,
)
from jaxvl.kernels.contrastive.pallas_hopper import Tile

SMALL = Tile(64, 64, stages=2)
INTERPRETED = PallasHopper(SMALL, SMALL, interpret=True)
TAKEN = [case for case in CASES if case != "mask_keep" and not case.startswith("soft")]
DAILY = [("mask_valid", "softmax"), ("mixup_normalised", "softmax"), ("diagonal_offset", "sigmoid")]


def values():
    """All targets that the kernels take; a few of them daily."""
    for case in TAKEN:
        for kind in ("softmax", "sigmoid"):
            marks = [] if (case, kind) in DAILY else [pytest.mark.slow]
            yield pytest.param(case, kind, marks=marks)


@pytest.mark.parametrize("case, kind", values())
def test_every_target(case, kind):
    build, ratio = CASES[case]
    rng = np.random.default_rng(0)
    m = 70  # more than one tile, not a multiple of it; nor is the width one of the chunk
    targets, dense = build(m, m * ratio, rng)
    u = unit_rows(rng, m, 80, "bfloat16")
    v = unit_rows(rng, m * ratio, 80, "bfloat16")
    compare(u, v, 2.0, targets, dense, kind, "sum", bias=-1.5, implementation=INTERPRETED)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_segments_and_unequal_tiles_without_races(kind):
    """Of all copies and reads: with one thread for copies, the barrier of a later one would cover
    those before it."""
    interpret_pallas_call.reset_gpu_interpret_mode_state()
    tiles = Tile(64, 128, stages=3, part=64, cluster=2), Tile(128, 64, chunk=128, stages=2)
    watched = InterpretGPUParams(detect_races=True, num_tma_threads_per_device=16)
    blocks = PallasHopper(*tiles, segment=2 * 128 * 192, interpret=watched)
    rng = np.random.default_rng(1)
    targets, dense = mixup(150, 150, rng, smoothing=0.1)
    u = unit_rows(rng, 150, 200, "bfloat16")
    v = unit_rows(rng, 150, 200, "bfloat16", close_to=u)
    compare(u, v, np.log(10.0), targets, dense, kind, bias=-3.0, implementation=blocks)
    assert not interpret_pallas_call.get_races().races_found


@pytest.mark.slow
@pytest.mark.parametrize(
    "log_scale, kind",
    [(-5.0, "softmax"), *((s, kind) for s in (4.6, 7.0) for kind in ("softmax", "sigmoid"))],
)
@pytest.mark.parametrize("width", [8, 192])
def test_extreme_scales(width, log_scale, kind):
    rng = np.random.default_rng(3)
    u = unit_rows(rng, 65, width, "bfloat16")
    v = unit_rows(rng, 65, width, "bfloat16")
    targets, dense = diagonal(65, 65, rng)
    compare(u, v, log_scale, targets, dense, kind, implementation=INTERPRETED)


@pytest.mark.slow
@pytest.mark.parametrize("log_scale", [-5.0, 2.0])
def test_the_same_roundings_as_chunked(log_scale):
    """At a small scale the gradient of the sigmoid's scale is a sum that cancels, of summands
    rounded to bfloat16: a tenth off, equally in all implementations."""
    rng = np.random.default_rng(3)
    u = unit_rows(rng, 65, 192, "bfloat16")
    v = unit_rows(rng, 65, 192, "bfloat16")
    targets, _ = diagonal(65, 65, rng)
    found = []
    for blocks in (INTERPRETED, Chunked(64, 64)):
        inputs = u, v, jnp.float32(log_scale), jnp.float32(0.0), targets, "sigmoid"
        found.append(value_and_gradients(*inputs, implementation=blocks))
    for name, got, want in zip(("loss", "dlog_scale"), found[0][::3], found[1][::3]):
        np.testing.assert_allclose(got, want, rtol=1e-4, err_msg=name)


def test_the_logarithm_near_one():
    x = np.concatenate([np.float32(10.0) ** np.arange(-30, 1), np.linspace(0, 1, 1001)])
    x = x.astype(np.float32)
    want = np.log1p(np.float64(x))
    np.testing.assert_allclose(hopper_kernels.FLAT.log1p(jnp.asarray(x)), want, rtol=2e-7)


# --------------------------------------------------------------------------------------------------
# When they are taken

HOPPERS = ["NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA GH200 480GB", "NVIDIA H20"]
OTHERS = ["NVIDIA B200", "NVIDIA A100-SXM4-80GB", "NVIDIA L40", "NVIDIA GB200", "AMD MI300X"]


@pytest.mark.parametrize("device_kind", HOPPERS)
def test_hopper_takes_them(device_kind, monkeypatch):
    monkeypatch.setattr(dispatch, "device", lambda: ("gpu", device_kind))
    chosen = plan((4096, 4096, 640), jnp.bfloat16)
    assert chosen.implementation == "pallas_hopper"
    assert list(chosen.skipped) == ["pallas_tpu"]


@pytest.mark.parametrize("device_kind", OTHERS)
def test_other_gpus_take_triton_and_say_why(device_kind, monkeypatch):
    monkeypatch.setattr(dispatch, "device", lambda: ("gpu", device_kind))
    chosen = plan((4096, 4096, 768), jnp.bfloat16)
    assert chosen.implementation == "pallas_triton"
    assert "has no wgmma" in chosen.skipped["pallas_hopper"]
    with pytest.raises(ValueError, match=f"cannot run: {device_kind} has no wgmma"):
        plan((4096, 4096, 768), jnp.bfloat16, implementation="pallas_hopper")


def test_what_they_do_not_take_goes_to_triton(monkeypatch):
    monkeypatch.setattr(dispatch, "device", lambda: ("gpu", "NVIDIA H200"))
    chosen = plan((256, 256, 512), jnp.float32)
    assert chosen.implementation == "pallas_triton"
    assert chosen.skipped["pallas_hopper"] == "dtype float32; it takes bfloat16"
    teacher = jnp.ones((256, 8))
    chosen = plan((256, 256, 512), jnp.bfloat16, targets=SoftTargets(teacher, teacher, 1.0))
    assert chosen.implementation == "pallas_triton"
    assert "second product" in chosen.skipped["pallas_hopper"]


def test_sizes_that_do_not_fit_are_refused():
    for field, size in (("rows", 96), ("cols", 32), ("chunk", 0)):
        with pytest.raises(ValueError, match=f"{field}: {size} is not valid; must be a multiple"):
            Tile(**{field: size})
    with pytest.raises(ValueError, match="rows x cols must be <= 16384"):
        Tile(128, 256)
    for field, size in (("stages", 1), ("part", 48), ("cluster", 4)):
        with pytest.raises(ValueError, match=f"{field}: {size} is not valid"):
            Tile(**{field: size})
    u = jnp.ones((8, 4), jnp.bfloat16)
    with pytest.raises(ValueError, match="'pallas_hopper' cannot run: .* bytes of shared memory"):
        contrastive_loss(u, u, 0.0, implementation=PallasHopper(Tile(stages=8)))


# --------------------------------------------------------------------------------------------------
# Sizes

HOPPER = chips.CHIPS["h200"]


@pytest.mark.parametrize("rows", [1024, 4096, 65536])
@pytest.mark.parametrize("width", [512, 640, 768, 1024])
def test_tiles_fit_and_none_that_fits_is_faster(width, rows):
    shape = rows, rows, width
    blocks = PallasHopper.fitting(shape, HOPPER)
    for which, tile in (("forward", blocks.forward), ("backward", blocks.backward)):
        assert pallas_hopper.shared_bytes(tile) <= pallas_hopper.SHARED

        def seconds(tile, which=which):
            together = pallas_hopper.resident(tile)
            work = pallas_hopper.WORK[which]
            return sizes.program_seconds(HOPPER, shape, tile.rows, tile.cols, together, work)

        for other in (Tile(64, 64), Tile(64, 128), Tile(128, 64), Tile(128, 128), Tile(64, 256)):
            assert seconds(tile) <= seconds(other)


def test_large_batches_have_two_programs_on_a_multiprocessor():
    blocks = PallasHopper.fitting((32768, 32768, 768), HOPPER)
    assert blocks.forward == blocks.backward == Tile(128, 128, 64, 3)
    assert pallas_hopper.resident(blocks.forward) == 2
    assert pallas_hopper.resident(Tile(128, 128, 64, 4)) == 1


def test_seconds_by_hand():
    """264 programs of 128 x 128, 768 wide: a multiprocessor has two, each of which multiplies for
    3.4 us, reads 393 kB in 6.9 us and then has 2.9 us of work."""
    shape = 128 * 24, 128 * 11, 768
    read = 2 * 256 * 768 / (sizes.CACHE / 132)
    work = 40 * 128 * 128 / (128 * 1.755e9)
    assert 6.8e-6 < read < 7.0e-6 and 2.9e-6 < work < 3.0e-6
    two = sizes.program_seconds(HOPPER, shape, 128, 128, 2, 40)
    assert two == pytest.approx(2 * (read + 0.5e-6))
    one = sizes.program_seconds(HOPPER, shape, 128, 128, 1, 40)
    assert one == pytest.approx(2 * (read + work + 1e-6))


def test_measured_tiles_take_the_place_of_the_model(tmp_path, monkeypatch):
    path = tmp_path / "blocks.json"
    path.write_text(
        '{"NVIDIA H200": {"pallas_hopper": [{"pass": "backward", "dtype": "bfloat16", "width": '
        '768, "tile": {"rows": 64, "cols": 256, "chunk": 64, "stages": 4, "part": 64}}]}}'
    )
    monkeypatch.setenv(sizes.VARIABLE, str(path))
    blocks = PallasHopper.fitting((32768, 32768, 512), HOPPER, "NVIDIA H200")
    assert blocks.backward == Tile(64, 256, 64, 4, 64) and blocks.forward == Tile()
