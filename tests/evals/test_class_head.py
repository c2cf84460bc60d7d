"""Accuracy of a class head, against a plain loop; what is refused before anything is compiled."""

import dataclasses

import jax
import numpy as np
import pytest
from known_answers import encoders, toy, unit

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.evals.class_head import ClassHead
from jaxvl.evals.encoders import Encoders
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=4, fsdp=2))
ONE = make_mesh(devices=jax.devices()[:1])
CLASSES = 11
LABELS = [(7 * i) % CLASSES for i in range(30)]
LOGITS = unit(CLASSES, CLASSES, seed=3)  # of a picture of each class


@pytest.fixture(scope="module", params=[MESH, ONE], ids=["8 devices", "1 device"])
def model(request):
    """Encoders whose model has a head `kind` of pictures and a head `both`."""
    known = encoders(request.param, LOGITS, LOGITS)
    functions = known.functions

    def outputs(weights, batch):
        logits = functions.image(weights, batch["image"])
        read = functions.text(weights, batch["text"])
        return {"logits/kind": logits, "logits/both": logits * read, "logits/wide": logits[:, None]}

    return Encoders(
        dataclasses.replace(functions, outputs=outputs),
        known.weights,
        known.tokenizer,
        known.preprocess,
        known.text_length,
        known.mesh,
        batch=16,
    )


class Unlabelled(type(toy([0]).records)):
    """Records of which some have no class."""

    without = ()

    def column(self, name):
        del name

    def record(self, i, columns):
        record = super().record(i, columns)
        return record | {"class_label": -1} if i in self.without else record


def unlabelled(labels, without, **faults):
    source = toy(labels, classes=CLASSES, **faults)
    source.records.__class__ = Unlabelled
    source.records.without = without
    return source


def test_figures_are_those_of_a_loop(model):
    evaluator = ClassHead(source=unlabelled(LABELS, (7,), broken=(4,)), head="kind")
    evaluator.check(model)
    got = evaluator.run(model).metrics
    right = {1: [], 5: []}
    by_class = {}
    for i, k in enumerate(LABELS):
        if i in (4, 7):
            continue
        order = sorted(range(CLASSES), key=lambda c: -float(LOGITS[k, c]))
        for n, found in right.items():
            found.append(k in order[:n])
        by_class.setdefault(k, []).append(order[0] == k)
    assert 0 < np.mean(right[1]) < np.mean(right[5]) < 1, "else the figures say nothing"
    assert got["acc@1"] == pytest.approx(np.mean(right[1]))
    assert got["acc@5"] == pytest.approx(np.mean(right[5]))
    of_classes = [np.mean(found) for found in by_class.values()]
    assert got["mean_class_acc@1"] == pytest.approx(np.mean(of_classes))
    assert (got["images"], got["classes"]) == (28, CLASSES)
    assert got["skipped/picture has no class"] == 1
    assert sum(v for name, v in got.items() if name.startswith("skipped/")) == 2
    assert {f.split("/")[0] for f in got} <= {f.split("/")[0] for f in evaluator.figures}


def test_what_cannot_be_measured_is_refused(model):
    source = toy(LABELS, classes=CLASSES)
    cases = [
        (dict(head="kynd"), "^head: 'kynd': 'logits/kynd' is not among the model's outputs"),
        (dict(head="both"), "^head: 'both': 'logits/both' depends on text, not on image alone"),
        (dict(head="kind", label="name/en"), "^label: 'name/en' of toy holds .* 'text'"),
    ]
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            ClassHead(source=source, **options).check(model)
    with pytest.raises(ConfigError, match="^label: 'class_label' of toy has the class 12, but the"):
        ClassHead(source=toy([1, 12]), head="kind").check(model)
    with pytest.raises(ConfigError, match="^head: is required"):
        ClassHead(source=source)


def test_pictures_without_a_class(model):
    source = unlabelled(LABELS, range(len(LABELS)))
    with pytest.raises(DataError, match="toy has no picture with a class"):
        ClassHead(source=source, head="kind").run(model)
