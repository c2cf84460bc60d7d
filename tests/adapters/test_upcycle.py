"""Upcycling: identical experts are the dense model, different ones are where they should be, and
only gates are trained."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvl.adapters.upcycle import ALL_BUT_ROUTERS, upcycle
from jaxvl.nn.moe import MoeConfig, TokenChoice
from jaxvl.nn.transformer import Sizes, StackOptions, Transformer
from jaxvl.training.optim import OptimConfig, optimiser
from jaxvl.training.state import subset

SIZES = Sizes(8, 4, 2, 12)
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
CLIP_MOE = TokenChoice(top=2, capacity_factor=None, renormalise=True)


@functools.cache
def stack_of(moe=None, seed=0):
    """(graphdef, shapes, flat params) under `image/transformer/`, drawn at random."""
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: Transformer(SIZES, StackOptions(moe=moe), rngs=nnx.Rngs(params=0))),
        nnx.Param,
    )
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32)
    return (
        graphdef,
        state,
        {f"image/transformer/{'/'.join(p)}": draw(v.shape) for p, v in nnx.to_flat_state(state)},
    )


def apply(graphdef, state, arrays, x):
    pairs = [
        (p, v.replace(arrays[f"image/transformer/{'/'.join(p)}"]))
        for p, v in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(pairs)).routed(x)


def run(graphdef, state, arrays, x):
    return quick_jit(functools.partial(apply, graphdef, state))(arrays, x)


def moe(**options):
    return MoeConfig(**dict(router=CLIP_MOE, experts=4, bias=True) | options)


@pytest.mark.parametrize("where", [dict(last=2), dict(every=2), dict(last=4)])
def test_identical_experts_with_renormalised_gates_are_the_dense_model(where):
    config = moe(**where)
    graphdef, state, dense = stack_of()
    x = jax.random.normal(jax.random.key(9), (2, 6, 8))
    target = stack_of(config, seed=1)
    params = upcycle([dense], target[2], config)
    np.testing.assert_allclose(
        run(*target[:2], params, x).y, run(graphdef, state, dense, x).y, atol=1e-5
    )


def test_several_sources_become_the_experts():
    config = moe(every=2)
    sources = [stack_of(seed=s)[2] for s in (0, 1)]
    params = upcycle(sources, stack_of(config, seed=2)[2], config)
    kernel = params["image/transformer/moe_blocks/moe/experts/up/kernel"]
    for e in range(4):
        np.testing.assert_array_equal(
            kernel[:, e],
            sources[e % 2]["image/transformer/blocks/mlp/up/kernel"][jnp.array([1, 3])],
        )
    shared = "attention/query/kernel"
    np.testing.assert_array_equal(
        params[f"image/transformer/moe_blocks/{shared}"],
        sources[0][f"image/transformer/blocks/{shared}"][jnp.array([1, 3])],
    )


def test_only_gates_are_trained():
    config = moe(last=2)
    graphdef, state, fresh = stack_of(config)
    params = upcycle([stack_of(seed=1)[2], stack_of(seed=2)[2]], fresh, config)
    axes = {
        f"image/transformer/{'/'.join(p)}": v.get_metadata()["axes"]
        for p, v in nnx.to_flat_state(state)
    }
    tx, trained = optimiser(OptimConfig(freeze=ALL_BUT_ROUTERS, weight_decay=0.1, lr=0.1), axes)
    assert [p for p in trained if trained[p]] == [
        "image/transformer/moe_blocks/moe/router/map/kernel"
    ]
    x = jax.random.normal(jax.random.key(9), (2, 6, 8))

    def loss(some):
        out = apply(graphdef, state, {**params, **some}, x)
        return (out.y**2).sum() + 0.01 * out.losses["balance"]

    some = subset(params, trained)
    update, _ = tx.update(quick_jit(jax.grad(loss))(some), tx.init(some), some)
    after = {**params, **{p: v - 0.1 * update[p] for p, v in some.items()}}
    for path, value in params.items():
        assert (np.abs(after[path] - value).max() > 1e-3) == bool(re.search("router", path)), path
    value = quick_jit(loss)
    assert value(subset(after, trained)) < value(some)


def test_what_finds_no_place_is_named():
    _, _, dense = stack_of()
    with pytest.raises(
        ValueError,
        match=r"of the source without a place: \['image/transformer/blocks/mlp/down/bias', .*up/bias'\]",
    ):
        upcycle([dense], stack_of(moe(last=4, bias=False))[2], moe(last=4, bias=False))
    with pytest.raises(ValueError, match="sources: 3 must divide the 4 experts"):
        upcycle([dense] * 3, stack_of(moe(last=1))[2], moe(last=1))
    with pytest.raises(ValueError, match="of another shape: .*up/kernel"):
        upcycle([dense], stack_of(moe(last=1, hidden=5))[2], moe(last=1, hidden=5))
