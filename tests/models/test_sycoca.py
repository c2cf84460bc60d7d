"""SyCoCa: which patches are hidden, from whom, and that nothing of them leaks; that the choice has
no gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvl.config import ConfigError, resolve
from jaxvl.models import InputSpec
from jaxvl.models.functional import functional
from jaxvl.models.sycoca import SyCoCaConfig
from jaxvl.nn.poolers import QueryPooler
from jaxvl.objectives.captioning import Captioning
from jaxvl.objectives.masked_image import MaskedImage

B = 3
P = 16
PATCH = 4
INPUTS = InputSpec(image_size=16, text_length=6, vocab_size=40, pad_id=0, eos_id=1)
SMALL = dict(
    image=dict(name="vit", variant="Ti/4", width=16, depth=1, heads=2, pool="mean"),
    width=24,
    heads=2,
    unimodal=1,
    multimodal=1,
    queries=3,
    pooler_heads=2,
    embed_dim=8,
    masked_share=0.25,
    hidden_share=0.5,
)


@functools.cache
def build(masked="tokens", masking="attentive", local=False):
    """(apply, params); `local`: an encoder whose tokens know nothing of each other."""
    model = functional(
        resolve(SyCoCaConfig, {**SMALL, "masked": masked, "masking": masking}), INPUTS
    )
    params, rest = model.init(jax.random.key(0))
    rng = np.random.default_rng(1)
    params = {p: v + np.float32(0.1 * rng.normal(size=v.shape)) for p, v in sorted(params.items())}
    if local:
        params |= {
            p: 0 * v
            for p, v in params.items()
            if p.startswith("encoder/") and "/attention/out/" in p
        }
    return jax.jit(
        lambda params, batch, key=None: model.apply(
            params, rest, batch, train=key is not None, key=key
        )[0]
    ), params


def data(seed=0):
    rng = np.random.default_rng(seed)
    text = rng.integers(2, 40, (B, 6))
    for i in range(B):
        text[i, 3 + i % 3], text[i, 4 + i % 3 :] = 1, 0
    return {
        "image": rng.normal(size=(B, 16, 16, 3)).astype(np.float32),
        "text": text.astype(np.int32),
    }


def scores_with(masked, hidden, rng):
    """Scores float [B, P] that are highest at patches `masked` and lowest at `hidden`."""
    scores = rng.uniform(0, 1, (B, P)).astype(np.float32)
    scores[:, masked], scores[:, hidden] = 2 + scores[:, masked], scores[:, hidden] - 2
    return scores


def repaint(image, patch):
    """The image with other pixels at one patch."""
    y, x = divmod(patch, 16 // PATCH)
    image = image.copy()
    image[:, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH] += 3.0
    return image


def test_the_most_text_like_patches_are_masked_and_scores_are_cosines():
    (apply, params), batch = build(), data()
    out = apply(params, batch)
    scores = np.asarray(out["patch_scores"])
    assert (np.abs(scores) <= 1 + 1e-5).all() and scores.std(1).min() > 1e-3
    for weight, row in zip(np.asarray(out["patch_weight"]), scores):
        assert set(np.flatnonzero(weight)) == set(np.argsort(row)[-4:])
    other = apply(params, {**batch, "text": batch["text"][::-1]})
    assert np.abs(other["patch_scores"] - scores).max() > 1e-3
    np.testing.assert_allclose(
        other["image"], out["image"], atol=1e-6
    )  # the image's embedding knows nothing of the text


def test_a_pooler_sees_the_part_it_is_shown_and_a_token_alone():
    mask = np.array([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]], bool)

    @jax.jit
    def all_ways(x):
        pooler = QueryPooler(1, 12, 3, memory_width=8, rngs=nnx.Rngs(params=0))
        parts = [[pooler(x[i : i + 1, m[i]])[0] for i in range(2)] for m in (mask, ~mask)]
        both = pooler(x, np.stack([mask, ~mask], 1))
        each = [pooler(x[:, i : i + 1]) for i in range(5)]
        return parts, pooler(x, mask), both, pooler.alone(x), each

    x = np.float32(np.random.default_rng(0).normal(size=(2, 5, 8)))
    (shown, others), masked, both, alone, each = all_ways(x)
    np.testing.assert_allclose(masked, np.stack(shown), atol=1e-6)
    np.testing.assert_allclose(both[:, :1], np.stack(shown), atol=1e-6)
    np.testing.assert_allclose(both[:, 1:], np.stack(others), atol=1e-6)
    np.testing.assert_allclose(alone, np.concatenate(each, 1), atol=1e-6)


def test_nothing_hidden_is_read():
    """With an encoder that keeps patches apart: the captioner does not see hidden patches, the
    image decoder not the masked ones."""
    (apply, params), batch = build(local=True), data()
    batch["patch_scores"] = scores_with(
        [3, 5, 6, 9], [0, 1, 2, 4, 7, 8, 10, 11], np.random.default_rng(0)
    )
    before = apply(params, batch)
    moved = lambda after, name: np.abs(np.asarray(after[name]) - before[name]).max() > 1e-4
    for patch, captions, prediction in ((7, False, True), (5, True, False), (14, True, True)):
        after = apply(params, {**batch, "image": repaint(batch["image"], patch)})
        assert moved(after, "image")
        assert (
            moved(after, "caption_lse") == captions
            and moved(after, "patch_prediction") == prediction
        ), patch
    after = apply(params, {**batch, "text": np.where(batch["text"] > 1, 39, batch["text"])})
    assert moved(after, "patch_prediction"), "the text guides"
    shorter = {
        k: v[:2, :5] if k == "text" else v[:2] for k, v in batch.items()
    }  # the first two texts end before the last place
    np.testing.assert_allclose(
        apply(params, shorter)["patch_prediction"], before["patch_prediction"][:2], atol=1e-5
    )


def test_painted_over_patches_are_not_read_by_any_encoder():
    (apply, params), batch = build(masked="pixels"), data()
    batch["patch_scores"] = scores_with([3, 5, 6, 9], [0, 1], np.random.default_rng(0))
    before = apply(params, batch)
    for patch, moves in ((5, False), (14, True)):
        after = apply(params, {**batch, "image": repaint(batch["image"], patch)})
        assert (
            np.abs(after["patch_prediction"] - before["patch_prediction"]).max() > 1e-4
        ) == moves


def test_the_choice_has_no_gradient():
    """The gradient is that of a model which was told what to hide."""
    (apply, params), batch = build(), data()
    told = {**batch, "patch_scores": apply(params, batch)["patch_scores"]}

    def gradient(batch):
        def loss(params):
            out = apply(params, batch)
            return (
                masked_loss(MaskedImage(), out, batch).value
                + Captioning()(out, batch, (), None)[0].value
            )

        return jax.grad(loss)(params)

    chosen = jax.jit(gradient)(batch)
    given = jax.jit(gradient)(told)
    for path in params:
        np.testing.assert_allclose(chosen[path], given[path], atol=1e-6, err_msg=path)
    for path in (
        "image_projection/kernel",
        "text_projection/kernel",
        "contrastive_pooler/attention/value/kernel",
    ):
        assert not np.asarray(chosen[path]).any(), path
    assert np.asarray(chosen["words/embedding"]).any() and np.asarray(chosen["mask_token"]).any()


def test_random_masks_follow_the_key():
    (apply, params), batch = build(masking="random"), data()
    masks = [
        np.asarray(apply(params, batch, key)["patch_weight"])
        for key in (jax.random.key(0), jax.random.key(1), None, None)
    ]
    assert all((m.sum(1) == 4).all() for m in masks)
    assert (masks[0] != masks[1]).any()
    np.testing.assert_array_equal(masks[2], masks[3])


def masked_loss(objective, outputs, batch):
    return objective({**outputs, **objective.per_row(outputs, batch)}, {}, (), None)[0]


@pytest.mark.parametrize("normalise", [True, False])
def test_masked_image_loss(normalise):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(B, 16, 16, 3))
    prediction = rng.normal(size=(B, P, 48))
    image[0, :4, :4] = 0.5  # a patch of one colour
    weight = rng.integers(0, 2, (B, P)).astype(float)
    weight[0, 0] = 1
    total = 0.0
    for b in range(B):
        for p in range(P):
            y, x = divmod(p, 4)
            target = image[b, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].reshape(-1)
            if normalise:
                target = (target - target.mean()) / np.sqrt(target.var() + 1e-6)
            total += weight[b, p] * np.mean((prediction[b, p] - target) ** 2)
    outputs = {
        "patch_prediction": jnp.asarray(prediction, jnp.float32),
        "patch_weight": jnp.asarray(weight, jnp.float32),
    }
    objective = MaskedImage(normalise=normalise)
    loss = masked_loss(objective, outputs, {"image": jnp.asarray(image, jnp.float32)})
    np.testing.assert_allclose(loss.value, total / weight.sum(), rtol=1e-5)
    nothing = masked_loss(
        objective,
        {**outputs, "patch_weight": jnp.zeros((B, P))},
        {"image": jnp.asarray(image, jnp.float32)},
    )
    np.testing.assert_allclose(loss.metrics["hidden"], weight.mean(), rtol=1e-6)
    assert nothing.value == 0
    with pytest.raises(ValueError, match="patch_prediction: .* does not tile images"):
        masked_loss(objective, outputs, {"image": jnp.zeros((B, 32, 32, 3))})


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(poolers="cascade"), "poolers: unknown key"),
        (
            dict(masked_share=1.0),
            r"masked_share: 1.0 is a share of the patches; must be in \(0, 1\)",
        ),
        (
            dict(hidden_share=0.99),
            "masked_share: 0.25 and hidden_share 0.99 leave none of 16 patches",
        ),
        (
            dict(image={**SMALL["image"], "pool": "cls"}),
            "image: must be a vit without a class token",
        ),
    ],
)
def test_wrong_options(changes, message):
    with pytest.raises(ConfigError, match=message):
        functional(resolve(SyCoCaConfig, {**SMALL, **changes}), INPUTS)
