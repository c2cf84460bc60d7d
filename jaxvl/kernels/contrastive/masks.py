"""Targets that say which pairs compete: `PairMask` around others, and `Unpaired`."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from jaxvl.kernels.contrastive.targets import (
    Diagonal,
    Form,
    Kind,
    Targets,
    Terms,
    count_equal,
    ones,
    target,
    vector,
    with_group,
)


@target("targets", "row_group", "col_group", "row_valid", "col_valid", "keep")
class PairMask(Targets):
    """Takes pairs out of the competition. Positives of `targets` always stay.

    Attributes:
      targets: what the positives are.
      row_group, col_group: Int["M"], Int["N"]; with `drop="different"` only pairs of one group
        compete (per data set, per domain), with `drop="same"` pairs of one group do not
        (near-duplicates).
      drop: see above.
      row_valid, col_valid: Bool["M"], Bool["N"]; a row that is not valid (a missing modality,
        padding) neither anchors nor competes, and the means leave it out.
      keep: Bool["M N"], True where a pair competes. The one target that is as large as the
        similarity matrix: `reference` and `chunked` take it (on one device or a mesh), the Pallas
        kernels refuse it.
    """

    targets: Targets = dataclasses.field(default_factory=Diagonal)
    row_group: Any = None
    col_group: Any = None
    row_valid: Any = None
    col_valid: Any = None
    keep: Any = None
    drop: Literal["same", "different"] = "different"

    def __post_init__(self):
        if self.drop not in ("same", "different"):
            raise ValueError(f"drop: {self.drop!r} is not valid; must be 'same' or 'different'")
        if (self.row_group is None) != (self.col_group is None):
            raise ValueError("row_group, col_group: give both or neither")

    def terms(self, m: int, n: int, kind: Kind) -> Terms:
        out = self.targets.terms(m, n, kind)
        if self.row_group is not None:
            row = vector(self.row_group, m, "row_group", integer=True)
            col = vector(self.col_group, n, "col_group", integer=True)
            out = with_group(out, row, col, self.drop)
        if self.keep is not None:
            keep = jnp.asarray(self.keep)
            if keep.shape != (m, n) or keep.dtype != jnp.bool_:
                raise ValueError(
                    f"keep: {keep.dtype}{keep.shape} does not fit; must be bool({m}, {n})"
                )
            if out.form.dense:
                raise ValueError("keep: only one PairMask may hold a dense mask")
            out = dataclasses.replace(
                out, rows=dict(out.rows, keep=keep), form=dataclasses.replace(out.form, dense=True)
            )
        if self.row_valid is None and self.col_valid is None:
            return out
        return _with_valid(out, self.row_valid, self.col_valid, m, n, kind)


def _with_valid(terms: Terms, row_valid: Any, col_valid: Any, m: int, n: int, kind: Kind) -> Terms:
    """Rows and columns that are not valid lose their labels, totals and `ok`.

    A positive whose other half is not valid is gone too, so shares are counted anew; that needs
    plain labels.
    """
    if terms.form.second or terms.form.soft:
        raise ValueError(
            "row_valid, col_valid: cannot be put around Mixup or SoftTargets; put the "
            "PairMask inside SoftTargets"
        )
    row_ok = ones(m) if row_valid is None else vector(row_valid, m, "row_valid").astype(jnp.float32)
    col_ok = ones(n) if col_valid is None else vector(col_valid, n, "col_valid").astype(jnp.float32)
    row_ok = row_ok * terms.rows.get("ok", 1.0)
    col_ok = col_ok * terms.cols.get("ok", 1.0)

    def side(own, own_ok, theirs, their_ok):
        # The share of a positive stays 1 / (number of positives), counted over valid ones.
        info = jnp.iinfo(own["label"].dtype)
        label = jnp.where(own_ok > 0, own["label"], info.max)
        found = count_equal(label, jnp.where(their_ok > 0, theirs["label"], info.min))
        before = count_equal(own["label"], theirs["label"])
        has = (found > 0).astype(jnp.float32) * own_ok
        total = own["total"] * has
        return dict(
            own,
            ok=own_ok,
            norm=own["norm"] * jnp.where(found > 0, before / jnp.maximum(found, 1), 0.0),
            total=total,
        ), has

    rows, row_has = side(terms.rows, row_ok, terms.cols, col_ok)
    cols, col_has = side(terms.cols, col_ok, terms.rows, row_ok)
    if kind == "sigmoid":
        row_has = row_ok
        col_has = col_ok
    form = dataclasses.replace(terms.form, valid=True)
    return Terms(rows, cols, row_has.sum(), col_has.sum(), form)


@target("row_valid", "col_valid")
class Unpaired(Targets):
    """No pair is positive: what is left of a row's softmax loss is the log-sum-exp of its logits
    (`contrastive_logsumexp`).

    Attributes:
      row_valid, col_valid: Bool["M"], Bool["N"]; a row that is not valid has the loss 0 and does
        not compete.
    """

    row_valid: Any = None
    col_valid: Any = None

    def terms(self, m: int, n: int, kind: Kind) -> Terms:
        if kind == "sigmoid":
            raise ValueError("targets: Unpaired is of kind='softmax'")
        given = (("row_valid", self.row_valid, m), ("col_valid", self.col_valid, n))
        ok = [
            ones(length) if x is None else vector(x, length, name).astype(jnp.float32)
            for name, x, length in given
        ]
        rows, cols = (
            dict(label=jnp.full(x.shape, i, jnp.int32), norm=0 * x, total=x, ok=x)
            for i, x in enumerate(ok)
        )  # labels that never meet
        return Terms(dict(rows, a=0 * ok[0]), cols, ok[0].sum(), ok[1].sum(), Form(valid=True))
