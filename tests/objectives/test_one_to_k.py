"""1-to-K contrast: the released equations in float64, missing languages, and ranks that agree."""

import jax
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
    trainer,
)

from jaxvl.config import ConfigError
from jaxvl.evals.mrv import mean_rank_variance
from jaxvl.objectives.clip import SymmetricSoftmax
from jaxvl.objectives.one_to_k import OneToK


def example(b=5, k=3, d=4, seed=0):
    image, text = embeddings((b, d), (b, k, d), seed=seed)
    return {"image": image, "text": text, "log_scale": np.log(4.0)}


def released(o, reduction="release", there=None):
    """`get_unialign_contrastive_loss` with multi-hot targets; texts that are not there are cut out
    of it."""
    image, text = o["image"], o["text"]
    b, k, d = text.shape
    there = np.ones((b, k), bool) if there is None else there
    owner = np.repeat(np.arange(b), k)[there.reshape(-1)]
    logits = np.exp(o["log_scale"]) * image @ text.reshape(b * k, d)[there.reshape(-1)].T
    labels = owner == np.arange(b)[:, None]
    shares = labels / labels.sum(1, keepdims=True)  # 1 / K of the K labels
    rows = -(log_softmax(logits, 1) * shares).sum(1).mean()
    columns = -(log_softmax(logits, 0) * labels).sum(0).mean()
    return (rows + columns / (k if reduction == "release" else 1)) / 2


@pytest.mark.parametrize("reduction", ["release", "balanced"])
def test_released_equations(reduction):
    compare(OneToK(reduction=reduction), example(), {}, lambda o: released(o, reduction))


def test_release_divides_the_whole_by_k():
    o = example()
    b, k, d = o["text"].shape
    logits = np.exp(o["log_scale"]) * o["image"] @ o["text"].reshape(b * k, d).T
    labels = np.repeat(np.eye(b), k, axis=1)
    rows = -(log_softmax(logits, 1) * labels).sum(1).mean()
    columns = -(log_softmax(logits.T, 1) * labels.T).sum(1).mean()
    low = {name: jnp.asarray(x, jnp.float32) for name, x in o.items()}
    np.testing.assert_allclose(call(OneToK(), low, {}).value, (rows + columns) / 2 / k, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["release", "balanced"])
def test_one_language_is_clip(reduction):
    want = lambda o: nce(o["image"], o["text"][:, 0], np.exp(o["log_scale"]))
    compare(OneToK(reduction=reduction), example(k=1), {}, want)


def test_fields_of_their_own_and_a_language_that_rows_lack():
    whole = example()
    there = np.ones((5, 3), bool)
    there[[0, 3], 1] = False
    texts = {f"text_{name}": whole["text"][:, i] for i, name in enumerate(("en", "de", "fr"))}
    outputs = {"image": whole["image"], **texts, "log_scale": whole["log_scale"]}
    objective = OneToK(texts=tuple(texts), reduction="balanced")
    stacked = lambda o: {**o, "text": np.stack([o[name] for name in texts], 1)}
    compare(objective, outputs, {}, lambda o: released(stacked(o), "balanced"))
    batch = {"has_text_de": jnp.asarray(there[:, 1])}
    compare(objective, outputs, batch, lambda o: released(stacked(o), "balanced", there))


def test_devices():
    same_on_a_mesh(OneToK(), example(b=16), {})


def test_refusals():
    with pytest.raises(ConfigError, match="reduction: 'sum' is not valid"):
        OneToK(reduction="sum")
    with pytest.raises(ConfigError, match="texts: .* must be different outputs"):
        OneToK(texts=("text", "text"))
    assert OneToK(texts=("a", "b")).reads == ("image", "a", "b", "log_scale")


# Pictures with names in three languages, one noisier than the other. Both ways see each picture
# once a step.

NOISE = (0.3, 0.6, 1.0)
WIDTH = 16
SEEN = 64


def embed(params, things, texts):
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    return unit(things @ params["image"]), unit(jnp.einsum("nke,ked->nkd", texts, params["text"]))


def learner(objective, together):
    def loss(params, key, data):
        image, text = embed(params, *data)
        if not together:
            text = text[jnp.arange(SEEN), jax.random.randint(key, (SEEN,), 0, len(NOISE))]
        outputs = {"image": image, "text": text, "log_scale": jnp.log(10.0)}
        return objective(outputs, {}, {}, None)[0].value

    return trainer(loss)


def learnt(run, seed):
    """Ranks int64 [N, K] of unseen texts among those of their language, for their pictures."""
    rng = np.random.default_rng(seed)
    lexicon = rng.normal(size=(len(NOISE), WIDTH, WIDTH)) / 4
    things = rng.normal(size=(SEEN + 256, WIDTH))
    texts = np.einsum("nd,kde->nke", things, lexicon)
    texts += np.array(NOISE)[:, None] * rng.normal(size=texts.shape)
    things = jnp.asarray(things, jnp.float32)
    texts = jnp.asarray(texts, jnp.float32)
    params = {
        "image": jnp.asarray(rng.normal(size=(WIDTH, WIDTH)) / 4, jnp.float32),
        "text": jnp.asarray(rng.normal(size=(len(NOISE), WIDTH, WIDTH)) / 4, jnp.float32),
    }
    params = run(params, (things[:SEEN], texts[:SEEN]), 40)
    image, text = embed(params, things[SEEN:], texts[SEEN:])
    scores = np.einsum("nd,mkd->knm", image, text)
    own = np.einsum("knn->kn", scores)[..., None]
    return 1 + (scores > own).sum(-1).T


def test_ranks_agree_more_than_with_one_language_at_a_time():
    found = []
    for objective, together in (
        (SymmetricSoftmax(implementation="reference"), False),
        (OneToK(implementation="reference"), True),
    ):
        run = learner(objective, together)
        ranks = [learnt(run, seed) for seed in range(3)]
        found.append([(*mean_rank_variance(r), np.mean(r == 1)) for r in ranks])
    one, together = np.array(found)
    print("one", one.round(3).tolist(), "1-to-K", together.round(3).tolist())
    assert (together[:, 0] < one[:, 0]).all(), found
    assert (together[:, 1] < one[:, 1]).all(), found
    assert (together[:, 2] >= one[:, 2]).all(), found
