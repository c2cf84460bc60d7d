"""Numbers of every kernel against float64, which numpy computes on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxvl.bench.accelerator_parts.part import Deadline, Row, Sizes, platform, reason
from jaxvl.kernels.contrastive import contrastive_loss
from jaxvl.kernels.contrastive.core import Blocks
from jaxvl.kernels.contrastive.pallas_hopper import PallasHopper, Tile, is_hopper
from jaxvl.kernels.contrastive.pallas_tpu import PallasTpu
from jaxvl.kernels.contrastive.pallas_triton import PallasTriton
from jaxvl.kernels.contrastive.verified import TOLERANCE

LOG_SCALE = float(np.log(1 / 0.07))
BIAS = -3.0
NAMES = ("loss", "du", "dv", "dlog_scale", "dbias")
KINDS = ("softmax", "sigmoid")


def run(sizes: Sizes, deadline: Deadline) -> Iterator[Row]:
    """One row per kernel, kind, dtype and width: largest error relative to the largest entry, and
    whether it is within `verified.TOLERANCE`."""
    for width in sizes.widths:
        for dtype in ("float32", "bfloat16"):
            u, v = unit_rows(sizes.kernel_rows, width, dtype)
            for kind in KINDS:
                want = exact(u, v, kind)
                for name, implementation in kernels(sizes, dtype).items():
                    if deadline.left < 0:
                        return
                    row: Row = {"kernel": name, "kind": kind, "dtype": dtype, "width": width}
                    yield row | compared(u, v, kind, implementation, want)


def kernels(sizes: Sizes, dtype: DTypeLike) -> dict[str, str | Blocks]:
    """Those of this platform; in an interpreter where `sizes` are tiny."""
    bfloat16 = jnp.dtype(dtype) == jnp.dtype(jnp.bfloat16)
    if sizes.tiny:
        interpreted: dict[str, str | Blocks] = {
            "pallas_tpu": PallasTpu(interpret=True),
            "pallas_triton": dataclasses.replace(PallasTriton.fitting(dtype), interpret=True),
            "chunked": "chunked",
        }
        if bfloat16:
            interpreted["pallas_hopper"] = PallasHopper(interpret=True)
        return interpreted
    names = {"gpu": ["pallas_triton"], "tpu": ["pallas_tpu"]}.get(platform(), [])
    found: dict[str, str | Blocks] = {name: name for name in [*names, "chunked"]}
    if platform() == "gpu" and bfloat16 and is_hopper(jax.devices()[0].device_kind):
        # By itself a tile of clusters is only taken where it was measured to be the fastest.
        clusters = Tile(cluster=2)
        found["pallas_hopper"] = "pallas_hopper"
        found["pallas_hopper, clusters"] = PallasHopper(clusters, clusters)
    return found


def unit_rows(rows: int, width: int, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """u, v [B, D] of unit length, pairs alike."""
    rng = np.random.default_rng(0)
    u = rng.standard_normal((rows, width))
    v = u + rng.standard_normal((rows, width))
    u, v = (jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype) for x in (u, v))
    return u, v


def compared(
    u: jax.Array, v: jax.Array, kind: str, implementation: str | Blocks, want: dict[str, np.ndarray]
) -> Row:
    """Errors of one kernel, or why it cannot run."""

    def loss(u, v, log_scale, bias):
        options = dict(kind=kind, bias=bias, implementation=implementation)
        return contrastive_loss(u, v, log_scale, **options)

    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))
    try:
        value, gradients = jax.device_get(step(u, v, jnp.float32(LOG_SCALE), jnp.float32(BIAS)))
    except Exception as error:  # whatever a compiler or a driver raises
        return {"passed": False, "failed": reason(error)}
    errors = {}
    for name, got in zip(NAMES, (value, *gradients)):
        largest = max(np.abs(want[name]).max(), 1e-30)
        errors[name] = float(np.abs(np.asarray(got, np.float64) - want[name]).max() / largest)
    if kind == "softmax":
        del errors["dbias"]  # it is zero
    allowed = TOLERANCE[jnp.dtype(u.dtype).itemsize]
    return {"passed": all(e <= allowed for e in errors.values()), "allowed": allowed, **errors}


def exact(u: jax.Array, v: jax.Array, kind: str) -> dict[str, np.ndarray]:
    """Loss and gradients in float64, by their closed forms, of the rows as they were rounded.

    Softmax: `L = 1/2B sum_i (2 s_ii - lse_i(rows) - lse_i(columns))`, negated; sigmoid: `L = 1/B
    sum_ij softplus(s_ij) - [i = j] s_ij`. G is dL/ds.
    """
    u = np.asarray(u, np.float64)
    v = np.asarray(v, np.float64)
    n = len(u)
    scale = np.exp(LOG_SCALE)
    cosines = u @ v.T
    logits = scale * cosines
    if kind == "softmax":
        rows = np.exp(logits - logits.max(1, keepdims=True))
        cols = np.exp(logits - logits.max(0, keepdims=True))
        lse_rows = np.log(rows.sum(1)) + logits.max(1)
        lse_cols = np.log(cols.sum(0)) + logits.max(0)
        loss = np.mean((lse_rows + lse_cols) / 2 - np.diag(logits))
        both = rows / rows.sum(1, keepdims=True) + cols / cols.sum(0, keepdims=True)
        slope = (both - 2 * np.eye(n)) / (2 * n)
    else:
        logits = logits + BIAS
        loss = (np.logaddexp(0, logits).sum() - np.trace(logits)) / n
        slope = (1 / (1 + np.exp(-logits)) - np.eye(n)) / n
    return {
        "loss": np.asarray(loss),
        "du": scale * slope @ v,
        "dv": scale * slope.T @ u,
        "dlog_scale": np.asarray((slope * scale * cosines).sum()),
        "dbias": np.asarray(slope.sum()),
    }
