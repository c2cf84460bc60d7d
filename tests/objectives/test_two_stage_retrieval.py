"""Two stages for picture retrieval (Schall et al. 2024): a margin on the image tower, then the text
tower follows it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from objective_checks import trainer

from jaxvl.config import load_file
from jaxvl.evals.image_knn import average_precision
from jaxvl.kernels.contrastive import contrastive_loss
from jaxvl.models.base import Encoded
from jaxvl.models.heads.classifier import ClassifierConfig
from jaxvl.nn.norms import l2_normalize
from jaxvl.objectives.classification import Classification

CLASSES = 12
WIDTH = 16
BATCH = 24
HEAD = ClassifierConfig(classes=CLASSES, margin=0.3, scale=16.0, reads="image")
LOSS = Classification(head="LABEL")


def things(seed):
    """Pictures [240, 24] in which what is not of their class is loud, and their classes; the text
    of a class is its number."""
    rng = np.random.default_rng(seed)
    label = np.arange(240) % CLASSES
    codes = rng.normal(size=(CLASSES, 24))
    loud = rng.normal(size=(240, 6)) @ rng.normal(size=(6, 24))
    return {"x": jnp.float32(codes[label] + 1.5 * loud), "label": jnp.asarray(label)}


def images(params, x):
    return x @ params["image"]


def clip(params, key, data):
    rows = jax.random.choice(key, 240, (BATCH,), replace=False)
    pictures = l2_normalize(images(params, data["x"][rows]))
    texts = l2_normalize(params["text"][data["label"][rows]])
    return contrastive_loss(pictures, texts, jnp.log(10.0), implementation="reference")


def with_margin(graph):
    def loss(params, key, data):
        rows = jax.random.choice(key, 240, (BATCH,), replace=False)
        batch = {"class_label": data["label"][rows]}
        head = nnx.merge(graph, params["head"])
        pooled = images(params, data["x"][rows])
        encoded = {"image": Encoded(pooled, pooled[:, None])}
        logits = head(encoded, batch, train=True, key=None, progress=None)
        outputs = {"logits/LABEL": next(iter(logits.values()))}
        return LOSS(outputs, batch, {}, None)[0].value

    return loss


def text_alone(params, key, data):
    still = jax.lax.stop_gradient(params["image"])
    return clip({**params, "image": still}, key, data)


def figures(params, data):
    """Mean average precision among pictures, and recall at 1 of a class's pictures by its text."""
    rows = np.asarray(l2_normalize(images(params, data["x"])), np.float64)
    label = np.asarray(data["label"])
    scores = rows @ rows.T
    np.fill_diagonal(scores, -np.inf)
    order = np.argsort(-scores, 1)[:, :-1]
    precision = average_precision(label[order] == label[:, None], np.full(240, 19))
    texts = np.asarray(l2_normalize(params["text"]), np.float64)
    recall = (label[(texts @ rows.T).argmax(1)] == np.arange(CLASSES)).mean()
    return precision.mean(), recall


@pytest.mark.slow
def test_pictures_are_found_better_and_texts_come_back():
    graph, state = nnx.split(HEAD.build({"image": WIDTH}, nnx.Rngs(0)))
    stages = {
        "clip": (trainer(clip), 60),
        "pictures": (trainer(with_margin(graph)), 300),
        "texts": (trainer(text_alone), 300),
    }
    found = []
    for seed in range(3):
        data = things(seed)
        a, b = jax.random.split(jax.random.key(seed))
        params = {
            "image": jax.random.normal(a, (24, WIDTH)) / 5,
            "text": jax.random.normal(b, (CLASSES, WIDTH)),
            # Long class vectors turn slowly, so the pictures must go to them.
            "head": jax.tree.map(lambda kernel: 1000 * kernel, state),
        }
        of_seed = []
        for run, steps in stages.values():
            before = params
            params = run(params, data, steps)
            of_seed.append(figures(params, data))
        np.testing.assert_array_equal(params["image"], before["image"])
        found.append(of_seed)
    found = np.array(found)  # [seeds, stages, figures]
    print("mAP and R@1 after clip, pictures, texts:", found.round(3).tolist())
    precision, recall = found[..., 0], found[..., 1]
    assert (precision[:, 1] > precision[:, 0] + 0.1).all()
    assert (recall[:, 1] < 0.5 * recall[:, 0]).all()
    assert (recall[:, 2] >= 0.95 * recall[:, 0]).all()
    np.testing.assert_array_equal(precision[:, 2], precision[:, 1])


def test_the_margin_parts_classes_by_an_angle():
    """How much nearer pictures are to their class's vector than to any other: by a good part of the
    margin more than after as many steps without one."""
    data = things(0)
    label = np.asarray(data["label"])
    apart = {}
    for margin in (0.0, HEAD.margin):
        head = dataclasses.replace(HEAD, margin=margin).build({"image": WIDTH}, nnx.Rngs(0))
        graph, state = nnx.split(head)
        params = {"image": jax.random.normal(jax.random.key(0), (24, WIDTH)) / 5, "head": state}
        params = trainer(with_margin(graph))(params, data, 200)
        (kernel,) = jax.tree.leaves(params["head"])
        rows = np.float64(images(params, data["x"]))
        classes = np.float64(kernel)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        classes /= np.linalg.norm(classes, axis=0)
        angles = np.arccos(rows @ classes)
        own = np.arange(CLASSES) == label[:, None]
        apart[margin] = (np.where(own, np.inf, angles).min(1) - angles[own]).mean()
    print("radians:", apart)
    assert apart[HEAD.margin] > apart[0.0] + HEAD.margin / 2, apart


def test_the_config_has_these_stages():
    config = load_file("configs/methods/two_stage_retrieval.py").to_dict()
    stages = {stage["name"]: stage for stage in config["stages"]}
    assert list(stages) == ["clip", "pictures", "texts"]
    assert stages["texts"]["optim"]["freeze"] == "^image/encoder/"
    assert "classification" in stages["pictures"]["tasks"]["pairs"]["objectives"]
    assert config["model"]["projections"] == "text", "the margin is on the embedding"
