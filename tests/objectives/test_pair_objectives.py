"""Objectives: equations in float64, sum or mean of the directions, duplicates, registry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvl.config import ConfigError, resolve
from jaxvl.kernels.contrastive import contrastive_loss
from jaxvl.objectives import OBJECTIVES, Context, Loss
from jaxvl.objectives.align import NormalisedSoftmax
from jaxvl.objectives.clip import SymmetricSoftmax
from jaxvl.objectives.siglip import PairwiseSigmoid


def example(b=11, d=6, seed=0):
    rng = np.random.default_rng(seed)
    image, text = rng.normal(size=(2, b, d))
    image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    outputs = {
        k: jnp.asarray(x, jnp.float32)
        for k, x in (
            ("image", image),
            ("text", text),
            ("log_scale", np.log(5.0)),
            ("logit_bias", -2.0),
        )
    }
    batch = {"group_id": jnp.asarray(rng.integers(0, 5, b), jnp.int32)}
    return outputs, batch, 5.0 * image @ text.T


def cross_entropy(logits, target):
    shifted = logits - logits.max(1, keepdims=True)
    return -(target * (shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))).sum(1).mean()


def value(objective, outputs, batch):
    context = Context(jax.random.key(0), jnp.int32(0), jnp.float32(0))
    loss, state = objective(outputs, batch, {}, context)
    assert isinstance(loss, Loss) and state == {} and loss.value.shape == ()
    assert all(np.isfinite(m) and m.shape == () for m in loss.metrics.values())
    return loss.value


def test_align_is_the_smoothed_sum_and_clip_the_mean():
    outputs, batch, logits = example()
    eye = np.eye(len(logits))
    smooth = 0.9 * eye + 0.1 / len(logits)
    np.testing.assert_allclose(
        value(NormalisedSoftmax(), outputs, batch),
        cross_entropy(logits, smooth) + cross_entropy(logits.T, smooth),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        value(SymmetricSoftmax(), outputs, batch),
        (cross_entropy(logits, eye) + cross_entropy(logits.T, eye)) / 2,
        rtol=1e-5,
    )


def test_align_divides_by_its_temperature():
    """The paper's sigma is the inverse of the stored scale."""
    outputs, batch, _ = example()
    sigma = 0.31
    outputs["log_scale"] = -jnp.log(jnp.float32(sigma))
    logits = (
        np.asarray(outputs["image"], np.float64) @ np.asarray(outputs["text"], np.float64).T / sigma
    )
    eye = np.eye(len(logits))
    want = cross_entropy(logits, eye) + cross_entropy(logits.T, eye)
    np.testing.assert_allclose(
        value(NormalisedSoftmax(label_smoothing=0.0), outputs, batch), want, rtol=1e-5
    )


def test_siglip_is_the_pairwise_sigmoid():
    outputs, batch, logits = example()
    z = 2 * np.eye(len(logits)) - 1
    want = np.logaddexp(0, -z * (logits - 2.0)).sum() / len(logits)
    np.testing.assert_allclose(value(PairwiseSigmoid(), outputs, batch), want, rtol=1e-5)
    same = np.asarray(batch["group_id"])[:, None] == np.asarray(batch["group_id"])
    want = np.logaddexp(0, -(2 * same - 1) * (logits - 2.0)).sum() / len(logits)
    np.testing.assert_allclose(
        value(PairwiseSigmoid(duplicates="positive"), outputs, batch), want, rtol=1e-5
    )


@pytest.mark.parametrize("objective", [NormalisedSoftmax, SymmetricSoftmax])
def test_duplicates(objective):
    outputs, batch, logits = example()
    same = np.asarray(batch["group_id"])[:, None] == np.asarray(batch["group_id"])
    factor = 1.0 if objective is NormalisedSoftmax else 0.5
    share = same / same.sum(1, keepdims=True)
    want = factor * (cross_entropy(logits, share) + cross_entropy(logits.T, share))
    np.testing.assert_allclose(
        value(objective(duplicates="positive", label_smoothing=0.0), outputs, batch),
        want,
        rtol=1e-5,
    )
    alone = np.where(same & ~np.eye(len(same), dtype=bool), -1e30, logits)
    eye = np.eye(len(same))
    want = factor * (cross_entropy(alone, eye) + cross_entropy(alone.T, eye))
    np.testing.assert_allclose(
        value(objective(duplicates="mask", label_smoothing=0.0), outputs, batch), want, rtol=1e-5
    )


def test_implementations_agree():
    outputs, batch, _ = example()
    for objective in (NormalisedSoftmax, SymmetricSoftmax, PairwiseSigmoid):
        values = [
            value(objective(implementation=name), outputs, batch)
            for name in (None, "chunked", "reference")
        ]
        np.testing.assert_allclose(values, values[0], rtol=1e-6)


def test_metrics():
    outputs, batch, logits = example()
    metrics = SymmetricSoftmax()(outputs, batch, (), jax.random.key(0))[0].metrics
    np.testing.assert_allclose(metrics["scale"], 5.0, rtol=1e-6)
    np.testing.assert_allclose(metrics["cosine_pairs"], np.diag(logits).mean() / 5, atol=1e-6)
    np.testing.assert_allclose(metrics["cosine_all"], logits.mean() / 5, atol=1e-6)


def test_bfloat16_outputs():
    outputs, batch, _ = example(b=33, d=32)
    low = {k: v.astype(jnp.bfloat16) if k in ("image", "text") else v for k, v in outputs.items()}
    high = {k: v.astype(jnp.float32) for k, v in low.items()}
    for objective in (NormalisedSoftmax(), PairwiseSigmoid()):
        np.testing.assert_allclose(
            value(objective, low, batch), value(objective, high, batch), rtol=1e-5
        )


def test_by_name_and_errors():
    assert {"align", "clip", "siglip"} <= set(OBJECTIVES)
    assert resolve(OBJECTIVES["align"], {}).label_smoothing == 0.1
    with pytest.raises(
        ConfigError, match=r"label_smoothing: 1.0 is not valid; must be in \[0, 1\)"
    ):
        NormalisedSoftmax(label_smoothing=1.0)
    with pytest.raises(ConfigError, match="duplicates"):
        resolve(OBJECTIVES["clip"], {"duplicates": "drop"})
    outputs, batch, _ = example()
    with pytest.raises(ValueError, match="implementation: 'triton' is not known"):
        NormalisedSoftmax(implementation="triton")(outputs, batch, (), None)
    assert (
        contrastive_loss(outputs["image"], outputs["text"], outputs["log_scale"]).dtype
        == jnp.float32
    )
