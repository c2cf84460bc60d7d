"""Which implementation runs: a named one, or the first of a list that can."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxvl.aliases import Tree
from jaxvl.chips import UNKNOWN_GPU, UNKNOWN_TPU, chip_of
from jaxvl.kernels.contrastive import ring_or_gather, verified
from jaxvl.kernels.contrastive.chunked import Chunked
from jaxvl.kernels.contrastive.core import Blocks
from jaxvl.kernels.contrastive.pallas_hopper import PallasHopper, is_hopper
from jaxvl.kernels.contrastive.pallas_tpu import PallasTpu
from jaxvl.kernels.contrastive.pallas_triton import PallasTriton
from jaxvl.kernels.contrastive.targets import Form
from jaxvl.kernels.contrastive.tiles import Side
from jaxvl.kernels.device import device as device


@dataclasses.dataclass(frozen=True)
class Plan:
    """What runs.

    Attributes:
      implementation: name.
      collective: "gather", "ring", or None on one device.
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
    shards: int,
) -> Plan:
    """The `Plan` for `shape` rows, columns and width per device; `implementation` is a name or
    configured blocks.

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
    if shards == 1 or implementation == "reference":
        how = None
    else:
        platform, device_kind = device()
        itemsize = jnp.dtype(dtype).itemsize
        how = collective or ring_or_gather.collective(
            chip_of(device_kind, platform), shards, shape[1], shape[2], itemsize
        )
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


def with_ok(side: Side, n: int) -> dict[str, jax.Array]:
    """`side` with an `ok` vector of ones if it has none."""
    return dict(side) if "ok" in side else dict(side, ok=jnp.ones(n, jnp.float32))


def pad(tree: Tree, rows: int) -> Tree:
    """Every leaf with `rows` zero rows appended."""
    return jax.tree.map(lambda a: jnp.pad(a, ((0, rows), *((0, 0),) * (a.ndim - 1))), tree)
