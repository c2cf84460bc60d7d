"""M3CoL: the released equations in float64, its two phases, and shared attributes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_checks import (
    call,
    compare,
    context,
    embeddings,
    log_softmax,
    nce,
    same_on_a_mesh,
    trainer,
    unit,
)

from jaxvl.config import ConfigError
from jaxvl.objectives import Context
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


@pytest.mark.parametrize("progress", [0.0, pytest.param(0.9, marks=pytest.mark.slow)])
def test_devices(progress):
    same_on_a_mesh(MixupContrast(), example(b=16), {}, context(progress=progress))


def test_refusals():
    with pytest.raises(ConfigError, match="until: 1.5 is a share"):
        MixupContrast(until=1.5)
    with pytest.raises(ConfigError, match="mixed: 'none' is not valid"):
        MixupContrast(mixed="none")


# --------------------------------------------------------------------------------------------------
# What it is for

ATTRIBUTES = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]])  # of three classes: any two share one
NOISE_OF_NO_CLASS = 2  # further attributes that say nothing of the class
FEATURES, HIDDEN, WIDTH = 24, 64, 8


def shared_attributes(seed):
    """48 rows of training and 300 of test: features of two modalities, and classes."""
    rng = np.random.default_rng(seed)
    count = ATTRIBUTES.shape[1] + NOISE_OF_NO_CLASS
    maps = rng.normal(size=(2, count, FEATURES))

    def rows(n):
        classes = np.arange(n) % len(ATTRIBUTES)
        others = rng.integers(0, 2, (n, NOISE_OF_NO_CLASS))
        attributes = np.concatenate([ATTRIBUTES[classes], others], axis=1) - 0.5
        features = attributes @ maps + rng.normal(size=(2, n, FEATURES))
        return jnp.asarray(features, jnp.float32), classes

    return rows(48), rows(300)


def encode(params, features):
    """Features [2, n, F] through a perceptron for each modality: [2, n, D]."""
    return jax.nn.relu(features @ params["up"]) @ params["down"]


def nearest_neighbours(params, train, test, k=5):
    """Accuracy of the class of most of the k nearest training rows, of both modalities at once."""
    gallery, queries = (
        np.concatenate(unit(np.asarray(encode(params, features))), axis=-1)
        for features, _ in (train, test)
    )
    near = np.argsort(-queries @ gallery.T, axis=1)[:, :k]
    votes = np.stack([(train[1][near] == c).sum(1) for c in range(len(ATTRIBUTES))], axis=1)
    return (votes.argmax(1) == test[1]).mean()


@pytest.mark.slow  # 2,700 small steps
def test_neighbours_are_better_than_with_clip_where_classes_share_attributes():
    """And with mixtures alone, for soft targets alone are better too."""

    def run_of(objective):
        def loss(params, key, data):
            features, progress = data
            image, text = encode(params, features)
            where = Context(key, jnp.int32(0), progress)
            return call(objective, {"image": image, "text": text}, {}, where).value

        return trainer(loss, 3e-3)

    objectives = {
        "clip": MixupContrast(share=0.0, until=1.0),
        "m3col": MixupContrast(),
        "mixtures": MixupContrast(until=1.0),
    }
    runs = {name: run_of(objective) for name, objective in objectives.items()}
    found = {name: [] for name in runs}
    for seed in range(3):
        train, test = shared_attributes(seed)
        rng = np.random.default_rng(seed)
        shapes = {"up": (2, FEATURES, HIDDEN), "down": (2, HIDDEN, WIDTH)}
        first = {
            name: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[1]), jnp.float32)
            for name, shape in shapes.items()
        }
        for name, run in runs.items():
            params = run(first, (train[0], jnp.float32(0.0)), 100)
            params = run(params, (train[0], jnp.float32(0.9)), 200)
            found[name].append(nearest_neighbours(params, train, test))
    print({name: np.round(values, 3).tolist() for name, values in found.items()})
    for name in ("m3col", "mixtures"):
        assert all(mixed > plain for mixed, plain in zip(found[name], found["clip"])), name
        assert np.mean(found[name]) > np.mean(found["clip"]) + 0.05, name
