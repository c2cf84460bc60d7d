"""An embedding is that of its record, whatever the record is batched with: dense models, and all
routers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import ALIGN, DUAL, SMALL_VIT, batch_of, model_of, with_options

from jaxvl.models import InputSpec
from jaxvl.models.functional import functional
from jaxvl.models.imp import ImpConfig
from jaxvl.nn.moe import MoeConfig, Skills
from jaxvl.objectives.multi_instance import ModalityPairs

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
ROUTERS = {
    "expert_choice": dict(),
    "einsum": dict(dispatch="einsum"),
    "scarce": dict(router=dict(name="expert_choice", capacity_factor=0.1)),
    "token_choice": dict(
        router=dict(name="token_choice", top=2, capacity_factor=0.5, priority="score")
    ),
    "ragged": dict(router=dict(name="token_choice", top=2), dispatch="ragged"),
    "soft": dict(router=dict(name="soft", slots=2)),
}


def embeddings(encode, images, texts):
    """encode(image [B, …], text [B, T]) of one record alone, and of the same third among others,
    then among padding."""
    image = jnp.zeros_like(images).at[2].set(images[2])
    text = jnp.zeros_like(texts).at[2].set(texts[2])
    alone = encode(images[2:3], texts[2:3])
    return [
        alone,
        *([rows[2:3] for rows in encode(*batch)] for batch in ((images, texts), (image, text))),
    ]


def check_equal(found):
    alone, *others = ([np.asarray(rows) for rows in pair] for pair in found)
    for pair in others:
        for mine, theirs in zip(alone, pair, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-6)


def dual(moe):
    """Encode functions of two towers whose only layer has `moe`."""
    model, _ = model_of(
        with_options(DUAL, image__moe=moe, image__depth=1, text__moe=moe, text__depth=1)
    )
    params, rest = model.init(jax.random.key(0))
    # Routers that decide clearly: at the start they are nearly even.
    params = {p: 50 * v if "/router/map/" in p else v for p, v in params.items()}

    @quick_jit
    def encode(images, texts):
        read = functools.partial(model.apply, params, rest)
        return read(images, method="encode_image")[0], read(texts, method="encode_text")[0]

    return encode


DAILY = ("expert_choice", "token_choice", "soft")  # the others are options of these


@pytest.mark.parametrize(
    "router", [pytest.param(r, marks=[] if r in DAILY else [pytest.mark.slow]) for r in ROUTERS]
)
def test_every_router(router):
    moe = dict(experts=4, last=1, **ROUTERS[router])
    batch = batch_of(5)
    check_equal(embeddings(dual(moe), batch["image"], batch["text"]))


def test_groups_of_training_are_there_for_who_wants_them():
    moe = dict(experts=4, last=1, eval_span="batch")
    batch = batch_of(5)
    alone, among, _ = embeddings(dual(moe), batch["image"], batch["text"])
    assert all(np.abs(mine - theirs).max() > 1e-4 for mine, theirs in zip(alone, among))


COCA = dict(
    name="coca",
    image=dict(SMALL_VIT, pool="mean"),
    width=16,
    heads=2,
    hidden=32,
    unimodal=1,
    multimodal=1,
    queries=2,
    embed_dim=8,
)


@pytest.mark.parametrize("node", [DUAL, ALIGN, COCA], ids=lambda node: node["name"])
def test_dense_models(node):
    model, _ = model_of(node)
    params, rest = model.init(jax.random.key(0))
    batch = batch_of(5)

    @quick_jit
    def encode(images, texts):
        outputs, _ = model.apply(params, rest, {"image": images, "text": texts})
        return [
            outputs[name]
            for name in ("image", "text", "caption_lse", "caption_target")
            if name in outputs
        ]

    check_equal(embeddings(encode, batch["image"], batch["text"]))


# --------------------------------------------------------------------------------------------------
# IMP, trained for a few steps in groups of several examples

INPUTS = InputSpec(32, 8, 50, 0, 1)
IMP = ImpConfig(
    variant="small",
    width=32,
    depth=2,
    heads=2,
    hidden=64,
    embed_dim=16,
    projection_hidden=24,
    patch=8,
    inputs=("image", "text"),
)


def trained_imp(moe, steps=8):
    """(model, params) after some steps on random pairs of one picture and one text."""
    model = functional(dataclasses.replace(IMP, moe=moe), INPUTS)
    params, rest = model.init(jax.random.key(0))
    assert not rest
    objective = ModalityPairs()

    @quick_jit
    def step(params, batch):
        def loss(params):
            outputs, _ = model.apply(params, {}, batch, train=True, key=jax.random.key(0))
            return objective(outputs, {"group_id": jnp.arange(8)}, (), None)[0].value

        value, gradient = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient), value

    batch = batch_of(8, INPUTS)
    losses = []
    for _ in range(steps):
        params, value = step(params, batch)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    return model, params


def imp_encode(model, params):
    @quick_jit
    def encode(images, texts):
        return tuple(
            model.apply(params, {}, {"image": images, "text": texts})[0][name]
            for name in ("vision>text", "text>vision")
        )

    return encode


def test_a_trained_imp():
    model, params = trained_imp(MoeConfig(last=1, experts=4))
    batch = batch_of(5, INPUTS, seed=1)
    found = embeddings(imp_encode(model, params), batch["image"], batch["text"])
    check_equal(found)
    in_groups = functional(
        dataclasses.replace(IMP, moe=MoeConfig(last=1, experts=4, eval_span="batch")), INPUTS
    )
    as_trained = imp_encode(in_groups, params)(batch["image"], batch["text"])
    on_their_own = imp_encode(model, params)(batch["image"], batch["text"])
    for mine, theirs in zip(on_their_own, as_trained):  # the model means the same by both
        assert np.sum(mine * theirs, -1).mean() > 0.95


def test_skills():
    model = functional(
        dataclasses.replace(
            IMP, moe=MoeConfig(router=Skills(("vision", "text")), experts=2, last=1)
        ),
        INPUTS,
    )
    params, _ = model.init(jax.random.key(0))
    batch = batch_of(5, INPUTS)
    check_equal(embeddings(imp_encode(model, params), batch["image"], batch["text"]))
