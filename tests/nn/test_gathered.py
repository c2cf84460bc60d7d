"""Products with sharded kernels: what the devices send each other, and the numbers of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from jaxvl.hlo import collectives, read
from jaxvl.nn.linear import project
from jaxvl.nn.moe.experts import _product
from jaxvl.sharding.mesh import MeshConfig, make_mesh
from jaxvl.sharding.rules import spec
from jaxvl.sharding.topology import compile_only_devices

ROWS, INPUTS, OUTPUTS, EXPERTS = 512, 256, 384, 2
PLAIN = (project, ("embed", "mlp"), (INPUTS, OUTPUTS), ("batch", None), (ROWS, INPUTS))
EXPERT = (
    _product,
    ("expert", "embed", "mlp"),
    (EXPERTS, INPUTS, OUTPUTS),
    ("expert", "batch", None),
    (EXPERTS, ROWS, INPUTS),
)


def grads(product, axes):
    def loss(x, kernel):
        return jnp.square(product(x, kernel, axes)).sum()

    return jax.value_and_grad(loss, argnums=(0, 1))


@pytest.mark.parametrize("case", [PLAIN, EXPERT], ids=["linear", "experts"])
@pytest.mark.parametrize("layout", [dict(fsdp=8), dict(fsdp=4, tensor=2), dict(fsdp=2, expert=2)])
def test_one_device_and_eight_agree(case, layout):
    product, axes, shape, rows, row_shape = case
    rng = np.random.default_rng(0)
    x, kernel = (jnp.float32(rng.standard_normal(s)) for s in (row_shape, shape))
    wanted = jax.jit(grads(product, axes))(x, kernel)
    mesh = make_mesh(MeshConfig(**layout), jax.devices())
    put = lambda a, names: jax.device_put(
        a, NamedSharding(mesh, spec(names, shape=a.shape, mesh=mesh))
    )
    with jax.set_mesh(mesh):
        found = jax.jit(grads(product, axes))(put(x, rows), put(kernel, axes))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * np.abs(b).max())
    assert found[1][1].sharding.is_equivalent_to(put(kernel, axes).sharding, kernel.ndim)


@pytest.mark.parametrize("case", [PLAIN, EXPERT], ids=["linear", "experts"])
def test_a_tpu_gathers_the_kernel_and_nothing_else(tpu_compiler, case):
    """No loop of parts of a product, no rows of other devices: a kernel twice, and its
    gradient."""
    product, axes, shape, rows, row_shape = case
    mesh = make_mesh(MeshConfig(fsdp=8), compile_only_devices("v5e:2x4"))
    abstract = lambda s, names: jax.ShapeDtypeStruct(
        s, jnp.bfloat16, sharding=NamedSharding(mesh, spec(names, shape=s, mesh=mesh))
    )
    with jax.set_mesh(mesh):
        lowered = jax.jit(grads(product, axes)).lower(
            abstract(row_shape, rows), abstract(shape, axes)
        )
        found = collectives(read(lowered.compile()), 8)
    kernel = 2 * np.prod(shape)
    assert {c.kind for c in found} <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert sum(c.size * c.times for c in found if c.kind == "all-gather") <= 2 * kernel
    assert max(c.size for c in found) <= kernel
