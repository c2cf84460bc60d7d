"""Kernels that no chip of a kind has run yet are checked there before they are used.

`implementation=None` asks `confirm` before it takes a kernel. On a kind of chip that is not in
`VERIFIED_ON` the kernel runs once, on a small batch, beside `chunked`: losses and gradients. If it
raises, or differs by more than `TOLERANCE`, the log has an error with the figures and the next
implementation is tried. A kernel that is named is used as it is.

Nothing is checked where nothing can run: on a mesh of chips that are only compiled for (`plan`).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # its key-value store tells the processes of each other
from jax.typing import DTypeLike

from jaxvl.kernels.contrastive import routes, tiles
from jaxvl.kernels.contrastive.chunked import Chunked
from jaxvl.kernels.contrastive.core import Blocks, Local, sigmoid_losses, softmax_losses
from jaxvl.kernels.contrastive.targets import Diagonal, Kind, lower

# Kernel -> kinds of devices (`jax.Device.device_kind`) on which `python -m
# jaxvl.bench.accelerator` has passed.
VERIFIED_ON: dict[str, tuple[str, ...]] = {
    "pallas_tpu": (),
    "pallas_hopper": (),
    "pallas_triton": (),
}

# Largest difference from `chunked` on the same chip, relative to the largest entry, by bytes of an
# element. Rounding of float32 sums is below 1e-5; two bfloat16 roundings are 2^-8.
TOLERANCE = {4: 1e-4, 2: 2e-2}
ROWS = 1200  # no multiple of a tile, several tiles
PATIENCE = 600  # seconds that a process waits for the verdict of another

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a kernel did.

    Attributes:
      errors: loss and gradients -> largest difference, relative to the largest entry.
      failure: why it must not be used; empty: it may.
    """

    errors: Mapping[str, float]
    failure: str = ""


class Store(Protocol):
    """What the processes of a run tell each other by; jax's distributed client."""

    def key_value_set(self, key: str, value: str) -> None: ...

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...


_verdicts: dict[str, Verdict] = {}  # one check a process, for each kernel and its sizes


def confirm(blocks: Blocks, device_kind: str, width: int, dtype: DTypeLike, kind: Kind) -> None:
    """Returns if these blocks may be used on this kind of device.

    All processes of the mesh that is set come to the same result.

    Raises:
      ValueError: they have failed their check.
    """
    if device_kind in VERIFIED_ON.get(blocks.name, ()):
        return
    devices = routes.mesh_devices()
    if not _runs_here(device_kind, devices):
        return
    what = f"{blocks!r} for {kind}, {width} wide, {jnp.dtype(dtype)}, on {device_kind}"
    if what not in _verdicts:
        _log.warning(
            "contrastive loss: %s has not been verified on a %s; it is now compared with the "
            "chunked form",
            blocks.name,
            device_kind,
        )
        # A thread of its own: this one may be in the middle of tracing, for a mesh.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            mine = pool.submit(_compare, blocks, width, dtype, kind).result()
        processes = sorted({d.process_index for d in devices})
        if len(processes) > 1:
            store = distributed.global_state.client
            mine = agreed(mine, what, processes, jax.process_index(), store)
        _verdicts[what] = mine
        figures = ", ".join(f"{name} {error:.1e}" for name, error in mine.errors.items())
        if mine.failure:
            _log.error(
                "contrastive loss: %s is WRONG and is not used: %s (differences: %s)",
                what,
                mine.failure,
                figures or "none",
            )
        else:
            _log.info("contrastive loss: %s agrees with the chunked form: %s", what, figures)
    if failure := _verdicts[what].failure:
        raise ValueError(f"failed its check on {device_kind}: {failure}")


def _runs_here(device_kind: str, devices: Sequence[jax.Device]) -> bool:
    """Whether this process has a device of this kind, and those of the mesh are no mere
    description."""
    here = jax.devices()
    return any(d.device_kind == device_kind for d in here) and set(devices) <= set(here)


def agreed(
    mine: Verdict, what: str, processes: Sequence[int], process: int, store: Store
) -> Verdict:
    """The verdict of all `processes`: the first that has failed decides."""
    key = f"jaxvl/contrastive/{what}"
    store.key_value_set(f"{key}/{process}", mine.failure or "passed")
    for other in processes:
        said = store.blocking_key_value_get(f"{key}/{other}", PATIENCE * 1000)
        if said != "passed":
            return Verdict(mine.errors, mine.failure or f"process {other}: {said}")
    return mine


def _compare(blocks: Blocks, width: int, dtype: DTypeLike, kind: Kind) -> Verdict:
    try:
        with jax.default_device(jax.local_devices()[0]):
            inputs = _batch(width, dtype)
            want = _loss_and_gradients(Chunked(), kind)(*inputs)
            got = _loss_and_gradients(blocks, kind)(*inputs)
            want, got = jax.device_get((want, got))
    except Exception as error:  # whatever a compiler or a driver raises
        return Verdict({}, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    errors = {}
    for name, a, b in zip(("loss", "du", "dv", "dscale", "dbias"), got, want):
        size = max(np.abs(np.asarray(b, np.float64)).max(), 1e-30)
        errors[name] = float(np.abs(np.asarray(a, np.float64) - b).max() / size)
    allowed = TOLERANCE[jnp.dtype(dtype).itemsize]
    # A NaN is below nothing.
    off = [f"{name} is off by {e:.1e}" for name, e in errors.items() if not e <= allowed]
    failure = f"{', '.join(off)}; {allowed:.0e} is allowed" if off else ""
    return Verdict(errors, failure)


def _batch(width: int, dtype: DTypeLike) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    u = rng.standard_normal((ROWS, width))
    v = u + rng.standard_normal((ROWS, width))  # pairs are alike
    rows = (jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype) for x in (u, v))
    return (*rows, jnp.float32(10.0), jnp.float32(-3.0))


def _loss_and_gradients(blocks: Blocks, kind: Kind):
    """Jitted `(u, v, scale, bias) -> loss and its gradients`; the softmax has none of the bias."""

    def loss(u, v, scale, bias):
        terms = lower(Diagonal(label_smoothing=0.1), ROWS, ROWS, kind, tiles.accumulator(u.dtype))
        sides = terms.rows, terms.cols
        if kind == "softmax":
            row, col = softmax_losses(blocks, Local(), terms.form, u, v, scale, *sides)
            return (jnp.sum(row) + jnp.sum(col)) / (2 * ROWS)
        return (
            jnp.sum(sigmoid_losses(blocks, Local(), terms.form, u, v, scale, bias, *sides)) / ROWS
        )

    def both(*inputs):
        wanted = (0, 1, 2) if kind == "softmax" else (0, 1, 2, 3)
        value, gradients = jax.value_and_grad(loss, wanted)(*inputs)
        return value, *gradients

    return jax.jit(both)
