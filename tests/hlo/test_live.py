"""What lives at the peak of programs whose memory is known in closed form."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import SingleDeviceSharding

from jaxvl.hlo import peak, read
from jaxvl.hlo.live import shortened
from jaxvl.nn.mlp import Mlp
from jaxvl.sharding.topology import compile_only_devices

N = 256
LAYERS = 6
SQUARE = 4 * N * N  # bytes


def peak_of(f, folder, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(f).lower(*arguments).compile(compiler_options={"xla_dump_to": str(folder)})
    return peak(read(compiled), folder), compiled.memory_analysis().temp_size_in_bytes


def test_three_arrays_live_at_once(tmp_path):
    def f(x):
        a = jnp.sort(x, 0)
        b = jnp.sort(a, 1)
        c = jnp.sort(b, 0)
        return (a * b * c).sum()

    found, told = peak_of(f, tmp_path, (N, N))
    assert sum(r.number for r in found.live if r.shape == f"f32[{N},{N}]") == 3
    assert found.bytes == sum(row.bytes for row in found.live)
    assert 3 * SQUARE <= found.bytes <= found.allocated <= told <= 3 * SQUARE + 4096
    assert {row.operation for row in found.live if row.bytes >= SQUARE} == {"sort"}


def test_what_a_scan_keeps_counts_once(tmp_path):
    """The stack is a state of the loop: it has a name before, in, and after it."""

    def f(layers, x):
        def layer(x, weights):
            return jnp.tanh(x @ weights), None

        return jax.lax.scan(layer, x, layers)[0].sum()

    found, told = peak_of(jax.grad(f), tmp_path, (LAYERS, N, N), (N, N))
    stacks = [row for row in found.live if row.shape == f"f32[{LAYERS},{N},{N}]"]
    # Inputs of the layers, and their results, which the derivative of tanh is computed from; and
    # the gradient is the program's output.
    kept = sum(row.bytes for row in stacks)
    assert kept in (2 * LAYERS * SQUARE, 3 * LAYERS * SQUARE)
    assert {row.operation for row in stacks} <= {
        "jvp()/dynamic_update_slice",
        "transpose(jvp())/dynamic_update_slice",
    }
    assert found.bytes <= found.allocated <= told <= found.bytes + 4096


@pytest.fixture
def lines_kept():
    """The tests' other programs have none."""
    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 10)
    yield
    jax.config.update("jax_traceback_in_locations_limit", before)


def test_lines_of_this_package_are_told(tmp_path, lines_kept):
    graph, state = nnx.split(Mlp(N, 4 * N, rngs=nnx.Rngs(0)))

    def f(state, x):
        return jnp.square(nnx.merge(graph, state)(x)).sum()

    folder = {"xla_dump_to": str(tmp_path)}
    x = jax.ShapeDtypeStruct((N, N), jnp.float32)
    compiled = jax.jit(jax.grad(f)).lower(state, x).compile(compiler_options=folder)
    found = peak(read(compiled), tmp_path)
    hidden = [row for row in found.live if row.shape == f"f32[{N},{4 * N}]"]
    assert hidden and all(row.source.startswith("nn/") for row in hidden), found


@pytest.mark.usefixtures("tpu_compiler")
@pytest.mark.parametrize("donated", [(), (0, 1)])
def test_on_a_tpu_it_is_what_the_compiler_says(tmp_path, donated):
    """Its own figure is the most at any moment, arguments included; products live until their sum
    is there."""
    of_one = SingleDeviceSharding(compile_only_devices("v5e:2x2")[0])
    size = 8192  # 256 MiB each: none lies on the chip
    x = jax.ShapeDtypeStruct((size, size), jnp.float32, sharding=of_one)

    def f(*arrays):
        products = [a @ a for a in arrays]
        total = sum(p.sum() for p in products)
        return [a * total + p for a, p in zip(arrays, products)] if donated else total

    lowered = jax.jit(f, donate_argnums=donated).lower(x, x)
    compiled = lowered.compile(compiler_options={"xla_dump_to": str(tmp_path)})
    found = peak(read(compiled), tmp_path)
    told = compiled.memory_analysis()
    if donated:
        assert {row.shape: row.number for row in found.live[:1]} == {f"f32[{size},{size}]": 2}
    difference = told.peak_memory_in_bytes - told.argument_size_in_bytes - found.bytes
    assert 0 <= difference < 2**20
    assert found.bytes <= found.allocated


def test_a_program_without_texts_has_no_peak(tmp_path):
    compiled = jax.jit(jnp.sin).lower(1.0).compile()
    assert peak(read(compiled), tmp_path) is None


@pytest.mark.parametrize(
    "name, short",
    [
        ("jit(step)/transpose(jvp(model))/image/while/body/closed_call/checkpoint/mul",
         "transpose(jvp(model))/image/mul"),
        ("jit(step)/jit(_where)/select_n", "select_n"),
        ("reshape.1252", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_names_without_loops(name, short):
    assert shortened(name) == short
