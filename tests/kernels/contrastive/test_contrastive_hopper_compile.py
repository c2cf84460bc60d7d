"""The Hopper kernels compiled for H100 and H200 by Mosaic GPU and ptxas, on a machine without one
(`launch/nightly.sh slow` installs them)."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contrastive_cases import CASES
from test_contrastive_cuda_compile import TRITON, devices
from test_contrastive_hopper import TAKEN
from test_contrastive_tpu_compile import lowered_for

from jaxvl.bench.contrastive import compiled, data_mesh, operands, temporary
from jaxvl.kernels.contrastive import PallasHopper, pallas_hopper, plan
from jaxvl.kernels.contrastive.pallas_hopper import Tile

MIB = 2**20
MOSAIC = 'custom_call_target="mosaic_gpu'
pytestmark = pytest.mark.slow
# Pair gradients of a segment, dy in float32, its product before it is added, y and x in columns.
ALLOWED = {4096: 96, 32768: 640}


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("batch", ALLOWED)
@pytest.mark.parametrize("width", [512, 640, 768, 1024])
def test_forward_and_backward(width, batch, kind, capfd, monkeypatch):
    """Taken by themselves; no register is spilled. Materialised, logits and gradients of 32,768
    are 12 GiB."""
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    mesh = data_mesh(devices("h200"))
    program = compiled(kind, operands(batch, width, jnp.bfloat16, mesh), mesh, implementation=None)
    assert MOSAIC in program.as_text() and TRITON not in program.as_text()
    assert temporary(program) <= ALLOWED[batch] * MIB
    said = capfd.readouterr()
    spills = re.findall(r"(\d+) bytes spill stores", said.out + said.err)
    assert spills == ["0", "0"], "both kernels, as ptxas has it"


@pytest.mark.parametrize("case", TAKEN)
def test_every_target(case):
    build, ratio = CASES[case]
    targets, _ = build(200, 200 * ratio, np.random.default_rng(0))
    mesh = data_mesh(devices("h100"))
    for kind in ("softmax", "sigmoid"):
        shape = 200, 200 * ratio, 72
        lowered_for(mesh, shape, jnp.bfloat16, targets, kind, "pallas_hopper").compile()


@pytest.mark.parametrize(
    "tile",
    [
        Tile(64, 64, stages=4),
        Tile(64, 128, part=64),
        Tile(64, 256, 128, 2),
        Tile(192, 64, part=64),
        Tile(cluster=2),
        Tile(128, 64, stages=4, cluster=2),
    ],
    ids=str,
)
def test_other_tiles(tile):
    mesh = data_mesh(devices("h200"))
    blocks = PallasHopper(tile, tile)
    compiled("softmax", operands(4096, 640, jnp.bfloat16, mesh), mesh, implementation=blocks)


def test_the_ring_on_eight():
    mesh = data_mesh(devices("h200:1x1x8"))
    shapes = operands(65536, 768, jnp.bfloat16, mesh)
    program = compiled("softmax", shapes, mesh, implementation="pallas_hopper", collective="ring")
    assert "collective-permute" in program.as_text() and temporary(program) <= 512 * MIB


def test_blackwell_takes_triton():
    mesh = data_mesh(devices("b200"))
    with jax.set_mesh(mesh):
        chosen = plan((4096, 4096, 768), jnp.bfloat16)
    assert chosen.implementation == "pallas_triton"
    assert chosen.skipped["pallas_hopper"].startswith("NVIDIA B200 has no wgmma")
    shapes = operands(4096, 768, jnp.bfloat16, mesh)
    program = compiled("softmax", shapes, mesh, implementation=None)
    assert TRITON in program.as_text() and MOSAIC not in program.as_text()


def test_blackwell_would_not_compile_them(capfd):
    """The compiler says so too. (Of sizes that no other test has: it keeps kernels by their
    operations alone, whatever they were compiled for.)"""
    mesh = data_mesh(devices("b200"))
    shapes = operands(4096, 704, jnp.bfloat16, mesh)
    with pytest.raises(jax.errors.JaxRuntimeError):
        compiled("softmax", shapes, mesh, implementation=PallasHopper())
    assert re.search(r"wgmma.* not supported on sm_100a", capfd.readouterr().err)


def test_what_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(pallas_hopper, "SHARED", 2**30)
    mesh = data_mesh(devices("h200"))
    too_large = PallasHopper(Tile(stages=8))
    with pytest.raises(ValueError, match="(?i)shared memory|smem"):
        shapes = operands(4096, 1024, jnp.bfloat16, mesh)
        compiled("softmax", shapes, mesh, implementation=too_large)
