"""Compiled for an H200 by XLA, Triton and ptxas, on a machine without one (`launch/nightly.sh slow`
installs them)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contrastive_cases import CASES
from test_contrastive_tpu_compile import lowered_for

from jaxvl.bench.contrastive import compiled, data_mesh, operands, temporary
from jaxvl.config import ConfigError
from jaxvl.kernels.contrastive import pallas_triton
from jaxvl.sharding.topology import compile_only_devices

MIB = 2**20
TRITON = 'custom_call_target="__gpu$xla.gpu.triton"'  # a kernel of ours, not one of XLA's
pytestmark = pytest.mark.slow


def devices(topology):
    try:
        return compile_only_devices(topology)
    except ConfigError as error:
        pytest.skip(f"no CUDA compiler: {error}")


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_batch_of_32768(kind):
    """Materialised, its logits and their gradients are 12 GiB."""
    mesh = data_mesh(devices("h200"))
    program = compiled(
        kind, operands(32768, 768, jnp.bfloat16, mesh), mesh, implementation="pallas_triton"
    )
    assert TRITON in program.as_text() and temporary(program) <= 256 * MIB


@pytest.mark.parametrize("dtype, width", [("float32", 1000), ("bfloat16", 96), ("bfloat16", 2048)])
def test_widths_and_dtypes(dtype, width):
    mesh = data_mesh(devices("h200"))
    compiled(
        "softmax",
        operands(4000, width, jnp.dtype(dtype), mesh),
        mesh,
        implementation="pallas_triton",
    )


@pytest.mark.parametrize("case", [c for c in CASES if c != "mask_keep"])
def test_every_target(case):
    build, ratio = CASES[case]
    targets, _ = build(200, 200 * ratio, np.random.default_rng(0))
    mesh = data_mesh(devices("h200"))
    for kind in (
        ("softmax",)
        if case in ("soft_albef", "soft_masked", "soft_cwcl")
        else ("softmax", "sigmoid")
    ):
        lowered_for(
            mesh, (200, 200 * ratio, 72), jnp.bfloat16, targets, kind, "pallas_triton"
        ).compile()


def test_the_ring_on_eight():
    mesh = data_mesh(devices("h200:1x1x8"))
    program = compiled(
        "softmax",
        operands(65536, 768, jnp.bfloat16, mesh),
        mesh,
        implementation="pallas_triton",
        collective="ring",
    )
    assert "collective-permute" in program.as_text() and temporary(program) <= 512 * MIB


def test_the_grid_on_64():
    """Eight hosts of eight; 128 rows of each."""
    mesh = data_mesh(devices("h200:1x8x8"))
    program = compiled(
        "softmax",
        operands(64 * 128, 768, jnp.bfloat16, mesh),
        mesh,
        implementation="pallas_triton",
        collective="grid",
    )
    text = program.as_text()
    assert TRITON in text and "collective-permute" not in text
    assert "all-gather" in text and "reduce-scatter" in text
    assert temporary(program) <= 32 * MIB


def test_what_does_not_fit_is_refused():
    mesh = data_mesh(devices("h200"))
    too_large = pallas_triton.PallasTriton(pallas_triton.Tile(256, 256, 512), shared=2**30)
    with pytest.raises(jax.errors.JaxRuntimeError, match="(?i)shared memory"):
        compiled(
            "softmax", operands(4096, 1024, jnp.bfloat16, mesh), mesh, implementation=too_large
        )
