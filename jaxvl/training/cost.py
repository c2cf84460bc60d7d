"""What a step costs: FLOP from its jaxpr, memory and collectives from the compiler."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters import partial_eval
from jax.stages import Compiled, Traced

from jaxvl.hlo import counted, read
from jaxvl.nn.recompute import RECOMPUTED


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one step on a mesh.

    FLOP are those of matrix products and convolutions, two per multiply-add, all devices together;
    loops count every round.

    Attributes:
      flops: what the devices do, recomputation included.
      model_flops: what the model and its gradient need: without the layers that `remat` computes
        again, and without the second forward pass of microbatches. Tiles of similarities that a
        contrastive loss computes again count in both.
      state, temporary: bytes per device of the arguments, and of what lives only during the step.
      collectives: name -> how often it stands in the program.
    """

    flops: float
    model_flops: float
    state: int
    temporary: int
    collectives: dict[str, int]


def cost(traced: Traced, compiled: Compiled, model_flops: float | None = None) -> Cost:
    """`traced` and `compiled` as `jax.jit(f).trace(…)` and its `.lower().compile()` return them.

    `model_flops`: those of the same step without recomputation; None: it has none.
    """
    memory = compiled.memory_analysis()
    flops = count_flops(traced.jaxpr)
    return Cost(
        flops=flops,
        model_flops=flops if model_flops is None else model_flops,
        state=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        collectives=counted(read(compiled)),
    )


def recomputes_layers(jaxpr: ClosedJaxpr | Jaxpr) -> bool:
    """Whether the program computes something again in its backward pass (`jax.checkpoint`,
    `nn.recompute`)."""
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    marked = any(
        eqn.params.get("differentiated") is True or RECOMPUTED in str(eqn.source_info.name_stack)
        for eqn in jaxpr.eqns
    )
    return marked or any(
        recomputes_layers(inner) for eqn in jaxpr.eqns for inner in _inner(eqn.params)
    )


def count_flops(jaxpr: ClosedJaxpr | Jaxpr) -> float:
    """FLOP of the matrix products and convolutions of a jaxpr, two per multiply-add.

    The compiler's own count takes the body of a loop once; here a scan counts all its rounds (a
    `while`, whose number of rounds is not known, one). A conditional counts its most expensive
    branch, a shard_map what all devices do. A Pallas kernel counts what it says, or else its body
    for every place of its grid, filled-up blocks and those that it would skip included. What
    nothing reads does not count.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return _count(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _count(jaxpr: ClosedJaxpr | Jaxpr) -> float:
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    total = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        params = eqn.params
        if name == "dot_general":
            contracted = math.prod(
                eqn.invars[0].aval.shape[i] for i in params["dimension_numbers"][0][0]
            )
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * contracted
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            spec = params["dimension_numbers"].rhs_spec
            per_output = math.prod(kernel[i] for i in spec[1:]) / math.prod(params["lhs_dilation"])
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * per_output
        elif name == "pallas_call":
            estimate = params.get("cost_estimate")
            total += _of_kernel(params) if estimate is None else estimate.flops
        elif name == "cond":
            total += max(_count(branch) for branch in params["branches"])
        else:
            rounds = 1
            if name == "scan":
                rounds = params.get("length", 1)
            elif name == "shard_map":
                rounds = params["mesh"].size
            total += rounds * sum(_count(inner) for inner in _inner(params))
    return total


def _of_kernel(params: dict[str, Any]) -> float:
    return math.prod(params["grid_mapping"].grid) * _count(params["jaxpr"])


def _inner(params: dict[str, Any]):
    for value in params.values():
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, (ClosedJaxpr, Jaxpr)):
                yield item
