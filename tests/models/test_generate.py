"""Writing token by token, against plain NumPy search: beams with a cache, bans, and what a row's
sample depends on."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from test_coca import build, data, decode, run_toy

from jaxvl.bench import generate as bench
from jaxvl.config import ConfigError
from jaxvl.models.generate import Generation, TextShape, generate


def score(log_p, length, penalty):
    return log_p / ((5 + length) / 6) ** penalty


def reference_beams(next_log_p, k, length, penalty):
    """Beam search for one picture by lists: `next_log_p(prefix) -> [V]`; the best finished caption
    by score."""
    live = [((), 0.0)]
    best = (-np.inf, None, None)
    for t in range(length):
        candidates = []
        for words, log_p in live:
            row = next_log_p(words)
            ended = log_p + (0.0 if t == length - 1 else row[1])
            if score(ended, t + 1, penalty) > best[0]:
                best = score(ended, t + 1, penalty), (*words, 1), ended
            candidates += [((*words, v), log_p + row[v]) for v in range(2, len(row))]
        live = sorted(candidates, key=lambda c: -c[1])[:k]
    return best


def test_beams_with_a_cache_are_those_of_a_search_without():
    apply, (image, _) = build(), data(3, seed=4)
    for penalty, i in itertools.product((0.0, 1.0), range(len(image))):
        if i == 0:
            got = decode(apply, image, Generation(method="beam", beams=3, length_penalty=penalty))

        def next_log_p(prefix, i=i):
            text = np.zeros((1, 6), np.int32)
            text[0, : len(prefix)] = prefix
            logits = np.array(
                apply(image[i : i + 1], jnp.asarray(text), method="caption_logits"), np.float64
            )[0, len(prefix)]
            logits[0] = -np.inf
            return logits - scipy.special.logsumexp(logits)

        _, words, log_p = reference_beams(next_log_p, 3, 6, penalty)
        assert [t for t in got.tokens[i].tolist() if t] == list(words)
        np.testing.assert_allclose(got.log_p[i], log_p, atol=1e-3)


def test_with_a_length_penalty_all_paths_are_searched_by_score():
    rng = np.random.default_rng(1)
    table = rng.dirichlet(np.full(5, 0.5), 5)
    table[:, 0] = 1e-12
    log = np.log(table / table[:, 1:].sum(1, keepdims=True))
    best = run_toy(table, Generation(method="beam", beams=60, length_penalty=1.5))
    _, words, log_p = reference_beams(
        lambda prefix: log[prefix[-1] if prefix else 2], 10**6, 4, 1.5
    )
    assert tuple(t for t in best.tokens[0].tolist() if t) == words
    np.testing.assert_allclose(best.log_p[0], log_p, atol=1e-3)


@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
@pytest.mark.parametrize("n", [1, 2])
def test_no_sequence_of_tokens_comes_twice(n, method):
    table = jnp.log(jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(5), 5)))
    step = lambda kv_cache, token, t: (table[jnp.where(t == 0, 2, token)], kv_cache)
    keys = jax.random.split(jax.random.key(0), 200)
    config = Generation(method=method, no_repeat=n, min_length=12)
    got = generate(step, (), config, TextShape(200, 12, 1, 0), keys=keys)
    for row in np.asarray(got.tokens).tolist():
        words = row[: row.index(1)]
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        # Three words have 3 or 9 sequences; once they are used up the ban cannot hold.
        possible = grams[: 3 if n == 1 else 4]
        assert len(set(possible)) == len(possible), words


@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
def test_the_last_place_is_eos_whatever_the_least_length(method):
    log = jnp.log(jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(5), 5)))
    step = lambda kv_cache, token, t: (log[jnp.where(t == 0, 2, token)], kv_cache)
    keys = jax.random.split(jax.random.key(0), 20)
    got = generate(
        step,
        (),
        Generation(method=method, min_length=9),
        TextShape(20, 6, 1, 0),
        keys=keys,
    )
    assert (
        (got.tokens[:, 5] == 1).all() and (got.tokens[:, :5] > 1).all() and (got.log_p > -1e3).all()
    )


def test_a_row_is_drawn_from_its_own_key():
    table = np.full((5, 5), 0.2)
    step = lambda kv_cache, token, t: (jnp.log(jnp.asarray(table))[token], kv_cache)
    keys = jax.random.split(jax.random.key(0), 12)
    write = lambda keys: (
        generate(
            step,
            (),
            Generation(method="sample"),
            TextShape(len(keys), 6, 1, 0),
            keys=keys,
        ).tokens
    )
    whole = np.asarray(write(keys))
    np.testing.assert_array_equal(write(keys[5:9]), whole[5:9])
    assert len({tuple(row) for row in whole.tolist()}) > 8


def test_numbers_may_be_arguments_of_the_compiled_function():
    table = np.random.default_rng(0).dirichlet(np.ones(6), 6)
    step = lambda kv_cache, token, t: (jnp.log(jnp.asarray(table))[token], kv_cache)
    keys = jax.random.split(jax.random.key(0), 50)
    compiled = {}
    for options in (
        dict(temperature=0.5, top_p=0.9),
        dict(temperature=2.0, top_p=0.6, min_length=3),
        dict(temperature=1.5, top_p=0.3, seed=3),
    ):
        config = Generation(method="sample", repetition_penalty=1.0, **options)
        static, numbers = config.split()
        run = compiled.setdefault(
            static,
            jax.jit(
                lambda n, s=static: (
                    generate(step, (), s, TextShape(50, 6, 1, 0), keys=keys, numbers=n).tokens
                )
            ),
        )
        whole = generate(step, (), config, TextShape(50, 6, 1, 0), keys=keys).tokens
        np.testing.assert_array_equal(run(numbers), whole)
    assert len(compiled) == 1 and run._cache_size() == 1


def test_wrong_options():
    with pytest.raises(ConfigError, match="length_penalty: -1 must be >= 0"):
        Generation(length_penalty=-1)
    with pytest.raises(ConfigError, match="no_repeat: -2 must be >= 0 tokens"):
        Generation(no_repeat=-2)


@pytest.mark.slow  # what it compares: `test_beams_with_a_cache_are_those_of_a_search_without`
def test_the_benchmark_writes_the_same_both_ways():
    result = bench.main(["--size", "tiny", "--batch", "2", "--length", "6", "--rounds", "1"])
    assert result["same_tokens"] == 1.0
    assert result["programs"] == {"three methods": 3}
    assert all(s > 0 for times in result["seconds"].values() for s in times)
