"""Sharding is layout, never meaning: every mesh and collective gives the numbers of one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contrastive_cases import CASES, daily, diagonal, quick_jit, unit_rows
from contrastive_oracle import check, loss_and_gradients
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxvl.kernels.contrastive import Chunked, Diagonal, SameId, contrastive_loss, plan

MESHES = {"2": (2, 1), "4": (4, 1), "8": (1, 8), "2x4": (2, 4)}


def mesh_of(shape, names=("data", "fsdp"), kind=AxisType.Auto):
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape), devices=devices)


def run(mesh, u, v, log_scale, targets, kind="softmax", bias=0.0, **options):
    """Value and gradients on `mesh` (None: one device), inputs sharded as a trainer would."""

    @quick_jit
    def step(u, v, log_scale, bias, targets):
        def loss(u, v, log_scale, bias):
            return contrastive_loss(
                u, v, log_scale, targets=targets, kind=kind, bias=bias, **options
            )

        value, grads = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(u, v, log_scale, bias)
        return value, *grads

    if mesh is None:
        return step(u, v, jnp.float32(log_scale), jnp.float32(bias), targets)
    with jax.set_mesh(mesh):
        if len(u) % mesh.size == 0:
            u, v = jax.device_put((u, v), NamedSharding(mesh, PartitionSpec(mesh.axis_names[:2])))
        return step(u, v, jnp.float32(log_scale), jnp.float32(bias), targets)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("collective", ["ring", "gather", "grid"])
@pytest.mark.parametrize("mesh", MESHES)
def test_equals_one_device(mesh, collective, kind):
    rng = np.random.default_rng(0)
    u = unit_rows(rng, 64, 16)
    v = unit_rows(rng, 64, 16)
    targets = Diagonal(label_smoothing=0.1)
    one = run(None, u, v, 2.0, targets, kind, bias=-1.0, implementation=Chunked(16, 8))
    many = run(
        mesh_of(MESHES[mesh]),
        u,
        v,
        2.0,
        targets,
        kind,
        bias=-1.0,
        implementation=Chunked(16, 8),
        collective=collective,
    )
    for a, b in zip(one, many, strict=True):
        assert np.abs(a - b).max() <= 1e-6 * max(np.abs(a).max(), 1e-3)


def check_case(case, sizes, collective, seed):
    """Loss and gradients over a mesh are those of the matrix of a case's targets."""
    build, ratio = CASES[case]
    rng = np.random.default_rng(seed)
    # not a multiple of the 8 devices
    m = 21
    n = 21 * ratio
    targets, dense = build(m, n, rng)
    u = unit_rows(rng, m, 6)
    v = unit_rows(rng, n, 6)
    got = run(mesh_of(sizes), u, v, 1.5, targets, collective=collective)
    check(got[:4], loss_and_gradients(u, v, np.float32(1.5), dense)[:4], 1.5)


@pytest.mark.parametrize("collective", ["ring", "gather", "grid"])
@pytest.mark.parametrize("case", [daily(case) for case in CASES])
def test_every_target_on_a_mesh(case, collective):
    check_case(case, (2, 4), collective, seed=1)


@pytest.mark.parametrize("collective", ["ring", "grid"])
@pytest.mark.parametrize("case", ["same_id", "soft_linear", "mask_valid"])
def test_sigmoid_targets(case, collective):
    rng = np.random.default_rng(2)
    targets, dense = CASES[case][0](20, 20, rng)
    u = unit_rows(rng, 20, 6)
    v = unit_rows(rng, 20, 6)
    got = run(mesh_of((2, 4)), u, v, 1.5, targets, "sigmoid", bias=-2.0, collective=collective)
    check(got, loss_and_gradients(u, v, np.float32(1.5), dense, "sigmoid", bias=-2.0), 1.5)


def test_explicit_axes_and_axes_that_do_not_shard_the_batch():
    rng = np.random.default_rng(3)
    u = unit_rows(rng, 16, 6)
    v = unit_rows(rng, 16, 6)
    targets, dense = diagonal(16, 16, rng)
    want = loss_and_gradients(u, v, np.float32(1.0), dense)
    for mesh in (
        mesh_of((2, 2), kind=AxisType.Explicit),
        mesh_of((2, 2, 2), ("data", "fsdp", "tensor")),
    ):
        check(run(mesh, u, v, 1.0, targets)[:4], want[:4], 1.0)
    check(
        run(mesh_of((2, 2), ("replica", "x")), u, v, 1.0, targets, mesh_axes=("replica", "x"))[:4],
        want[:4],
        1.0,
    )


@pytest.mark.parametrize("collective", ["ring", "gather", "grid"])
def test_inside_shard_map(collective):
    """Local rows and ids in, loss of the whole batch out, gradients to every shard."""
    rng = np.random.default_rng(4)
    u = unit_rows(rng, 24, 6)
    v = unit_rows(rng, 24, 6)
    ids = jnp.asarray(rng.integers(0, 9, 24))
    axes = ("data", "fsdp")
    batch = PartitionSpec(axes)
    with jax.set_mesh(mesh_of((2, 4))):

        @functools.partial(
            jax.shard_map,
            in_specs=(batch, batch, PartitionSpec(), batch),
            out_specs=PartitionSpec(),
        )
        def inside(u, v, log_scale, ids):
            return contrastive_loss(
                u, v, log_scale, targets=SameId(ids), mesh_axes=axes, collective=collective
            )

        got = quick_jit(jax.value_and_grad(inside, argnums=(0, 1, 2)))(u, v, jnp.float32(1.0), ids)
    want = run(None, u, v, 1.0, SameId(ids))
    for a, b in zip((got[0], *got[1]), want, strict=False):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_inside_shard_map_the_axes_must_be_named():
    with jax.set_mesh(mesh_of((2, 1))):
        forgot = jax.shard_map(
            lambda u: contrastive_loss(u, u, 0.0),
            in_specs=PartitionSpec("data"),
            out_specs=PartitionSpec(),
        )
        with pytest.raises(ValueError, match="mesh_axes: is required inside shard_map"):
            forgot(jnp.ones((4, 2)))
        local = jax.shard_map(
            lambda u: contrastive_loss(u, u, 0.0, mesh_axes=())[None],
            in_specs=PartitionSpec("data"),
            out_specs=PartitionSpec("data"),
        )
        np.testing.assert_allclose(local(jnp.ones((4, 2))), np.log(2.0) * np.ones(2), rtol=1e-6)


def test_collective_is_chosen_by_size():
    with jax.set_mesh(mesh_of((8, 1))):
        assert plan((512, 512, 512)).collective == "gather"
        assert plan((32768, 32768, 512)).collective == "ring"
        assert plan((32768, 32768, 512), collective="gather").collective == "gather"
    assert plan((32768, 32768, 512)).collective is None


def test_only_a_gather_holds_a_whole_side():
    u = jax.ShapeDtypeStruct((64, 16), jnp.float32)
    with jax.set_mesh(mesh_of((8, 1))):
        text = {
            how: jax.jit(
                jax.grad(lambda u, v, how=how: contrastive_loss(u, v, 1.0, collective=how), (0, 1))
            )
            .lower(u, u)
            .compile()
            .as_text()  # noqa: B023
            for how in ("ring", "gather", "grid")
        }
    assert "collective-permute" in text["ring"] and "f32[64,16]" not in text["ring"]
    assert "collective-permute" not in text["gather"] and "f32[64,16]" in text["gather"]
    assert "reduce-scatter" in text["grid"] and "f32[64,16]" not in text["grid"]
    # 2 x 4 devices of 8 rows.
    assert "f32[16,16]" in text["grid"] and "f32[32,16]" in text["grid"]
