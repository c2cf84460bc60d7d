"""The collectives of a compiled program: kind, bytes, how often, between whom, and what runs
beside them.

How they stand in a program:

    all-gather, …                         one operation: nothing else runs meanwhile
    all-gather-start … all-gather-done    whatever the schedule has between the two runs meanwhile
    async-start … async-done              the same, the collective in a computation of its own
    fusions (TPU)                         a chain of fusions, each of which computes while it moves a
                                          part of one collective: the first ends in the custom call
                                          AsyncCollectiveStart, the last in AsyncCollectiveDone
    all-reduce-scatter (TPU)              a fusion of an all-reduce and a slice: a reduce-scatter
    send … recv-done (TPU)                between slices, by the hosts (Megascale): the attributes
                                          of the send say which collective it is and between how
                                          many slices
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from jaxvl.hlo.groups import axes_of, groups_of, slices_of
from jaxvl.hlo.program import Computation, Execution, Operation, Program

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
)
_BETWEEN_SLICES = {"ONE_TO_ONE": "collective-permute"}  # others by their own names
# What counts as computation beside a collective; loops and calls contain some.
_WORK = {
    "fusion",
    "convolution",
    "dot",
    "while",
    "call",
    "conditional",
    "reduce",
    "sort",
    "scatter",
}
# What only moves data, inside of a fusion.
_MOVES = {
    "parameter",
    "constant",
    "bitcast",
    "copy",
    "reshape",
    "transpose",
    "slice",
    "dynamic-slice",
    "dynamic-update-slice",
    "tuple",
    "get-tuple-element",
    "broadcast",
    "iota",
    "fusion",
}
_PALLAS = ("tpu_custom_call", "mosaic_gpu", "__gpu$xla.gpu.triton")
_KERNELS = (*_PALLAS, "__cublas", "__cudnn", "__gpu", "triton")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of the program.

    Attributes:
      kind: of `KINDS`.
      name: of its instruction.
      source: of which operation of the model, as JAX has named it.
      size: bytes of a device's part: what an all-reduce, reduce-scatter, all-to-all or permute is
        given, what an all-gather makes.
      times: how often a run of the program executes it.
      groups: devices that take part together, int [G, N]; of a permute, pairs [G, 2].
      beside: number of operations that compute while it is under way; None: it is synchronous.
      cycles: of those operations, as the TPU compiler expects them.
      kernels: names of the Pallas kernels among them, or in loops among them.
      between_slices: it goes over the data centre's network; `groups` are numbers of slices.
    """

    kind: str
    name: str
    source: str
    size: int
    times: int
    groups: np.ndarray
    beside: int | None = None
    cycles: int = 0
    kernels: tuple[str, ...] = ()
    between_slices: bool = False

    @property
    def sent(self) -> float:
        """Bytes that a device sends in one execution, if it is done on a ring: a share of
        `(N - 1) / N` of its part, an all-reduce twice that; a permute all of it."""
        n = self.groups.shape[1]
        if not self.groups.size or n == 1:
            return 0.0
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.size)
        return self.size * (n - 1) / n * (2 if self.kind == "all-reduce" else 1)

    @property
    def overlaps(self) -> bool:
        return bool(self.beside)

    def axes(self, mesh: Mapping[str, int]) -> str:
        """Along which axes of the mesh, see `axes_of`."""
        if self.between_slices:
            return "slices"
        label = axes_of(self.groups, mesh)
        return label.partition(" (")[0] if self.kind == "collective-permute" else label


def collectives(program: Program, devices: int) -> list[Collective]:
    """Those of one run of the program on `devices` devices, in the order of the schedule."""
    found = []
    for execution in program.executions:
        for operation, computation in _inside(program, execution.operation):
            kind = _kind(operation, computation)
            if kind is None:
                continue
            meanwhile = _meanwhile(program, execution, operation)
            work = [other for other in meanwhile or () if computes(program, other)]
            between = operation.opcode == "send"
            if between:
                groups = slices_of(operation.attributes["_xla_megascale_target"])
            else:
                groups = groups_of(operation.raw, devices)
            found.append(
                Collective(
                    kind=kind,
                    name=operation.name,
                    source=operation.raw.metadata.op_name
                    or execution.operation.raw.metadata.op_name,
                    size=_size(program, operation, kind, groups.shape[1]),
                    times=execution.times,
                    groups=groups,
                    beside=None if meanwhile is None else len(work),
                    cycles=sum(other.cycles for other in work),
                    kernels=tuple(name for other in work for name in _kernels(program, other)),
                    between_slices=between,
                )
            )
    return found


def counted(program: Program) -> dict[str, int]:
    """Kind -> how often it stands in the program."""
    standing = {}
    for execution in program.executions:
        for operation, computation in _inside(program, execution.operation):
            standing[operation.id] = _kind(operation, computation)
    numbers = collections.Counter(standing.values())
    return {kind: numbers[kind] for kind in KINDS if numbers[kind]}


def _inside(
    program: Program, operation: Operation
) -> Iterator[tuple[Operation, Computation | None]]:
    """An operation, or those inside of it: of fusions and of what runs asynchronously."""
    if operation.opcode in ("fusion", "async-start"):
        for called in operation.called:
            computation = program.computations[called]
            for inner in computation.operations:
                for found, _ in _inside(program, inner):
                    yield found, computation
    else:
        yield operation, None


def _kind(operation: Operation, fused: Computation | None) -> str | None:
    """Kind of a collective; None: it is none, or continues one that has begun."""
    if operation.opcode == "send":
        kind = operation.attributes.get("_xla_megascale_transfer_type", "")
        return _BETWEEN_SLICES.get(kind, kind.lower().replace("_", "-")) or None
    kind = operation.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    if fused is None:
        return kind
    if "async_collective_fusion_config" in operation.backend:
        targets = {user.raw.custom_call_target for user in fused.users[operation.id]}
        return kind if "AsyncCollectiveStart" in targets else None
    if kind == "all-reduce" and "all-reduce-scatter" in fused.name:
        return "reduce-scatter"
    return kind


def _size(program: Program, operation: Operation, kind: str, devices: int) -> int:
    if kind == "collective-permute":
        return program.operations[operation.operands[0]].size
    given = sum(program.operations[o].size for o in dict.fromkeys(operation.operands))
    return given * devices if kind == "all-gather" else given


def _meanwhile(
    program: Program, execution: Execution, operation: Operation
) -> list[Operation] | None:
    """Operations that stand between a collective's start and its end; None: it has but one place
    in the schedule."""
    outer = execution.operation
    fused = outer.opcode == "fusion"
    if fused and "async_collective_fusion_config" not in operation.backend:
        return None
    if not fused and not outer.opcode.endswith("-start") and outer.opcode != "send":
        return None
    between = []
    for other in execution.where.operations[execution.place + 1 :]:
        ended = _ends(program, other, operation) if fused else _received(program, other, outer)
        if ended:
            break
        between.append(other)
    return between


def _received(program: Program, done: Operation, begun: Operation) -> bool:
    """Whether an operation waits for the end of what `begun` has started."""
    if not done.opcode.endswith("-done"):
        return False
    if begun.opcode == "send" and done.opcode == "recv-done":
        meeting = "_xla_host_transfer_rendezvous"
        started = program.operations[done.operands[0]]
        return started.attributes.get(meeting) == begun.attributes.get(meeting)
    return begun.id in done.operands and begun.opcode != "send"


def _ends(program: Program, fusion: Operation, begun: Operation) -> bool:
    """Whether a fusion holds the last part of the collective that began with `begun`."""
    for inner, computation in _inside(program, fusion):
        same = inner.opcode == begun.opcode and inner.raw.channel_id == begun.raw.channel_id
        if not same or computation is None or inner.size != begun.size:
            continue
        targets = {user.raw.custom_call_target for user in computation.users[inner.id]}
        if "AsyncCollectiveDone" in targets:
            return True
    return False


def computes(program: Program, operation: Operation) -> bool:
    """Whether an operation is worth hiding a collective behind: products, fusions that do more than
    copy, kernels, and loops of them."""
    if operation.opcode == "custom-call":
        return any(k in operation.raw.custom_call_target for k in _KERNELS)
    if operation.opcode == "fusion":
        inner = program.computations[operation.called[0]].operations
        return any(o.opcode not in _MOVES for o in inner)
    return operation.opcode in _WORK


def _kernels(program: Program, operation: Operation) -> Iterator[str]:
    """Names of the Pallas kernels that an operation is, or runs."""
    if operation.opcode == "custom-call":
        if operation.raw.custom_call_target.startswith(_PALLAS):
            yield operation.name
        return
    for called in operation.called:
        for inner in program.computations[called].operations:
            yield from _kernels(program, inner)
