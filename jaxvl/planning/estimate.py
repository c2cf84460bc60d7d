"""What a candidate would need and take, before it is compiled.

state       exact: shapes and shardings of the state on the candidate's mesh
compute     FLOP of the traced model, and what its remat policy and microbatches compute again
network     gradients all-reduced over `data`; parameters gathered for each pass and gradients
            scattered over `fsdp`; activations all-reduced four times a layer over `tensor`
memory      the state, read and written once
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax

from jaxvl.chips import Chip
from jaxvl.planning.candidates import AGAIN, Candidate
from jaxvl.planning.roofline import Roofline

GATHERED = 2  # bytes of a parameter as it is gathered, bfloat16
WHOLE = 4  # bytes of a parameter and of its gradient


@dataclasses.dataclass(frozen=True)
class Model:
    """What an estimate knows of a model.

    Attributes:
      flops: of all tasks' steps together, without recomputation, all devices.
      width: of its widest residual stream.
      parameters: their number.
    """

    flops: float
    width: int
    parameters: int


def estimate(
    candidate: Candidate, model: Model, state: int, parameters: int, chip: Chip
) -> Roofline:
    """Seconds of all tasks' steps together.

    Args:
      state, parameters: bytes that a device holds of the state, and of the parameters alone.
    """
    data, fsdp, tensor, _ = candidate.mesh
    devices = math.prod(candidate.mesh)
    again = max(AGAIN[candidate.remat or "none"], 1 / 3 if candidate.microbatches > 1 else 0)
    flops = model.flops * (1 + again)
    sent = 2 * (data - 1) / data * parameters
    passes = (3 if again >= 1 / 3 else 2) * candidate.microbatches
    whole = parameters * fsdp / WHOLE
    sent += (fsdp - 1) / fsdp * whole * (passes * GATHERED + WHOLE)
    # A token costs 6 FLOP a parameter; a layer has about 12 D^2 parameters.
    tokens = model.flops / 6 / model.parameters / candidate.batch_shards
    activations = 4 * tokens * model.parameters / 12 / max(model.width, 1) * GATHERED
    sent += 2 * 2 * (tensor - 1) / tensor * activations
    ring = chip.link * (2 if chip.ring else 1)
    return Roofline(
        compute=flops / devices / chip.flops,
        memory=2 * state / chip.bandwidth,
        ici=sent / ring,
        dcn=0.0,
        exposed=0.0,
        scheduled=None,
    )


def widest(
    axes: Mapping[str, tuple[str | None, ...]], shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> int:
    """The largest dimension that is a residual stream."""
    widths = [
        size
        for path, of in axes.items()
        for name, size in zip(of, shapes[path].shape)
        if name == "embed"
    ]
    return max(widths, default=0)
