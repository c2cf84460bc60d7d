"""Attention by each implementation: against float64, on meshes, and compiled for chips that are not
here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo  # where jax looks for cuDNN
from jax.interpreters import partial_eval
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding, PartitionSpec

from jaxvl.bench.accelerator_parts.attention import exact
from jaxvl.config import ConfigError
from jaxvl.hlo import read, traffic
from jaxvl.hlo.collectives import collectives
from jaxvl.nn import attend as attending
from jaxvl.nn import splash as splashing
from jaxvl.nn.attend import LONG, attend
from jaxvl.nn.splash import blocks, splash
from jaxvl.nn.transformer import Sizes, StackOptions, Transformer
from jaxvl.sharding import MeshConfig, make_mesh
from jaxvl.sharding.topology import compile_only_devices
from jaxvl.training.cost import count_flops


def drawn(rows, queries, keys, heads, width, seed=0):
    """q, k, v and a cotangent, float64."""
    rng = np.random.default_rng(seed)
    shape = lambda length: (rows, length, heads, width)
    return [rng.standard_normal(shape(n)) for n in (queries, keys, keys, queries)]


def with_gradients(f, q, k, v, cotangent, dtype=jnp.float32):
    q, k, v, cotangent = (jnp.asarray(x, dtype) for x in (q, k, v, cotangent))
    y, pull = jax.vjp(f, q, k, v)
    return y, *pull(cotangent)


def on(platform, kind="any"):
    """Under it, programs are traced for a device that is not here."""
    device = AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


@pytest.fixture
def a_tpu_interpreted(monkeypatch):
    """As on a TPU, with its kernel run by an interpreter."""
    monkeypatch.setattr(attending, "device", lambda: ("tpu", "TPU v6e"))
    monkeypatch.setattr(attending, "splash", functools.partial(splash, interpret=True))


# Lengths: two blocks of lanes, filled up; a block of one query; keys of another length.
@pytest.mark.parametrize(
    "queries, keys, width, causal, masked",
    [(200, 200, 72, False, False), (130, 130, 64, True, True), (1, 150, 128, False, True)],
)
def test_flash_equals_float64(queries, keys, width, causal, masked):
    inputs = drawn(2, queries, keys, 2, width)
    seen = np.arange(keys) < np.array([[keys - 30], [keys]]) if masked else None
    flash = functools.partial(splash, causal=causal, interpret=True)
    got = with_gradients(lambda q, k, v: flash(q, k, v, seen), *inputs)
    allowed = (
        np.ones((2, queries, keys), bool) if seen is None else seen[:, None].repeat(queries, 1)
    )
    allowed = allowed & np.tri(queries, dtype=bool) if causal else allowed
    for mine, want in zip(got, exact(*inputs, allowed)):
        np.testing.assert_allclose(mine, want, atol=2e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_several_blocks_are_one_attention(monkeypatch, causal):
    """2 x 3 blocks; gradients of queries are summed over those of keys."""
    monkeypatch.setattr(splashing, "QUERIES", 128)
    monkeypatch.setattr(splashing, "KEYS", 128)
    inputs = drawn(1, 200, 300, 1, 64)
    flash = functools.partial(splash, causal=causal, interpret=True)
    allowed = np.tri(200, 300, dtype=bool)[None] if causal else np.ones((1, 200, 300), bool)
    for mine, want in zip(with_gradients(flash, *inputs), exact(*inputs, allowed)):
        np.testing.assert_allclose(mine, want, atol=2e-5)


def test_flash_in_bfloat16_is_as_near_to_float64_as_xla():
    inputs = [np.asarray(jnp.bfloat16(x), np.float64) for x in drawn(1, 140, 140, 2, 72)]
    want = exact(*inputs)
    error = lambda f: [
        np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max()
        for a, b in zip(with_gradients(f, *inputs, jnp.bfloat16), want)
    ]
    flash = error(functools.partial(splash, interpret=True))
    xla = error(jax.nn.dot_product_attention)
    assert max(flash) < 2 * max(xla) < 0.04


@pytest.fixture
def a_tpu_by_xla(monkeypatch):
    monkeypatch.setattr(attending, "device", lambda: ("tpu", "TPU v6e"))
    return functools.partial(attend, implementation="xla")


@pytest.mark.parametrize("causal, masked", [(False, False), (True, True)])
def test_xla_on_a_tpu_equals_float64(a_tpu_by_xla, causal, masked):
    inputs = drawn(2, 20, 20, 3, 16)
    seen = np.arange(20) < np.array([[15], [20]]) if masked else None
    mask = None if seen is None else seen[:, None, None]
    attention = functools.partial(a_tpu_by_xla, causal=causal)
    got = with_gradients(lambda q, k, v: attention(q, k, v, mask), *inputs)
    allowed = np.ones((2, 20, 20), bool) if seen is None else seen[:, None].repeat(20, 1)
    allowed = allowed & np.tri(20, dtype=bool) if causal else allowed
    for mine, want in zip(got, exact(*inputs, allowed)):
        np.testing.assert_allclose(mine, want, atol=2e-5)


def test_xla_on_a_tpu_in_bfloat16_keeps_no_float32_weights(a_tpu_by_xla):
    """And is as near to float64 as JAX's own, which does."""
    inputs = [np.asarray(jnp.bfloat16(x), np.float64) for x in drawn(1, 140, 130, 2, 72)]
    want = exact(*inputs)
    error = lambda f: [
        np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max()
        for a, b in zip(with_gradients(f, *inputs, jnp.bfloat16), want)
    ]
    assert max(error(a_tpu_by_xla)) < 1.2 * max(error(jax.nn.dot_product_attention)) < 0.02

    def kept(f):
        q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in inputs[:3])
        pull = jax.vjp(f, q, k, v)[1]
        return sum(a.nbytes for a in jax.tree.leaves(pull) if a.size >= 140 * 130)

    weights = 2 * 140 * 130
    small = sum(2 * x.size for x in inputs[:3])
    assert kept(a_tpu_by_xla) <= 2 * weights + small + 2 * inputs[0].size
    assert kept(jax.nn.dot_product_attention) >= 4 * weights + small


def test_blocks_cover_the_sequence():
    assert blocks(729, 1024) == (1, 768)
    assert blocks(577, 512) == (2, 384)
    assert blocks(196, 512) == (1, 256)
    for length in range(1, 3000, 7):
        number, size = blocks(length, 512)
        assert size % 128 == 0 and size <= 512 and (number - 1) * size < length <= number * size


@pytest.mark.parametrize("remat", ["none", "full", "dots", "attention", "offload"])
def test_a_tower_is_the_same_by_flash(a_tpu_interpreted, remat):
    """Padding masks, heads and rows on several devices, scanned and recomputed."""
    x = jax.random.normal(jax.random.key(1), (4, 9, 16))
    mask = jnp.arange(9) < jnp.array([[9], [4], [7], [1]])

    def run(attention, mesh):
        options = StackOptions(attention=attention, remat=remat)
        graphdef, params = nnx.split(Transformer(Sizes(16, 2, 2, 24), options, rngs=nnx.Rngs(0)))

        def loss(params, x):
            y = nnx.merge(graphdef, params)(x, mask=mask)
            return jnp.sum(jnp.where(mask[..., None], y, 0) ** 2)

        with jax.set_mesh(mesh):
            return jax.jit(jax.value_and_grad(loss))(params, x)

    one = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    several = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    want = run("xla", one)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), run("flash", several), want
    )


@pytest.mark.parametrize("shape", [dict(data=2), dict(fsdp=2, tensor=2), dict(expert=2)])
def test_devices_add_up_no_gradients_of_rows_that_are_their_own(a_tpu_interpreted, shape):
    """Sums in the program that the compiler is given; its own are those of weights."""
    devices = np.prod(list(shape.values()))
    mesh = make_mesh(MeshConfig(**{"data": 1, **shape}), jax.devices()[:devices])
    q = jnp.zeros((2, LONG, 2, 8))
    loss = lambda q: jnp.sum(attend(q, q, q, grouped="expert" in shape) ** 2)
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(loss)).lower(q)
    assert "all_reduce" not in lowered.as_text() and kernels_in(jax.grad(loss), q) == 2


def kernels_in(f, *args):
    """How many kernels the program needs, loops counted once."""
    jaxpr = jax.make_jaxpr(f)(*args).jaxpr
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return str(needed).count("pallas_call[")


def test_the_policy_attention_keeps_what_the_backward_kernel_needs(a_tpu_interpreted):
    """Forward and backward kernels alone; `full` runs the forward one again."""
    x = jnp.zeros((1, 9, 16))

    def kernels(remat):
        options = StackOptions(attention="flash", remat=remat)
        graphdef, params = nnx.split(Transformer(Sizes(16, 1, 2, 24), options, rngs=nnx.Rngs(0)))
        return kernels_in(jax.grad(lambda p: nnx.merge(graphdef, p)(x).sum()), params)

    assert kernels("none") == kernels("attention") == 2
    assert kernels("full") == 3


def test_auto_takes_a_kernel_for_long_sequences_only(a_tpu_interpreted):
    def kernels(length, keys, mask=None):
        q, k = (jax.ShapeDtypeStruct((1, n, 1, 64), jnp.bfloat16) for n in (length, keys))
        return kernels_in(functools.partial(attend, mask=mask), q, k, k)

    assert kernels(LONG, LONG) == 1
    assert kernels(LONG - 1, LONG) == kernels(1, LONG) == kernels(LONG, LONG - 1) == 0
    keys = jnp.ones((1, 1, 1, LONG), bool)
    assert kernels(LONG, LONG, keys) == 1
    assert kernels(LONG, LONG, jnp.ones((1, 1, LONG, LONG), bool)) == 0
    with jax.set_mesh(make_mesh(MeshConfig(data=2), jax.devices()[:2])):
        assert kernels(LONG, LONG) == 0  # one row is not divided


def test_auto_needs_cudnn():
    x = jax.ShapeDtypeStruct((1, LONG, 1, 64), jnp.bfloat16)
    with on("gpu", "NVIDIA H200"):
        text = str(jax.make_jaxpr(attend)(x, x, x))
    assert "dot_product_attention" not in text and "dot_general" in text


def test_cudnn_is_lowered_for_cuda(monkeypatch):
    """cuDNN's version is asked of its library, which need not be here."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    x = jax.ShapeDtypeStruct((2, LONG, 4, 64), jnp.bfloat16)
    loss = lambda q, k, v: attend(q, k, v).astype(jnp.float32).sum()
    with on("gpu", "NVIDIA H200"):
        traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(x, x, x)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmax" in text and "__cudnn$fmhaSoftmaxBackward" in text


def test_a_named_one_that_cannot_run_is_refused():
    q, half, odd = (
        jnp.zeros(shape, dtype)
        for shape, dtype in (
            ((1, 4, 1, 8), "float32"),
            ((1, 4, 1, 8), "bfloat16"),
            ((1, 3, 1, 8), "bfloat16"),
        )
    )
    refused = lambda match: pytest.raises(ConfigError, match=f"^attention: {match}")
    with refused("'flash' needs a TPU; this is a cpu; 'auto' takes what can run"):
        attend(q, q, q, implementation="flash")
    with refused("'cudnn' needs an NVIDIA GPU; this is a cpu"):
        attend(half, half, half, implementation="cudnn")
    with on("tpu"), refused("'flash' takes masks of keys only"):
        attend(q, q, q, jnp.ones((1, 1, 4, 4), bool), implementation="flash")
    with on("gpu"), refused("'cudnn' takes bfloat16 and float16, not float32"):
        attend(q, q, q, implementation="cudnn")
    with on("gpu"), refused("'cudnn' takes a mask with even lengths only, not 3 and 3"):
        attend(odd, odd, odd, jnp.ones((1, 1, 1, 3), bool), implementation="cudnn")
    with on("gpu"), refused("'cudnn' takes heads of a multiple of 8 up to 128 wide, not 12"):
        wide = jnp.zeros((1, 4, 1, 12), jnp.bfloat16)
        attend(wide, wide, wide, implementation="cudnn")


def test_work_in_kernels_is_counted():
    """Forward 2 products; backward the logits anew, dv, dp, dk, dq: 7 of whole blocks; and before
    it the result times its cotangent, row by row."""
    q = jnp.zeros((3, 256, 2, 64))
    both = lambda q: jax.vjp(splash, q, q, q)[1](q)
    counted = count_flops(jax.make_jaxpr(both)(q))
    assert counted == 2 * 3 * 2 * 256 * 64 * (7 * 256 + 1)


def tower_step(devices, length, heads, width, attention, mask):
    """A compiled gradient of a layer in bfloat16, 8 rows for each of 2 x 2 x 2 devices."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), devices)
    options = StackOptions(attention=attention, remat="attention")
    sizes = Sizes(heads * width, 1, heads, 256)
    graphdef, params = nnx.split(
        nnx.eval_shape(lambda: Transformer(sizes, options, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    )
    whole = lambda a: jax.ShapeDtypeStruct(
        a.shape, a.dtype, sharding=NamedSharding(mesh, PartitionSpec())
    )
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    x = jax.ShapeDtypeStruct((32, length, heads * width), jnp.bfloat16, sharding=rows)
    seen = jax.ShapeDtypeStruct((32, length), bool, sharding=rows) if mask else None

    def loss(params, x, seen):
        return nnx.merge(graphdef, params)(x, mask=seen).astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss, (0, 1)))
        return step.lower(jax.tree.map(whole, params), x, seen).compile(), mesh


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e", "v6e"])
@pytest.mark.parametrize(
    "length, heads, width, mask",
    [
        (196, 12, 64, False),
        (577, 16, 64, False),
        (729, 16, 72, False),
        (256, 8, 128, True),
        (1500, 4, 128, True),
    ],
)
def test_flash_is_compiled_for_tpus(tpu_compiler, chip, length, heads, width, mask):
    """Nothing as large as a device's queries passes between devices for the kernel's sake."""
    devices = compile_only_devices(f"{chip}:2x4")
    compiled, mesh = tower_step(devices, length, heads, width, "flash", mask)
    program = read(compiled)
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 2
    mine = 8 * length * heads // 2 * width * 2
    found = [c for c in collectives(program, mesh.size) if c.kind in ("all-gather", "all-to-all")]
    # Gradients of parameters are scattered in parts that the compiler chooses.
    gathered = [c for c in found if not c.source.endswith("shard_map/reduce_scatter")]
    assert all(c.size < mine for c in gathered), [(c.kind, c.size, c.source) for c in gathered]


@pytest.mark.slow
def test_flash_moves_less_than_half_of_the_bytes(tpu_compiler):
    devices = compile_only_devices("v6e:2x4")
    flash, xla = (
        traffic(read(tower_step(devices, 729, 16, 72, how, False)[0])) for how in ("flash", "xla")
    )
    assert flash < xla / 2
