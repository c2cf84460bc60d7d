"""Objectives over streamed scores: the papers' equations in float64 numpy, values and gradients;
what each is for; what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvl.config import ConfigError, resolve
from jaxvl.objectives import OBJECTIVES, Loss
from jaxvl.objectives.clip import SymmetricSoftmax
from jaxvl.objectives.collap import WeightedClips
from jaxvl.objectives.hinge import PairHinge
from jaxvl.objectives.late_interaction import LateInteraction
from jaxvl.objectives.sdm import DistributionMatching

B = 11


def rows(rng, *shape):
    x = rng.normal(size=shape)
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), np.float32)


def example(seed=0, ids=5):
    rng = np.random.default_rng(seed)
    outputs = {
        "image": rows(rng, B, 6),
        "text": rows(rng, B, 6),
        "log_scale": np.float32(np.log(5.0)),
    }
    return outputs, {"group_id": jnp.asarray(rng.integers(0, ids, B), jnp.int32)}


@functools.cache
def program(objective):
    def loss(outputs, batch):
        found, state = objective(outputs, batch, {"kept": 1}, jax.random.key(0))
        assert isinstance(found, Loss) and state == {"kept": 1}
        return found.value

    return jax.jit(jax.value_and_grad(loss, allow_int=True))


def run(objective, outputs, batch):
    """(value, gradients of the outputs)."""
    return program(objective)(outputs, batch)


def release_sdm(image, text, pid, scale, epsilon=1e-8):
    """`compute_sdm` of the IRRA release, in float64, and its gradients with respect to the two
    similarity matrices."""
    labels = (pid[:, None] == pid[None]).astype(np.float64)
    share = labels / labels.sum(1)
    loss = 0.0
    grads = []
    cosine = (text / np.linalg.norm(text, axis=1, keepdims=True)) @ (
        image / np.linalg.norm(image, axis=1, keepdims=True)
    ).T
    for logits in (scale * cosine.T, scale * cosine):
        log_p = logits - logits.max(1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
        p = np.exp(log_p)
        each = log_p - np.log(share + epsilon)
        of_row = (p * each).sum(1, keepdims=True)
        loss += of_row.mean()
        grads.append(scale * p * (each - of_row) / len(pid))
    return loss, grads[0] + grads[1].T


def through_unit(x, grad):
    """Gradient of x, given that of x / |x|."""
    size = np.linalg.norm(x, axis=-1, keepdims=True)
    y = x / size
    return (grad - y * (grad * y).sum(-1, keepdims=True)) / size


def test_sdm_is_the_release():
    outputs, batch = example()
    image, text = np.float64(outputs["image"]), np.float64(outputs["text"])
    loss, g = release_sdm(image, text, np.asarray(batch["group_id"]), 50.0)
    value, grads = run(DistributionMatching(block=4), outputs, batch)
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    np.testing.assert_allclose(grads["image"], through_unit(image, g @ text), atol=3e-4)
    np.testing.assert_allclose(grads["text"], through_unit(text, g.T @ image), atol=3e-4)
    learned, grads = run(DistributionMatching(temperature=None), outputs, batch)
    np.testing.assert_allclose(
        learned, release_sdm(image, text, np.asarray(batch["group_id"]), 5.0)[0], rtol=1e-5
    )
    assert grads["log_scale"] != 0


def test_sdm_and_cross_entropy_have_one_minimum_and_differ_elsewhere():
    """Unique ids; and duplicates, whose false negatives only the plain softmax pays for."""
    outputs, _ = example()
    unique = {"group_id": jnp.arange(B)}
    aligned = np.eye(B, dtype=np.float32)
    perfect = dict(outputs, image=aligned, text=aligned)
    sdm = DistributionMatching()
    scaled = dict(perfect, log_scale=np.float32(np.log(50.0)))
    assert abs(run(sdm, perfect, unique)[0]) < 1e-5
    assert abs(run(SymmetricSoftmax(), scaled, unique)[0]) < 1e-5
    assert run(sdm, outputs, unique)[0] > 1.0
    ids = np.arange(B) // 2
    twins = dict(scaled, image=aligned[ids], text=aligned[ids])
    value, grads = run(sdm, twins, {"group_id": jnp.asarray(ids)})
    assert abs(value) < 1e-5 and all(np.isfinite(g).all() for g in grads.values())
    penalty = run(SymmetricSoftmax(), twins, unique)[0]
    assert penalty > 0.9 * np.log(2.0) * (B - 1) / B  # every pair but one has a twin


@pytest.mark.parametrize("negatives", ["sum", "hardest"])
@pytest.mark.parametrize("duplicates", ["diagonal", "mask"])
def test_hinge_pair_by_pair(negatives, duplicates):
    outputs, batch = example()
    image, text = np.float64(outputs["image"]), np.float64(outputs["text"])
    ids = np.asarray(batch["group_id"]) if duplicates == "mask" else np.arange(B)
    s = image @ text.T
    loss = 0.0
    g = np.zeros((B, B))
    for side in (0, 1):
        for i in range(B):
            pairs = [((i, j), (j, i))[side] for j in range(B) if j != i and ids[j] != ids[i]]
            near = [(0.2 + s[pair] - s[i, i], pair) for pair in pairs]
            if negatives == "hardest":
                near = [max(near)]
            for violation, pair in near:
                if violation > 0:
                    loss += violation / B
                    g[pair] += 1 / B
                    g[i, i] -= 1 / B
    objective = PairHinge(negatives=negatives, duplicates=duplicates, block=4)
    value, grads = run(objective, outputs, batch)
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    np.testing.assert_allclose(grads["image"], g @ text, atol=1e-5)
    np.testing.assert_allclose(grads["text"], g.T @ image, atol=1e-5)


def test_late_interaction_token_by_token():
    rng = np.random.default_rng(1)
    image = rows(rng, B, 5, 6)
    text = rows(rng, B, 4, 6)
    mask = np.arange(4) < rng.integers(1, 5, (B, 1))
    outputs = {
        "image_tokens": 3 * image,  # made unit vectors by the objective
        "text_tokens": text,
        "text_tokens_mask": mask,
        "log_scale": np.float32(np.log(5.0)),
    }
    of_image = np.zeros((B, B))
    of_text = np.zeros((B, B))
    for i in range(B):
        for j in range(B):
            alike = np.float64(image[i]) @ np.float64(text[j][mask[j]]).T
            of_image[i, j] = 5 * alike.max(1).mean()
            of_text[i, j] = 5 * alike.max(0).mean()

    def cross_entropy(s):
        return np.mean(np.log(np.exp(s).sum(1)) - np.diag(s))

    found = run(LateInteraction(block=4), outputs, {})[0]
    want = (cross_entropy(of_image) + cross_entropy(of_text.T)) / 2
    np.testing.assert_allclose(found, want, rtol=1e-5)
    summed = of_text * mask.sum(1)
    found = run(LateInteraction(form="colbert", block=4), outputs, {})[0]
    want = (cross_entropy(summed) + cross_entropy(summed.T)) / 2
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_by_name_and_errors():
    names = {"hinge", "sdm", "late_interaction", "collap"}
    assert names <= set(OBJECTIVES)
    for name in names:
        assert resolve(OBJECTIVES[name], {"block": 8}).block == 8
        for options, field in ((dict(block=0), "block"), (dict(duplicates="drop"), "duplicates")):
            with pytest.raises(ConfigError, match=field):
                OBJECTIVES[name](**options)
    for cls, options, why in (
        (PairHinge, dict(duplicates="positive"), "duplicates: 'positive' is not for the hinge"),
        (PairHinge, dict(margin=-1.0), "margin: -1.0 must be >= 0"),
        (PairHinge, dict(negatives="some"), "negatives: 'some'"),
        (DistributionMatching, dict(temperature=0.0), "temperature: 0.0 must be > 0"),
        (DistributionMatching, dict(epsilon=0.0), "epsilon: 0.0 must be > 0"),
        (LateInteraction, dict(form="max"), "form: 'max'"),
        (WeightedClips, dict(temperature=0.0), "temperature: 0.0 must be > 0"),
    ):
        with pytest.raises(ConfigError, match=why):
            cls(**options)
    with pytest.raises(ValueError, match="clips: shape"):
        outputs = {"clips": jnp.ones((4, 2)), "text": jnp.ones((4, 2)), "log_scale": 0.0}
        WeightedClips()(outputs, {}, {}, None)
