"""Captions token by token: greedy, sampled or by beam search, with keys and values kept, in one
compiled loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxvl.aliases import Tree
from jaxvl.config import Count, Range, Scale, Seed, check
from jaxvl.sharding import constrain

NEVER = -1e9  # a logit; far below any other, and finite, so that sums of it stay numbers


@dataclasses.dataclass(frozen=True)
class Generation:
    """How the next token is chosen.

    Attributes:
      method: `greedy`, `sample`, or `beam` (the best of `beams` partial captions by their summed
        log-probability).
      max_length, min_length: tokens of a caption, EOS included; None: what the model was trained
        with.
      temperature: divides the logits (`sample`).
      top_k: only so many likeliest tokens (`sample`); None: all.
      top_p: only the likeliest tokens that together have this probability (`sample`; Holtzman et
        al. 2020).
      seed: of samples; record i draws from `fold_in(key(seed), i)`, whatever the batch and the
        mesh.
      beams: K.
      length_penalty: a >= 0 in score = log p / ((5 + length) / 6)^a (Wu et al. 2016); 0 favours
        short captions.
      repetition_penalty: logits of tokens already there are divided by it where positive,
        multiplied where negative (Keskar et al. 2019); 1: none.
      no_repeat: no sequence of so many tokens comes twice in a caption (Paulus et al. 2018); 0: any
        may.
    """

    method: Literal["greedy", "sample", "beam"] = "greedy"
    max_length: Count | None = None
    min_length: Annotated[int, Range(0, 1_048_576)] = 1
    temperature: Scale = 1.0
    top_k: Annotated[int, Range(1, 16_777_216)] | None = None
    top_p: float = 1.0
    seed: Seed = 0
    beams: Annotated[int, Range(1, 4_096)] = 4
    length_penalty: Annotated[float, Range(0.0, 1e3)] = 0.6
    repetition_penalty: Scale = 1.0
    no_repeat: Annotated[int, Range(0, 1_048_576)] = 0

    def __post_init__(self):
        check(
            self.temperature > 0,
            "temperature",
            f"{self.temperature!r} must be > 0; for the likeliest token use method='greedy'",
        )
        check(
            self.top_k is None or self.top_k >= 1,
            "top_k",
            f"{self.top_k!r} must be >= 1, or None for all",
        )
        check(0 < self.top_p <= 1, "top_p", f"{self.top_p!r} is a probability; must be in (0, 1]")
        check(0 <= self.seed < 2**31, "seed", f"{self.seed!r} must be in 0 … 2^31 - 1")
        check(self.beams >= 1, "beams", f"{self.beams!r} must be >= 1")
        check(self.length_penalty >= 0, "length_penalty", f"{self.length_penalty!r} must be >= 0")
        check(
            self.repetition_penalty > 0,
            "repetition_penalty",
            f"{self.repetition_penalty!r} must be > 0",
        )
        check(self.no_repeat >= 0, "no_repeat", f"{self.no_repeat!r} must be >= 0 tokens")
        check(self.min_length >= 0, "min_length", f"{self.min_length!r} must be >= 0 tokens")
        longest = self.max_length
        check(
            longest is None or longest >= max(self.min_length, 1),
            "max_length",
            f"{longest!r} must be >= 1 and >= min_length = {self.min_length}",
        )

    def split(self) -> tuple[Generation, Numbers]:
        """What decides the compiled program (hashable, the numbers at stand-ins), and the numbers:
        arguments of that program."""
        numbers = Numbers(
            self.temperature,
            self.top_p,
            self.length_penalty,
            self.repetition_penalty,
            self.min_length,
            self.seed,
        )
        penalty = 2.0 if self.repetition_penalty != 1 else 1.0
        nucleus = 0.5 if self.top_p < 1 else 1.0
        changes = dict(
            temperature=1.0,
            top_p=nucleus,
            length_penalty=0.0,
            repetition_penalty=penalty,
            min_length=0,
            seed=0,
        )
        return dataclasses.replace(self, **changes), numbers


class Numbers(NamedTuple):
    """The options of `Generation` that a compiled program takes as arguments, so that another
    temperature compiles nothing."""

    temperature: float | jax.Array
    top_p: float | jax.Array
    length_penalty: float | jax.Array
    repetition_penalty: float | jax.Array
    min_length: int | jax.Array
    seed: int | jax.Array


class TextShape(NamedTuple):
    """The form of the texts that are to be written, int32 [B, T].

    Attributes:
      batch, length: B and T; a shorter `Generation.max_length` ends captions earlier.
      eos_id, pad_id: tokens of the end of a text, and behind it.
    """

    batch: int
    length: int
    eos_id: int
    pad_id: int


class Captions(NamedTuple):
    """What `generate` returns: tokens int32 [B, T], padded after EOS, and their log-probability
    float32 [B].

    The probability is that of what could be chosen: penalties and bans count, temperature, `top_k`
    and `top_p` do not.
    """

    tokens: jax.Array
    log_p: jax.Array


Step = Callable[[Tree, jax.Array, jax.Array], tuple[jax.Array, Tree]]


class _Rules(NamedTuple):
    """Everything but the model that decides a token. most: tokens that a caption may have; prompt:
    as in `generate`, by hypothesis."""

    config: Generation
    numbers: Numbers
    most: int
    eos_id: int
    pad_id: int
    prompt: jax.Array | None


def generate(
    decode_step: Step,
    kv_cache: Tree,
    config: Generation,
    texts: TextShape,
    *,
    keys: jax.Array | None = None,
    numbers: Numbers | None = None,
    prompt: jax.Array | None = None,
) -> Captions:
    """Runs inside jit.

    Args:
      decode_step: `(kv_cache, last token int [B], position) -> (float32 logits [B, V], kv_cache)`;
        at position 0 nothing is read of the token.
      kv_cache: before the first token; the arrays' first axis is the batch.
      texts: B, T and the ids that end and pad them.
      keys: one per row [B], needed to sample. So a row's caption does not depend on those beside
        it.
      numbers: those of `config.split()`, where they are to be arguments of the compiled function;
        None: as in `config`.
      prompt: int [B, P], P <= T, padded at the end; captions begin with these tokens, which cost no
        log-probability but count as length. Each caption goes on after its own prompt.

    Raises:
      ValueError: no keys to sample with.
    """
    batch, length, eos_id, pad_id = texts
    rules = _Rules(
        config,
        numbers or config.split()[1],
        min(config.max_length or length, length),
        eos_id,
        pad_id,
        prompt,
    )
    if config.method == "beam":
        return _beam(decode_step, kv_cache, rules, batch, length)
    if config.method == "sample" and keys is None:
        raise ValueError(
            "keys: None, but method='sample' is random; pass a jax.random.key for every row"
        )

    def going(state):
        t = state[0]
        done = state[2]
        return (t < rules.most) & ~done.all()

    def extend(state):
        t, tokens, done, log_p, kv_cache = state
        logits, kv_cache = decode_step(kv_cache, tokens[:, jnp.maximum(t - 1, 0)], t)
        logits = _adjust(logits, tokens, t, rules)
        if config.method == "sample":
            new = jax.vmap(
                lambda key, row: jax.random.categorical(jax.random.fold_in(key, t), row)
            )(keys, _restrict(logits, rules))
        else:
            new = logits.argmax(-1)
        gain = jnp.take_along_axis(jax.nn.log_softmax(logits), new[:, None], 1)[:, 0]
        tokens = tokens.at[:, t].set(jnp.where(done, pad_id, new).astype(jnp.int32))
        return (
            t + 1,
            constrain(tokens, "batch", None),
            done | (new == eos_id),
            log_p + jnp.where(done, 0.0, gain),
            kv_cache,
        )

    start = (
        jnp.int32(0),
        jnp.full((batch, length), pad_id, jnp.int32),
        jnp.zeros(batch, bool),
        jnp.zeros(batch),
        kv_cache,
    )
    _, tokens, _, log_p, _ = lax.while_loop(going, extend, start)
    return Captions(tokens, log_p)


def _adjust(logits, tokens, t, rules: _Rules) -> jax.Array:
    """Logits [B, V] of position t, after tokens [B, T], with what must not, or must, come."""
    config = rules.config
    b, v = logits.shape
    length = tokens.shape[1]
    rows = jnp.arange(b)[:, None]
    if config.repetition_penalty != 1.0:
        there = jnp.arange(length) < t
        penalty = rules.numbers.repetition_penalty
        seen = jnp.zeros((b, v), bool).at[rows, tokens].max(jnp.broadcast_to(there, tokens.shape))
        logits = jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    token = jnp.arange(v)
    banned = (token == rules.pad_id) & (rules.pad_id != rules.eos_id) | (token == rules.eos_id) & (
        t + 1 < jnp.minimum(rules.numbers.min_length, rules.most)
    )
    if config.no_repeat:
        banned = banned | _completing(tokens, t, config.no_repeat, v) & (token != rules.eos_id)
    forced = (t + 1 == rules.most) & (token != rules.eos_id)  # the last place is EOS's
    return _prompted(jnp.where(banned | forced, NEVER, logits), rules.prompt, t, rules.pad_id)


def _prompted(logits: jax.Array, prompt: jax.Array | None, t: jax.Array, pad_id: int) -> jax.Array:
    """Logits [B, V] of position t that leave a prompt's own token alone, where it has one there."""
    if prompt is None:
        return logits
    most = prompt.shape[1]
    token = jnp.where(t < most, prompt[:, jnp.minimum(t, most - 1)], pad_id)[:, None]
    forced = jnp.where(jnp.arange(logits.shape[1]) == token, 0.0, NEVER)
    return jnp.where(token == pad_id, logits, forced)


def _completing(tokens: jax.Array, t: jax.Array, n: int, v: int) -> jax.Array:
    """bool [B, V]: tokens which at position t would end a sequence of n that tokens [B, T] already
    hold before t."""
    b, length = tokens.shape
    starts = jnp.arange(length)
    at = lambda i: tokens[:, jnp.clip(i, 0, length - 1)]
    same = jnp.broadcast_to(starts + n - 1 < t, (b, length))
    for j in range(n - 1):
        same &= at(starts + j) == at(t - n + 1 + j)[:, None]
    return jnp.zeros((b, v), bool).at[jnp.arange(b)[:, None], at(starts + n - 1)].max(same)


def _restrict(logits: jax.Array, rules: _Rules) -> jax.Array:
    """Logits by the temperature, with all but the `top_k`, and all but the likeliest of `top_p`,
    out of reach."""
    config = rules.config
    logits = logits / rules.numbers.temperature
    if config.top_k is not None:
        least = lax.top_k(logits, min(config.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, NEVER, logits)
    if config.top_p < 1.0:
        ordered = jnp.sort(logits, descending=True)
        p = jax.nn.softmax(ordered)
        least = jnp.where(jnp.cumsum(p, -1) - p < rules.numbers.top_p, ordered, jnp.inf).min(
            -1, keepdims=True
        )  # the likeliest stays
        logits = jnp.where(logits < least, NEVER, logits)
    return logits


def _beam(decode_step: Step, kv_cache, rules: _Rules, batch: int, length: int) -> Captions:
    """The K likeliest partial captions are extended; the best finished one by score is kept aside.

    A finished caption takes no beam from those that go on, and the search of a row is over once
    none of these can still have a better score: log p only falls, and no length divides by more
    than the longest.
    """
    k = rules.config.beams
    pad_id = rules.pad_id
    eos_id = rules.eos_id
    most = rules.most
    kv_cache = jax.tree.map(lambda a: jnp.repeat(a, k, axis=0), kv_cache)
    rules = (
        rules
        if rules.prompt is None
        else rules._replace(prompt=jnp.repeat(rules.prompt, k, axis=0))
    )

    def score(log_p, length):
        return log_p / ((5.0 + length) / 6.0) ** rules.numbers.length_penalty

    def going(state):
        t, _, log_p, _, _, best, _ = state
        return (t < most) & (score(log_p.max(1), most) > best).any()

    def extend(state):
        t, tokens, log_p, ended, ended_log_p, best, kv_cache = state
        logits, kv_cache = decode_step(kv_cache, tokens[:, :, jnp.maximum(t - 1, 0)].reshape(-1), t)
        gain = jax.nn.log_softmax(
            _adjust(logits, tokens.reshape(batch * k, length), t, rules)
        ).reshape(batch, k, -1)
        total = log_p[..., None] + gain
        v = gain.shape[-1]
        # The best caption that ends here, against the best that ended before.
        ends = total[..., eos_id]
        beam = ends.argmax(1)[:, None]
        now = jnp.take_along_axis(ends, beam, 1)[:, 0]
        better = score(now, t + 1) > best
        ending = jnp.take_along_axis(tokens, beam[..., None], 1)[:, 0].at[:, t].set(eos_id)
        ended = jnp.where(better[:, None], ending, ended)
        ended_log_p = jnp.where(better, now, ended_log_p)
        best = jnp.where(better, score(now, t + 1), best)
        # The best that go on.
        log_p, chosen = lax.top_k(total.at[..., eos_id].set(2 * NEVER).reshape(batch, -1), k)
        parent = chosen // v
        new = (chosen % v).astype(jnp.int32)
        tokens = jnp.take_along_axis(tokens, parent[..., None], 1).at[:, :, t].set(new)
        rows = (jnp.arange(batch)[:, None] * k + parent).reshape(-1)
        kv_cache = jax.tree.map(lambda a: a[rows], kv_cache)
        return (
            t + 1,
            constrain(tokens, "batch", None, None),
            log_p,
            ended,
            ended_log_p,
            best,
            kv_cache,
        )

    start = (
        jnp.int32(0),
        jnp.full((batch, k, length), pad_id, jnp.int32),
        jnp.broadcast_to(
            jnp.where(jnp.arange(k) == 0, 0.0, NEVER), (batch, k)
        ),  # all beams are alike before the first token
        jnp.full((batch, length), pad_id, jnp.int32),
        jnp.zeros(batch),
        jnp.full(batch, -jnp.inf),
        kv_cache,
    )
    _, _, _, ended, ended_log_p, _, _ = lax.while_loop(going, extend, start)
    return Captions(ended, ended_log_p)
