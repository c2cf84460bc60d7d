"""Which implementation runs: a named one, or the first of a list that can."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxvl.aliases import Tree
from jaxvl.chips import UNKNOWN_GPU, UNKNOWN_TPU, chip_of
from jaxvl.kernels.contrastive import collectives, routes, verified
from jaxvl.kernels.contrastive.chunked import Chunked
from jaxvl.kernels.contrastive.core import Blocks
from jaxvl.kernels.contrastive.pallas_hopper import PallasHopper, is_hopper
from jaxvl.kernels.contrastive.pallas_tpu import PallasTpu
from jaxvl.kernels.contrastive.pallas_triton import PallasTriton
from jaxvl.kernels.contrastive.ring import axis_size
from jaxvl.kernels.contrastive.targets import Form
from jaxvl.kernels.contrastive.tiles import Side
from jaxvl.kernels.device import device as device


@dataclasses.dataclass(frozen=True)
class Plan:
    """What runs.

    Attributes:
      implementation: name.
      collective: "gather", "ring", "grid", or None on one device.
      blocks: block operations with their sizes; None for `reference`.
      skipped: implementations that were tried first -> why they cannot run.
    """

    implementation: str
    collective: str | None
    blocks: Blocks | None
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        how = self.implementation if self.blocks is None else repr(self.blocks)
        how += f" over a {self.collective}" if self.collective else ""
        return how + "".join(f"; skipped {name}: {why}" for name, why in self.skipped.items())


def _chunked(shape, dtype, kind, form, named) -> Blocks:
    del shape, dtype, kind, form, named
    return Chunked()


def _reference(shape, dtype, kind, form, named) -> None:
    del shape, dtype, kind, form, named


def _pallas_tpu(shape, dtype, kind, form, named) -> Blocks:
    platform, device_kind = device()
    if platform != "tpu" and not named:
        raise ValueError(f"this is a {platform}")
    chip = chip_of(device_kind) if platform == "tpu" else UNKNOWN_TPU
    blocks = PallasTpu.fitting(shape, dtype, chip, device_kind)
    blocks.check(shape, dtype, kind, form)
    return blocks


def _pallas_hopper(shape, dtype, kind, form, named) -> Blocks:
    platform, device_kind = device()
    if platform != "gpu" and not named:
        raise ValueError(f"this is a {platform}")
    if platform == "gpu" and not is_hopper(device_kind):
        raise ValueError(f"{device_kind} has no wgmma (GPUs of compute capability 9.0 have)")
    chip = chip_of(device_kind if platform == "gpu" else "h100", "gpu")
    blocks = PallasHopper.fitting(shape, chip, device_kind)
    blocks.check(shape, dtype, kind, form)
    return blocks


def _pallas_triton(shape, dtype, kind, form, named) -> Blocks:
    platform, device_kind = device()
    if platform != "gpu" and not named:
        raise ValueError(f"this is a {platform}")
    chip = chip_of(device_kind, "gpu") if platform == "gpu" else UNKNOWN_GPU
    blocks = PallasTriton.fitting(dtype, chip, shape[2], device_kind)
    blocks.check(shape, dtype, kind, form)
    return blocks


# Name -> `(local shape (M, N, D), dtype, kind, form, whether it was named) -> blocks`; raises
# ValueError with the reason it cannot. A named one is not refused for the platform: it may be
# compiled for another, or run by an interpreter.
IMPLEMENTATIONS = {
    "pallas_tpu": _pallas_tpu,
    "pallas_hopper": _pallas_hopper,
    "pallas_triton": _pallas_triton,
    "chunked": _chunked,
    "reference": _reference,
}
ORDER = ("pallas_tpu", "pallas_hopper", "pallas_triton", "chunked")


def choose(
    shape: tuple[int, int, int],
    dtype: DTypeLike,
    kind: str,
    form: Form,
    implementation: str | Blocks | None,
    collective: str | None,
    axes: tuple[str, ...],
) -> Plan:
    """The `Plan` for `shape` rows, columns and width per device.

    Args:
      implementation: a name or configured blocks.
      collective: a name; None: as the run says (`collectives.using`), else by the cost model.
      axes: of the mesh, that shard the rows.

    Raises:
      ValueError: `implementation` is unknown or cannot run, or none can.
    """
    blocks = None
    if implementation is not None and not isinstance(implementation, str):
        blocks = implementation
        implementation = getattr(implementation, "name", repr(implementation))
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation: {implementation!r} is not known; must be one of "
            f"{tuple(IMPLEMENTATIONS)} or None"
        )
    how = None
    if axis_size(axes) > 1 and implementation != "reference":
        how = collective or collectives.chosen() or _fastest(shape, dtype, axes)
    shape = _block(shape, how, axes)
    skipped = {}
    for name in ORDER if implementation is None else (implementation,):
        try:
            if blocks is not None:
                blocks.check(shape, dtype, kind, form)
                return Plan(name, how, blocks, skipped)
            named = implementation is not None
            found = IMPLEMENTATIONS[name](shape, dtype, kind, form, named)
            if not named and name in verified.VERIFIED_ON:
                verified.confirm(found, device()[1], shape[2], dtype, kind)
            return Plan(name, how, found, skipped)
        except ValueError as reason:
            if implementation is not None:
                raise ValueError(
                    f"implementation: {implementation!r} cannot run: {reason}"
                ) from None
            skipped[name] = str(reason)
    raise ValueError(f"implementation: none can run: {skipped}")


def _fastest(shape: tuple[int, int, int], dtype: DTypeLike, axes: tuple[str, ...]) -> str:
    platform, device_kind = device()
    work = collectives.Work(
        shards=axis_size(axes),
        grid=routes.grid(axes).shape,
        rows=shape[1],
        width=shape[2],
        itemsize=jnp.dtype(dtype).itemsize,
    )
    return collectives.collective(chip_of(device_kind, platform), work)


def _block(
    shape: tuple[int, int, int], collective: str | None, axes: tuple[str, ...]
) -> tuple[int, int, int]:
    """Rows, columns and width of what is computed at once, of those of a device."""
    m, n, d = shape
    if collective == "gather":
        return m, axis_size(axes) * n, d
    if collective == "grid":
        slices, column, row = routes.grid(axes).shape
        return row * m, slices * column * n, d
    return shape


def with_ok(side: Side, n: int) -> dict[str, jax.Array]:
    """`side` with an `ok` vector of ones if it has none."""
    return dict(side) if "ok" in side else dict(side, ok=jnp.ones(n, jnp.float32))


def pad(tree: Tree, rows: int) -> Tree:
    """Every leaf with `rows` zero rows appended."""
    return jax.tree.map(lambda a: jnp.pad(a, ((0, rows), *((0, 0),) * (a.ndim - 1))), tree)
