"""Targets of every kind beside their dense matrices, and embeddings to try them on."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contrastive_oracle import Dense, from_positives, softmax

from jaxvl.kernels.contrastive import Diagonal, KPerRow, Mixup, PairMask, SameId, SoftTargets

# Many small programs are compiled here, each run once or twice.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def unit_rows(rng, n, d, dtype="float32", close_to=None):
    x = rng.normal(size=(n, d))
    if close_to is not None:
        x = np.asarray(close_to, np.float64)[:n] * 3 + x / np.sqrt(d)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return jnp.asarray(x, dtype)


def same(a, b):
    return np.asarray([[x == y for y in b] for x in a], bool)


def diagonal(m, n, rng, smoothing=0.0, offset=0):
    eye = np.zeros((m, n))
    for i in range(m):
        eye[i, i + offset] = 1
    return Diagonal(offset, label_smoothing=smoothing), from_positives(eye, smoothing)


def same_id(m, n, rng, duplicates="positive", smoothing=0.0):
    ids = rng.integers(0, max(1, m // 2), m)
    other = rng.integers(0, max(1, m // 2), n)
    other[: min(m, n)] = ids[: min(m, n)]
    target = SameId(
        jnp.asarray(ids), jnp.asarray(other), duplicates=duplicates, label_smoothing=smoothing
    )
    if duplicates == "positive":
        return target, from_positives(same(ids, other), smoothing)
    return target, from_positives(np.eye(m, n), smoothing, keep=~same(ids, other))


def k_per_row(m, n, rng, reduction="balanced", smoothing=0.0):
    k = n // m
    raw = np.zeros((m, n))
    for i in range(m):
        raw[i, i * k : (i + 1) * k] = 1
    dense = from_positives(raw, smoothing)
    if reduction == "release":
        dense.cols = dense.cols / k
    return KPerRow(k, reduction=reduction, label_smoothing=smoothing), dense


def mixup(m, n, rng, columns="transposed", smoothing=0.0):
    permutation = rng.permutation(m)
    lam = rng.beta(0.5, 0.5, m).astype(np.float32)
    lam[rng.integers(0, m, m // 2)] = 1.0
    raw = np.zeros((m, m))
    for i in range(m):
        raw[i, i] += lam[i]
        raw[i, permutation[i]] += 1 - np.float64(lam[i])
    cols = raw if columns == "transposed" else raw / raw.sum(0, keepdims=True)
    every = np.ones(m, bool)
    dense = Dense(raw, cols, raw, np.ones((m, m), bool), every, every, smoothing=smoothing)
    return Mixup(
        jnp.asarray(permutation), jnp.asarray(lam), columns=columns, label_smoothing=smoothing
    ), dense


def soft(m, n, rng, similarity="softmax", weight=(0.4, 0.4), inner=None, smoothing=0.0):
    p = unit_rows(rng, m, 5)
    q = unit_rows(rng, n, 5)
    scale = np.float32(6.0 if similarity == "softmax" else 1.0)
    target, dense = (inner or diagonal)(m, n, rng, smoothing=smoothing)
    z = np.float64(scale) * np.asarray(p, np.float64) @ np.asarray(q, np.float64).T
    shares = []
    for axis, hard, w in ((1, dense.rows, weight[0]), (0, dense.cols, weight[1])):
        if similarity == "softmax":
            share = softmax(z, dense.keep, axis)[0]
        else:
            share = np.where(dense.keep, (1 + z) / 2, 0)
            share = share / share.sum(axis, keepdims=True)
        shares.append((1 - w) * hard + w * share)
    raw = (1 - weight[0]) * dense.raw + weight[0] * (1 + z) / 2
    anchors = (
        np.ones(m, bool) if weight[0] else dense.anchor_rows,
        np.ones(n, bool) if weight[1] else dense.anchor_cols,
    )
    dense = Dense(*shares, raw, dense.keep, *anchors, smoothing=smoothing)
    weight = weight[0] if weight[0] == weight[1] else weight
    return SoftTargets(p, q, scale, targets=target, weight=weight, similarity=similarity), dense


def masked(m, n, rng, by="group", drop="different", inner=None, smoothing=0.0):
    target, dense = (inner or same_id)(m, n, rng, smoothing=smoothing)
    if by == "group":
        a = rng.integers(0, 3, m)
        b = rng.integers(0, 3, n)
        equal = same(a, b)
        dense.keep = (dense.keep & (equal if drop == "different" else ~equal)) | (dense.raw > 0)
        return PairMask(
            target, row_group=jnp.asarray(a), col_group=jnp.asarray(b), drop=drop
        ), dense
    if by == "keep":
        keep = rng.uniform(size=(m, n)) < 0.6
        dense.keep = (dense.keep & keep) | (dense.raw > 0)
        return PairMask(target, keep=jnp.asarray(keep)), dense
    rows = rng.uniform(size=m) < 0.7
    cols = rng.uniform(size=n) < 0.7
    both = rows[:, None] & cols[None]
    out = from_positives(dense.raw * both, smoothing)
    out.keep = (dense.keep | (dense.raw > 0)) & both
    out.valid_rows = rows
    out.valid_cols = cols
    return PairMask(target, row_valid=jnp.asarray(rows), col_valid=jnp.asarray(cols)), out


def _masked_ids(m, n, rng, smoothing):
    return same_id(m, n, rng, "mask", smoothing)


def _with(function, **options):
    return lambda m, n, rng: function(m, n, rng, **options)


# name -> ((m, n, rng) -> (target, dense), columns per row)
CASES = {
    "diagonal": (_with(diagonal), 1),
    "diagonal_smooth": (_with(diagonal, smoothing=0.1), 1),
    "diagonal_offset": (_with(diagonal, offset=5, smoothing=0.1), 2),
    "same_id": (_with(same_id), 1),
    "same_id_smooth": (_with(same_id, smoothing=0.1), 1),
    "same_id_mask": (_with(same_id, duplicates="mask"), 1),
    "same_id_mask_smooth": (_with(same_id, duplicates="mask", smoothing=0.1), 1),
    "k_per_row": (_with(k_per_row, smoothing=0.05), 3),
    "k_per_row_release": (_with(k_per_row, reduction="release"), 3),
    "mixup": (_with(mixup), 1),
    "mixup_normalised": (_with(mixup, columns="normalised", smoothing=0.1), 1),
    "soft_albef": (_with(soft), 1),
    "soft_masked": (_with(soft, inner=_masked_ids, smoothing=0.1), 1),
    "soft_cwcl": (_with(soft, similarity="linear", weight=(1.0, 0.0)), 1),
    "soft_linear": (_with(soft, similarity="linear", weight=(0.7, 0.7), smoothing=0.1), 1),
    "mask_different": (_with(masked, drop="different", smoothing=0.1), 1),
    "mask_same": (_with(masked, drop="same"), 1),
    "mask_keep": (_with(masked, by="keep", smoothing=0.1), 1),
    "mask_valid": (_with(masked, by="valid", smoothing=0.1), 1),
}


def daily(case, *others):
    """A case as a parameter of tests that compile much. One that differs from another by its
    smoothing alone is slow: six other cases are smoothed as well."""
    marks = [pytest.mark.slow] if case.endswith("_smooth") else []
    return pytest.param(case, *others, marks=marks)


KERNEL_CASES = [daily(case) for case in CASES if case != "mask_keep"]
