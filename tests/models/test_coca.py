"""CoCa: both losses from one pass, what may see what, published sizes, decoding with and without
kept keys and values."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxvl.config import ConfigError, choose, resolve
from jaxvl.models import MODELS, InputSpec, presets
from jaxvl.models.coca import CoCaConfig
from jaxvl.models.functional import functional
from jaxvl.models.generate import Captions, Generation, TextShape, generate
from jaxvl.models.open_clip_coca import OpenClipCoCaConfig, renamed
from jaxvl.nn import vocabulary
from jaxvl.objectives.captioning import Captioning

INPUTS = InputSpec(image_size=16, text_length=6, vocab_size=40, pad_id=0, eos_id=1)
SMALL = dict(
    image=dict(name="vit", variant="Ti/8", width=16, depth=1, heads=2, pool="mean"),
    width=24,
    heads=2,
    unimodal=2,
    multimodal=2,
    queries=3,
    pooler_heads=2,
    embed_dim=8,
)
# open_clip's forms: one pooler for both, or none; an attention to the image with an MLP of its own;
# texts that begin with a token, 2.
SHARED = dict(
    name="open_clip_coca",
    image={**SMALL["image"], "pool": "cls", "post_norm": False},
    poolers="shared",
    cross="after",
    start_id=2,
    late_mask=True,
)
BARE = dict(
    name="open_clip_coca",
    image={**SMALL["image"], "pool": "cls"},
    poolers="none",
    cross="after",
    start_id=2,
    text_pool="eos",
    scan=False,
)


def build(**changes):
    model = functional(choose(MODELS, {"name": "coca", **SMALL, **changes}, "model"), INPUTS)
    params, rest = model.init(jax.random.key(0))
    # Biases and positions start at or near zero; without this, what reads the wrong one would pass.
    rng = np.random.default_rng(1)
    params = {p: v + np.float32(0.1 * rng.normal(size=v.shape)) for p, v in params.items()}

    @functools.partial(jax.jit, static_argnames=("method", "length"))
    def apply(*args, method="__call__", **kwargs):
        return model.apply(params, rest, *args, method=method, **kwargs)[0]

    return apply


def data(rows=3, seed=0):
    rng = np.random.default_rng(seed)
    text = rng.integers(2, 40, (rows, 6))
    for i in range(rows):
        end = 3 + i % 3
        text[i, end], text[i, end + 1 :] = 1, 0
    return jnp.asarray(rng.normal(size=(rows, 16, 16, 3)), jnp.float32), jnp.asarray(
        text, jnp.int32
    )


@pytest.mark.parametrize(
    "changes", [{}, {"poolers": "parallel", "tied": True, "scan": False}, SHARED, BARE]
)
def test_scores_are_those_of_the_logits(changes):
    apply, (image, text) = build(**changes), data()
    text = text.at[:, 0].set(2) if "start_id" in changes else text
    out = apply({"image": image, "text": text})
    logits = np.asarray(apply(image, text, method="caption_logits"), np.float64)[:, :-1]
    log_p = logits - scipy.special.logsumexp(logits, -1, keepdims=True)
    targets = np.asarray(text)[:, "start_id" in changes :]
    expected = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    weight = targets != 0
    np.testing.assert_allclose(out["caption_weight"], weight)
    loss, _ = Captioning()(out, {}, (), None)
    np.testing.assert_allclose(loss.value, expected[weight].mean(), rtol=1e-5)
    np.testing.assert_allclose(
        loss.metrics["token_accuracy"], (logits.argmax(-1) == targets)[weight].mean(), rtol=1e-6
    )
    smooth, _ = Captioning(label_smoothing=0.1)(out, {}, (), None)
    np.testing.assert_allclose(
        smooth.value, (0.9 * expected - 0.1 * log_p.mean(-1))[weight].mean(), rtol=1e-5
    )
    for side in ("image", "text"):
        np.testing.assert_allclose(np.linalg.norm(out[side], axis=-1), 1, rtol=1e-5)
        np.testing.assert_allclose(
            apply({"image": image, "text": text}[side], method=f"encode_{side}"),
            out[side],
            atol=1e-6,
        )


def test_a_token_sees_nothing_of_what_comes_after_it():
    apply, (image, text) = build(), data()
    before = apply(image, text, method="caption_logits")
    after = apply(image, text.at[:, 3].set(17), method="caption_logits")
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-3


def test_the_text_embedding_sees_the_whole_text_and_no_padding():
    apply, (_, text) = build(), data()
    embedding = apply(text, method="encode_text")
    assert (
        np.abs(embedding - apply(text.at[:, 0].set(17), method="encode_text")).max(1).min() > 1e-3
    )
    shorter = apply(text[:1, :4], method="encode_text")  # the first row's end of text stands at 3
    np.testing.assert_allclose(shorter, embedding[:1], atol=1e-6)


def test_captions_read_the_image_and_the_contrastive_text_does_not():
    apply, (image, text) = build(), data()
    other = apply({"image": image[::-1], "text": text})
    mine = apply({"image": image, "text": text})
    np.testing.assert_allclose(other["text"], mine["text"], atol=1e-6)
    assert np.abs(other["caption_lse"] - mine["caption_lse"])[0].max() > 1e-4


def test_chunks_of_the_vocabulary_do_not_change_values_or_gradients(monkeypatch):
    model = functional(resolve(CoCaConfig, SMALL), INPUTS)
    params, rest = model.init(jax.random.key(0))
    image, text = data()

    def value_and_gradient():
        def loss(params):
            out, _ = model.apply(params, rest, {"image": image, "text": text})
            return Captioning(0.1)(out, {}, (), None)[0].value

        return jax.jit(jax.value_and_grad(loss))(params)

    whole = value_and_gradient()
    original = vocabulary.VocabularyHead.scores

    def chunked(self, x, words, targets):
        self.chunk = 3 * 40 * 2  # two positions at a time
        return original(self, x, words, targets)

    monkeypatch.setattr(vocabulary.VocabularyHead, "scores", chunked)
    parts = value_and_gradient()
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-6)
    for path in whole[1]:
        np.testing.assert_allclose(whole[1][path], parts[1][path], atol=2e-6, err_msg=path)


# Millions of parameters: image encoder, and everything of the text decoder with its embeddings
# apart or, the largest, as one (spec; table 1 of the paper).
@pytest.mark.parametrize(
    "variant, tied, image_millions, text_millions",
    [
        ("base", False, 86, 297),
        ("large", False, 303, 484),
        ("2b", True, 1009, 1089),
        ("2b", False, 1009, 1179),
    ],
)
def test_published_sizes(variant, tied, image_millions, text_millions):
    model = functional(
        choose(MODELS, {**presets.coca(variant), "tied": tied}, "model"),
        InputSpec(288, 64, 64000, 0, 1),
    )
    count = {p: int(np.prod(s.shape)) for p, s in model.params.items()}
    image = sum(n for p, n in count.items() if p.startswith("encoder/"))
    text = sum(
        n for p, n in count.items() if p.startswith(("words", "unimodal", "multimodal", "head"))
    )
    assert abs(image / 1e6 / image_millions - 1) < 0.01
    assert abs(text / 1e6 / text_millions - 1) < 0.01
    if variant == "2b":
        assert f"{sum(count.values()) / 1e9:.1f}" == ("2.1" if tied else "2.2")


def decode(apply, image, config, keys=None):
    kv_cache, cross_kv = apply(image, length=6, method="prefill")
    step = lambda kv_cache, token, position: apply(
        kv_cache, cross_kv, token, position, method="decode_step"
    )
    return generate(step, kv_cache, config, TextShape(len(image), 6, 1, 0), keys=keys)


def uncached(apply, image, start_id=None, steps=6):
    """Greedy, token by token through the whole model, nothing kept."""
    text = np.zeros((len(image), 6), np.int32)
    done = np.zeros(len(image), bool)
    for t in range(steps):
        given = (
            text
            if start_id is None
            else np.concatenate([np.full((len(image), 1), start_id), text[:, :-1]], 1)
        )
        logits = np.array(apply(image, jnp.asarray(given, jnp.int32), method="caption_logits"))[
            :, t
        ]
        logits[:, 0] = -np.inf
        new = np.full(len(image), 1) if t == steps - 1 else logits.argmax(-1)
        text[:, t] = np.where(done, 0, new)
        done |= new == 1
    return text


@pytest.mark.parametrize("changes", [{}, SHARED, BARE])
def test_greedy_decoding_equals_decoding_without_kept_keys(changes):
    apply, (image, _) = build(**changes), data(24)
    got = decode(apply, image, Generation()).tokens
    np.testing.assert_array_equal(got, uncached(apply, image, changes.get("start_id")))
    assert len(np.unique(got, axis=0)) > 1


def test_log_probability_is_that_of_the_tokens():
    apply, (image, _) = build(), data(4)
    for config in (Generation(), Generation(method="beam", beams=3)):
        got = decode(apply, image, config)
        logits = np.asarray(apply(image, got.tokens, method="caption_logits"), np.float64)[:, :-1]
        logits[..., 0] = -np.inf
        logits[:, -1, 2:] = -np.inf  # the last place is EOS's
        log_p = logits - scipy.special.logsumexp(logits, -1, keepdims=True)
        each = np.take_along_axis(log_p, np.asarray(got.tokens)[..., None], -1)[..., 0]
        np.testing.assert_allclose(got.log_p, np.where(got.tokens != 0, each, 0).sum(1), atol=1e-4)


def toy(table):
    """A step whose logits depend on the last token alone: `table` [V, V] of probabilities, from
    token 2 at the start."""
    log = jnp.log(jnp.asarray(table))

    def step(kv_cache, token, position):
        return log[jnp.where(position == 0, 2, token)], kv_cache

    return step


def run_toy(table, config, key=None, rows=1):
    keys = None if key is None else jax.random.split(key, rows)
    return generate(
        toy(table),
        jnp.zeros((rows, 1)),
        config,
        TextShape(rows, 4, 1, 0),
        keys=keys,
    )


# From 2 (the start): 3 is likelier, but leads nowhere; 4 ends well.
TABLE = np.full((5, 5), 1e-6)
TABLE[2, 3], TABLE[2, 4] = 0.6, 0.4
TABLE[3] = [1e-6, 0.3, 0.25, 0.2, 0.25]
TABLE[4, 1] = 1.0


def test_beam_search_finds_what_greedy_misses():
    assert run_toy(TABLE, Generation()).tokens[0].tolist() == [3, 1, 0, 0]
    best = run_toy(TABLE, Generation(method="beam", beams=2, length_penalty=0.0))
    assert best.tokens[0].tolist() == [4, 1, 0, 0]
    np.testing.assert_allclose(best.log_p[0], np.log(0.4), atol=1e-4)


def test_beam_search_over_all_paths_is_exhaustive_search():
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.full(5, 0.5), 5)
    table[:, 0] = 1e-12
    best = run_toy(table, Generation(method="beam", beams=60, length_penalty=0.0))
    log = np.log(table / table[:, 1:].sum(1, keepdims=True))

    def paths(last, length):
        yield (1,), log[last, 1] if length < 4 else 0.0
        if length < 4:
            for token in (2, 3, 4):
                for rest, value in paths(token, length + 1):
                    yield (token, *rest), log[last, token] + value

    want = max(paths(2, 1), key=lambda p: p[1])
    assert tuple(t for t in best.tokens[0].tolist() if t) == want[0]
    np.testing.assert_allclose(best.log_p[0], want[1], atol=1e-3)


def test_lengths_repetition_and_restrictions():
    assert run_toy(TABLE, Generation(min_length=3)).tokens[0].tolist().index(1) >= 2
    assert run_toy(TABLE, Generation(max_length=1)).tokens[0].tolist() == [1, 0, 0, 0]
    circle = np.full((5, 5), 1e-3)
    circle[2, 3], circle[3, 3], circle[3, 4], circle[4, 1] = 0.9, 0.9, 0.5, 0.9
    assert run_toy(circle, Generation()).tokens[0].tolist() == [3, 3, 3, 1]
    assert run_toy(circle, Generation(repetition_penalty=1e4)).tokens[0].tolist()[:2] != [3, 3]
    many = run_toy(TABLE, Generation(method="sample"), jax.random.key(0), rows=4000).tokens[:, 0]
    np.testing.assert_allclose((many == 3).mean(), 0.6, atol=0.03)
    for config in (Generation(method="sample", top_k=1), Generation(method="sample", top_p=0.5)):
        assert (run_toy(TABLE, config, jax.random.key(0), rows=100).tokens[:, 0] == 3).all()
    assert isinstance(run_toy(TABLE, Generation()), Captions)


def test_wrong_options():
    with pytest.raises(ConfigError, match="top_p: 0 is a probability"):
        Generation(top_p=0)
    with pytest.raises(ConfigError, match="max_length: 2 must be >= 1 and >= min_length = 3"):
        Generation(max_length=2, min_length=3)
    with pytest.raises(ConfigError, match="heads: 5 must divide the width of 24"):
        resolve(CoCaConfig, {**SMALL, "heads": 5})
    with pytest.raises(
        ConfigError, match="poolers: 'none' needs an image encoder with a class token"
    ):
        resolve(OpenClipCoCaConfig, {**SMALL, "poolers": "none"})
    with pytest.raises(
        ConfigError, match="start_id: 1 must be a token .below 40. that is neither padding nor EOS"
    ):
        functional(
            resolve(OpenClipCoCaConfig, {**SMALL, "image": SHARED["image"], "start_id": 1}), INPUTS
        )
    with pytest.raises(ValueError, match="keys: None"):
        run_toy(TABLE, Generation(method="sample"))


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_captions_go_on_after_their_own_prompts(method):
    """Rows with prompts of two, one and no tokens, against a bigram model by hand; what a prompt
    costs is nothing."""
    table = np.random.default_rng(3).normal(size=(8, 8)).astype(np.float32)
    table[:, 0] = -1e9
    prompt = jnp.array([[5, 6], [4, 0], [0, 0]])
    config = Generation(method=method, beams=2, top_k=1, length_penalty=0.0, max_length=4)
    kv_cache = jnp.zeros((3, 1))
    keys = jax.random.split(jax.random.key(0), 3)
    step = lambda kv_cache, last, t: (jnp.asarray(table)[jnp.where(t == 0, 0, last)], kv_cache)
    got = generate(step, kv_cache, config, TextShape(3, 5, 1, 0), keys=keys, prompt=prompt)
    log_p = table - scipy.special.logsumexp(table, -1, keepdims=True)
    for row, own in enumerate(([5, 6], [4], [])):
        paths = []
        for tail in itertools.product(range(1, 8), repeat=4 - len(own)):
            tail = list(tail[: tail.index(1) + 1]) if 1 in tail else None
            if tail is not None and [*own, *tail] not in [p for _, p in paths]:
                path = [*own, *tail]
                cost = 0.0
                for t in range(len(own), len(path)):
                    last = path[t - 1] if t else 0
                    cost += (
                        0.0 if t == 3 else log_p[last, path[t]]
                    )  # EOS is forced at the last place
                paths.append((cost, path))
        if method == "beam":
            best = dict((tuple(p), c) for c, p in paths)
            path = [t for t in got.tokens[row].tolist() if t]
            assert path[: len(own)] == own and best[tuple(path)] == pytest.approx(
                float(got.log_p[row]), rel=1e-5
            )
        else:
            path = list(own)
            while 1 not in path:
                path.append(1 if len(path) == 3 else int(table[path[-1] if path else 0].argmax()))
            assert got.tokens[row].tolist()[: len(path)] == path and not any(
                got.tokens[row].tolist()[len(path) :]
            )
            assert dict((tuple(p), c) for c, p in paths)[tuple(path)] == pytest.approx(
                float(got.log_p[row]), rel=1e-5, abs=1e-6
            )


# What a version before recorded of every `coca`.
RECORDED = dict(
    name="coca",
    queries=3,
    poolers="cascade",
    pooler_norm=True,
    cross="between",
    start_id=None,
    text_pool="class",
    late_mask=False,
)


@pytest.mark.parametrize(
    "changes, name, options",
    [
        ({}, "coca", dict(queries=3, poolers="cascade")),
        (dict(name="cosmo", across=False), "cosmo", dict(across=False)),
        (dict(name="sycoca", poolers="parallel"), "sycoca", dict(queries=3)),
        (
            dict(poolers="none", cross="after", start_id=2, text_pool="eos"),
            "open_clip_coca",
            dict(poolers="none", cross="after", start_id=2, text_pool="eos"),
        ),
        (
            dict(start_id=2, late_mask=True),
            "open_clip_coca",
            dict(poolers="cascade", cross="between", start_id=2, late_mask=True),
        ),
    ],
)
def test_what_an_earlier_version_recorded_is_the_same_model(changes, name, options):
    image = dict(SMALL["image"], pool="cls")
    node = renamed(dict(SMALL, **RECORDED) | dict(image=image) | changes)
    config = choose(MODELS, node, "model")
    assert config.registered_name == name
    assert {key: getattr(config, key) for key in options} == options
    assert renamed(node) == node


def test_a_mixture_that_is_no_longer_there_is_refused():
    with pytest.raises(ConfigError, match="a learned start and options of open_clip's form"):
        renamed(dict(RECORDED, cross="after"))
