"""The entry: `contrastive_loss`, on one device or a mesh, and `plan`, which explains it."""

from __future__ import annotations

import dataclasses
import logging
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxvl.kernels.contrastive import dispatch, reference, tiles
from jaxvl.kernels.contrastive.collectives import NAMES, Collective
from jaxvl.kernels.contrastive.core import Blocks, Local, sigmoid_losses, softmax_losses
from jaxvl.kernels.contrastive.dispatch import Plan
from jaxvl.kernels.contrastive.grid import Grid
from jaxvl.kernels.contrastive.masks import PairMask, Unpaired
from jaxvl.kernels.contrastive.ring import Gather, Ring, axis_size, batch_axes
from jaxvl.kernels.contrastive.targets import Diagonal, Form, Targets, Terms, lower

KINDS = ("softmax", "sigmoid")
DIRECTIONS = {
    "mean": (0.5, 0.5),
    "sum": (1.0, 1.0),
    "rows": (1.0, 0.0),
}  # weights of the rows' and the columns' loss
EXCHANGES = {"gather": Gather, "ring": Ring.over, "grid": Grid.over}

_log = logging.getLogger(__name__)


def contrastive_loss(
    u: Float[Array, "M D"],
    v: Float[Array, "N D"],
    log_scale: Float[Array, ""],
    *,
    targets: Targets = Diagonal(),
    kind: Literal["softmax", "sigmoid"] = "softmax",
    directions: Literal["mean", "sum", "rows"] = "mean",
    bias: Float[Array, ""] | None = None,
    implementation: str | Blocks | None = None,
    mesh_axes: tuple[str, ...] | None = None,
    collective: Collective | None = None,
) -> Float[Array, ""]:
    """Contrastive loss over all pairs of rows of `u` and `v`; no implementation but `reference`
    builds the `[M, N]` matrix.

    With logits `s_ij = exp(log_scale) u_i . v_j (+ bias)` and targets W (`targets` says what they
    are):

        softmax   rows     L_u = mean_i  sum_j W_ij (logsumexp_j' s_ij' - s_ij)         InfoNCE;
                                         CLIP, ALIGN
                  columns  L_v = mean_j  sum_i W_ij (logsumexp_i' s_i'j - s_ij)
        sigmoid   rows     L_u = 1/M  sum_ij  softplus(s_ij) - W_ij s_ij                SigLIP
                  columns  L_v = 1/N  of the same sum, so that for M = N the mean of the directions
                  is SigLIP's loss

    The loss is that of the whole batch whatever the mesh: sharding is layout, never meaning.

    Args:
      u, v: float32, bfloat16 (or float64) rows, normally of unit length. Gradients have their
        dtype; sums are float32.
      log_scale: log of the inverse temperature.
      targets: `Diagonal`, `SameId`, `KPerRow`, `Mixup`, `SoftTargets` or `PairMask`. No gradient
        flows into a target.
      kind: see above.
      directions: "mean" (CLIP, CoCa, ALBEF) or "sum" (ALIGN) of the two directions, or "rows" alone
        (Symile).
      bias: added to every logit. The softmax does not change under it (its gradient is zero); the
        sigmoid learns it.
      implementation: None tries `pallas_tpu`, `pallas_hopper`, `pallas_triton`, then `chunked`, for
        what runs here; the choice, and why any was skipped, is logged, and a kernel that has not
        run on this kind of chip yet is first compared with `chunked` (`verified`). A name
        ("reference", "chunked", "pallas_tpu", "pallas_hopper", "pallas_triton"), or blocks with
        sizes of your own (`Chunked(512, 2048)`), is obeyed or refused, never replaced.
      mesh_axes: mesh axes that shard the rows. None: `data` and `fsdp` of the mesh set by
        `jax.set_mesh`, if they are there. Inside `shard_map` it must be given: the names of manual
        axes, where `u`, `v` and the targets' arrays are this device's rows of the batch and the
        result is the loss of the whole batch; or `()` for the rows at hand alone.
      collective: how the blocks of a mesh meet: "gather", "ring" or "grid". None: as the run says
        (`collectives.using`), or by latency, bytes and memory of the chip (`collectives`).

    Returns:
      Float32[""] (float64 for float64 inputs).

    Raises:
      ValueError: an argument that does not fit, or a named implementation that cannot run; says
        which and why.
    """
    _check(u, v, log_scale, bias, kind, directions, mesh_axes, collective)
    dtype = jnp.promote_types(u.dtype, v.dtype)
    acc = tiles.accumulator(dtype)
    u = u.astype(dtype)
    v = v.astype(dtype)
    scale = jnp.exp(jnp.asarray(log_scale, acc))
    bias = jnp.asarray(0.0 if bias is None else bias, acc)
    axes, inside = batch_axes(mesh_axes)
    shards = axis_size(axes)
    m = u.shape[0]
    n = v.shape[0]
    terms = (
        _lower_inside(targets, m, n, kind, acc, axes) if inside else lower(targets, m, n, kind, acc)
    )
    chosen = dispatch.choose(
        _shape(u, v, shards, inside), dtype, kind, terms.form, implementation, collective, axes
    )
    _log.info("contrastive loss: %s", chosen)  # whenever it is traced
    if chosen.implementation == "reference":
        if inside:
            raise ValueError(
                "implementation: 'reference' does not run inside shard_map; 'chunked' does"
            )
        sums = reference.sums(u, v, scale, bias, terms, kind)
    elif inside:
        sums = _streamed(
            chosen,
            axes,
            kind,
            terms.form,
            u,
            v,
            _vary(scale, axes),
            _vary(bias, axes),
            terms.rows,
            terms.cols,
        )
    elif shards > 1:
        sums = _over_mesh(chosen, axes, kind, u, v, scale, bias, terms)
    else:
        sums = _streamed(chosen, (), kind, terms.form, u, v, scale, bias, terms.rows, terms.cols)
    parts = [
        s / jnp.maximum(n, 1).astype(acc)
        for s, n in zip(sums, (terms.row_count, terms.col_count), strict=True)
    ]
    return sum(weight * part for weight, part in zip(DIRECTIONS[directions], parts) if weight)


def contrastive_logsumexp(
    u: Float[Array, "M D"],
    v: Float[Array, "N D"],
    log_scale: Float[Array, ""],
    *,
    targets: Targets = Unpaired(),
    implementation: str | Blocks | None = None,
    collective: Collective | None = None,
) -> tuple[Float[Array, " M"], Float[Array, " N"]]:
    """Log-sum-exp of the logits `s_ij = exp(log_scale) u_i . v_j` over all columns, of each row,
    and over all rows, of each column.

    For losses that are functions of these (several positives as one, MIL-NCE); memory, meshes and
    arguments as of `contrastive_loss`, but for `implementation="reference"`, and not inside
    `shard_map`.

    Args:
      targets: `Unpaired`, or a `PairMask` of groups around it.

    Returns:
      Float32[M], Float32[N] (float64 for float64 inputs); 0 for what is not valid, -inf (without
      gradient) for what is valid and has nothing to be compared with.

    Raises:
      ValueError: see `contrastive_loss`; other targets; inside `shard_map`.
    """
    _check(u, v, log_scale, None, "softmax", "mean", None, collective)
    inner = targets
    while isinstance(inner, PairMask):
        if inner.row_valid is not None or inner.col_valid is not None:
            raise ValueError(
                "row_valid, col_valid: PairMask cannot have them here; give them to Unpaired"
            )
        inner = inner.targets
    if not isinstance(inner, Unpaired):
        raise ValueError(
            f"targets: {type(inner).__name__} is not valid; must be Unpaired, or a PairMask "
            f"around it"
        )
    dtype = jnp.promote_types(u.dtype, v.dtype)
    acc = tiles.accumulator(dtype)
    u = u.astype(dtype)
    v = v.astype(dtype)
    scale = jnp.exp(jnp.asarray(log_scale, acc))
    if any(t == AxisType.Manual for t in jax.sharding.get_abstract_mesh().axis_types):
        raise ValueError(
            "contrastive_logsumexp: is not for the inside of shard_map; call it outside, "
            "under jax.set_mesh"
        )
    axes, _ = batch_axes(None)
    shards = axis_size(axes)
    terms = lower(targets, u.shape[0], v.shape[0], "softmax", acc)
    chosen = dispatch.choose(
        _shape(u, v, shards, False),
        dtype,
        "softmax",
        terms.form,
        implementation,
        collective,
        axes,
    )
    if chosen.implementation == "reference":
        raise ValueError("implementation: 'reference' has no log-sum-exp; 'chunked' does")
    _log.info("contrastive log-sum-exp: %s", chosen)
    if shards == 1:
        return softmax_losses(
            chosen.blocks, Local(), terms.form, u, v, scale, terms.rows, terms.cols
        )
    return _over_mesh(chosen, axes, "softmax", u, v, scale, jnp.asarray(0.0, acc), terms, each=True)


def plan(
    shape: tuple[int, int, int],
    dtype: DTypeLike = jnp.float32,
    *,
    targets: Targets = Diagonal(),
    kind: Literal["softmax", "sigmoid"] = "softmax",
    implementation: str | Blocks | None = None,
    mesh_axes: tuple[str, ...] | None = None,
    collective: Collective | None = None,
) -> Plan:
    """What `contrastive_loss` would run for global `shape` (M, N, D): implementation, collective,
    blocks, what was skipped.

    Raises:
      ValueError: as `contrastive_loss`.
    """
    m, n, d = shape
    axes, _ = batch_axes(mesh_axes)
    form = jax.eval_shape(lambda: lower(targets, m, n, kind, jnp.float32)).form
    shards = axis_size(axes)
    local = (-(-m // shards), -(-n // shards), d)
    return dispatch.choose(local, jnp.dtype(dtype), kind, form, implementation, collective, axes)


# --------------------------------------------------------------------------------------------------
# Arguments


def _check(u, v, log_scale, bias, kind, directions, mesh_axes, collective) -> None:
    for name, x in (("u", u), ("v", v)):
        shape = x.shape if isinstance(x, jax.Array | np.ndarray) else None
        if shape is None or len(shape) != 2 or 0 in shape:
            raise ValueError(
                f"{name}: shape {shape} is not valid; must be (rows, width), neither zero"
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name}: dtype {x.dtype} is not valid; must be a floating point type")
    if u.shape[1] != v.shape[1]:
        raise ValueError(f"v: width {v.shape[1]} does not fit; must be u's width {u.shape[1]}")
    for name, x in (("log_scale", log_scale), ("bias", bias)):
        if x is not None and jnp.shape(x) != ():
            raise ValueError(f"{name}: shape {jnp.shape(x)} is not valid; must be a scalar")
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r} is not valid; must be one of {KINDS}")
    if directions not in DIRECTIONS:
        raise ValueError(
            f"directions: {directions!r} is not valid; must be one of {tuple(DIRECTIONS)}"
        )
    if collective not in (None, *NAMES):
        raise ValueError(f"collective: {collective!r} is not valid; must be one of {NAMES} or None")
    if isinstance(mesh_axes, str):
        raise ValueError(
            f"mesh_axes: {mesh_axes!r} is a text; must be a tuple of names, as ({mesh_axes!r},)"
        )


def _shape(u, v, shards: int, inside: bool) -> tuple[int, int, int]:
    """Rows and columns per device, and the width."""
    parts = 1 if inside else shards
    return -(-u.shape[0] // parts), -(-v.shape[0] // parts), u.shape[1]


# --------------------------------------------------------------------------------------------------
# Running


def _streamed(
    chosen: Plan, axes, kind: str, form: Form, u, v, scale, bias, rows, cols, each: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Sums of the two directions' losses over the batch, from this device's rows and columns;
    `each`: these rows' and columns' own."""
    exchange = EXCHANGES[chosen.collective or "gather"](axes) if axes else Local()
    if kind == "softmax":
        row, col = softmax_losses(chosen.blocks, exchange, form, u, v, scale, rows, cols)
        if each:
            return row, col
        return exchange.total(jnp.sum(row)), exchange.total(jnp.sum(col))
    total = exchange.total(
        jnp.sum(sigmoid_losses(chosen.blocks, exchange, form, u, v, scale, bias, rows, cols))
    )
    return total, total


def _over_mesh(
    chosen: Plan, axes, kind: str, u, v, scale, bias, terms: Terms, each: bool = False
) -> tuple[jax.Array, jax.Array]:
    """`_streamed` under shard_map; lengths that the mesh does not divide are padded with rows that
    are not valid."""
    shards = axis_size(axes)
    m = u.shape[0]
    n = v.shape[0]
    pad_rows = -u.shape[0] % shards
    pad_cols = -v.shape[0] % shards
    form = terms.form
    rows = terms.rows
    cols = terms.cols
    if pad_rows or pad_cols:
        rows = dispatch.with_ok(rows, u.shape[0])
        cols = dispatch.with_ok(cols, v.shape[0])
        u, rows = dispatch.pad((u, rows), pad_rows)
        v, cols = dispatch.pad((v, cols), pad_cols)
        if form.dense:
            rows["keep"] = jnp.pad(rows["keep"], ((0, 0), (0, pad_cols)))
        form = dataclasses.replace(form, valid=True)
    batch = PartitionSpec(axes)
    mesh = jax.sharding.get_abstract_mesh()
    if any(t == AxisType.Explicit for t in mesh.axis_types):
        u, v, rows, cols = jax.tree.map(
            lambda x: jax.sharding.reshard(x, batch), (u, v, rows, cols)
        )
        scale, bias = jax.tree.map(
            lambda x: jax.sharding.reshard(x, PartitionSpec()), (scale, bias)
        )

    def local(u, v, scale, bias, rows, cols):
        return _streamed(
            chosen, axes, kind, form, u, v, _vary(scale, axes), _vary(bias, axes), rows, cols, each
        )

    specs = (batch, batch, PartitionSpec(), PartitionSpec(), batch, batch)
    # The interpreters of Pallas kernels cannot type values that vary between devices; compiled
    # kernels are checked.
    typed = not chosen.blocks.interpreted
    out = batch if each else PartitionSpec()
    row, col = jax.shard_map(local, in_specs=specs, out_specs=out, check_vma=typed)(
        u, v, scale, bias, rows, cols
    )
    return (row[:m], col[:n]) if each else (row, col)


def _vary(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """`x` as a value that may differ between devices, so that its gradient is summed over them."""
    return lax.pcast(x, axes, to="varying") if axes else x


def _lower_inside(targets: Targets, m: int, n: int, kind: str, acc, axes: tuple[str, ...]) -> Terms:
    """Global terms, of which this device's rows and columns are kept; `targets` holds this device's
    part of every vector."""
    shards = axis_size(axes)
    index = lax.axis_index(axes)

    def whole(x):
        return lax.all_gather(x, axes, tiled=True) if jnp.ndim(x) else x

    terms = lower(jax.tree.map(whole, targets), m * shards, n * shards, kind, acc)

    def own(length):
        return lambda x: lax.dynamic_slice_in_dim(x, index * length, length)

    def same(x):
        # Every device has the same count, which only a reduction can tell the type system.
        return lax.pmax(x + 0 * index, axes)

    rows = jax.tree.map(own(m), terms.rows)
    cols = jax.tree.map(own(n), terms.cols)
    return dataclasses.replace(
        terms,
        rows=rows,
        cols=cols,
        row_count=same(terms.row_count),
        col_count=same(terms.col_count),
    )
