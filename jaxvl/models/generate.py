"""Captions token by token: greedy, sampled or by beam search, with keys and values kept, in one compiled loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxvl.config import check

NEVER = -1e9  # a logit; far below any other, and finite, so that sums of it stay numbers


@dataclasses.dataclass(frozen=True)
class Generation:
    """How the next token is chosen.

    Attributes:
      method: `greedy`, `sample`, or `beam` (the best of `beams` partial captions by their summed log-probability).
      max_length, min_length: tokens of a caption, EOS included; None: what the model was trained with.
      temperature: divides the logits (`sample`).
      top_k: only so many likeliest tokens (`sample`); None: all.
      top_p: only the likeliest tokens that together have this probability (`sample`; Holtzman et al. 2020).
      beams: K.
      length_penalty: a in score = log p / ((5 + length) / 6)^a (Wu et al. 2016); 0 favours short captions.
      repetition_penalty: logits of tokens already there are divided by it where positive, multiplied where negative (Keskar et
        al. 2019); 1: none.
    """

    method: Literal["greedy", "sample", "beam"] = "greedy"
    max_length: int | None = None
    min_length: int = 1
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    beams: int = 4
    length_penalty: float = 0.6
    repetition_penalty: float = 1.0

    def __post_init__(self):
        check(self.temperature > 0, "temperature", f"{self.temperature!r} must be > 0; for the likeliest token use method='greedy'")
        check(self.top_k is None or self.top_k >= 1, "top_k", f"{self.top_k!r} must be >= 1, or None for all")
        check(0 < self.top_p <= 1, "top_p", f"{self.top_p!r} is a probability; must be in (0, 1]")
        check(self.beams >= 1, "beams", f"{self.beams!r} must be >= 1")
        check(self.repetition_penalty > 0, "repetition_penalty", f"{self.repetition_penalty!r} must be > 0")
        check(self.min_length >= 0, "min_length", f"{self.min_length!r} must be >= 0 tokens")
        longest = self.max_length
        check(
            longest is None or longest >= max(self.min_length, 1),
            "max_length",
            f"{longest!r} must be >= 1 and >= min_length = {self.min_length}",
        )


class Captions(NamedTuple):
    """What `generate` returns: tokens int32 [B, T], padded after EOS, and their log-probability float32 [B]."""

    tokens: jax.Array
    log_p: jax.Array


Step = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]


def generate(
    step: Step, known: Any, config: Generation, *, batch: int, length: int, eos_id: int, pad_id: int, key: jax.Array | None = None,
    prompt: jax.Array | None = None,
) -> Captions:  # fmt: skip
    """Runs inside jit.

    Args:
      step: `(known, last token int [B], position) -> (float32 logits [B, V], known)`; at position 0 nothing is read of the token.
      known: before the first token; the arrays' second axis is the batch.
      length: T; a shorter `max_length` ends captions earlier.
      key: needed to sample.
      prompt: int [B, P], P <= T, padded at the end; captions begin with these tokens, which cost no log-probability but count as
        length. Each caption goes on after its own prompt.

    Raises:
      ValueError: no key to sample with.
    """
    if config.method == "beam":
        return _beam(step, known, config, batch, length, eos_id, pad_id, prompt)
    if config.method == "sample" and key is None:
        raise ValueError("key: None, but method='sample' is random; pass a jax.random.key")
    most = min(config.max_length or length, length)

    def going(state):
        t, done = state[0], state[2]
        return (t < most) & ~done.all()

    def extend(state):
        t, tokens, done, log_p, known = state
        logits, known = step(known, tokens[:, jnp.maximum(t - 1, 0)], t)
        logits = _prompted(_adjust(logits, tokens, t, config, most, eos_id, pad_id), prompt, t, pad_id)
        if config.method == "sample":
            new = jax.random.categorical(jax.random.fold_in(key, t), _restrict(logits / config.temperature, config))
        else:
            new = logits.argmax(-1)
        gain = jnp.take_along_axis(jax.nn.log_softmax(logits), new[:, None], 1)[:, 0]
        tokens = tokens.at[:, t].set(jnp.where(done, pad_id, new).astype(jnp.int32))
        return t + 1, tokens, done | (new == eos_id), log_p + jnp.where(done, 0.0, gain), known

    start = jnp.int32(0), jnp.full((batch, length), pad_id, jnp.int32), jnp.zeros(batch, bool), jnp.zeros(batch), known
    _, tokens, _, log_p, _ = lax.while_loop(going, extend, start)
    return Captions(tokens, log_p)


def _adjust(logits, tokens, t, config: Generation, most: int, eos_id: int, pad_id: int) -> jax.Array:
    """Logits [B, V] of position t with what must not, or must, come."""
    b, v = logits.shape
    if config.repetition_penalty != 1.0:
        there = jnp.arange(tokens.shape[1]) < t
        seen = jnp.zeros((b, v), bool).at[jnp.arange(b)[:, None], tokens].max(jnp.broadcast_to(there, tokens.shape))
        penalised = jnp.where(logits > 0, logits / config.repetition_penalty, logits * config.repetition_penalty)
        logits = jnp.where(seen, penalised, logits)
    token = jnp.arange(v)
    banned = (token == pad_id) & (pad_id != eos_id) | (token == eos_id) & (t + 1 < config.min_length)
    forced = (t + 1 == most) & (token != eos_id)  # the last place is EOS's
    return jnp.where(banned | forced, NEVER, logits)


def _prompted(logits: jax.Array, prompt: jax.Array | None, t: jax.Array, pad_id: int) -> jax.Array:
    """Logits [B, V] of position t that leave a prompt's own token alone, where it has one there."""
    if prompt is None:
        return logits
    most = prompt.shape[1]
    token = jnp.where(t < most, prompt[:, jnp.minimum(t, most - 1)], pad_id)[:, None]
    forced = jnp.where(jnp.arange(logits.shape[1]) == token, 0.0, NEVER)
    return jnp.where(token == pad_id, logits, forced)


def _restrict(logits: jax.Array, config: Generation) -> jax.Array:
    """Logits with all but the `top_k`, and all but the likeliest of `top_p`, out of reach."""
    if config.top_k is not None:
        least = lax.top_k(logits, min(config.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, NEVER, logits)
    if config.top_p < 1.0:
        ordered = jnp.sort(logits, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ordered), -1) - jax.nn.softmax(ordered)
        least = jnp.where(before < config.top_p, ordered, jnp.inf).min(-1, keepdims=True)  # the likeliest always stays
        logits = jnp.where(logits < least, NEVER, logits)
    return logits


def _beam(step: Step, known, config: Generation, batch: int, length: int, eos_id: int, pad_id: int, prompt=None) -> Captions:
    k, most = config.beams, min(config.max_length or length, length)
    prompt = None if prompt is None else jnp.repeat(prompt, k, axis=0)
    known = jax.tree.map(lambda a: jnp.repeat(a, k, axis=1), known)

    def score(log_p, lengths):
        return log_p / ((5.0 + lengths) / 6.0) ** config.length_penalty

    def going(state):
        return (state[0] < most) & ~state[2].all()

    def extend(state):
        t, tokens, done, log_p, lengths, known = state
        logits, known = step(known, tokens[:, :, jnp.maximum(t - 1, 0)].reshape(-1), t)
        logits = _prompted(_adjust(logits, tokens.reshape(batch * k, length), t, config, most, eos_id, pad_id), prompt, t, pad_id)
        gain = jax.nn.log_softmax(logits).reshape(batch, k, -1)
        v = gain.shape[-1]
        # A finished caption goes on as itself alone: one padding token, which costs nothing.
        gain = jnp.where(done[..., None], jnp.where(jnp.arange(v) == pad_id, 0.0, NEVER), gain)
        total = log_p[..., None] + gain
        longer = jnp.broadcast_to(jnp.where(done, lengths, lengths + 1)[..., None], total.shape)
        _, best = lax.top_k(score(total, longer).reshape(batch, -1), k)
        parent, new = best // v, (best % v).astype(jnp.int32)
        log_p = jnp.take_along_axis(total.reshape(batch, -1), best, 1)
        lengths = jnp.take_along_axis(longer.reshape(batch, -1), best, 1)
        done = jnp.take_along_axis(done, parent, 1)
        tokens = jnp.take_along_axis(tokens, parent[..., None], 1).at[:, :, t].set(jnp.where(done, pad_id, new))
        rows = (jnp.arange(batch)[:, None] * k + parent).reshape(-1)
        known = jax.tree.map(lambda a: a[:, rows], known)
        return t + 1, tokens, done | (new == eos_id), log_p, lengths, known

    start = (
        jnp.int32(0), jnp.full((batch, k, length), pad_id, jnp.int32), jnp.zeros((batch, k), bool),
        jnp.broadcast_to(jnp.where(jnp.arange(k) == 0, 0.0, NEVER), (batch, k)),  # all beams are alike before the first token
        jnp.zeros((batch, k)), known,
    )  # fmt: skip
    _, tokens, _, log_p, lengths, _ = lax.while_loop(going, extend, start)
    best = score(log_p, lengths).argmax(1)[:, None]
    return Captions(jnp.take_along_axis(tokens, best[..., None], 1)[:, 0], jnp.take_along_axis(log_p, best, 1)[:, 0])
