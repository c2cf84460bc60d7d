"""Layers of one or two kinds as stacked parameters, and running them in order, scanned or
unrolled."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxvl.aliases import Tree
from jaxvl.kernels.device import device
from jaxvl.nn.recompute import in_chunks, whole_floats

Remat = Literal["none", "full", "chunks", "dots", "attention", "offload"]
# Results that policies name: what goes into a layer, and what its attention gives.
LAYER_INPUT = "layer_input"
ATTENTION_OUTPUT = "attention_output"
Kinds = tuple[bool, ...]  # per layer: whether it is of the second kind

_KEEP = contextvars.ContextVar("keep_activations", default=False)


@contextlib.contextmanager
def keep_activations() -> Iterator[None]:
    """Programs traced inside recompute no layer in their backward pass, whatever `remat` says: to
    count FLOP without it."""
    token = _KEEP.set(True)
    try:
        yield
    finally:
        _KEEP.reset(token)


def recomputes(remat: bool) -> bool:
    """Whether a layer with this option is recomputed in the program being traced."""
    return remat and not _KEEP.get()


def stack(make: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """`layers` modules of one kind as one module whose parameters have a leading axis L, named
    `layers`."""
    stacked = nnx.vmap(lambda key: make(nnx.Rngs(params=key)))(
        jax.random.split(rngs.params(), layers)
    )
    for _, variable in nnx.to_flat_state(nnx.state(stacked, nnx.Param)):
        variable.set_metadata(axes=("layers", *variable.get_metadata()["axes"]))
    return stacked


def unstack(tree: Tree, layers: int) -> list[Tree]:
    """The slices of every leaf along its leading axis.

    By `lax.split`, whose gradient is one concatenation; that of indexing would be a sum of L arrays
    of the full size.
    """
    leaves, structure = jax.tree.flatten(tree)
    slices = [[piece[0] for piece in jax.lax.split(leaf, (1,) * layers)] for leaf in leaves]
    return [jax.tree.unflatten(structure, [s[i] for s in slices]) for i in range(layers)]


def rematerialise(f: Callable, remat: Remat, *, scanned: bool) -> Callable:
    """`f(x, …)` with its backward pass recomputing as `remat` says.

    `full` keeps x alone; `chunks` too, and has a part of the rows at a time (`nn.recompute`; f is
    then called with x, parameters, inputs and rows, and reports nothing); `dots` also the products
    with parameters; `attention` also what is named `ATTENTION_OUTPUT`; `offload` keeps x in the
    host's memory, from where it is fetched layer by layer.
    """
    if not recomputes(remat != "none"):
        return f

    if remat == "chunks":
        layer = in_chunks(lambda own, rows: f(rows[0], *own, rows[1])[0])
        return lambda x, *own_and_rows: (layer(own_and_rows[:2], (x, own_and_rows[2])), None)

    def named(x: Any, *rest: Any) -> Any:
        return f(jax.tree.map(lambda a: checkpoint_name(a, LAYER_INPUT), x), *rest)

    policies = jax.checkpoint_policies
    policy = {
        "full": None,
        "dots": policies.dots_with_no_batch_dims_saveable,
        "attention": policies.save_only_these_names(ATTENTION_OUTPUT),
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[LAYER_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }[remat]
    layer = named if remat == "offload" else f
    return jax.checkpoint(layer, policy=policy, prevent_cse=not scanned)


def segments(kinds: Kinds) -> list[tuple[Kinds, int]]:
    """(kinds of a unit of layers, repeats) in order: how a stack of two kinds is scanned.

    Layers of one kind in a row are a unit of one layer, repeated. Where a pattern recurs (dense,
    MoE, dense, MoE …), the pattern is the unit, so that the compiled program holds it once.
    """
    period = kinds.index(True) + 1 if True in kinds else 0
    whole, rest = divmod(len(kinds), period) if period else (0, 0)
    if period > 1 and whole > 1 and kinds == (kinds[:period] * (whole + 1))[: len(kinds)]:
        return [(kinds[:period], whole)] + [((False,), rest)] * bool(rest)
    return [((kind,), len(list(run))) for kind, run in itertools.groupby(kinds)]


def run_layers(
    layer: Callable[[nnx.Module, Tree, Tree, Tree], tuple[Tree, Tree]],
    x: Tree,
    modules: Mapping[bool, nnx.Module],
    kinds: Kinds,
    inputs: Tree,
    rows: Tree = None,
    *,
    scan: bool = True,
    remat: Remat = "none",
) -> tuple[Tree, Tree]:
    """All layers in order.

    Args:
      layer: (module of one layer, x, its inputs, rows) -> (x, report); a report is a pytree of
        arrays, or None.
      modules: by kind, the layers of that kind as `stack` made them.
      inputs: pytree of arrays with a leading axis L, one entry for each layer.
      rows: pytree of arrays [B, ...] that every layer reads beside x.

    Returns:
      x, and the reports that are not None with a leading axis of their layers, in order; None where
      there are none.
    """
    halves = {kind: nnx.split(module) for kind, module in modules.items()}

    # `chunks` reads its parameters so by itself, outside the loop over its rows.
    apart = scan and recomputes(remat not in ("none", "chunks")) and device()[0] == "tpu"

    def call(kind: bool, x: Any, params: Any, inputs: Any, rows: Any) -> tuple[Any, Any]:
        params = whole_floats(params) if apart else params
        return layer(nnx.merge(halves[kind][0], params), x, inputs, rows)

    calls = {
        kind: rematerialise(functools.partial(call, kind), remat, scanned=scan) for kind in halves
    }
    calls = {kind: functools.partial(_with_rows, run, rows) for kind, run in calls.items()}
    if not scan:
        own = {
            kind: iter(unstack(params, kinds.count(kind))) for kind, (_, params) in halves.items()
        }
        reports = []
        for i, kind in enumerate(kinds):
            x, report = calls[kind](x, next(own[kind]), jax.tree.map(lambda a, i=i: a[i], inputs))
            reports.append(jax.tree.map(lambda a: a[None], report))
        return x, _joined(reports)
    parts = segments(kinds)
    reports = []
    own = {
        kind: iter(_cut(params, [u.count(kind) * n for u, n in parts if kind in u]))
        for kind, (_, params) in halves.items()
    }
    for (unit, _), theirs in zip(parts, _cut(inputs, [len(unit) * n for unit, n in parts])):
        params = {kind: _fold(next(own[kind]), unit.count(kind)) for kind in sorted(set(unit))}
        x, report = _scan_unit(calls, unit, x, params, _fold(theirs, len(unit)))
        reports.append(report)
    return x, _joined(reports)


def _with_rows(run: Callable, rows: Tree, x: Tree, params: Tree, inputs: Tree) -> Any:
    return run(x, params, inputs, rows)


def _scan_unit(
    calls: Mapping[bool, Callable], unit: Kinds, x: Any, params: Mapping[bool, Any], inputs: Any
) -> tuple[Any, Any]:
    """A unit of layers, repeated: params and inputs [n, …] where the unit has one of a kind, else
    [n, layers of the unit, …]."""

    def body(x: Any, slices: tuple[Any, Any]) -> tuple[Any, Any]:
        params, inputs = slices
        params = {
            kind: iter([p] if unit.count(kind) == 1 else unstack(p, unit.count(kind)))
            for kind, p in params.items()
        }
        inputs = [inputs] if len(unit) == 1 else unstack(inputs, len(unit))
        reports = []
        for kind, own in zip(unit, inputs):
            x, report = calls[kind](x, next(params[kind]), own)
            reports.append(report)
        return x, _joined([jax.tree.map(lambda a: a[None], r) for r in reports]) if len(
            unit
        ) > 1 else reports[0]

    x, report = jax.lax.scan(body, x, (params, inputs))
    return x, report if len(unit) == 1 else jax.tree.map(
        lambda a: a.reshape(-1, *a.shape[2:]), report
    )


def _cut(tree: Any, sizes: Sequence[int]) -> list[Any]:
    """Consecutive parts of every leaf along its leading axis."""
    if len(sizes) == 1:
        return [tree]
    leaves, structure = jax.tree.flatten(tree)
    parts = [jax.lax.split(leaf, tuple(sizes)) for leaf in leaves]
    return [jax.tree.unflatten(structure, [p[i] for p in parts]) for i in range(len(sizes))]


def _fold(tree: Any, n: int) -> Any:
    """[L, …] -> [L / n, n, …]; unchanged for n = 1."""
    return tree if n == 1 else jax.tree.map(lambda a: a.reshape(-1, n, *a.shape[1:]), tree)


def _joined(reports: Sequence[Any]) -> Any:
    """The reports that are not None, one behind the other."""
    given = [r for r in reports if r is not None]
    if not given:
        return None
    return given[0] if len(given) == 1 else jax.tree.map(lambda *a: jnp.concatenate(a), *given)
