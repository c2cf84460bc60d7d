"""Scores of pairs and what is made of them, in float64 numpy, pair by pair, with closed-form
gradients. Shares no code with jaxvl.

A score gives matrices (of the rows, of the columns) and `back(G_rows, G_cols)`, the gradients of
its inputs and scalars. A reduction gives, for a matrix and its axis, one number of each row
(column) and d number / d score as a matrix.
"""

import numpy as np


def dot(u, v, scale):
    s = scale * u @ v.T

    def back(a, b):
        g = a + b
        return scale * g @ v, scale * g.T @ u, (g * (u @ v.T)).sum()

    return s, s, back


def multilinear(u, v, w, scale):
    s, _, inner = dot(u, v * w, scale)

    def back(a, b):
        du, dvw, dscale = inner(a, b)
        return du, dvw * w, dvw * v, dscale

    return s, s, back


def late(u, v, u_mask, v_mask, scale, pool="mean"):
    """FILIP's two matrices; of u the rows' tokens look, of v the columns'."""
    m = len(u)
    n = len(v)
    out = np.zeros((2, m, n))
    found = []  # (which matrix, i, j, t, t', share)
    for i in range(m):
        for j in range(n):
            a = [t for t in range(u.shape[1]) if u_mask[i, t]]
            b = [t for t in range(v.shape[1]) if v_mask[j, t]]
            if not a or not b:
                continue
            for t in a:
                best = max(b, key=lambda k: u[i, t] @ v[j, k])
                share = 1 / len(a) if pool == "mean" else 1
                out[0, i, j] += share * u[i, t] @ v[j, best]
                found.append((0, i, j, t, best, share))
            for k in b:
                best = max(a, key=lambda t: u[i, t] @ v[j, k])
                share = 1 / len(b) if pool == "mean" else 1
                out[1, i, j] += share * u[i, best] @ v[j, k]
                found.append((1, i, j, best, k, share))

    def back(a, b):
        du = np.zeros_like(u)
        dv = np.zeros_like(v)
        for which, i, j, t, k, share in found:
            g = scale * share * (a, b)[which][i, j]
            du[i, t] += g * v[j, k]
            dv[j, k] += g * u[i, t]
        return du, dv, (a * out[0]).sum() + (b * out[1]).sum()

    return scale * out[0], scale * out[1], back


def attention(u, v, mask, scale, tau):
    m = len(u)
    n = len(v)
    s = np.zeros((m, n))
    fits = {}
    for i in range(m):
        for j in range(n):
            fit = u[i, mask[i]] @ v[j]
            w = np.exp(tau * fit - (tau * fit).max()) if len(fit) else fit
            w = w / w.sum() if len(fit) else w
            fits[i, j] = fit, w
            s[i, j] = (w * fit).sum()

    def back(a, b):
        g = a + b
        du = np.zeros_like(u)
        dv = np.zeros_like(v)
        dtau = 0.0
        for (i, j), (fit, w) in fits.items():
            mean = (w * fit).sum()
            each = scale * g[i, j] * w * (1 + tau * (fit - mean))
            du[i, mask[i]] += each[:, None] * v[j]
            dv[j] += each @ u[i, mask[i]]
            dtau += scale * g[i, j] * ((w * fit**2).sum() - mean**2)
        return du, dv, (g * s).sum(), dtau

    return scale * s, scale * s, back


def most(u, v, mask, scale):
    m = len(u)
    n = len(v)
    s = np.zeros((m, n))
    place = {}
    for i in range(m):
        for j in range(n):
            if mask[i].any():
                k = max(np.flatnonzero(mask[i]), key=lambda k: u[i, k] @ v[j])
                place[i, j] = k
                s[i, j] = u[i, k] @ v[j]

    def back(a, b):
        g = a + b
        du = np.zeros_like(u)
        dv = np.zeros_like(v)
        for (i, j), k in place.items():
            du[i, k] += scale * g[i, j] * v[j]
            dv[j] += scale * g[i, j] * u[i, k]
        return du, dv, (g * s).sum()

    return scale * s, scale * s, back


# --------------------------------------------------------------------------------------------------
# Of one row: scores s [n], which compete, target; gives the number and its gradient


def _softmax(s, keep):
    e = np.where(keep, np.exp(s - s[keep].max()), 0.0)
    return e / e.sum()


def reverse_kl(s, keep, positive, i, epsilon=1e-8):
    p = _softmax(s, keep)
    q = positive / positive.sum()
    with np.errstate(divide="ignore"):
        each = np.where(keep, np.log(p) - np.log(q + epsilon), 0.0)
    value = (p * each).sum()
    return value, p * (each - value)


def hinge(s, keep, positive, i, margin=0.2):
    value = 0.0
    g = np.zeros_like(s)
    for j in range(len(s)):
        near = margin + s[j] - s[i]
        if keep[j] and not positive[j] and near > 0:
            value += near
            g[j] += 1
            g[i] -= 1
    return value, g


def hardest(s, keep, positive, i, margin=0.2):
    g = np.zeros_like(s)
    wrong = [j for j in range(len(s)) if keep[j] and not positive[j]]
    if not wrong:
        return 0.0, g
    j = max(wrong, key=lambda j: s[j])
    near = margin + s[j] - s[i]
    if near > 0:
        g[j] += 1
        g[i] -= 1
    return max(near, 0.0), g


def logsumexp(s, keep, positive, i):
    top = s[keep].max()
    return top + np.log(np.exp(s[keep] - top).sum()), _softmax(s, keep)


def top(s, keep, positive, i):
    g = np.zeros_like(s)
    j = max(np.flatnonzero(keep), key=lambda j: s[j])
    g[j] = 1
    return s[j], g


def reduce(of_row, matrices, keep, positive, row_ok, col_ok):
    """Numbers of rows and columns, and their gradients as two functions of cotangents."""
    out = []
    for s, kept, right, ok in (
        (matrices[0], keep, positive, row_ok),
        (matrices[1].T, keep.T, positive.T, col_ok),
    ):
        values = np.zeros(len(s))
        grads = np.zeros(s.shape)
        for i in range(len(s)):
            if ok[i]:
                values[i], grads[i] = of_row(s[i], kept[i], right[i], i)
        out.append((values, grads))
    (row, row_grad), (col, col_grad) = out
    return row, col, lambda a, b: (a[:, None] * row_grad, (b[:, None] * col_grad).T)
