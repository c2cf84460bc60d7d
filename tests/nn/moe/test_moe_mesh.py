"""Expert parallelism is layout: any mesh gives the numbers of one device, and tokens travel by
all-to-all."""

import re

import jax
import jax.numpy as jnp
import moe_oracle as oracle
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxvl.nn.moe import ExpertChoice, MoeConfig, Soft, TokenChoice, dispatch
from jaxvl.nn.transformer import Sizes, StackOptions, Transformer
from jaxvl.sharding import MeshConfig, make_mesh, param_shardings

ROUTERS = {
    "expert_choice": (ExpertChoice(), "gather"),
    "einsum": (ExpertChoice(), "einsum"),
    "token_choice": (TokenChoice(top=2, priority="score"), "gather"),
    "soft": (Soft(2), "gather"),
}
MESHES = {2: dict(data=1, expert=2), 4: dict(data=2, expert=2), 8: dict(data=2, fsdp=2, expert=2)}
SIZES = dict(experts=8, group_size=8, width=8)


def mesh_of(**axes):
    config = MeshConfig(**axes)
    return make_mesh(config, jax.devices()[: int(np.prod([n for n in axes.values()]))])


def placed(params, x, mesh):
    """Weights and tokens as a trainer lays them out."""
    pairs = nnx.to_flat_state(params)
    axes = {"/".join(p): v.get_metadata()["axes"] for p, v in pairs}
    where = param_shardings(axes, {"/".join(p): v.shape for p, v in pairs}, mesh)
    params = nnx.from_flat_state(
        [(p, v.replace(jax.device_put(v[...], where["/".join(p)]))) for p, v in pairs]
    )
    return params, jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))


def step_of(graphdef, mask):
    @oracle.quick_jit
    def step(params, x):
        def loss(params, x):
            out = nnx.merge(graphdef, params)(x, mask=mask, train=True)
            return (out.y**2).sum() + sum(out.losses.values(), jnp.float32(0)), (out.y, out.health)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    return step


def tokens(t=8, lengths=5):
    x = jax.random.normal(jax.random.key(1), (8, t, 8))
    return x, jnp.arange(t) < 3 + jnp.arange(8)[:, None] % lengths


@pytest.mark.parametrize("router", ROUTERS)
def test_expert_parallel_equals_one_device(router):
    choice, dispatch = ROUTERS[router]
    graphdef, params = oracle.layer_of(choice, dispatch, **SIZES)
    x, mask = tokens()
    step = step_of(graphdef, mask)
    one = step(params, x)
    for devices in MESHES if router == "expert_choice" else [8]:
        mesh = mesh_of(**MESHES[devices])
        with jax.set_mesh(mesh):
            program = step.lower(*placed(params, x, mesh)).compile()
            many = program(*placed(params, x, mesh))
        for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(many), strict=True):
            scale = max(np.abs(a).max(), 1e-3)
            np.testing.assert_allclose(
                a, b, atol=1e-5 * scale, err_msg=f"{devices} {jax.tree_util.keystr(path)}"
            )
        text = program.as_text()
        # To the experts and back; the same in the backward pass.
        assert len(re.findall(r"= .*\sall-to-all(?:-start)?\(", text)) >= 4, devices


def test_nothing_of_all_groups_is_gathered_on_a_device():
    """The router's probabilities [G, E, S] and the places [G, E, C, D] of all groups exist
    nowhere."""
    graphdef, params = oracle.layer_of(ExpertChoice(), **SIZES)
    x, mask = tokens()
    mesh = mesh_of(data=4, expert=2)
    with jax.set_mesh(mesh):
        text = step_of(graphdef, mask).lower(*placed(params, x, mesh)).compile().as_text()
    for line in re.findall(r"= (f32\[[\d,]*\]).*\sall-gather(?:-start)?\(", text):
        size = np.prod([int(n) for n in re.findall(r"\d+", line[3:])])
        assert size <= x.size // 4, (
            line
        )  # the tokens of this data shard, back from the experts' devices


def test_ragged_on_data_and_fsdp_and_refused_where_experts_are_sharded():
    graphdef, params = oracle.layer_of(TokenChoice(top=2, capacity_factor=None), "ragged", **SIZES)
    x, mask = tokens()
    step = step_of(graphdef, mask)
    one = step(params, x)
    mesh = mesh_of(data=2, fsdp=2)
    with jax.set_mesh(mesh):
        many = step(*placed(params, x, mesh))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(a).max(), 1e-3))
    mesh = mesh_of(data=2, expert=2)
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match="dispatch: 'ragged' needs a mesh of data x fsdp alone"),
    ):
        step.lower(*placed(params, x, mesh))


def test_groups_that_the_mesh_does_not_divide():
    """One group over all examples: correct, if not spread."""
    graphdef, params = oracle.layer_of(ExpertChoice(), experts=4, group_size=64, width=8)
    x, mask = tokens()
    step = step_of(graphdef, mask)
    one = step(params, x)
    mesh = mesh_of(data=2, expert=2)
    with jax.set_mesh(mesh):
        many = step(*placed(params, x, mesh))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(a).max(), 1e-3))


def test_a_scanned_and_rematerialised_stack_on_a_mesh():
    moe = MoeConfig(router=TokenChoice(top=2), experts=4, last=2, group_size=16)
    stack = Transformer(
        Sizes(8, 3, 2, 16), StackOptions(moe=moe, remat="full"), rngs=nnx.Rngs(params=0)
    )
    graphdef, params = nnx.split(stack, nnx.Param)
    x, mask = tokens()

    @oracle.quick_jit
    def step(params, x):
        def loss(params):
            out = nnx.merge(graphdef, params).routed(x, mask=mask, train=True)
            return (out.y**2).sum() + out.losses["balance"], out.health

        return jax.value_and_grad(loss, has_aux=True)(params)

    one = step(params, x)
    mesh = mesh_of(data=2, fsdp=2, expert=2)
    with jax.set_mesh(mesh):
        many = step(*placed(params, x, mesh))
    # Of the whole: some gradients, as of the keys' bias, are 0 but for rounding.
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one[1]))
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(
            a, b, rtol=1e-5, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.parametrize("router", ["expert_choice", "token_choice", "soft"])
def test_examples_on_their_own_in_evaluation(router):
    """One group each: as on one device, and no device gathers the tokens or places of all."""
    choice, dispatch = ROUTERS[router]
    graphdef, params = oracle.layer_of(choice, dispatch, eval_span=None, **SIZES)
    x, mask = tokens()
    run = oracle.quick_jit(lambda params, x: nnx.merge(graphdef, params)(x, mask=mask).y)
    one = run(params, x)
    mesh = mesh_of(data=4, expert=2)
    with jax.set_mesh(mesh):
        program = run.lower(*placed(params, x, mesh)).compile()
        many = program(*placed(params, x, mesh))
    np.testing.assert_allclose(one, many, atol=1e-5 * np.abs(one).max())
    for line in re.findall(r"= (f32\[[\d,]*\]).*\sall-gather(?:-start)?\(", program.as_text()):
        size = np.prod([int(n) for n in re.findall(r"\d+", line[3:])])
        assert size <= x.size // 4, line


@pytest.mark.parametrize("rows, told", [(8, False), (6, True)])
def test_groups_that_do_not_divide_over_the_mesh_are_told(rows, told, caplog):
    """Groups of 8 tokens, a row each, on 4 shards of the batch."""
    dispatch._tell.cache_clear()
    graphdef, params = oracle.layer_of(ExpertChoice(), **SIZES)
    x, _ = tokens()
    mesh = mesh_of(data=4)
    with jax.set_mesh(mesh):
        forward = lambda params, x: nnx.merge(graphdef, params)(x, train=True).y
        jax.eval_shape(forward, params, x[:rows])
    assert ("6 groups of tokens do not divide over 4 shards" in caplog.text) is told
