"""Objectives over any modalities: pairs of them, and class heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvl.config import ConfigError, resolve
from jaxvl.objectives.classification import Classification
from jaxvl.objectives.multi_instance import ModalityPairs
from jaxvl.tasks import TaskConfig

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
    rng = np.random.default_rng(0)
    b = 9
    outputs = {
        name: unit(rng, b, 7)
        for name in ("vision>text", "text>vision", "vision>audio", "audio>vision")
    }
    outputs |= {"log_scale/vision-text": np.float32(1.5), "log_scale/vision-audio": np.float32(0.4)}
    has = np.array([1, 0, 1, 1, 1, 0, 1, 1, 1], bool)
    objective = ModalityPairs(pairs=("vision-text", "vision-audio"), weights={"vision-audio": 0.5})
    loss, _ = objective(
        {**outputs, "has/audio": jnp.asarray(has)}, {"group_id": jnp.arange(b)}, (), KEY
    )
    text = nce(outputs["vision>text"], outputs["text>vision"], 1.5, np.ones(b, bool))
    audio = nce(outputs["vision>audio"], outputs["audio>vision"], 0.4, has)
    np.testing.assert_allclose(loss.value, (text + 0.5 * audio) / 2, rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["vision-audio/loss"], audio, rtol=1e-5)
    # A model that does not tell: what the batch says of the input of that name counts.
    batch = {"group_id": jnp.arange(b), "has_audio": jnp.asarray(has)}
    told, _ = objective(outputs, batch, (), KEY)
    assert told.value == loss.value


def bags(u, v, scale, valid, ids=None):
    """The multi-instance loss in float64, one record at a time: u [B, M, D], v [B, N, D]."""
    u = u[valid].astype(np.float64)
    v = v[valid].astype(np.float64)
    kept = np.flatnonzero(valid)
    total = 0.0
    for i, b in enumerate(kept):
        for own, others in ((u, v), (v, u)):
            compete = [j for j, c in enumerate(kept) if j == i or ids is None or ids[c] != ids[b]]
            e = np.exp(np.exp(np.float64(scale)) * np.einsum("md,cnd->mcn", own[i], others))
            total += 0.5 * (np.log(e[:, compete].sum()) - np.log(e[:, i].sum()))
    return total / len(kept)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("duplicates", ["diagonal", "mask"])
@pytest.mark.parametrize("shape", [(1, 3), (2, 3)])
def test_several_instances_of_a_row_are_one_positive(shape, duplicates, missing):
    rng = np.random.default_rng(2)
    b = 7
    u = unit(rng, b, shape[0], 5)
    v = unit(rng, b, shape[1], 5)
    ids = np.array([0, 1, 0, 2, 3, 3, 4])
    has = np.array([1, 1, 1, 0, 1, 1, 1], bool)
    outputs = {
        "vision>text": u[:, 0] if shape[0] == 1 else u,
        "text>vision": v,
        "log_scale/vision-text": jnp.float32(1.2),
    }
    outputs |= {"has/text": jnp.asarray(has)} if missing else {}
    objective = jax.jit(lambda o, ids: ModalityPairs(duplicates=duplicates)(o, ids, (), KEY)[0])
    loss = objective(outputs, {"group_id": ids})
    want = bags(
        u, v, 1.2, has if missing else np.ones(b, bool), ids if duplicates == "mask" else None
    )
    np.testing.assert_allclose(loss.value, want, rtol=1e-5)


def test_rows_of_several_instances_that_have_nothing_to_be_compared_with_give_no_gradient():
    rng = np.random.default_rng(4)
    u = unit(rng, 4, 5)
    v = unit(rng, 4, 3, 5)
    ids = jnp.array([7, 7, 7, 7])

    def loss(u, v):
        outputs = {"vision>text": u, "text>vision": v, "log_scale/vision-text": jnp.float32(1)}
        return ModalityPairs(duplicates="mask")(outputs, {"group_id": ids}, (), KEY)[0].value

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(u, v)
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_one_instance_as_a_bag_is_the_plain_loss():
    rng = np.random.default_rng(3)
    u = unit(rng, 6, 5)
    v = unit(rng, 6, 5)

    @jax.jit
    def run(v):
        outputs = {"vision>text": u, "text>vision": v, "log_scale/vision-text": jnp.float32(1)}
        return ModalityPairs()(outputs, {}, (), KEY)[0].value

    np.testing.assert_allclose(run(v[:, None]), run(v), rtol=1e-6)


def test_several_instances_cannot_be_positives_of_other_rows():
    rng = np.random.default_rng(3)
    outputs = {
        "vision>text": unit(rng, 6, 5),
        "text>vision": unit(rng, 6, 2, 5),
        "log_scale/vision-text": jnp.float32(1),
    }
    with pytest.raises(ValueError, match="duplicates: 'positive' is for rows of one instance"):
        ModalityPairs(duplicates="positive")(outputs, {"group_id": jnp.arange(6)}, (), KEY)
    fields = dict(image=dict(name="picture"), text=dict(name="caption", columns="name/en", count=2))
    data = dict(source=dict(name="shapes", split="train_a"), batch=4, fields=fields)
    for option in (dict(duplicates="positive"), dict(implementation="reference")):
        with pytest.raises(
            ConfigError,
            match=rf"objectives\.nce\.{next(iter(option))}: .* is for rows of one instance",
        ):
            resolve(TaskConfig, dict(data=data, objectives=dict(nce=option)))


def test_a_task_is_told_which_outputs_its_pairs_need():
    assert ModalityPairs(pairs=("audio-text",)).reads == (
        "audio>text",
        "text>audio",
        "log_scale/audio-text",
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_leaves_out_rows_without_a_label(smoothing):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(6, 4)).astype(np.float32)
    label = np.array([0, 3, -1, 2, 1, -1])
    loss, _ = Classification(head="kind", label_smoothing=smoothing)(
        {"logits/kind": logits}, {"class_label": jnp.asarray(label)}, (), KEY
    )
    log_p = logits.astype(np.float64) - np.log(
        np.exp(logits.astype(np.float64)).sum(1, keepdims=True)
    )
    target = (1 - smoothing) * np.eye(4)[label] + smoothing / 4
    known = label >= 0
    np.testing.assert_allclose(loss.value, -(target * log_p).sum(1)[known].mean(), rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["accuracy"], (logits.argmax(1) == label)[known].mean())


def test_classification_leaves_out_rows_that_lack_what_the_head_sees():
    rng = np.random.default_rng(1)
    has = np.array([1, 1, 0, 1, 0, 1], bool)
    logits = rng.normal(size=(6, 4)).astype(np.float32)
    label = np.array([0, 3, 2, 2, 1, -1])
    objective = Classification(head="kind")
    loss, _ = objective(
        {"logits/kind": logits, "has/logits/kind": jnp.asarray(has)},
        {"class_label": jnp.asarray(label)},
        (),
        KEY,
    )
    kept, _ = objective(
        {"logits/kind": logits[has]}, {"class_label": jnp.asarray(label[has])}, (), KEY
    )
    np.testing.assert_allclose(loss.value, kept.value, rtol=1e-6)
    np.testing.assert_allclose(loss.metrics["accuracy"], kept.metrics["accuracy"], rtol=1e-6)


def test_options_that_do_not_fit_are_refused_by_name():
    with pytest.raises(ConfigError, match="weights.audio-text: is not among the pairs"):
        ModalityPairs(weights={"audio-text": 1.0})
    with pytest.raises(ConfigError, match="pairs: 'vision' must be two modalities"):
        ModalityPairs(pairs=("vision",))
