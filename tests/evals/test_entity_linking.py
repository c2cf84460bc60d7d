"""Linking of mentions to entities: the figures of known vectors, by loops; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_answers import PREPROCESS, Tokenizer, toy, unit

from jaxvl.config import ConfigError
from jaxvl.evals.differentiable import Functions
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.entity_linking import EntityLinking
from jaxvl.objectives.m3el import SCORES
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=-1), jax.devices())
CLASSES, WIDTH = 24, 6
ASKING = [k % 23 for k in range(0, 90, 3)]
KINDS = ("", "_wanted", "_context", "_values")


def table(name):
    return unit(64, WIDTH, seed=sum(map(ord, name)))


def encoders(masks=("text_mask",)):
    """Of one token each, so that attention has no choice; both places of a record look alike."""

    def outputs(weights, batch):
        shown = jnp.argmax(batch["image"][..., 0].reshape(len(batch["image"]), -1), 1)
        found = {}
        for side, label in (("image", shown), ("text", batch["text"][:, 0])):
            for kind in KINDS:
                rows = jnp.asarray(table(side + kind))[label]
                found[f"matching/mention/{side}{kind}"] = rows[:, None] if "v" in kind else rows
            for kind in ("keys", "queries"):
                found[f"matching/mention/{side}_{kind}"] = jnp.ones((len(label), 1, WIDTH))
        for mask in masks:
            found[f"matching/mention/{mask}"] = jnp.ones((len(shown), 1), bool)
        return found

    return Encoders(Functions(None, None, outputs), {}, Tokenizer(), PREPROCESS, 4, MESH, batch=16)


def linking(**options):
    return EntityLinking(
        **{
            **dict(source=toy(ASKING, CLASSES), entities=toy(list(range(CLASSES)), CLASSES)),
            **dict(text="name/en", entity_text="name/en", gallery=0),
            **options,
        }
    )


def test_figures_by_loops():
    made = linking()
    made.check(encoders())
    found = made.run(encoders()).metrics
    assert set(found) == set(made.figures)
    scores = {}
    for side in ("image", "text"):
        of = lambda kind: table(side + kind)[:CLASSES].astype(np.float64)  # noqa: B023
        scores[side] = (of("") @ of("").T + of("_values") @ of("_wanted").T) / 2
        other = "image" if side == "text" else "text"
        scores[f"{side}_to_{other}"] = of("_context") @ of("_context").T
    scores["all"] = sum(scores.values()) / 4
    ranks = {
        name: np.array([1 + (s[k] > s[k, k]).sum() for k in ASKING]) for name, s in scores.items()
    }
    for k in (1, 3, 5, 10):
        np.testing.assert_allclose(found[f"hits@{k}"], (ranks["all"] <= k).mean())
    np.testing.assert_allclose(found["mrr"], (1 / ranks["all"]).mean())
    for name in SCORES:
        np.testing.assert_allclose(found[f"{name}/hits@1"], (ranks[name] == 1).mean())
    assert 0 < (ranks["text"] == 1).mean() < 1
    assert (found["mentions"], found["entities"]) == (len(ASKING), CLASSES)
    np.testing.assert_allclose(found["hits@1_chance"], 1 / CLASSES)


@pytest.mark.parametrize("masks", [(), ("text_mask", "image_mask")])
def test_a_model_gives_the_masks_that_it_has(masks):
    """A text tower without a mask of padding has none; patches of several sizes have one."""
    made = linking()
    made.check(encoders(masks))
    assert made.run(encoders(masks)).metrics == made.run(encoders()).metrics


def test_what_is_refused():
    for options, why in (
        (dict(text="name/xx"), "text: 'name/xx' is not a column"),
        (dict(entity_image="picture"), "entity_image: 'picture' is not a column"),
        (dict(label="no"), "label: 'no' is not a column"),
        (dict(head="other"), "needs the model output 'other/mention/image'"),
    ):
        with pytest.raises(ConfigError, match=why):
            linking(**options).check(encoders())
