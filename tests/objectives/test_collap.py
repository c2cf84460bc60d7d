"""CoLLAP's contrast of weighted clips: the equation in float64, clips that do not count, chunks; and
what the weights are for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from objective_checks import call, compare, embeddings, log_softmax, same_on_a_mesh, unit

from jaxvl.nn.norms import l2_normalize
from jaxvl.objectives.collap import WeightedClips
from jaxvl.objectives.streamed import tokens

B, K, D = 8, 5, 4
LENGTHS = np.where(np.arange(K) < np.array([5, 3, 1, 5, 2, 4, 5, 3])[:, None], 160, 0)
OPTIONS = dict(clips="audio>text", text="text>audio", log_scale="log_scale/audio-text", block=4)


def example():
    clips, text = embeddings((B, K, D), (B, D))
    return {
        "audio>text": 2 * clips,
        "text>audio": text,
        "log_scale/audio-text": np.float64(np.log(5.0)),
    }


def oracle(outputs, temperature, counts):
    """Pair by pair, clip by clip."""
    clips = unit(outputs["audio>text"])
    text = unit(outputs["text>audio"])
    scores = np.zeros((B, B))
    for i in range(B):
        for j in range(B):
            fit = clips[i, counts[i]] @ text[j]
            weights = np.exp(fit / temperature) if temperature else np.ones_like(fit)
            scores[i, j] = (weights * fit).sum() / weights.sum()
    scores *= np.exp(outputs["log_scale/audio-text"])
    return -(np.trace(log_softmax(scores, 1)) + np.trace(log_softmax(scores, 0))) / (2 * B)


@pytest.mark.parametrize("chunk", [2, pytest.param(None, marks=pytest.mark.slow)])
def test_the_equation_and_its_gradients(chunk):
    objective = WeightedClips(**OPTIONS, lengths="waveform_length", chunk=chunk)
    assert objective.batch_keys == ("waveform_length",)
    exact = functools.partial(oracle, temperature=0.1, counts=LENGTHS > 0)
    compare(objective, example(), {"waveform_length": LENGTHS}, exact)


def test_a_mask_of_the_model_counts_beside_the_lengths():
    objective = WeightedClips(**OPTIONS, lengths="waveform_length")
    own = np.ones((B, K), bool)
    own[2:4, :1] = False
    outputs = {name: jnp.asarray(x, jnp.float32) for name, x in example().items()}
    outputs["audio>text_mask"] = jnp.asarray(own)
    lengths = LENGTHS.copy()
    lengths[2, 1] = 160
    found = call(objective, outputs, {"waveform_length": jnp.asarray(lengths)})
    want = oracle(example(), 0.1, (lengths > 0) & own)
    np.testing.assert_allclose(found.value, want, rtol=1e-5)


@pytest.mark.slow
def test_all_clips_count_where_no_lengths_are_named():
    exact = functools.partial(oracle, temperature=None, counts=np.ones((B, K), bool))
    compare(WeightedClips(**OPTIONS, temperature=None), example(), {}, exact)


@pytest.mark.slow
def test_eight_devices_equal_one():
    objective = WeightedClips(**OPTIONS, lengths="waveform_length", chunk=2)
    same_on_a_mesh(objective, example(), {"waveform_length": LENGTHS})


# --------------------------------------------------------------------------------------------------
# Row 41: one clip of nine is what the text is of


def recordings(rng, n, mix, clips=9):
    """Texts [n, 16], and of each a recording [n, 9, 16] of one clip that is the text in other
    coordinates, in an unknown place, and eight of noise."""
    text = unit(rng.normal(size=(n, 16)))
    heard = unit(rng.normal(size=(n, clips, 16)))
    place = rng.integers(0, clips, n)
    heard[np.arange(n), place] = unit(text @ mix + 0.05 * rng.normal(size=(n, 16)))
    return np.float32(text), np.float32(heard)


def recalls(seed):
    """R@1 of texts among 128 recordings, trained and asked with weights, and with means."""
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    text, heard = recordings(rng, 512, mix)
    test_text, test_heard = recordings(rng, 128, mix)
    found = []
    for temperature in (0.1, None):
        objective = WeightedClips(temperature=temperature, block=64)
        w = trained(objective, jnp.asarray(text), jnp.asarray(heard))
        clips = tokens({"clips": test_heard}, "clips")
        scores = objective.score(1.0)(clips, l2_normalize(test_text @ w))
        found.append(float(np.mean(np.argmax(scores, 0) == np.arange(128))))
    return found


@functools.partial(jax.jit, static_argnums=0)
def trained(objective, text, heard):
    """The map [16, 16] of texts after 150 steps of 64 rows."""
    optimiser = optax.adam(0.05)

    def loss(w, i):
        part = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=64 * (i % 8), slice_size=64
        )
        outputs = {"clips": part(heard), "text": part(text) @ w, "log_scale": jnp.log(10.0)}
        return objective(outputs, {}, {}, None)[0].value

    def step(i, carry):
        w, state = carry
        updates, state = optimiser.update(jax.grad(loss)(w, i), state)
        return w + updates, state

    start = jnp.eye(16)
    return jax.lax.fori_loop(0, 150, step, (start, optimiser.init(start)))[0]


def test_the_clip_that_the_text_is_of_is_found():
    """Trained and asked with weights, R@1 is far above that of mean pooling, for three seeds."""
    found = np.array([recalls(seed) for seed in range(3)])
    print("R@1 by weighted clips, by their mean:", found.round(3).tolist())
    weighted, mean = found.T
    assert (weighted > 0.9).all() and (weighted > mean + 0.2).all()
