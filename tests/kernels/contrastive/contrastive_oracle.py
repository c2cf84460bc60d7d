"""The losses and their gradients in float64 numpy, from dense matrices and the equations of the
papers.

Shares no code with jaxvl: target matrices are filled pair by pair, gradients are the closed forms.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass
class Dense:
    """Targets as matrices.

    rows, cols [M, N]: target shares of the row direction (along axis 1) and the column direction
    (along axis 0). raw [M, N]: targets of the sigmoid. keep [M, N]: pairs that compete. anchors:
    bool [M], bool [N]: whose losses the means count.
    """

    rows: np.ndarray
    cols: np.ndarray
    raw: np.ndarray
    keep: np.ndarray
    anchor_rows: np.ndarray
    anchor_cols: np.ndarray
    valid_rows: np.ndarray | None = None
    valid_cols: np.ndarray | None = None
    smoothing: float = 0.0


def from_positives(raw, smoothing=0.0, keep=None) -> Dense:
    """Each row's (column's) target is spread over its positives in proportion to `raw`."""
    raw = np.asarray(raw, np.float64)
    row = raw.sum(1, keepdims=True)
    col = raw.sum(0, keepdims=True)
    keep = np.ones(raw.shape, bool) if keep is None else np.asarray(keep) | (raw > 0)
    shares = [np.divide(raw, t, out=np.zeros_like(raw), where=t > 0) for t in (row, col)]
    return Dense(*shares, raw, keep, row[:, 0] > 0, col[0] > 0, smoothing=smoothing)


def softmax(s, keep, axis):
    s = np.where(keep, s, -np.inf)
    top = s.max(axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    e = np.where(keep, np.exp(s - top), 0.0)
    total = e.sum(axis, keepdims=True)
    total = np.where(total > 0, total, 1.0)
    return e / total, np.where(keep, s - top - np.log(total), 0.0)


def loss_and_gradients(u, v, log_scale, dense: Dense, kind="softmax", directions="mean", bias=0.0):
    """(loss, du, dv, dlog_scale, dbias)."""
    u = np.asarray(u, np.float64)
    v = np.asarray(v, np.float64)
    scale = np.exp(np.float64(log_scale))
    cos = u @ v.T
    s = scale * cos + float(bias)
    weight = {"mean": 0.5, "sum": 1.0}[directions]
    if kind == "softmax":
        loss = 0.0
        grad = np.zeros_like(s)
        for axis, target, anchors in (
            (1, dense.rows, dense.anchor_rows),
            (0, dense.cols, dense.anchor_cols),
        ):
            p, log_p = softmax(s, dense.keep, axis)
            total = target.sum(axis, keepdims=True)
            uniform = total * dense.keep / np.maximum(dense.keep.sum(axis, keepdims=True), 1)
            target = (1 - dense.smoothing) * target + dense.smoothing * uniform
            n = max(anchors.sum(), 1)
            loss += weight * -(target * log_p).sum() / n
            grad += weight * (p * total - target) / n
    else:
        y = (1 - dense.smoothing) * dense.raw + dense.smoothing / 2
        counts = [
            len(s) if dense.valid_rows is None else dense.valid_rows.sum(),
            s.shape[1] if dense.valid_cols is None else dense.valid_cols.sum(),
        ]
        each = np.where(dense.keep, np.logaddexp(0, s) - y * s, 0.0)
        grad = np.where(dense.keep, np.exp(-np.logaddexp(0, -s)) - y, 0.0)
        factor = weight * sum(1 / max(n, 1) for n in counts)
        loss = factor * each.sum()
        grad = factor * grad
    return loss, scale * grad @ v, scale * grad.T @ u, (grad * scale * cos).sum(), grad.sum()


def check(got, want, log_scale, dtype="float32", floor=1e-30):
    """Compares (loss, gradients…) with the oracle.

    Tolerance: a cosine of unit rows is off by a rounding unit of float32, so a logit by scale times
      that, and a probability
    by as much relatively; sums and the other steps add a few units. bfloat16 also rounds the matrix
    of pair gradients and the result, each by 2^-9 of its entries.
    """
    unit = 2.0**-24
    logit = 2 * unit * np.exp(float(log_scale))
    tolerance = 8e-6 + 2 * logit + (4 * 2.0**-9 if dtype == "bfloat16" else 0.0)
    value_tolerance = 2e-6 + 2 * logit
    report = []
    for name, a, b in zip(("loss", "du", "dv", "dlog_scale", "dbias"), got, want, strict=False):
        a = np.asarray(a, np.float64)
        b = np.asarray(b, np.float64)
        assert np.isfinite(a).all(), f"{name} is not finite"
        size = max(np.abs(b).max(), floor)
        allowed = value_tolerance * max(size, 1.0) if name == "loss" else tolerance * size
        worst = np.abs(a - b).max()
        if worst > allowed:
            where = np.unravel_index(np.abs(a - b).argmax(), b.shape) if b.ndim else ()
            report.append(
                f"{name}: off by {worst:.3e} at {where} ({a[where]} for {b[where]}), allowed "
                f"{allowed:.3e}"
            )
    assert not report, "; ".join(report)
