"""Attention by each implementation that `nn.attention` has: time forward and backward at the shapes
of ViT-B/16 and L/14, and numbers against float64 on a few rows."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxvl.bench.accelerator_parts.part import Deadline, Row, Sizes, platform, reason, seconds_of
from jaxvl.nn.attend import Implementation, attend

_NEEDS = {"flash": "tpu", "cudnn": "gpu"}


def run(sizes: Sizes, deadline: Deadline) -> Iterator[Row]:
    """One row per shape and implementation, bfloat16."""
    for shape in sizes.attention:
        for implementation in get_args(Implementation):
            if deadline.left < 0:
                return
            row: Row = {"shape": list(shape), "implementation": implementation}
            if _NEEDS.get(implementation, platform()) != platform():
                yield row | {"skipped": f"needs a {_NEEDS[implementation].upper()}"}
                continue
            try:
                row |= _measured(shape, implementation, sizes)
            except Exception as error:  # whatever a compiler or a driver raises
                row["failed"] = reason(error)
            yield row


def _measured(
    shape: tuple[int, int, int, int], implementation: Implementation, sizes: Sizes
) -> Row:
    rng = np.random.default_rng(0)
    q, k, v, slope = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for _ in range(4))
    how = functools.partial(attend, implementation=implementation)

    @jax.jit
    def both(q, k, v, slope):
        out, pull = jax.vjp(how, q, k, v)
        return out, *pull(slope)

    got = [np.asarray(x[:2], np.float64) for x in jax.device_get(both(q, k, v, slope))]
    want = exact(*(np.asarray(x[:2], np.float64) for x in (q, k, v, slope)))
    errors = {
        name: float(np.abs(a - b).max() / np.abs(b).max())
        for name, a, b in zip(("out", "dq", "dk", "dv"), got, want)
    }
    seconds = seconds_of(functools.partial(both, q, k, v, slope), sizes)
    b, t, h, width = shape
    # Two products forward, four of gradients; logits that are computed again do not count.
    flops = 6 * 2 * b * h * t * t * width
    return {"seconds": seconds, "tflop_per_second": flops / seconds / 1e12, **errors}


def exact(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    slope: np.ndarray,
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """softmax(q k^T / sqrt(K)) v of [B, T, H, K] and the gradients of q, k, v under the cotangent
    `slope`, float64, by their closed forms; `allowed`: bool [B, T, N], the keys that are seen."""
    scale = q.shape[-1] ** -0.5
    logits = scale * np.einsum("bthk,bnhk->bhtn", q, k)
    if allowed is not None:
        logits = np.where(allowed[:, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bhtn,bnhk->bthk", weights, v)
    dweights = np.einsum("bthk,bnhk->bhtn", slope, v)
    dlogits = weights * (dweights - (weights * dweights).sum(-1, keepdims=True))
    dq = scale * np.einsum("bhtn,bnhk->bthk", dlogits, k)
    dk = scale * np.einsum("bhtn,bthk->bnhk", dlogits, q)
    dv = np.einsum("bhtn,bthk->bnhk", weights, slope)
    return out, dq, dk, dv
