"""Visualness: the paper's equations in float64, and texts that no picture shows, found."""

import jax.numpy as jnp
import numpy as np
import pytest
from objective_checks import compare, embeddings, log_softmax, nce, same_on_a_mesh, trainer

from jaxvl.config import ConfigError
from jaxvl.objectives.visualness import Visualness


def example(b=8, d=5, seed=0):
    image, text, null = embeddings((b, d), (b, d), (d,), seed=seed)
    return {"image": image, "text": text, "null": null, "log_scale": np.log(4.0)}


VISUAL = np.array([1, 0, 1, 1, 0, 0, 1, 1], bool)


def paper(o, visual):
    """Equations 1 and 2; other null pictures do not compete with a row's own."""
    null = o["null"] / np.linalg.norm(o["null"])
    image = np.where(visual[:, None], o["image"], null)
    logits = np.exp(o["log_scale"]) * image @ o["text"].T
    others = ~visual[:, None] & ~visual & ~np.eye(len(visual), dtype=bool)
    logits = np.where(others, -1e30, logits)
    own = np.diag(log_softmax(logits, 1)) + np.diag(log_softmax(logits, 0))
    return -own.mean() / 2


def test_equations():
    compare(Visualness(), example(), {"visual": jnp.asarray(VISUAL)}, lambda o: paper(o, VISUAL))


def test_visual_texts_alone_are_clip():
    want = lambda o: nce(o["image"], o["text"], np.exp(o["log_scale"]))
    compare(Visualness(), example(), {"visual": jnp.ones(8, jnp.int32)}, want)


def test_a_null_vector_in_every_row():
    o = example()
    o["null"] = np.repeat(o["null"][None], 8, 0)
    rows = lambda o: paper({**o, "null": o["null"].mean(0)}, VISUAL)
    compare(Visualness(), o, {"visual": jnp.asarray(VISUAL)}, rows)


def test_devices():
    o = example(b=16)
    o["null"] = o["null"][None]
    same_on_a_mesh(Visualness(), o, {"visual": np.tile(VISUAL, 2)})


def test_refusals():
    with pytest.raises(ConfigError, match="label_smoothing: 1.0 is not valid"):
        Visualness(label_smoothing=1.0)
    assert Visualness(visual="flag").batch_keys == ("flag",)


def area(score, positive):
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order."""
    return np.mean(score[positive][:, None] > score[~positive])


SEEN = 192


def scale(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def embed(params, rows):
    return scale(jnp.tanh(rows @ params["text"][0]) @ params["text"][1])


def learner(objective):
    def loss(params, key, data):
        pictures, said, visual = data
        outputs = {
            "image": scale(pictures @ params["image"]),
            "text": embed(params, said),
            "null": params["null"],
            "log_scale": jnp.log(10.0),
        }
        return objective(outputs, {"visual": visual}, {}, None)[0].value

    return trainer(loss)


def found(run, seed):
    """Area under the curve of 1 - cos(text, null) for unseen texts, of which half are visual: these
    say what their picture shows, the others something else, and stand beside some picture."""
    rng = np.random.default_rng(seed)
    things = rng.normal(size=(2 * SEEN, 16))
    ideas = rng.normal(size=(2 * SEEN, 16)) + rng.normal(size=16)
    visual = rng.random(2 * SEEN) < 0.5
    lexicon = rng.normal(size=(16, 16)) / 4
    said = np.where(visual[:, None], things, ideas) @ lexicon
    said, pictures = (jnp.asarray(x, jnp.float32) for x in (said, things))
    params = {
        "text": jnp.asarray(rng.normal(size=(2, 16, 16)) / 4, jnp.float32),
        "image": jnp.asarray(rng.normal(size=(16, 16)) / 4, jnp.float32),
        "null": jnp.asarray(rng.normal(size=16), jnp.float32),
    }
    params = run(params, (pictures[:SEEN], said[:SEEN], jnp.asarray(visual[:SEEN])), 100)
    score = 1 - np.asarray(embed(params, said[SEEN:]) @ scale(params["null"]))
    return area(score, visual[SEEN:])


def test_texts_that_no_picture_shows_are_found():
    run = learner(Visualness(implementation="reference"))
    areas = [found(run, seed) for seed in range(3)]
    print("area", np.round(areas, 3))
    assert min(areas) > 0.9, areas
