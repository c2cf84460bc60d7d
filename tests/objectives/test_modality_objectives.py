"""Objectives over any modalities: pairs of them, and class heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvl.config import ConfigError
from jaxvl.objectives.classification import Classification
from jaxvl.objectives.multi_instance import ModalityPairs

KEY = jax.random.key(0)


def unit(rng, *shape):
    x = rng.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def nce(a, b, scale, valid):
    """IMP's loss of one pair in float64, both directions averaged, over the rows that have both."""
    s = np.exp(np.float64(scale)) * a[valid].astype(np.float64) @ b[valid].astype(np.float64).T
    rows, columns = (np.mean(np.log(np.exp(m).sum(1)) - np.diag(m)) for m in (s, s.T))
    return (rows + columns) / 2


def test_each_pair_has_its_temperature_and_leaves_out_rows_with_one_half():
    rng, b = np.random.default_rng(0), 9
    outputs = {name: unit(rng, b, 7) for name in ("vision>text", "text>vision", "vision>audio", "audio>vision")}
    outputs |= {"log_scale/vision-text": np.float32(1.5), "log_scale/vision-audio": np.float32(0.4)}
    has = np.array([1, 0, 1, 1, 1, 0, 1, 1, 1], bool)
    objective = ModalityPairs(pairs=("vision-text", "vision-audio"), weights={"vision-audio": 0.5})
    loss, _ = objective({**outputs, "has/audio": jnp.asarray(has)}, {"id": jnp.arange(b)}, (), KEY)
    text = nce(outputs["vision>text"], outputs["text>vision"], 1.5, np.ones(b, bool))
    audio = nce(outputs["vision>audio"], outputs["audio>vision"], 0.4, has)
    np.testing.assert_allclose(loss.value, (text + 0.5 * audio) / 2, rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["vision-audio/loss"], audio, rtol=1e-5)


def test_a_task_is_told_which_outputs_its_pairs_need():
    assert ModalityPairs(pairs=("audio-text",)).reads == ("audio>text", "text>audio", "log_scale/audio-text")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_leaves_out_rows_without_a_label(smoothing):
    rng = np.random.default_rng(1)
    logits, label = rng.normal(size=(6, 4)).astype(np.float32), np.array([0, 3, -1, 2, 1, -1])
    loss, _ = Classification(head="kind", label_smoothing=smoothing)({"logits/kind": logits}, {"label": jnp.asarray(label)}, (), KEY)
    log_p = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    target = (1 - smoothing) * np.eye(4)[label] + smoothing / 4
    known = label >= 0
    np.testing.assert_allclose(loss.value, -(target * log_p).sum(1)[known].mean(), rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["accuracy"], (logits.argmax(1) == label)[known].mean())


def test_options_that_do_not_fit_are_refused_by_name():
    with pytest.raises(ConfigError, match="weights.audio-text: is not among the pairs"):
        ModalityPairs(weights={"audio-text": 1.0})
    with pytest.raises(ConfigError, match="pairs: 'vision' must be two modalities"):
        ModalityPairs(pairs=("vision",))
