"""Compiled by the TPUs' own compiler, on a machine without one: it fits, and what would not fit is
refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contrastive_cases import CASES, daily

from jaxvl.bench.contrastive import compiled, data_mesh, main, operands, temporary
from jaxvl.chips import CHIPS
from jaxvl.config import ConfigError
from jaxvl.kernels.contrastive import contrastive_loss, pallas_tpu
from jaxvl.sharding.topology import COMPILED, compile_only_devices

MIB = 2**20
TPUS = [name for name in COMPILED if name.startswith("v")]
ONE_DAILY = [
    pytest.param(name, marks=[] if name == "v5e" else [pytest.mark.slow]) for name in TPUS
]  # the others nightly


@pytest.fixture(scope="module")
def devices(tpu_compiler):
    """Topology -> its devices; compiled for in one process, one after the other."""
    return {name: compile_only_devices(name) for name in TPUS}


def lowered_for(mesh, shape, dtype, targets, kind, implementation="pallas_tpu"):
    def loss(u, v, log_scale, bias, targets):
        return contrastive_loss(
            u, v, log_scale, targets=targets, kind=kind, bias=bias, implementation=implementation
        )

    u, v, *scalars = operands(shape[0], shape[2], dtype, mesh)
    v = jax.ShapeDtypeStruct((shape[1], shape[2]), dtype, sharding=v.sharding)
    vectors = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(
            jnp.shape(a), jnp.result_type(a), sharding=scalars[0].sharding
        ),
        targets,
    )
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3))).lower(u, v, *scalars, vectors)


@pytest.mark.parametrize("tpu", ONE_DAILY)
def test_a_batch_of_65536_takes_next_to_no_memory(devices, tpu):
    """Materialised, its logits alone are 16 GiB."""
    mesh = data_mesh(devices[tpu][:1])
    program = compiled(
        "softmax", operands(65536, 768, jnp.bfloat16, mesh), mesh, implementation="pallas_tpu"
    )
    assert temporary(program) <= 16 * MIB
    assert (
        program.cost_analysis()["flops"] >= 5 * 2 * 65536**2 * 768
    )  # the kernels tell the compiler what they cost


@pytest.mark.parametrize("tpu", ONE_DAILY)
@pytest.mark.parametrize(
    "dtype, width",
    [
        ("float32", 64),
        # Daily the targets have another odd width, and the batch of 65536 is wide, in bfloat16.
        pytest.param("float32", 1000, marks=pytest.mark.slow),
        pytest.param("bfloat16", 64, marks=pytest.mark.slow),
        pytest.param("bfloat16", 2048, marks=pytest.mark.slow),
    ],
)
def test_widths_and_dtypes_compile(devices, tpu, dtype, width):
    mesh = data_mesh(devices[tpu][:1])
    for kind in ("softmax", "sigmoid"):
        program = compiled(
            kind, operands(1000, width, jnp.dtype(dtype), mesh), mesh, implementation="pallas_tpu"
        )
        assert temporary(program) <= 64 * MIB


SIGMOID_DAILY = ("diagonal_offset", "same_id", "soft_linear", "mask_valid")


def targets_and_kinds():
    """Every target with the softmax, and one of each kind of target with the sigmoid; the others
    are slow."""
    for case in CASES:
        if case == "mask_keep":
            continue
        yield daily(case, "softmax")
        if case not in ("soft_albef", "soft_masked", "soft_cwcl"):
            marks = [] if case in SIGMOID_DAILY else [pytest.mark.slow]
            yield pytest.param(case, "sigmoid", marks=marks)


@pytest.mark.parametrize("case, kind", targets_and_kinds())
def test_every_target_compiles(devices, case, kind):
    build, ratio = CASES[case]
    targets, _ = build(200, 200 * ratio, np.random.default_rng(0))
    lowered_for(
        data_mesh(devices["v5e"][:1]), (200, 200 * ratio, 72), jnp.bfloat16, targets, kind
    ).compile()


@pytest.mark.parametrize("tpu", ONE_DAILY)
def test_the_ring_of_kernels_compiles(devices, tpu):
    mesh = data_mesh(devices[tpu])
    shapes = operands(4096 * mesh.size, 768, jnp.bfloat16, mesh)
    program = compiled("softmax", shapes, mesh, implementation="pallas_tpu", collective="ring")
    assert "collective-permute" in program.as_text() and temporary(program) <= 128 * MIB


@pytest.mark.slow
def test_what_does_not_fit_is_refused(devices):
    """Negative controls: without them a compiler that accepts everything would pass for proof."""
    mesh = data_mesh(devices["v5e"][:1])
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED.*(HBM|hbm)"):
        compiled(
            "softmax", operands(65536, 768, jnp.bfloat16, mesh), mesh, implementation="materialised"
        )
    too_large = pallas_tpu.PallasTpu(
        pallas_tpu.Tile(2048, 2048), pallas_tpu.Tile(2048, 2048), vmem=16 * MIB
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="(?i)vmem"):
        compiled(
            "softmax", operands(8192, 1024, jnp.bfloat16, mesh), mesh, implementation=too_large
        )


@pytest.mark.slow
def test_the_report_of_the_compilers(devices, tmp_path):
    rows = main(["--compile", "v5e", "--batch", "4096", "--json", str(tmp_path / "out.json")])
    kernel = next(r for r in rows if r["implementation"] == "pallas_tpu")
    assert (
        kernel["roofline_ms"] >= 1e3 * 5 * 2 * 4096**2 * 768 / CHIPS["v5e"].flops
        and (tmp_path / "out.json").is_file()
    )


def test_a_topology_that_does_not_exist_is_refused(devices):
    with pytest.raises(ConfigError, match="topology: 'v5ee' is not known; did you mean 'v5e'"):
        compile_only_devices("v5ee")
    with pytest.raises(ConfigError, match="topology: 'v5e:3x5' must be v5e:NxN, as v5e:4x4"):
        compile_only_devices("v5e:3x5")
