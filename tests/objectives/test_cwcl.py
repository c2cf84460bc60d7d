"""CWCL: the paper's equations in float64, and batches in which concepts come twice."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
        ContinuouslyWeighted(anchor=anchor), outputs, {}, lambda o: paper(o, outputs[anchor], anchor)
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


# A frozen tower of pictures that knows concepts, and a text tower that learns to meet it. A batch
# holds every concept several times.

CONCEPTS = 12
EACH = 6
PICTURE = 16
WORDS = 24


def accuracy(objective, seed, steps=150):
    """Zero-shot accuracy on unseen pictures of the classes' plain names, float32 []."""
    keys = jax.random.split(jax.random.key(seed), 6)
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    centres = jax.random.normal(keys[0], (CONCEPTS, PICTURE))
    names = jax.random.normal(keys[1], (CONCEPTS, WORDS))
    label = jnp.repeat(jnp.arange(CONCEPTS), EACH)
    shape = lambda width: (len(label), width)
    pictures = unit(centres[label] + 0.8 * jax.random.normal(keys[2], shape(PICTURE)))
    # What else a caption says has nothing to do with its picture.
    captions = names[label] + 1.5 * jax.random.normal(keys[3], shape(WORDS))
    unseen = unit(centres[label] + 0.8 * jax.random.normal(keys[4], shape(PICTURE)))
    params = {
        "text": jax.random.normal(keys[5], (WORDS, PICTURE)) / WORDS**0.5,
        "log_scale": jnp.float32(np.log(10.0)),
    }
    tx = optax.adam(1e-2)

    def loss(params):
        outputs = {"image": pictures, "text": unit(captions @ params["text"])}
        return objective({**outputs, "log_scale": params["log_scale"]}, {}, (), None)[0].value

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, steps)
    told = (unseen @ unit(names @ params["text"]).T).argmax(1)
    return (told == label).mean()


def accuracies(objective):
    return np.asarray(jax.jit(jax.vmap(lambda seed: accuracy(objective, seed)))(jnp.arange(3)))


def test_concepts_that_come_twice_cost_less():
    plain = accuracies(SymmetricSoftmax(implementation="reference"))
    weighted = accuracies(ContinuouslyWeighted(implementation="reference"))
    print("clip", plain.round(3).tolist(), "cwcl", weighted.round(3).tolist())
    assert (weighted > plain).all(), (plain, weighted)
