"""Token accuracy and perplexity, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from known_answers import Words, bigram_logits, scorer, toy
from training import tiny

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.data.tokenizers import Tokenizer as RealTokenizer
from jaxvl.data.tokenizers import train_unigram
from jaxvl.evals.likelihood import Likelihood
from jaxvl.models.generate import Generation
from jaxvl.sharding.mesh import MeshConfig, make_mesh
from jaxvl.training.build import build_model
from jaxvl.training.encode import make_encoders

MESH = make_mesh(MeshConfig(data=4, fsdp=2))
ONE = make_mesh(devices=jax.devices()[:1])
V = 12
T = 5


def reference(table, rows):
    """(log-probability, tokens, right) of each caption in float64; rows of (class, tokens)."""
    out = []
    for label, tokens in rows:
        log_p = table[label] - scipy.special.logsumexp(table[label], -1, keepdims=True)
        pairs = list(zip([0, *tokens], tokens))
        out.append(
            [
                sum(log_p[a, b] for a, b in pairs),
                len(pairs),
                sum(table[label, a, b] >= table[label, a].max() for a, b in pairs),
            ]
        )
    return np.array(out, np.float64).T


LABELS = [k % 10 for k in range(27)]


COLUMNS = {"name": "name/en", "keywords": ("keywords/en",), "all": ("name/en", "keywords/en")}


@pytest.mark.parametrize("kind", COLUMNS)
def test_figures_are_those_of_float64(kind):
    source = toy(LABELS, broken=(4,), unreadable=(9,))
    table = bigram_logits("random")
    got = Likelihood(source, text=COLUMNS[kind], gallery=3).run(scorer(MESH, table))
    texts = {"name": lambda k: [f"word {k}"], "keywords": lambda k: ["thing", f"k{k % 3}"]}
    texts["all"] = lambda k: texts["name"](k) + texts["keywords"](k)
    kept = [k for i, k in enumerate(LABELS) if i not in (4, 9)]
    rows = [
        (k, [t for t in ids if t])
        for k in kept
        for ids in Words().encode(texts[kind](k), T).tolist()
    ]
    s, n, right = reference(table, rows)
    m = got.metrics
    expected = dict(
        token_acc=right.sum() / n.sum(),
        nats_per_token=-s.sum() / n.sum(),
        perplexity=np.exp(-s.sum() / n.sum()),
        caption_acc=(right == n).mean(),
        nats_per_caption=-s.mean(),
        caption_perplexity=np.exp(-(s / n).mean()),
        tokens=n.sum(),
        captions=len(n),
        images=len(kept),
    )
    np.testing.assert_allclose([m[k] for k in expected], list(expected.values()), rtol=2e-6)
    assert m["skipped/image cannot be decoded"] == 1 and m["skipped/record cannot be read"] == 1
    assert len(got.gallery) == 3 and got.gallery[0].image


def test_oracle_uniform_and_ties():
    evaluator = Likelihood(toy(LABELS), text="name/en", gallery=0)
    run = lambda kind: evaluator.run(scorer(MESH, bigram_logits(kind))).metrics
    sure = run("oracle")
    blind = run("uniform")
    assert set(sure) == set(evaluator.figures) - {"skipped/*"}
    assert sure["token_acc"] == sure["caption_acc"] == 1 and sure["perplexity"] == pytest.approx(
        1, abs=1e-6
    )
    assert blind["perplexity"] == pytest.approx(V) and blind["caption_perplexity"] == pytest.approx(
        V
    )


def test_eight_devices_equal_one():
    source = toy(LABELS)
    table = bigram_logits("random", seed=3)
    eight, one = (
        Likelihood(source, text=COLUMNS["all"], gallery=0).run(scorer(m, table)).metrics
        for m in (MESH, ONE)
    )
    assert {k: pytest.approx(v, rel=1e-6) for k, v in eight.items()} == one


def test_wrong_options_and_models():
    silent = toy(LABELS)
    silent.records.rows[:] = [(k, {}) for k in LABELS]
    with pytest.raises(DataError, match=r"toy has no image with a caption \(name/en\)"):
        Likelihood(silent, text="name/en").run(scorer(MESH, bigram_logits("uniform")))
    with pytest.raises(ConfigError, match="template: 'a' must hold"):
        Likelihood(toy(LABELS), template="a")
    other = scorer(MESH, bigram_logits("uniform"))
    other._score = None
    with pytest.raises(
        ConfigError, match="needs a model that gives the probability of a text, as coca"
    ):
        Likelihood(toy(LABELS), text="name/en").run(other)


def test_coca_scores_several_texts_under_one_image():
    """Against the logits of `caption_logits`, one text at a time; tokens before `begin` are read
    but do not count."""
    from jaxvl.config import resolve
    from jaxvl.training.experiment import Experiment

    tokenizer = RealTokenizer(
        "unigram",
        train_unigram(["red apple", "green tree", "two blue stars"] * 2, 40, lowercase=True),
        pad_id=0,
        eos_id=1,
    )
    shapes = dict(name="shapes", size=16, variants=1, split="test_b_new")
    fields = dict(
        image=dict(name="picture", size=16), text=dict(name="caption", columns="name/en", length=8)
    )
    data = dict(source=shapes, batch=8, fields=fields)
    objectives = dict(clip=1.0, captioning=1.0)
    config = dict(
        model=tiny.COCA,
        preprocess=dict(image_size=16),
        tasks=dict(pairs=dict(data=data, objectives=objectives)),
        steps=1,
        optim=dict(warmup=0),
    )
    experiment = resolve(Experiment, config)
    model = build_model(experiment, tokenizer)
    params, rest = model.init(jax.random.key(0))
    params = {
        k: v + np.float32(0.2 * np.random.default_rng(i).normal(size=v.shape))
        for i, (k, v) in enumerate(params.items())
    }
    encoders = make_encoders(experiment, model, tokenizer, MESH, (params, rest))
    pictures = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8)
    texts = [
        ["red apple", "two blue stars"],
        ["tree", "green apple"],
        ["stars", "blue blue blue blue blue blue blue"],
    ]
    tokens = np.stack([tokenizer.encode(t, 8) for t in texts])
    begin = np.array([0, 2, 1], np.int32)
    got = encoders.scores(pictures, tokens, begin).rows
    ready = experiment.preprocess.normalise(jnp.asarray(pictures, jnp.float32) / 255)
    logits = jax.jit(
        lambda text: model.apply(params, rest, ready, text, method="caption_logits")[0]
    )
    for k in range(2):
        z = np.asarray(logits(jnp.asarray(tokens[:, k])), np.float64)[:, :-1]
        log_p = np.take_along_axis(
            z - scipy.special.logsumexp(z, -1, keepdims=True), tokens[:, k, :, None], -1
        )[..., 0]
        counts = (tokens[:, k] != 0) & (np.arange(8) >= begin[:, None])
        right = counts & (z.argmax(-1) == tokens[:, k])
        np.testing.assert_allclose(
            got[:, k],
            np.stack([(log_p * counts).sum(1), counts.sum(1), right.sum(1)], 1),
            rtol=2e-5,
        )
        if k == 0:
            z[..., 0] = -np.inf  # padding is not written
            first = z[np.arange(3), begin].argmax(-1)
    written = encoders.captions(
        pictures, Generation(), np.where(np.arange(8) < begin[:, None], tokens[:, 0], 0)
    )[1].rows
    for row in range(3):  # after the same prefix, with kept keys and values
        assert written[row, : begin[row] + 1].tolist() == [
            *tokens[row, 0, : begin[row]],
            first[row],
        ]
