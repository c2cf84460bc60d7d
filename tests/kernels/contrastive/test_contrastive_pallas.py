"""The Pallas kernels beyond their values: the TPU simulator, meshes, lowering for chips that are
not here, sizes that fit."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contrastive_cases import CASES, KERNEL_CASES, diagonal, soft, unit_rows
from contrastive_oracle import check, loss_and_gradients
from jax.experimental.pallas import tpu as pltpu
from test_contrastive_mesh import mesh_of, run
from test_contrastive_values import SMALL_TPU, TILES, compare

from jaxvl.chips import UNKNOWN_TPU
from jaxvl.kernels.contrastive import (
    Diagonal,
    PallasTpu,
    PallasTriton,
    SoftTargets,
    contrastive_loss,
    pallas_tpu,
    pallas_triton,
    routes,
)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("case", [diagonal, soft])
def test_tpu_simulator(case, kind):
    """Stricter than the interpreter: memory spaces, revisited blocks, races between copies and
    arithmetic."""
    rng = np.random.default_rng(0)
    options = (
        dict(similarity="linear", weight=(0.7, 0.7)) if case is soft and kind == "sigmoid" else {}
    )
    targets, dense = case(200, 200, rng, smoothing=0.1, **options)
    simulated = PallasTpu(SMALL_TPU, SMALL_TPU, interpret=pltpu.InterpretParams(detect_races=True))
    compare(
        unit_rows(rng, 200, 24),
        unit_rows(rng, 200, 24),
        2.0,
        targets,
        dense,
        kind,
        bias=-1.0,
        implementation=simulated,
    )


def test_more_columns_than_stay_resident_are_taken_in_segments(monkeypatch):
    monkeypatch.setattr(pallas_tpu, "MAX_COLUMNS", 128)
    rng = np.random.default_rng(1)
    targets, dense = diagonal(300, 300, rng, smoothing=0.1)
    tiles = PallasTpu(
        SMALL_TPU, pallas_tpu.Tile(256, 128), interpret=True
    )  # tiles of another size: nothing compiled is reused
    compare(
        unit_rows(rng, 300, 8), unit_rows(rng, 300, 8), 2.0, targets, dense, implementation=tiles
    )


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("collective", ["ring", "gather", "grid"])
@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_triton"])
def test_on_a_mesh(implementation, collective, kind, monkeypatch):
    # Of 8 TPUs as 2 x 4, both ways; of 2 hosts with 4 GPUs each, one way.
    tpus = routes.Rings(np.array([0, 1, 2, 3, 7, 6, 5, 4]), (2,))
    gpus = routes.Rings(np.arange(8).reshape(2, 4), (1, 1))
    rings = tpus if implementation == "pallas_tpu" else gpus
    monkeypatch.setattr(routes, "rings", lambda axes: rings)
    rng = np.random.default_rng(2)
    # 4 rows on a device, the last ones padding
    u = unit_rows(rng, 30, 8)
    v = unit_rows(rng, 30, 8)
    targets, dense = CASES["same_id_smooth"][0](30, 30, rng)
    got = run(
        mesh_of((2, 4)),
        u,
        v,
        1.5,
        targets,
        kind,
        bias=-1.0,
        implementation=TILES[implementation],
        collective=collective,
    )
    want = loss_and_gradients(u, v, np.float32(1.5), dense, kind, bias=-1.0)
    check(got[:4], want[:4], 1.5)


def lower(platform, implementation, shape, dtype, targets, kind):
    """StableHLO of loss and gradients for a platform that is not here."""

    def loss(u, v, log_scale, bias, targets):
        return contrastive_loss(
            u, v, log_scale, targets=targets, kind=kind, bias=bias, implementation=implementation
        )

    m, n, d = shape
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    operands = (
        jax.ShapeDtypeStruct((m, d), dtype),
        jax.ShapeDtypeStruct((n, d), dtype),
        scalar,
        scalar,
    )
    # From jax 0.11 on Triton's lowering asks which GPU it is for.
    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=gpu)
    there = jax.sharding.use_abstract_mesh(mesh) if platform == "cuda" else contextlib.nullcontext()
    with there:
        traced = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3))).trace(*operands, targets)
        return traced.lower(lowering_platforms=(platform,)).as_text()


CALLS = {"tpu": "tpu_custom_call", "cuda": "__gpu$xla.gpu.triton"}


@pytest.mark.parametrize("case", KERNEL_CASES)
@pytest.mark.parametrize("platform", CALLS)
def test_every_target_lowers(platform, case):
    """Block shapes, memory spaces and operations are those that the chips' compilers take."""
    build, ratio = CASES[case]
    targets, _ = build(200, 200 * ratio, np.random.default_rng(0))
    name = {"tpu": "pallas_tpu", "cuda": "pallas_triton"}[platform]
    for kind in ("softmax", "sigmoid"):
        if kind == "sigmoid" and case in ("soft_albef", "soft_masked", "soft_cwcl"):
            continue
        assert CALLS[platform] in lower(
            platform, name, (200, 200 * ratio, 72), jnp.bfloat16, targets, kind
        )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("width", [96, 768, 1000, 2048])
@pytest.mark.parametrize("platform", CALLS)
def test_every_width_lowers(platform, width, dtype):
    name = {"tpu": "pallas_tpu", "cuda": "pallas_triton"}[platform]
    assert CALLS[platform] in lower(
        platform, name, (1000, 4096, width), dtype, Diagonal(), "softmax"
    )


def test_sizes_that_do_not_fit_are_refused_before_a_compiler_sees_them():
    with pytest.raises(
        ValueError, match="rows: 100 is not valid; must be a positive multiple of 128"
    ):
        pallas_tpu.Tile(100, 128)
    with pytest.raises(ValueError, match="cols: 96 is not valid; must be a power of two"):
        pallas_triton.Tile(64, 96)
    u = jnp.ones((8, 4))
    with pytest.raises(
        ValueError, match="'pallas_triton' cannot run: .* bytes of shared memory; there are 101376"
    ):
        contrastive_loss(u, u, 0.0, implementation=PallasTriton(pallas_triton.Tile(256, 256, 512)))
    with pytest.raises(
        ValueError, match="'pallas_tpu' cannot run: width 4000; it takes up to 2048"
    ):
        contrastive_loss(jnp.ones((8, 4000)), jnp.ones((8, 4000)), 0.0, implementation=PallasTpu())
    with pytest.raises(
        ValueError, match="width 2048 in float32 does not fit .* of VMEM in any tile"
    ):
        small = dataclasses.replace(UNKNOWN_TPU, vmem=2**20)
        PallasTpu.fitting((8, 8, 2048), jnp.float32, small)


def test_teacher_takes_no_part_in_padding():
    """Rows that a tile adds have a teacher of zeros, which the softmax of the teacher must not
    count."""
    rng = np.random.default_rng(3)
    targets, dense = soft(5, 5, rng)
    assert isinstance(targets, SoftTargets)
    for name in ("pallas_tpu", "pallas_triton"):
        compare(
            unit_rows(rng, 5, 8),
            unit_rows(rng, 5, 8),
            1.0,
            targets,
            dense,
            implementation=TILES[name],
        )
