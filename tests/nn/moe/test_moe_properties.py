"""What holds for any tokens: order within a group, capacity, drops, companions."""

import functools

import jax
import jax.numpy as jnp
import moe_oracle as oracle
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvl.config import ConfigError
from jaxvl.nn.moe import ExpertChoice, MoeConfig, Skills, Soft, TokenChoice
from jaxvl.nn.moe.router import Tokens, capacity

SIZE = 12
ROUTERS = {
    "expert_choice": ExpertChoice(),
    "token_choice": TokenChoice(top=2, capacity_factor=0.8, priority="score"),
    "soft": Soft(2),
}
quick = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 2**31)


@functools.cache
def compiled(name, span="batch"):
    graphdef, params = oracle.layer_of(ROUTERS[name], span=span)
    return oracle.quick_jit(lambda x, mask: nnx.merge(graphdef, params)(x, mask=mask))


@functools.cache
def routed(name):
    graphdef, params = oracle.layer_of(ROUTERS[name])
    route = lambda x, real: vars(
        nnx.merge(graphdef, params).router(
            x, Tokens(real), ragged=False, drops=True, train=False, key=None
        )
    )
    return oracle.quick_jit(route)


def tokens(seed, b=2):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(b, SIZE, oracle.D)), jnp.float32)
    return x, jnp.asarray(rng.random((b, SIZE)) < 0.8), rng


@quick
@given(seeds, st.sampled_from(sorted(ROUTERS)))
def test_order_within_a_group_does_not_matter(seed, name):
    x, mask, rng = tokens(seed)
    order = rng.permutation(SIZE)
    a = compiled(name)(x, mask)
    b = compiled(name)(x[:, order], mask[:, order])
    np.testing.assert_allclose(a.y[:, order], b.y, atol=1e-5)


@quick
@given(seeds)
def test_expert_choice_fills_every_place_with_different_tokens(seed):
    x, mask, _ = tokens(seed)
    real = mask.astype(jnp.float32)
    routing = routed("expert_choice")(x, real)
    places = SIZE // oracle.E
    plan = routing["plan"]
    assert plan.token.shape == (2, oracle.E, places)
    for g in range(2):
        for e in range(oracle.E):
            assert len(set(np.asarray(plan.token[g, e]).tolist())) == places
        seen = {
            t
            for e in range(oracle.E)
            for t, taken in zip(plan.token[g, e].tolist(), plan.taken[g, e].tolist())
            if taken
        }
        assert not any(t in seen for t in range(SIZE) if not mask[g, t]), (
            "padding takes no place that counts"
        )
        nobody = [t for t in range(SIZE) if t not in seen]
        np.testing.assert_array_equal(
            compiled("expert_choice")(x, mask).y[g, nobody], 0
        )  # the residual carries them


@quick
@given(seeds)
def test_token_choice_drops_what_exceeds_the_capacity_and_nothing_else(seed):
    x, mask, _ = tokens(seed)
    routing = routed("token_choice")(x, mask.astype(jnp.float32))
    plan = routing["plan"]
    probs = np.asarray(routing["probs"])
    places = capacity(0.8 * 2, SIZE, oracle.E)
    dropped = 0
    wanted = 0
    for g in range(2):
        chosen = np.argsort(-probs[g], -1, kind="stable")[:, :2][np.asarray(mask[g])]
        asked = np.bincount(chosen.reshape(-1), minlength=oracle.E)
        np.testing.assert_array_equal(plan.taken[g].sum(-1), np.minimum(asked, places))
        dropped = dropped + np.maximum(asked - places, 0).sum()
        wanted = wanted + asked.sum()
    np.testing.assert_allclose(routing["overflow"], dropped / max(wanted, 1), atol=1e-6)


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_companions_matter_where_groups_cross_examples_and_only_there(name):
    x, _, _ = tokens(0, b=4)
    x = x[:, : SIZE // 2]  # two examples a group
    other = x.at[1].set(x[3])
    mask = jnp.ones(x.shape[:2], bool)
    batch, rows = (compiled(name, span) for span in ("batch", "row"))
    assert np.abs(batch(x, mask).y[0] - batch(other, mask).y[0]).max() > 1e-4
    np.testing.assert_array_equal(rows(x, mask).y[0], rows(other, mask).y[0])
    parts = [rows(part, mask[:2]) for part in (x[:2], x[2:])]  # as microbatches
    whole = rows(x, mask)
    np.testing.assert_allclose(np.concatenate([p.y for p in parts]), whole.y, atol=1e-6)
    for key, value in whole.losses.items():
        np.testing.assert_allclose(np.mean([p.losses[key] for p in parts]), value, rtol=1e-5)


def test_capacity_is_rounded_and_at_least_one():
    assert [capacity(f, 12, 8) for f in (1.0, 1.25, 0.1, 100.0)] == [2, 2, 1, 12]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(), "last: give either last"),
        (dict(last=1, every=2), "last: give either last"),
        (
            dict(last=1, router=TokenChoice(top=3), experts=2),
            "router.top: 3 must be <= the 2 experts",
        ),
        (dict(last=1, dispatch="ragged"), "dispatch: 'ragged' is not one of gather, einsum"),
        (dict(last=1, router=Skills(("a", "b"))), "experts: 16 must be the number of skills, 2"),
    ],
)
def test_configurations_that_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        MoeConfig(**options)


def test_more_that_is_refused():
    with pytest.raises(ConfigError, match="last: 3 layers are more than the 2"):
        MoeConfig(last=3).layers(2)
    with pytest.raises(ConfigError, match="renormalise: with top = 1"):
        TokenChoice(renormalise=True)
    graphdef, params = oracle.layer_of(ExpertChoice(), group_size=10)
    layer = nnx.merge(graphdef, params)
    with pytest.raises(
        ValueError, match="group_size: 13 tokens have no divisor between the 4 experts and 10"
    ):
        jax.eval_shape(layer, jnp.ones((1, 13, oracle.D)))
    with pytest.raises(ValueError, match="modality: given, but"):
        jax.eval_shape(lambda x: layer(x, modality=jnp.array([[0]])), jnp.ones((1, 8, oracle.D)))
