"""CLOSE: noise against float64, what conditions a caption, gradients, decoding; text embeddings
that are moved to images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import SMALL_TEXT, SMALL_VIT, batch_of

from jaxvl.config import ConfigError, choose
from jaxvl.models import MODELS, InputSpec
from jaxvl.models.close import Close, add_noise
from jaxvl.models.functional import functional

INPUTS = InputSpec(image_size=16, text_length=6, vocab_size=20, pad_id=0, eos_id=1)
NODE = dict(
    name="close",
    image=dict(SMALL_VIT, depth=1, pool="mean"),
    text=dict(SMALL_TEXT, depth=1),
    embed_dim=8,
    width=24,
    heads=2,
    unimodal=1,
    multimodal=1,
    prefix_layers=1,
)
FROZEN = r"^(image|text)/|^log_scale$"
B = 3
STEPS = 3


def built(**options):
    return functional(choose(MODELS, dict(NODE, **options), "model"), INPUTS, freeze=FROZEN)


def released(x, scale, drawn):
    """`AddGuassianNoise` on rows that are scaled to length 1 before."""
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    return unit(unit(x) + scale * drawn)


def test_noise_is_the_released_one():
    x = np.random.default_rng(0).normal(size=(5, 8))
    t = jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)
    key = jax.random.key(3)
    drawn = np.float64(jax.random.normal(key, t.shape))
    got = add_noise(t, 0.12, key)
    np.testing.assert_allclose(got, released(np.float64(t), 0.12, drawn), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-6)
    weight = np.random.default_rng(1).normal(size=t.shape)
    slope = jax.grad(lambda t: (add_noise(t, 0.12, key) * weight).sum())(t)
    # d norm(y) / dy = (I - u u') / |y|, of y = t + w eps
    y = np.float64(t) + 0.12 * drawn
    u = y / np.linalg.norm(y, axis=1, keepdims=True)
    want = (weight - (weight * u).sum(1, keepdims=True) * u) / np.linalg.norm(y, axis=1)[:, None]
    np.testing.assert_allclose(slope, want, atol=1e-5)
    np.testing.assert_allclose(add_noise(t, 0.0, None), t, atol=1e-6)
    with pytest.raises(ValueError, match="^key: None, but noise is random"):
        add_noise(t, 0.12, None)


def test_captions_are_read_from_noisy_texts_in_training_and_from_images_as_they_are(monkeypatch):
    """As much noise as the release adds: the mean cosine with what was given, against draws of
    numpy."""
    rng = np.random.default_rng(0)
    given = released(rng.normal(size=(2000, 8)), 0.0, 0.0)

    class Read(Exception):
        """The model reads no further."""

    def read_prefix(self, embedding, **options):
        raise Read(embedding)

    monkeypatch.setattr(Close, "read_prefix", read_prefix)
    monkeypatch.setattr(Close, "encode_image", lambda self, image, **options: image[:, 0, 0])
    batch = dict(text=jnp.ones((2000, INPUTS.text_length), int), given=jnp.float32(given))
    batch["image"] = batch["given"][:, None, None]
    cosine = {}
    for condition, modes in (("given", (False, True)), ("image", (True,))):
        model = built(condition=condition, noise=0.3)
        params = {path: jnp.zeros(x.shape, x.dtype) for path, x in model.params.items()}

        @functools.partial(jax.jit, static_argnums=1)
        def embedding(params, train, model=model):
            with pytest.raises(Read) as found:
                model.apply(params, {}, batch, train=train, key=jax.random.key(0))
            return found.value.args[0]

        for train in modes:
            found = np.float64(embedding(params, train))
            cosine[condition, train] = (found * given).sum(1).mean()
    drawn = released(given, 0.3, rng.normal(size=given.shape))
    for case, value in cosine.items():
        want = (drawn * given).sum(1).mean() if case == ("given", True) else 1.0
        assert value == pytest.approx(want, abs=0.01), case
    assert (drawn * given).sum(1).mean() < 0.9


@functools.cache
def outputs():
    """Of one batch by several conditions: without training, in training, and what the decoder gives
    token by token."""
    live, cached, seen, plain = (
        built(**o)
        for o in (
            {},
            dict(condition="given"),
            dict(condition="image"),
            dict(noise=0.0),
        )
    )
    params, rest = jax.jit(live.init)(jax.random.key(0))
    # Rows of text tell each other apart from the first step on.
    rng = np.random.default_rng(0)
    params = {p: v + 0.2 * rng.normal(size=v.shape).astype("f4") for p, v in params.items()}
    batch = batch_of(B, INPUTS)
    key = jax.random.key(5)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def everything(params, batch):
        of = lambda model, *args, **options: model.apply(params, rest, *args, **options)[0]
        text = dict(text=batch["text"])
        out = dict(
            text=of(live, text),
            cached=of(cached, dict(text, given=of(live, text)["text"])),
            noisy=of(live, text, train=True, key=key),
            image=of(seen, batch, train=True, key=key),
            plain=of(plain, text, train=True, key=key),
            alone=of(live, dict(image=batch["image"])),
            logits=of(live, batch["image"], batch["text"], method="caption_logits"),
            scores=of(
                live,
                of(live, batch["image"], method="memory")[0],
                batch["text"],
                method="caption_scores",
            ),
        )
        kv_cache, cross_kv = of(live, batch["image"], INPUTS.text_length, method="prefill")
        steps = []
        for t in range(STEPS):
            last = batch["text"][:, max(t - 1, 0)]
            logits, kv_cache = of(live, kv_cache, cross_kv, last, t, method="decode_step")
            steps.append(logits)
        loss = lambda p: live.apply(p, rest, text, train=True, key=key)[0]["caption_lse"].sum()
        return out | dict(steps=jnp.stack(steps, 1), slopes=jax.grad(loss)(params))

    return everything(params, batch)


@pytest.mark.slow
def test_a_text_or_its_embedding_conditions_the_caption():
    out = outputs()
    scores = {name: out[name]["caption_lse"] for name in ("text", "cached", "image", "noisy")}
    np.testing.assert_allclose(scores["cached"], scores["text"], atol=1e-5)
    assert np.abs(scores["image"] - scores["text"]).max() > 1e-3, "the image is read instead"
    assert "image" not in out["text"] and "caption_lse" not in out["alone"]
    np.testing.assert_allclose(out["alone"]["image"], out["image"]["image"], atol=1e-6)


@pytest.mark.slow
def test_noise_is_in_training_and_not_of_images():
    out = outputs()
    scores = {name: out[name]["caption_lse"] for name in ("text", "noisy", "plain")}
    assert np.abs(scores["noisy"] - scores["text"]).max() > 1e-3
    np.testing.assert_allclose(scores["plain"], scores["text"], atol=1e-5)
    np.testing.assert_allclose(out["image"]["caption_lse"], out["scores"]["lse"], atol=1e-5)


@pytest.mark.slow
def test_only_what_is_not_frozen_learns_from_texts():
    out = outputs()
    for path, slope in out["slopes"].items():
        towers = path.startswith(("image/", "text/")) or path == "log_scale"
        assert towers == (not np.any(slope)), path


@pytest.mark.slow
def test_captions_of_images_token_by_token():
    out = outputs()
    logits = np.asarray(out["logits"])[:, :STEPS]
    np.testing.assert_allclose(out["steps"], logits, atol=1e-4)


def test_refusals():
    with pytest.raises(ConfigError, match="pooler_heads: 2: there are no poolers"):
        built(pooler_heads=2)
    with pytest.raises(ConfigError, match="condition: is empty"):
        built(condition="")
