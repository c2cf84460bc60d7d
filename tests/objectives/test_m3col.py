"""M3CoL: the released equations in float64, its two phases, and shared attributes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_checks import (
    compare,
    context,
    embeddings,
    log_softmax,
    nce,
    same_on_a_mesh,
    train,
    unit,
)

from jaxvl.config import ConfigError
from jaxvl.objectives.clip import SymmetricSoftmax
from jaxvl.objectives.m3col import MixupContrast


def example(b=8, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return {"image": rng.normal(size=(b, d)), "text": rng.normal(size=(b, d))}


def mixco(x, other, lam, permutation, temperature=0.1):
    """The release's `mixco_nce` of a mixture of unit rows x, and its matrix P."""
    b = len(x)
    probs = np.diag(lam)
    probs[np.arange(b), permutation] += 1 - lam  # the release has = here; see fixed points
    mixed = unit(lam[:, None] * x + (1 - lam[:, None]) * x[permutation])
    logits = mixed @ other.T / temperature
    rows = -(log_softmax(logits, 1) * probs).sum(1).mean()
    columns = -(log_softmax(logits.T, 1) * probs.T).sum(1).mean()
    return (rows + columns) / 2, probs


def soft(x, other, target, temperature=0.125):
    """The release's `soft_clip_loss`, with targets from `target`, a constant."""
    shares = np.exp(log_softmax(target @ target.T / temperature, 1))
    logits = x @ other.T / temperature
    rows = -(log_softmax(logits, 1) * shares).sum(1).mean()
    columns = -(log_softmax(logits.T, 1) * shares).sum(1).mean()
    return (rows + columns) / 2


def drawn(objective, rows, where):
    keys = dict(zip(("image", "text"), jax.random.split(where.key)))
    found = {}
    for name, key in keys.items():
        lam, permutation = objective.mixture(rows, key)
        found[name] = np.asarray(lam, np.float64), np.asarray(permutation)
    return found


@pytest.mark.parametrize("mixed", ["both", "image"])
def test_mixtures_are_those_of_the_release(mixed):
    objective = MixupContrast(mixed=mixed)
    where = context(key=1)
    draws = drawn(objective, 8, where)

    def oracle(o):
        image, text = unit(o["image"]), unit(o["text"])
        first = mixco(image, text, *draws["image"])[0]
        return first + (mixco(text, image, *draws["text"])[0] if mixed == "both" else 0.0)

    compare(objective, example(), {}, oracle, where)


def test_soft_targets_are_those_of_the_release_and_have_no_gradient():
    o = example()
    image, text = unit(o["image"]), unit(o["text"])

    def oracle(o):
        x, y = unit(o["image"]), unit(o["text"])
        return soft(x, y, text) + soft(y, x, image)

    compare(MixupContrast(), o, {}, oracle, context(progress=0.33))


def test_without_mixtures_it_is_clip():
    want = lambda o: 2 * nce(unit(o["image"]), unit(o["text"]), 10.0)
    compare(MixupContrast(share=0.0), example(), {}, want, context())


def test_rows_of_the_targets_sum_to_one_and_columns_need_not():
    objective = MixupContrast()
    lam, permutation = drawn(objective, 64, context())["image"]
    rows, _ = embeddings((64, 4), (64, 4))
    probs = mixco(rows, rows, lam, permutation)[1]
    np.testing.assert_allclose(probs.sum(1), 1.0)
    assert np.abs(probs.sum(0) - 1).max() > 0.5
    assert 0.3 < np.mean(lam < 1) < 0.7  # half of the rows are mixed
    assert sorted(permutation) == list(range(64))


@pytest.mark.parametrize("progress", [0.0, 0.9])
def test_devices(progress):
    same_on_a_mesh(MixupContrast(), example(b=16), {}, context(progress=progress))


def test_refusals():
    with pytest.raises(ConfigError, match="until: 1.5 is a share"):
        MixupContrast(until=1.5)
    with pytest.raises(ConfigError, match="mixed: 'none' is not valid"):
        MixupContrast(mixed="none")


# Three classes of which each two share an attribute. Few pairs, of which each says much that no
# other does.

ATTRIBUTES = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]])
EACH = 12
OWN = 24


def neighbours(objective, seed):
    """Accuracy of the nearest of the pairs that were trained on, for unseen ones."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(3), EACH)
    both = np.concatenate([label, np.repeat(np.arange(3), 100)])
    width = 3 + OWN
    maps = rng.normal(size=(2, width, width)) / width**0.5
    sides = []
    for k in range(2):
        own = rng.normal(size=(len(both), OWN))
        sides.append(np.concatenate([2.0 * ATTRIBUTES[both], own], 1) @ maps[k])
    image, text = (jnp.asarray(x, jnp.float32) for x in sides)
    params = {
        name: jnp.asarray(rng.normal(size=(width, 16)) / width**0.5, jnp.float32)
        for name in ("image", "text")
    }
    scale = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def embed(params, rows):
        return scale(image[rows] @ params["image"]), scale(text[rows] @ params["text"])

    def loss(params, key):
        u, v = embed(params, slice(0, len(label)))
        outputs = {"image": u, "text": v, "log_scale": jnp.log(10.0)}
        return objective(outputs, {}, {}, context_at(key))[0].value

    u, v = embed(train(loss, params, 150), slice(None))
    whole = np.concatenate([u, v], 1)
    near = (whole[len(label) :] @ whole[: len(label)].T).argmax(1)
    return np.mean(label[near] == both[len(label) :])


def context_at(key):
    where = context()
    return type(where)(key, where.step, where.progress)


@pytest.mark.slow
def test_classes_that_share_attributes_are_told_apart_better():
    plain = [neighbours(SymmetricSoftmax(implementation="reference"), seed) for seed in range(3)]
    mixed = [neighbours(MixupContrast(implementation="reference"), seed) for seed in range(3)]
    print("clip", np.round(plain, 3), "m3col", np.round(mixed, 3))
    assert np.mean(mixed) > np.mean(plain), (plain, mixed)
