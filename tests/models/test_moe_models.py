"""Encoders with MoE layers: what they report, and that encoding in parts changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import DUAL, SMALL_TEXT, SMALL_VIT, batch_of, model_of, with_options

from jaxvl.config import ConfigError, choose, resolve
from jaxvl.models import MODELS, TEXT_ENCODERS
from jaxvl.objectives import OBJECTIVES
from jaxvl.training import step

MOE = dict(
    router=dict(name="token_choice", top=2, capacity_factor=0.7), experts=4, last=1, span="row"
)


def test_both_towers_report_and_microbatches_give_the_same_gradient():
    """Groups of one example each: the routers' losses and the contrastive loss of 8 rows at once
    equal those of 2 x 4."""
    text_moe = dict(MOE, router=dict(name="expert_choice"), last=None, every=2)
    depths = dict(image__depth=1, text__depth=2)
    model, _ = model_of(with_options(DUAL, image__moe=MOE, text__moe=text_moe, **depths))
    params, rest = model.init(jax.random.key(0))
    assert model.axes["image/encoder/transformer/moe_blocks/moe/experts/up/kernel"] == (
        "layers",
        "expert",
        "embed",
        "mlp",
    )
    batch = batch_of(8)
    uses = [
        resolve(OBJECTIVES["clip"], {}),
        resolve(OBJECTIVES["routing"], dict(losses=dict(balance=0.1, z=0.01))),
    ]

    def encode(params, rest, chunk, key):
        return model.apply(params, rest, chunk, train=True, key=key)

    def objectives(outputs):
        losses = [use(outputs, dict(id=jnp.arange(8)), (), None)[0] for use in uses]
        return sum(loss.value for loss in losses), losses[1].metrics

    quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    parts = quick_jit(
        lambda p: step._chunked(2, encode, objectives, p, rest, batch, jax.random.key(1))
    )(params)
    whole = quick_jit(lambda p: step._whole(encode, objectives, p, rest, batch, jax.random.key(1)))(
        params
    )
    assert {"dead", "dropped", "load/3", "balance"} <= whole[1].keys() and whole[1][
        "load_entropy"
    ] > 0
    for name in (
        "balance",
        "z",
    ):  # the health of texts with padding is a mean of the parts' shares, not a share of the whole
        np.testing.assert_allclose(parts[1][name], whole[1][name], rtol=1e-5)
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-5)
    scale = max(np.abs(g).max() for g in whole[2].values())
    for path, gradient in whole[2].items():
        np.testing.assert_allclose(parts[2][path], gradient, atol=1e-5 * scale, err_msg=path)
    router = whole[2]["text/encoder/transformer/moe_blocks/moe/router/map/kernel"]
    assert router.shape == (1, 24, 4) and np.abs(router).max() > 0


@pytest.mark.parametrize(
    "node, message",
    [
        (dict(SMALL_TEXT, moe=dict(experts=4, last=4)), "moe.last: 4 layers are more than the 3"),
        (
            dict(SMALL_TEXT, causal=True, pool="last", moe=dict(experts=4, last=1)),
            "moe.router: 'expert_choice' looks at later tokens",
        ),
        (
            dict(SMALL_TEXT, moe=dict(experts=3, last=1, router="skills")),
            "moe.router: 'skills' are named call by call",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused(node, message):
    with pytest.raises(ConfigError, match=message):
        choose(TEXT_ENCODERS, node, "")


def test_a_model_that_would_lose_the_losses_is_refused():
    with pytest.raises(ConfigError, match="image.moe: the losses of its layers would be lost"):
        choose(MODELS, dict(name="coca", image=dict(SMALL_VIT, moe=MOE)), "")
