"""CLIPPINGS' supervised contrast: pair by pair in float64."""

import jax.numpy as jnp
import numpy as np
from objective_checks import call, compare, embeddings, same_on_a_mesh, unit

from jaxvl.objectives.record_linkage import RecordLinkage

LABELS = np.array([3, 9, 3, 3, -1, 9, -1, 8])  # 8 stands alone, -1 is no class


def example(b=8, d=5):
    image, text = embeddings((b, d), (b, d))
    return {"image": image, "text": text, "log_scale": np.log(4.0)}


def paper(o, labels, scale):
    z = unit(o["image"] + o["text"])
    terms = []
    for i in range(len(z)):
        same = [p for p in range(len(z)) if p != i and labels[p] == labels[i] >= 0]
        rest = [a for a in range(len(z)) if a != i]
        if same:
            total = np.log(sum(np.exp(scale * z[i] @ z[a]) for a in rest))
            terms.append(np.mean([total - scale * z[i] @ z[p] for p in same]))
    return np.mean(terms)


def test_equation():
    batch = {"class_label": jnp.asarray(LABELS)}
    compare(
        RecordLinkage(), example(), batch, lambda o: paper(o, LABELS, 10.0), fixed=("log_scale",)
    )
    learned = lambda o: paper(o, LABELS, np.exp(o["log_scale"]))
    compare(RecordLinkage(temperature=None), example(), batch, learned)


def test_a_batch_without_two_of_a_class_has_no_loss():
    outputs = {name: jnp.asarray(x, jnp.float32) for name, x in example().items()}
    loss = call(RecordLinkage(), outputs, {"class_label": jnp.arange(8)})
    assert loss.value == 0 and loss.metrics["anchors"] == 0


def test_devices():
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 5, 24))
    same_on_a_mesh(RecordLinkage(), example(b=24), {"class_label": labels})
