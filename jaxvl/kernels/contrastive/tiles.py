"""One tile of the pairwise losses, which every streamed implementation uses.

Row vectors arrive as `[m, 1]`, column vectors as `[1, n]`, so that the same lines run in plain XLA
and in a Pallas kernel.

Statistics are kept for cosines `c_ij = u_i . v_j`, not for logits `scale c_ij`: the shift `c - max`
is exact in floating point where it matters, so the loss of a nearly converged batch keeps its
digits at any scale. A side's `Stats` (rows: reduced over columns; columns: over rows):

    m    max_j c_ij                      s    sum_j exp(scale (c_ij - m_i))
    pos  sum_j W_ij c_ij
    uni  sum_j keep_ij c_ij              cnt  sum_j keep_ij                     (label smoothing
                                              among masked pairs)
    tm   max_j z_ij                      ts   sum_j soft_ij      tp  sum_j soft_ij c_ij   (soft
                                              targets; z = p q^T)
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax

from jaxvl.aliases import Tree
from jaxvl.kernels.contrastive.targets import Form

Stats = dict[str, jax.Array]
Side = Mapping[str, jax.Array]  # vectors of the rows, or of the columns


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """float32, or float64 for float64 inputs."""
    return jnp.promote_types(jnp.float32, dtype)


def lowest(dtype: jnp.dtype) -> float:
    """Stands for minus infinity, without its NaNs."""
    return float(jnp.finfo(dtype).min)


def matmul(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Product over axis `contract[0]` of `a` and `contract[1]` of `b`, accumulated in float32
    (float64).

    float32 operands are multiplied in full precision: the TPU's default would round them to
    bfloat16.
    """
    precision = lax.Precision.DEFAULT if a.dtype == jnp.bfloat16 else lax.Precision.HIGHEST
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(
        a, b, dims, precision=precision, preferred_element_type=accumulator(a.dtype)
    )


def add(a: Tree, b: Tree) -> Tree:
    """Joins sums over disjoint sets of columns (rows)."""
    return jax.tree.map(jnp.add, a, b)


def as_rows(side: Side) -> Side:
    """Vectors `[m]` as `[m, 1]`."""
    return {k: x[:, None] if x.ndim == 1 else x for k, x in side.items()}


def as_cols(side: Side) -> Side:
    """Vectors `[n]` as `[1, n]`; a teacher stays `[n, R]`."""
    return {k: x[None, :] if x.ndim == 1 else x for k, x in side.items()}


def positives(rows: Side, cols: Side, form: Form) -> tuple[jax.Array, jax.Array]:
    """Raw hard targets W `[m, n]` and where they stand (bool)."""
    equal = rows["label"] == cols["label"]
    if form.valid:
        equal = equal & (rows["ok"] * cols["ok"] > 0)
    w = jnp.where(equal, rows["a"], 0.0)
    if form.second:
        also = rows["label2"] == cols["label"]
        if form.valid:
            also = also & (rows["ok"] * cols["ok"] > 0)
        w = w + jnp.where(also, rows["a2"], 0.0)
        equal = equal | also
    return w, equal


def competing(rows: Side, cols: Side, form: Form, positive: jax.Array) -> jax.Array | None:
    """Bool `[m, n]`, the pairs that stand in the denominators; None: all."""
    keep = None
    for i, drop in enumerate(form.groups):
        row = rows[f"group{i}"]
        col = cols[f"group{i}"]
        stays = positive | (row != col if drop == "same" else row == col)
        keep = stays if keep is None else keep & stays
    if form.dense:
        stays = positive | rows["keep"]
        keep = stays if keep is None else keep & stays
    if form.valid:
        both = rows["ok"] * cols["ok"] > 0
        keep = both if keep is None else keep & both
    return keep


def soft_logits(rows: Side, cols: Side, form: Form, keep: jax.Array | None) -> jax.Array:
    """The teacher's z `[m, n]` (given as `rows["z"]`, or multiplied here); for the linear
    similarity already the target values, zero where pairs do not compete."""
    z = rows["z"] if "z" in rows else matmul(rows["teacher"], cols["teacher"], (1, 1))
    if form.soft == "linear":
        z = form.linear[0] + form.linear[1] * z
        return z if keep is None else jnp.where(keep, z, 0.0)
    return z if keep is None else jnp.where(keep, z, lowest(z.dtype))


class Units:
    """Operations that not every compiler of kernels has in the same form; this is the plain one.

    A side's vectors are `[m, 1]` and `[1, n]`.
    """

    def sum(self, x: jax.Array, axis: int) -> jax.Array:
        """Over `axis` of a tile `[m, n]`."""
        return jnp.sum(x, axis, keepdims=True)

    def max(self, x: jax.Array, axis: int) -> jax.Array:
        """Over `axis` of a tile `[m, n]`."""
        return jnp.max(x, axis, keepdims=True)

    def spread(self, vector: jax.Array, axis: int, shape: tuple[int, int]) -> jax.Array:
        """What was reduced over `axis`, in a form that goes with a tile of `shape`."""
        del axis, shape
        return vector

    def log1p(self, x: jax.Array) -> jax.Array:
        """log(1 + x) for x in [0, 1]."""
        return jnp.log1p(x)


PLAIN = Units()


def softmax_stats(
    c: jax.Array, scale: jax.Array, rows: Side, cols: Side, form: Form, units: Units = PLAIN
) -> tuple[Stats, Stats]:
    """Statistics of the rows (`[m, 1]`) and columns (`[1, n]`) over one tile of cosines `c` `[m,
    n]`."""
    w, positive = positives(rows, cols, form)
    keep = competing(rows, cols, form, positive)
    c0 = c
    if keep is not None:
        c = jnp.where(keep, c, lowest(c.dtype))
    z = soft_logits(rows, cols, form, keep) if form.soft else None
    out = []
    for axis in (1, 0):
        m = units.max(c, axis)
        near = jnp.exp(scale * (c - units.spread(m, axis, c.shape)))
        side = dict(m=m, s=units.sum(near, axis), pos=units.sum(w * c0, axis))
        if form.smoothing and form.masked:
            keep_f = keep.astype(c0.dtype)
            side |= dict(uni=units.sum(keep_f * c0, axis), cnt=units.sum(keep_f, axis))
        if z is not None:
            tm = units.max(z, axis) if form.soft == "softmax" else jnp.zeros_like(m)
            soft = jnp.exp(z - units.spread(tm, axis, z.shape)) if form.soft == "softmax" else z
            side |= dict(tm=tm, ts=units.sum(soft, axis), tp=units.sum(soft * c0, axis))
        out.append(side)
    return out[0], out[1]


def full(shape: tuple[int, ...] | int, value: float, like: jax.Array) -> jax.Array:
    """An array of `value` in the accumulation dtype of `like`, varying over the same manual mesh
    axes.

    A scan's carry must enter as it leaves, also inside shard_map; the select lends those axes and
    is folded away.
    """
    acc = accumulator(like.dtype)
    one = jnp.where(False, like[(0,) * like.ndim].astype(acc), jnp.asarray(value, acc))
    return jnp.broadcast_to(one, shape)


def empty_stats(n: int, form: Form, like: jax.Array) -> Stats:
    """Statistics of nothing for `n` rows; dtype and mesh axes follow `like`."""
    zero = full(n, 0.0, like)
    low = full(n, lowest(zero.dtype), like)
    stats = dict(m=low, s=zero, pos=zero)
    if form.smoothing and form.masked:
        stats |= dict(uni=zero, cnt=zero)
    if form.soft:
        stats |= dict(tm=low if form.soft == "softmax" else zero, ts=zero, tp=zero)
    return stats


def merge_stats(a: Stats, b: Stats, scale: jax.Array) -> Stats:
    """Statistics of the union of two disjoint sets of columns (rows)."""
    m = jnp.maximum(a["m"], b["m"])
    out = dict(
        m=m,
        s=a["s"] * jnp.exp(scale * (a["m"] - m)) + b["s"] * jnp.exp(scale * (b["m"] - m)),
        pos=a["pos"] + b["pos"],
    )
    if "uni" in a:
        out |= dict(uni=a["uni"] + b["uni"], cnt=a["cnt"] + b["cnt"])
    if "tm" in a:
        tm = jnp.maximum(a["tm"], b["tm"])
        ea = jnp.exp(a["tm"] - tm)
        eb = jnp.exp(b["tm"] - tm)
        out |= dict(tm=tm, ts=a["ts"] * ea + b["ts"] * eb, tp=a["tp"] * ea + b["tp"] * eb)
    return out


def softmax_gradient(
    c: jax.Array, scale: jax.Array, rows: Side, cols: Side, form: Form
) -> jax.Array:
    """d loss / d logits `[m, n]`, the positives already folded in.

    `rows` and `cols` also hold what the backward pass knows per row (column), with `g` the
    cotangent of its loss: `m`, `l = log s`, `gz = g total`, `gw = g norm (1 - smoothing)`; with
    smoothing `gu = g total smoothing / n competing`; with soft targets `tm` and `gt = g weight (1 -
    smoothing) / ts`.

    Folding before the (perhaps bfloat16) products with u and v matters: near convergence the two
    halves cancel.
    """
    w, positive = positives(rows, cols, form)
    keep = competing(rows, cols, form, positive)
    if keep is not None:
        c = jnp.where(keep, c, lowest(c.dtype))
    grad = rows["gz"] * jnp.exp(scale * (c - rows["m"]) - rows["l"])
    grad += cols["gz"] * jnp.exp(scale * (c - cols["m"]) - cols["l"])
    grad -= w * (rows["gw"] + cols["gw"])
    if form.smoothing:
        flat = rows["gu"] + cols["gu"]
        grad -= flat if keep is None else jnp.where(keep, flat, 0.0)
    if form.soft:
        z = soft_logits(rows, cols, form, keep)
        if form.soft == "softmax":
            grad -= rows["gt"] * jnp.exp(z - rows["tm"]) + cols["gt"] * jnp.exp(z - cols["tm"])
        else:
            grad -= (rows["gt"] + cols["gt"]) * z
    return grad


def sigmoid_targets(rows: Side, cols: Side, form: Form) -> tuple[jax.Array, jax.Array | None]:
    """y `[m, n]` in [0, 1] and the pairs that count (None: all)."""
    y, positive = positives(rows, cols, form)
    keep = competing(rows, cols, form, positive)
    if form.soft:
        weight = form.soft_weights[0]
        y = (1.0 - weight) * y + weight * soft_logits(rows, cols, form, keep)
    if form.smoothing:
        y = (1.0 - form.smoothing) * y + 0.5 * form.smoothing
    return y, keep


def softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)) without overflow."""
    return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def sigmoid_loss(
    logits: jax.Array, rows: Side, cols: Side, form: Form, units: Units = PLAIN
) -> jax.Array:
    """Binary cross-entropy of each pair `[m, n]`: softplus(x) - y x, zero where pairs do not
    count."""
    y, keep = sigmoid_targets(rows, cols, form)
    # (1 - y) softplus(x) + y softplus(-x): no cancellation at large x.
    tail = units.log1p(jnp.exp(-jnp.abs(logits)))
    loss = tail + (1.0 - y) * jnp.maximum(logits, 0.0) + y * jnp.maximum(-logits, 0.0)
    return loss if keep is None else jnp.where(keep, loss, 0.0)


def sigmoid_gradient(logits: jax.Array, rows: Side, cols: Side, form: Form) -> jax.Array:
    """d loss / d logits `[m, n]`, times the cotangent `rows["g"]`."""
    y, keep = sigmoid_targets(rows, cols, form)
    tail = jnp.exp(-jnp.abs(logits))
    # sigmoid(x) - y, written so that a nearly certain pair keeps its digits.
    small = tail / (1.0 + tail)
    grad = jnp.where(logits >= 0, (1.0 - y) - small, small - y)
    grad = rows["g"] * grad
    return grad if keep is None else jnp.where(keep, grad, 0.0)
