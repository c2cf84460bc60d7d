"""The fastest tiles of the contrastive kernels of this chip, in the form that `JAXVL_BLOCKS` names
(`jaxvl.kernels.contrastive.sizes`)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from jaxvl.aliases import Json
from jaxvl.bench.accelerator_parts.numbers import LOG_SCALE, unit_rows
from jaxvl.bench.accelerator_parts.part import (
    Deadline,
    Row,
    Sizes,
    platform,
    reason,
    seconds_of,
)
from jaxvl.kernels.contrastive import contrastive_loss, pallas_hopper, pallas_tpu, pallas_triton
from jaxvl.kernels.contrastive.core import Blocks
from jaxvl.kernels.contrastive.pallas_hopper import is_hopper

DTYPE = "bfloat16"
TPU_TILES = [(r, c) for r in (256, 512, 1024) for c in (256, 512, 1024)]
GPU_TILES = [
    dict(rows=rows, cols=cols, warps=warps, stages=stages)
    for rows, cols in ((64, 64), (64, 128), (128, 64), (128, 128))
    for warps in (4, 8)
    for stages in (2, 3, 4)
]
# The first is the model's choice. A compilation takes seconds: these few in the time there is.
HOPPER_TILES = [
    dict(rows=rows, cols=cols, chunk=64, stages=stages, part=part, cluster=cluster)
    for rows, cols, stages, part, cluster in (
        (128, 128, 3, 32, 1),
        (128, 128, 3, 32, 2),
        (128, 128, 3, 64, 1),
        (64, 256, 4, 32, 1),
        (128, 64, 4, 32, 2),
    )
]


def run(sizes: Sizes, deadline: Deadline) -> Iterator[Row]:
    """One row per width, pass and tile."""
    if platform() == "cpu" and not sizes.tiny:
        yield {"kernel": "all", "skipped": "needs a GPU or TPU"}
        return
    rows = max(r for r in sizes.rows if r <= 16384)
    for width in sizes.widths:
        u, v = unit_rows(rows, width, DTYPE)
        for which in ("forward", "backward"):
            for kernel, tile, blocks in candidates(sizes, which):
                if deadline.left < 0:
                    return
                row: Row = {"kernel": kernel, "pass": which, "dtype": DTYPE, "width": width}
                row |= {"batch": rows, "tile": tile}
                try:
                    step = _step(which, blocks)
                    take = functools.partial(step, u, v, jnp.float32(LOG_SCALE))
                    row["seconds"] = seconds_of(take, sizes)
                except Exception as error:  # too much shared memory, above all
                    row["failed"] = reason(error)
                yield row


def candidates(sizes: Sizes, which: str) -> Iterator[tuple[str, dict[str, int], Blocks]]:
    """(kernel, fields of its tile, blocks); of `which` pass the tile changes."""
    if platform() == "tpu" or sizes.tiny:
        for rows, cols in [(128, 128)] if sizes.tiny else TPU_TILES:
            tile = pallas_tpu.Tile(rows, cols)
            blocks = pallas_tpu.PallasTpu(**{which: tile}, interpret=sizes.tiny)
            yield "pallas_tpu", {"rows": rows, "cols": cols}, blocks
    if platform() == "gpu" and is_hopper(jax.devices()[0].device_kind):
        for fields in HOPPER_TILES:
            tile = pallas_hopper.Tile(**fields)
            yield "pallas_hopper", fields, pallas_hopper.PallasHopper(**{which: tile})
    if platform() == "gpu" and which == "backward":  # one tile serves both passes
        chip = pallas_triton.PallasTriton.fitting(DTYPE)
        for fields in GPU_TILES:
            blocks = pallas_triton.PallasTriton(pallas_triton.Tile(**fields), shared=chip.shared)
            yield "pallas_triton", fields, blocks


def _step(which: str, blocks: Blocks):
    loss = lambda u, v, log_scale: contrastive_loss(u, v, log_scale, implementation=blocks)
    return jax.jit(loss if which == "forward" else jax.value_and_grad(loss, (0, 1, 2)))


def table(rows: list[Mapping[str, Json]], device_kind: str) -> dict[str, Json]:
    """The fastest tile of each kernel, pass, dtype and width."""
    best: dict[tuple[str, ...], Mapping[str, Json]] = {}
    for row in rows:
        if "seconds" not in row:
            continue
        key = (row["kernel"], row["pass"], row["dtype"], row["width"])
        if row["seconds"] < best.get(key, row)["seconds"] * (1 + 1e-9):
            best[key] = row
    kernels: dict[str, list[Json]] = {}
    for row in best.values():
        entry = {name: row[name] for name in ("pass", "dtype", "width", "tile")}
        kernels.setdefault(row["kernel"], []).append(entry)
    return {device_kind: kernels}
