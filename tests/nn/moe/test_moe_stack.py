"""Transformers with MoE layers: order, causality, decoding, skills, losses that cannot be lost."""

import dataclasses

import jax
import jax.numpy as jnp
import moe_oracle as oracle
import numpy as np
import pytest
from flax import nnx

from jaxvl.config import resolve
from jaxvl.nn.moe import ExpertChoice, MoeConfig, MoeInputs, Skills, Soft, TokenChoice
from jaxvl.nn.stack import segments
from jaxvl.nn.transformer import Sizes, StackOptions, Transformer
from jaxvl.training.cost import count_flops

DENSE = False
MOE = True


def stack_of(depth=5, **options):
    config = resolve(MoeConfig, dict(experts=4, group_size=16) | options)
    return Transformer(
        Sizes(8, depth, 2, 16), StackOptions(moe=config, init_std=0.3), rngs=nnx.Rngs(params=0)
    )


def x_of(b=4, t=8):
    return jax.random.normal(jax.random.key(1), (b, t, 8))


@pytest.mark.parametrize(
    "kinds, want",
    [
        ((DENSE,) * 3, [((DENSE,), 3)]),
        ((DENSE, DENSE, MOE), [((DENSE,), 2), ((MOE,), 1)]),
        ((DENSE, MOE) * 3, [((DENSE, MOE), 3)]),
        ((DENSE, MOE, DENSE, MOE, DENSE), [((DENSE, MOE), 2), ((DENSE,), 1)]),
        ((MOE, MOE), [((MOE,), 2)]),
    ],
)
def test_segments(kinds, want):
    assert segments(kinds) == want


@pytest.mark.parametrize("where", [dict(last=2), dict(every=2), dict(every=1)])
def test_mixed_stack_is_its_blocks_in_turn(where):
    stack = stack_of(router=TokenChoice(top=2), **where)
    x = x_of()
    kinds = (
        {"last": (0, 0, 0, 1, 1), "every": (0, 1, 0, 1, 0)}[next(iter(where))]
        if where != dict(every=1)
        else (1,) * 5
    )
    y = x
    losses = []
    loads = []
    used = [0, 0]
    halves = [None if m is None else nnx.split(m) for m in (stack.blocks, stack.moe_blocks)]
    run = {i: oracle.quick_jit(lambda p, y, i=i: nnx.merge(halves[i][0], p)(y)) for i in set(kinds)}
    for kind in kinds:
        out = run[kind](jax.tree.map(lambda p, i=used[kind]: p[i], halves[kind][1]), y)
        used[kind] += 1
        y = out.y if kind else out
        if kind:
            losses = [*losses, out.losses]
            loads = [*loads, out.health["load"]]
    got = oracle.quick_jit(stack.routed)(x)
    np.testing.assert_allclose(got.y, y, atol=1e-5)
    np.testing.assert_allclose(got.health["load"], jnp.stack(loads), atol=1e-6)
    assert got.losses.keys() == losses[0].keys()
    for name, value in got.losses.items():
        np.testing.assert_allclose(value, sum(layer[name] for layer in losses), rtol=1e-5)
    unrolled = Transformer(
        stack.sizes, dataclasses.replace(stack.options, scan=False), rngs=nnx.Rngs(params=0)
    )
    np.testing.assert_allclose(oracle.quick_jit(unrolled.routed)(x).y, y, atol=1e-5)


def test_losses_cannot_be_lost_and_dense_stacks_have_none():
    stack = stack_of(last=1)
    x = x_of()
    with pytest.raises(ValueError, match="whose losses would be lost in training; call `routed`"):
        stack(x, train=True)
    dense = Transformer(Sizes(8, 2, 2, 16), StackOptions(), rngs=nnx.Rngs(params=0))
    out = dense.routed(x)
    np.testing.assert_array_equal(out.y, dense(x))
    assert out.losses == {} and out.health == {} and dense.moe_blocks is None


@pytest.mark.parametrize(
    "router, message",
    [
        (ExpertChoice(), "'expert_choice' looks at later tokens"),
        (Soft(2), "'soft' mixes later tokens"),
        (
            TokenChoice(top=2, priority="score"),
            "priority 'score' places later tokens before earlier ones",
        ),
        (TokenChoice(top=2), "priority 'choice' places later tokens"),
    ],
)
def test_routers_that_look_ahead_are_refused_in_causal_layers(router, message):
    with pytest.raises(ValueError, match=f"router: {message}.*but the layer is causal"):
        jax.eval_shape(lambda x: stack_of(depth=1, last=1, router=router)(x, causal=True), x_of())


def test_token_choice_in_order_is_causal():
    """No output before the changed token changes, although an expert's capacity is scarce."""
    stack = stack_of(
        depth=2,
        last=2,
        router=TokenChoice(top=2, capacity_factor=0.5, priority="order"),
        span="row",
    )
    run = oracle.quick_jit(lambda x: stack.routed(x, causal=True))
    x = x_of()
    out = run(x)
    assert out.health["overflow"].min() > 0.2
    changed = run(x.at[:, 5:].multiply(-3.0))
    np.testing.assert_array_equal(out.y[:, :5], changed.y[:, :5])
    assert np.abs(out.y[:, 5:] - changed.y[:, 5:]).max() > 0.1


@pytest.mark.parametrize("where", [dict(last=1), dict(every=2)])
def test_decoding_token_by_token_equals_the_whole(where):
    stack = stack_of(depth=4, router=TokenChoice(top=2, capacity_factor=None), **where)
    x = x_of(2, 3)
    step = oracle.quick_jit(stack.decode_step)
    kv_cache = stack.init_cache(2, 3)
    layers = stack.layers()
    steps = []
    for t in range(3):
        y, kv_cache = step(layers, x[:, t : t + 1], kv_cache, jnp.int32(t))
        steps.append(y)
    np.testing.assert_allclose(
        jnp.concatenate(steps, 1), oracle.quick_jit(lambda x: stack(x, causal=True))(x), atol=1e-5
    )


def test_skills_are_a_mean_and_the_others_neither_run_nor_learn():
    names = ("text", "image", "general")
    stack = stack_of(depth=2, last=2, router=Skills(names), experts=3)
    graphdef, params = nnx.split(stack, nnx.Param)
    x = x_of()

    def loss(params, x, skills=("text", "general")):
        return (
            nnx.merge(graphdef, params).routed(x, moe_inputs=MoeInputs(skills=skills), train=True).y
            ** 2
        ).sum()

    gradient = {
        "/".join(map(str, p)): v[...]
        for p, v in nnx.to_flat_state(oracle.quick_jit(jax.grad(loss))(params, x))
    }
    for path, g in gradient.items():
        if "/skills/" in path:
            assert (np.abs(g).max() > 0) == ("/image/" not in path), path
    # Not a number in what is not read is not seen.
    for path, variable in nnx.to_flat_state(params):
        if "image" in path:
            variable[...] = jnp.full(variable.shape, jnp.nan)
    assert np.isfinite(loss(params, x))
    flops = [
        count_flops(jax.make_jaxpr(lambda x, s=s: loss(params, x, s))(x))
        for s in (names[:1], names[:2])
    ]
    assert (
        flops[1] - flops[0] == 2 * (2 * 4 * 8 * 8 * 16) * 2
    )  # one perceptron more: layers x 2 BTDF x 2 products

    layer = oracle.layer_of(Skills(names), experts=3, width=8)
    module = nnx.merge(*layer)
    alone = [module(x, skills=(s,)).y for s in ("text", "general")]
    np.testing.assert_allclose(
        module(x, skills=("text", "general")).y, (alone[0] + alone[1]) / 2, atol=1e-6
    )
    np.testing.assert_array_equal(alone[0], module.skills["text"](x))
    with pytest.raises(
        ValueError, match=r"skills: \('sound',\) must be some of text, image, general"
    ):
        module(x, skills=("sound",))
    with pytest.raises(ValueError, match="skills: .* but the router is learned"):
        stack_of(depth=1, last=1).routed(x, moe_inputs=MoeInputs(skills=("text",)))
