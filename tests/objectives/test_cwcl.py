"""CWCL: the paper's equations in float64, and batches in which concepts come twice."""

import jax.numpy as jnp
import numpy as np
import pytest
from objective_checks import (
    call,
    compare,
    embeddings,
    log_softmax,
    nce,
    same_on_a_mesh,
    value_and_gradients,
)

from jaxvl.objectives.clip import SymmetricSoftmax
from jaxvl.objectives.cwcl import ContinuouslyWeighted


def example(b=7, d=5, seed=0):
    image, text = embeddings((b, d), (b, d), seed=seed)
    return {"image": image, "text": text, "log_scale": np.log(4.0)}


def paper(o, alike, anchor="image"):
    """Equations 4 to 6; the weights are a constant."""
    p, q = (o["image"], o["text"]) if anchor == "image" else (o["text"], o["image"])
    weights = (1 + alike @ alike.T) / 2
    logits = np.exp(o["log_scale"]) * p @ q.T
    shares = weights / weights.sum(1, keepdims=True)
    soft = -(shares * log_softmax(logits, 1)).sum(1).mean()
    return soft - np.diag(log_softmax(logits, 0)).mean()


@pytest.mark.parametrize("anchor", ["image", "text"])
def test_equations(anchor):
    outputs = example()
    compare(
        ContinuouslyWeighted(anchor=anchor),
        outputs,
        {},
        lambda o: paper(o, outputs[anchor], anchor),
    )


def test_weights_of_a_teacher_in_the_batch():
    outputs = example()
    (teacher,) = embeddings((7, 3), seed=4)
    batch = {"teach/image": jnp.asarray(teacher, jnp.float32)}
    objective = ContinuouslyWeighted(alike="teach/image")
    compare(objective, outputs, batch, lambda o: paper(o, teacher))
    with pytest.raises(ValueError, match="alike: 'teach/image' is neither"):
        call(objective, outputs, {})


def test_weights_of_the_identity_are_the_plain_loss():
    """Two opposite anchors: w = I."""
    image = np.array([[1.0, 0.0], [-1.0, 0.0]])
    (text,) = embeddings((2, 2))
    outputs = {"image": image, "text": text, "log_scale": 1.0}
    want = lambda o: 2 * nce(o["image"], o["text"], np.exp(o["log_scale"]))
    compare(ContinuouslyWeighted(), outputs, {}, want)


def test_equal_anchors_share_their_texts_equally():
    """Weights are normalised row by row: of B equal anchors each text is worth 1 / B."""
    outputs = example(b=4)
    outputs["image"] = np.repeat(outputs["image"][:1], 4, 0)
    logits = np.exp(outputs["log_scale"]) * outputs["image"] @ outputs["text"].T
    want = -log_softmax(logits, 1).mean() - np.diag(log_softmax(logits, 0)).mean()
    low = {name: jnp.asarray(x, jnp.float32) for name, x in outputs.items()}
    np.testing.assert_allclose(call(ContinuouslyWeighted(), low, {}).value, want, rtol=1e-5)


def test_devices():
    same_on_a_mesh(ContinuouslyWeighted(), example(b=24), {})


def test_implementations_agree():
    outputs = {name: jnp.asarray(x, jnp.float32) for name, x in example().items()}
    for name in ("chunked", "reference"):
        value, gradients = value_and_gradients(
            ContinuouslyWeighted(implementation=name), outputs, {}
        )
        if name == "chunked":
            first = value, gradients
    np.testing.assert_allclose(value, first[0], rtol=1e-6)
    np.testing.assert_allclose(gradients["text"], first[1]["text"], rtol=1e-5, atol=1e-7)


def test_equal_pictures_pull_a_text_as_they_do_without_weights():
    """Of pictures that a frozen tower cannot tell apart only the sum of the targets reaches a text,
    and it is the same: what changes is what pictures that are merely alike do."""
    outputs = {name: jnp.asarray(x, jnp.float32) for name, x in example(b=4).items()}
    pole = outputs["image"][:1]
    opposite = jnp.concatenate([pole, pole, -pole, -pole])
    alike = {**outputs, "image": outputs["image"].at[1].set(outputs["image"][0] * 0.8)}
    alike["image"] = alike["image"].at[1, 0].add(0.3)
    for images, same in ((opposite, True), (alike["image"], False)):
        rows = {**outputs, "image": images}
        weighted = value_and_gradients(ContinuouslyWeighted(), rows, {})[1]["text"]
        plain = value_and_gradients(SymmetricSoftmax(), rows, {})[1]["text"]
        difference = float(jnp.abs(weighted - 2 * plain).max())  # a sum against a mean
        assert (difference < 1e-6) == same, difference
