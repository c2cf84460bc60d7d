"""Targets of a contrastive loss: which pairs are positive, and which compete.

A target never holds a `[M, N]` matrix (but for `PairMask(keep=…)`). It is lowered to `Terms`: a few
vectors per row and per column from which any tile of the target matrix can be built on the spot:

    W_ij = a_i [label_i == label_j] + a2_i [label2_i == label_j]           raw target, sparse
    row direction:     W_ij * norm_i   (sums over j to total_i, which is 1 for a distribution)
    column direction:  W_ij * norm_j   (sums over i to total_j)

plus, where asked for, low-rank soft targets from a second pair of embeddings, and groups that mask
pairs. Rows and columns may be cut anywhere (tiles, shards, ring steps) without changing the
meaning, since labels are global.

Axis letters: M rows (of `u`), N columns (rows of `v`), R width of a teacher's embeddings, K
captions per image.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

Kind = Literal["softmax", "sigmoid"]


@dataclasses.dataclass(frozen=True)
class Form:
    """The static part of `Terms`: which vectors exist and what a tile does with them.

    Attributes:
      second: a second label per row (mixup).
      groups: for each pair of group vectors, which pairs leave: those with the `"same"` or
        `"different"` groups.
      dense: `rows["keep"]` is a `[M, N]` mask.
      valid: `ok` vectors exist: rows and columns that neither anchor nor compete (also used for
        padding).
      soft: `"softmax"` or `"linear"` similarity of the teacher, or None.
      soft_weights: share of the soft target in the row and column direction.
      linear: `(offset, gain)` of the linear similarity.
      smoothing: label smoothing, in [0, 1).
      weighted: rows or columns have weights (`Weighted`), which their `norm` and `total` hold.
    """

    second: bool = False
    groups: tuple[str, ...] = ()
    dense: bool = False
    valid: bool = False
    soft: str | None = None
    soft_weights: tuple[float, float] = (0.0, 0.0)
    linear: tuple[float, float] = (0.5, 0.5)
    smoothing: float = 0.0
    weighted: bool = False

    @property
    def masked(self) -> bool:
        """Whether some pairs of valid rows and columns do not compete."""
        return bool(self.groups) or self.dense


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Terms:
    """A lowered target (see the top of this file).

    Attributes:
      rows: vectors `[M]`: `label`, `a`, `norm`, `total`; if their form says so `label2`, `a2`,
        `ok`, `group0` …, `teacher` `[M, R]`, `keep` `[M, N]`.
      cols: the same for columns, without `a`, `a2`, `label2`, `keep`.
      row_count, col_count: what the sums of the two directions are divided by.
      form: the static part.
    """

    rows: dict[str, jax.Array]
    cols: dict[str, jax.Array]
    row_count: int | jax.Array
    col_count: int | jax.Array
    form: Form = dataclasses.field(metadata={"static": True})


class Targets:
    """Base of targets: which pairs are positive, and which compete. A subclass is registered by
    `target`."""

    def terms(self, m: int, n: int, kind: Kind) -> Terms:
        """Itself as vectors, for `m` rows and `n` columns."""
        raise NotImplementedError(f"{type(self).__name__} must give its terms")


def target(*data: str):
    """Registers a target dataclass as a pytree whose leaves are the fields in `data`."""

    def register(cls):
        cls = dataclasses.dataclass(frozen=True)(cls)
        meta = [f.name for f in dataclasses.fields(cls) if f.name not in data]
        return jax.tree_util.register_dataclass(cls, data_fields=list(data), meta_fields=meta)

    return register


def _check_smoothing(value: float) -> None:
    if not (isinstance(value, (int, float)) and 0.0 <= value < 1.0):
        raise ValueError(
            f"label_smoothing: {value!r} is not valid; must be a Python number in [0, 1)"
        )


def vector(value: ArrayLike, length: int, name: str, integer: bool = False) -> jax.Array:
    value = jnp.asarray(value)
    if value.shape != (length,):
        raise ValueError(f"{name}: shape {value.shape} does not fit; must be ({length},)")
    if integer and not jnp.issubdtype(value.dtype, jnp.integer):
        raise ValueError(f"{name}: dtype {value.dtype} is not valid; must be an integer")
    return value


def ones(n: int) -> jax.Array:
    return jnp.ones(n, jnp.float32)


def count_equal(needles: jax.Array, haystack: jax.Array) -> jax.Array:
    """How often each of `needles` `[M]` occurs in `haystack` `[N]`; O((M + N) log N), no `[M,
    N]`."""
    ordered = jnp.sort(haystack)
    return jnp.searchsorted(ordered, needles, side="right") - jnp.searchsorted(
        ordered, needles, side="left"
    )


def with_group(terms: Terms, row: jax.Array, col: jax.Array, drop: str) -> Terms:
    name = f"group{len(terms.form.groups)}"
    form = dataclasses.replace(terms.form, groups=(*terms.form.groups, drop))
    return dataclasses.replace(
        terms, rows={**terms.rows, name: row}, cols={**terms.cols, name: col}, form=form
    )


@target("offset")
class Diagonal(Targets):
    """Row `i` of `u` belongs to row `offset + i` of `v`; the other pairs are negatives.

    Columns that no row belongs to (a memory queue, hard negatives, the columns of other shards)
    compete, but have no loss of their own.

    Attributes:
      offset: Int[""], where the first row's column stands; may be traced (a shard's position).
      label_smoothing: in [0, 1): targets `(1 - e) onehot + e / n` over the `n` pairs that compete.
        For the sigmoid, `y (1 - e) + e / 2`.
    """

    offset: Any = 0
    label_smoothing: float = 0.0

    def __post_init__(self):
        _check_smoothing(self.label_smoothing)

    def terms(self, m: int, n: int, kind: Kind) -> Terms:
        """Raises ValueError if a row's column lies outside `v`."""
        del kind
        if isinstance(self.offset, int) and not 0 <= self.offset <= n - m:
            raise ValueError(
                (
                    f"offset: {self.offset} is not valid for u of {m} and v of {n} rows; must be "
                    f"in [0, {n - m}]"
                )
                if m <= n
                else f"u: {m} rows, but v has only {n}; Diagonal needs a column for every row"
            )
        if m > n:
            raise ValueError(
                f"u: {m} rows, but v has only {n}; Diagonal needs a column for every row"
            )
        label = jnp.asarray(self.offset, jnp.int32) + jnp.arange(m, dtype=jnp.int32)
        column = jnp.arange(n, dtype=jnp.int32)
        owned = (
            ones(n)
            if m == n
            else ((column >= label[0]) & (column <= label[-1])).astype(jnp.float32)
        )
        rows = dict(label=label, a=ones(m), norm=ones(m), total=ones(m))
        cols = dict(label=column, norm=owned, total=owned)
        return Terms(rows, cols, m, m, Form(smoothing=self.label_smoothing))


@target("ids", "other")
class SameId(Targets):
    """Rows with equal ids mean the same (duplicate captions, images of one class).

    Attributes:
      ids: Int["M"] ids of the rows of `u`.
      other: Int["N"] ids of the rows of `v`; None: `ids`.
      duplicates: `"positive"`: every column with a row's id is its positive, with equal shares
        (multi-hot, normalised; the "out" form of SupCon, Khosla et al. 2020, eq. 2). `"mask"`: the
        diagonal is the positive, and other columns with the same id do not compete. For the
        sigmoid, positives have target 1 each.
      label_smoothing: as in `Diagonal`.

    Rows (columns) without any column (row) of their id have no loss of their own; their direction's
    mean leaves them out.
    """

    ids: Any
    other: Any = None
    duplicates: Literal["positive", "mask"] = "positive"
    label_smoothing: float = 0.0

    def __post_init__(self):
        _check_smoothing(self.label_smoothing)
        if self.duplicates not in ("positive", "mask"):
            raise ValueError(
                f"duplicates: {self.duplicates!r} is not valid; must be 'positive' or 'mask'"
            )

    def terms(self, m: int, n: int, kind: Kind) -> Terms:
        row = vector(self.ids, m, "ids", integer=True)
        if self.other is None and m != n:
            raise ValueError(
                f"other: is required where u ({m} rows) and v ({n} rows) differ in length"
            )
        col = row if self.other is None else vector(self.other, n, "other", integer=True)
        if self.duplicates == "mask":
            base = Diagonal(label_smoothing=self.label_smoothing).terms(m, n, kind)
            return with_group(base, row, col, "same")
        in_row = count_equal(row, col)
        in_col = count_equal(col, row)
        rows = dict(
            label=row,
            a=ones(m),
            norm=1.0 / jnp.maximum(in_row, 1),
            total=(in_row > 0).astype(jnp.float32),
        )
        cols = dict(
            label=col, norm=1.0 / jnp.maximum(in_col, 1), total=(in_col > 0).astype(jnp.float32)
        )
        return Terms(
            rows,
            cols,
            rows["total"].sum(),
            cols["total"].sum(),
            Form(smoothing=self.label_smoothing),
        )


@target()
class KPerRow(Targets):
    """K captions per image: rows `K i … K i + K - 1` of `v` belong to row `i` of `u` (1-to-K
    contrast, CCRK).

    Attributes:
      k: captions per image.
      reduction: `"balanced"`: the mean over images of the mean over their captions, and the mean
        over captions, weigh the same. `"release"`: as in the code released with CCRK, which divides
        both halves by K once the image half is summed over its captions, so that the caption half
        weighs 1/K.
      label_smoothing: as in `Diagonal`.
    """

    k: int
    reduction: Literal["balanced", "release"] = "balanced"
    label_smoothing: float = 0.0

    def __post_init__(self):
        _check_smoothing(self.label_smoothing)
        if not (isinstance(self.k, int) and self.k >= 1):
            raise ValueError(f"k: {self.k!r} is not valid; must be a whole number of captions >= 1")
        if self.reduction not in ("balanced", "release"):
            raise ValueError(
                f"reduction: {self.reduction!r} is not valid; must be 'balanced' or 'release'"
            )

    def terms(self, m: int, n: int, kind: Kind) -> Terms:
        del kind
        if n != m * self.k:
            raise ValueError(
                f"v: {n} rows do not fit; must be k * rows of u = {self.k} * {m} = {self.k * m}"
            )
        share = ones(n) / (self.k if self.reduction == "release" else 1)
        rows = dict(
            label=jnp.arange(m, dtype=jnp.int32), a=ones(m), norm=ones(m) / self.k, total=ones(m)
        )
        cols = dict(label=jnp.arange(n, dtype=jnp.int32) // self.k, norm=share, total=share)
        return Terms(rows, cols, m, n, Form(smoothing=self.label_smoothing))


@target("permutation", "lam")
class Mixup(Targets):
    """Row `i` of `u` is a mix: `lam_i` of example `i` and `1 - lam_i` of example `permutation_i`
    (M3CoL, i-Mix).

    The targets are `P = diag(lam) + (1 - lam) at permutation` for rows. Columns take `P^T`: as it
    is (`columns="transposed"`, the M3CoL release; its rows need not sum to one) or normalised
    (`columns="normalised"`).

    Attributes:
      permutation: Int["B"].
      lam: Float["B"] or Float[""], in [0, 1]. No gradient flows into it.
      columns: see above.
      label_smoothing: as in `Diagonal`.
    """

    permutation: Any
    lam: Any
    columns: Literal["transposed", "normalised"] = "transposed"
    label_smoothing: float = 0.0

    def __post_init__(self):
        _check_smoothing(self.label_smoothing)
        if self.columns not in ("transposed", "normalised"):
            raise ValueError(
                f"columns: {self.columns!r} is not valid; must be 'transposed' or 'normalised'"
            )

    def terms(self, m: int, n: int, kind: Kind) -> Terms:
        del kind
        if m != n:
            raise ValueError(f"v: {n} rows do not fit; Mixup needs as many as u has ({m})")
        permutation = vector(self.permutation, m, "permutation", integer=True)
        lam = jnp.asarray(self.lam, jnp.float32)
        lam = vector(jnp.full(m, lam) if lam.ndim == 0 else lam, m, "lam")
        total = lam + jnp.zeros(m, jnp.float32).at[permutation].add(1.0 - lam)
        label = jnp.arange(m, dtype=jnp.int32)
        rows = dict(
            label=label,
            a=lam,
            label2=permutation.astype(jnp.int32),
            a2=1.0 - lam,
            norm=ones(m),
            total=ones(m),
        )
        if self.columns == "transposed":
            cols = dict(label=label, norm=ones(m), total=total)
        else:
            some = total > 0
            cols = dict(
                label=label,
                norm=jnp.where(some, 1.0 / jnp.where(some, total, 1.0), 0.0),
                total=some.astype(jnp.float32),
            )
        return Terms(rows, cols, m, n, Form(second=True, smoothing=self.label_smoothing))


@target("p", "q", "scale", "targets")
class SoftTargets(Targets):
    """Soft targets from a second pair of embeddings, mixed with hard ones: `(1 - w) hard + w soft`.

    `similarity="softmax"`: `soft = softmax(scale p q^T)` over the pairs that compete, along rows
      for the row direction and
    along columns for the column direction (momentum distillation of ALBEF with w = 0.4; SoftCLIP).
    `similarity="linear"`: `soft_ij = (1 + scale p_i . q_j) / 2`, normalised over the pairs that
    compete (CWCL, Srinivasan et al. 2023, with `weight=(1, 0)`: rows soft, columns plain). For the
    sigmoid, the values themselves are the targets.

    Attributes:
      p, q: Float["M R"], Float["N R"] embeddings of a teacher. No gradient flows into them.
      scale: Float[""], inverse temperature of the teacher.
      weight: share of the soft target; one number, or one per direction (rows, columns).
      targets: the hard ones; their label smoothing applies to the mix.
      similarity: see above.
    """

    p: Any
    q: Any
    scale: Any = 1.0
    targets: Targets = dataclasses.field(default_factory=Diagonal)
    weight: float | tuple[float, float] = 1.0
    similarity: Literal["softmax", "linear"] = "softmax"

    def __post_init__(self):
        weights = self.weight if isinstance(self.weight, tuple) else (self.weight,)
        if len(weights) not in (1, 2) or not all(
            isinstance(w, (int, float)) and 0 <= w <= 1 for w in weights
        ):
            raise ValueError(
                f"weight: {self.weight!r} is not valid; must be a number in [0, 1] or one for "
                f"rows and one for columns"
            )
        if self.similarity not in ("softmax", "linear"):
            raise ValueError(
                f"similarity: {self.similarity!r} is not valid; must be 'softmax' or 'linear'"
            )

    def terms(self, m: int, n: int, kind: Kind) -> Terms:
        if kind == "sigmoid" and self.similarity == "softmax":
            raise ValueError(
                "similarity: 'softmax' targets are shares of one row, not of one pair; for "
                "kind='sigmoid' use 'linear'"
            )
        if (
            kind == "sigmoid"
            and isinstance(self.weight, tuple)
            and self.weight[0] != self.weight[-1]
        ):
            raise ValueError(
                f"weight: {self.weight!r} is not valid for kind='sigmoid', which has no "
                f"directions; must be one number"
            )
        p = jnp.asarray(self.p)
        q = jnp.asarray(self.q)
        if (
            p.ndim != 2
            or q.ndim != 2
            or p.shape[0] != m
            or q.shape[0] != n
            or p.shape[1] != q.shape[1]
        ):
            raise ValueError(
                f"p, q: shapes {p.shape} and {q.shape} do not fit; must be ({m}, R) and ({n}, R)"
            )
        base = self.targets.terms(m, n, kind)
        if base.form.soft:
            raise ValueError("targets: SoftTargets cannot hold SoftTargets")
        if base.form.weighted:
            raise ValueError("targets: SoftTargets cannot hold Weighted")
        row_weight, col_weight = (
            (self.weight[0], self.weight[-1])
            if isinstance(self.weight, tuple)
            else (self.weight, self.weight)
        )
        dtype = jnp.promote_types(jnp.float32, p.dtype)
        rows = dict(
            base.rows,
            norm=base.rows["norm"] * (1 - row_weight),
            teacher=p.astype(dtype) * jnp.asarray(self.scale, dtype),
        )
        cols = dict(base.cols, norm=base.cols["norm"] * (1 - col_weight), teacher=q.astype(dtype))
        row_count = base.row_count
        col_count = base.col_count
        # A soft target gives every row a loss of its own, also one without a hard positive.
        if row_weight:
            rows["total"] = base.rows["total"] * (1 - row_weight) + row_weight * rows.get("ok", 1.0)
            row_count = rows["ok"].sum() if base.form.valid else m
        if col_weight:
            cols["total"] = base.cols["total"] * (1 - col_weight) + col_weight * cols.get("ok", 1.0)
            col_count = cols["ok"].sum() if base.form.valid else n
        form = dataclasses.replace(
            base.form, soft=self.similarity, soft_weights=(float(row_weight), float(col_weight))
        )
        return Terms(rows, cols, row_count, col_count, form)


def lower(targets: Targets, m: int, n: int, kind: Kind, dtype: jnp.dtype) -> Terms:
    """`Terms` of `targets` for `m` rows and `n` columns, in accumulation `dtype`, without
    gradients.

    For the sigmoid every valid row counts, whether or not it has a positive.
    """
    if not isinstance(targets, Targets):
        raise ValueError(
            f"targets: {targets!r} is not valid; must be Diagonal, SameId, KPerRow, Mixup, "
            f"SoftTargets, PairMask, Weighted or Unpaired"
        )
    terms = targets.terms(m, n, kind)
    if kind == "sigmoid" and not terms.form.valid:
        terms = dataclasses.replace(terms, row_count=m, col_count=n)

    def convert(x):
        x = jnp.asarray(x)
        return lax.stop_gradient(x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x)

    rows = jax.tree.map(convert, terms.rows)
    cols = jax.tree.map(convert, terms.cols)
    return dataclasses.replace(
        terms,
        rows=rows,
        cols=cols,
        row_count=convert(terms.row_count),
        col_count=convert(terms.col_count),
    )
