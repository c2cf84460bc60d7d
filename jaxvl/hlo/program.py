"""A compiled program: its operations in the order of the schedule, and how often each runs."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from jax.stages import Compiled

from jaxvl.aliases import Json
from jaxvl.hlo.proto import module_class

# `xla.PrimitiveType` -> bits of an element; what is not named (tokens, opaque) has none.
_BITS = {
    **dict.fromkeys((1, 2, 6), 8),  # pred, s8, u8
    **dict.fromkeys((3, 7, 10, 16), 16),  # s16, u16, f16, bf16
    **dict.fromkeys((4, 8, 11), 32),  # s32, u32, f32
    **dict.fromkeys((5, 9, 12, 15), 64),  # s64, u64, f64, c64
    18: 128,  # c128
    **dict.fromkeys((19, 20, 23, 24, 25, 28, 29, 33), 8),  # f8 in its forms
    **dict.fromkeys((21, 22, 32), 4),  # s4, u4, f4
    **dict.fromkeys((26, 27), 2),  # s2, u2
}
DEVICE_MEMORY = 0  # memory space of what lies in the device's main memory


class Instruction(Protocol):
    """What is read of XLA's own `HloInstructionProto` beside the parts of `Operation`."""

    backend_config: bytes
    comparison_direction: str
    custom_call_target: str
    dot_numbers: Any
    channel_id: int
    tuple_index: int
    parameter_number: int
    literal: Any
    metadata: Any
    attributes: Any
    replica_groups: Any
    source_target_pairs: Any
    device_list: Any
    iota_groups: Any
    mesh_groups: Any

    def HasField(self, name: str) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array that an operation makes.

    Attributes:
      size: bytes of its elements.
      padded: bytes that it takes in memory, tiles filled up.
      space: where it lies; 0 is the device's main memory, others are on the chip or on the host.
    """

    size: int
    padded: int
    space: int

    @property
    def in_memory(self) -> int:
        """Bytes in the device's main memory."""
        return self.padded if self.space == DEVICE_MEMORY else 0


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """An instruction.

    Attributes:
      id: unique in the program.
      name, opcode: as in the program's text.
      buffers: what it makes; those of a tuple in order, inner ones too.
      operands: operations that it reads.
      called: computations that it calls.
      raw: the rest.
    """

    id: int
    name: str
    opcode: str
    buffers: tuple[Buffer, ...]
    operands: tuple[int, ...]
    called: tuple[int, ...]
    raw: Instruction

    @property
    def size(self) -> int:
        """Bytes of all that it makes."""
        return sum(buffer.size for buffer in self.buffers)

    @property
    def in_memory(self) -> int:
        """Of these, bytes in the device's main memory, tiles filled up."""
        return sum(buffer.in_memory for buffer in self.buffers)

    @functools.cached_property
    def backend(self) -> Mapping[str, Json]:
        """What the compiler's back end has noted; empty where it is no JSON."""
        try:
            noted = json.loads(self.raw.backend_config or b"{}")
        except ValueError:
            return {}
        return noted if isinstance(noted, dict) else {}

    @functools.cached_property
    def attributes(self) -> Mapping[str, str]:
        """What JAX or an earlier pass of the compiler has noted."""
        return {entry.key: entry.value for entry in self.raw.attributes.map}

    @property
    def cycles(self) -> int:
        """Cycles of the chip that the TPU compiler expects it to take; 0 where it does not say."""
        window = self.backend.get("window_config") or {}
        return int(window.get("estimated_cycles", 0))


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
    """Operations in the order in which they run, if the program has a schedule; `root` is its
    value."""

    id: int
    name: str
    operations: tuple[Operation, ...]
    root: Operation

    @functools.cached_property
    def parameters(self) -> tuple[Operation, ...]:
        given = [o for o in self.operations if o.opcode == "parameter"]
        return tuple(sorted(given, key=lambda o: o.raw.parameter_number))

    @functools.cached_property
    def users(self) -> Mapping[int, Sequence[Operation]]:
        """Operation -> those that read it."""
        readers: dict[int, list[Operation]] = {o.id: [] for o in self.operations}
        for operation in self.operations:
            for operand in dict.fromkeys(operation.operands):
                readers[operand].append(operation)
        return readers


@dataclasses.dataclass(frozen=True)
class Execution:
    """An operation of the schedule and how often a run of the program executes it. `where` is the
    computation that it stands in, `place` its index there."""

    operation: Operation
    times: int
    where: Computation
    place: int


class Program:
    """A compiled program of one device.

    Attributes:
      computations: by id.
      entry: what runs first.
      operations: of all computations, by id.
    """

    def __init__(self, serialised: bytes):
        module = module_class().FromString(serialised)
        orders = {
            entry.key: list(entry.value.instruction_ids) for entry in module.schedule.sequences
        }
        self.scheduled = bool(orders)
        self._frames = module.frames
        self.computations: dict[int, Computation] = {}
        self.operations: dict[int, Operation] = {}
        for part in module.computations:
            made = {i.id: _operation(i) for i in part.instructions}
            order = orders.get(part.id, list(made))
            computation = Computation(
                part.id, part.name, tuple(made[i] for i in order), made[part.root_id]
            )
            self.computations[part.id] = computation
            self.operations |= made
        self.entry = self.computations[module.entry_computation_id]

    @functools.cached_property
    def executions(self) -> tuple[Execution, ...]:
        """All operations of the schedule, what loops and calls run included; not what is inside of
        fusions. Of a conditional every branch counts."""
        return tuple(self._walk(self.entry, 1))

    def _walk(self, computation: Computation, times: int) -> Iterator[Execution]:
        for place, operation in enumerate(computation.operations):
            yield Execution(operation, times, computation, place)
            if operation.opcode == "while":
                rounds = times * (self.rounds(operation) or 1)
                for called in operation.called:
                    yield from self._walk(self.computations[called], rounds)
            elif operation.opcode in ("conditional", "call"):
                for called in operation.called:
                    yield from self._walk(self.computations[called], times)

    def source(self, operation: Operation) -> str:
        """The line of this package, the innermost, that asked for an operation, as
        `nn/mlp.py:63`; empty where none did or the program does not tell."""
        frames = self._frames
        number = operation.raw.metadata.frame  # from 1 on; 0 is none
        while number:
            frame = frames.frames[number - 1]
            location = frames.locations[frame.location - 1]
            _, package, path = frames.files[location.file - 1].rpartition("/jaxvl/")
            if package:
                return f"{path}:{location.line}"
            number = frame.parent
        return ""

    @functools.cached_property
    def loops_without_count(self) -> int:
        """Loops of which the program does not tell the number of rounds; they count once."""
        loops = [e.operation for e in self.executions if e.operation.opcode == "while"]
        return sum(self.rounds(loop) is None for loop in loops)

    def rounds(self, loop: Operation) -> int | None:
        """Rounds of a `while`: as the compiler has noted, or else from the bound with which its
        condition compares a counter; None where that is no constant."""
        noted = loop.backend.get("known_trip_count")
        if noted:
            return int(noted["n"])
        return self._counted_rounds(loop)

    def _counted_rounds(self, loop: Operation) -> int | None:
        body, condition = (self.computations[c] for c in loop.called)
        if condition.root.raw.comparison_direction != "LT" and condition.root.opcode != "fusion":
            return None
        compared = [self._of_state(o, condition) for o in condition.root.operands]
        constants = [self._constant(self.operations[o]) for o in condition.root.operands]
        if condition.root.opcode == "fusion":
            inner = self.computations[condition.root.called[0]]
            if inner.root.raw.comparison_direction != "LT":
                return None
            constants += [self._constant(o) for o in inner.operations]
        bounds = [c for c in constants if c is not None]
        counters = [i for i in compared if i is not None]
        steps = [self._step(i, body) for i in counters]
        moving = [k for k, step in enumerate(steps) if step]
        if not bounds:  # the bound is part of the state
            still = [i for i, step in zip(counters, steps) if not step]
            bounds = [c for c in (self._entering(i, loop) for i in still) if c is not None]
        if len(bounds) != 1 or len(moving) != 1:
            return None
        step = steps[moving[0]]
        first = self._entering(counters[moving[0]], loop)
        return None if first is None else max(0, math.ceil((bounds[0] - first) / step))

    def _source(self, operation: Operation) -> Operation:
        """Where a value comes from, behind copies and changes of type."""
        while operation.opcode in ("copy", "convert", "bitcast", "reshape", "copy-done"):
            operation = self.operations[operation.operands[0]]
            if operation.opcode == "copy-start":
                operation = self.operations[operation.operands[0]]
        return operation

    def _constant(self, operation: Operation) -> int | None:
        """Value of an integer scalar that is a constant."""
        operation = self._source(operation)
        if operation.opcode != "constant":
            return None
        literal = operation.raw.literal
        values = [*literal.s32s, *literal.s64s, *literal.u32s, *literal.u64s]
        return int(values[0]) if len(values) == 1 else None

    def _of_state(self, operand: int, computation: Computation) -> int | None:
        """Which element of the loop's state a value is; None: it is none."""
        operation = self._source(self.operations[operand])
        if operation.opcode != "get-tuple-element":
            return None
        of = self.operations[operation.operands[0]]
        return operation.raw.tuple_index if of is computation.parameters[0] else None

    def _entering(self, index: int | None, loop: Operation) -> int | None:
        """Constant with which an element of the state enters the loop."""
        state = self.operations[loop.operands[0]]
        if index is None or state.opcode != "tuple":
            return None
        return self._constant(self.operations[state.operands[index]])

    def _step(self, index: int, body: Computation) -> int | None:
        """What a round adds to an element of the state; None or 0 where it adds no constant."""
        if body.root.opcode != "tuple":
            return None
        after = self._source(self.operations[body.root.operands[index]])
        if after.opcode == "get-tuple-element":
            return 0
        if after.opcode == "fusion":
            return self._fused_step(after, index, body)
        if after.opcode != "add" or index not in (self._of_state(o, body) for o in after.operands):
            return None
        added = [self._constant(self.operations[o]) for o in after.operands]
        return next((a for a in added if a is not None), None)

    def _fused_step(self, fusion: Operation, index: int, body: Computation) -> int | None:
        inner = self.computations[fusion.called[0]]
        if inner.root.opcode != "add" or self._of_state(fusion.operands[0], body) != index:
            return None
        added = [self._constant(o) for o in inner.operations]
        return next((a for a in added if a is not None), None)


def read(compiled: Compiled) -> Program:
    """The program of `jax.jit(f).lower(…).compile()`."""
    modules = compiled.runtime_executable().hlo_modules()
    return Program(modules[0].as_serialized_hlo_module_proto())


def _operation(raw: Any) -> Operation:
    return Operation(
        id=raw.id,
        name=raw.name,
        opcode=raw.opcode,
        buffers=tuple(_buffers(raw.shape)),
        operands=tuple(raw.operand_ids),
        called=tuple(raw.called_computation_ids),
        raw=raw,
    )


def _buffers(shape: Any) -> Iterator[Buffer]:
    if shape.tuple_shapes:
        for part in shape.tuple_shapes:
            yield from _buffers(part)
        return
    bits = _BITS.get(shape.element_type, 0)
    layout = shape.layout
    sizes = list(shape.dimensions)
    padded = [sizes[i] for i in reversed(layout.minor_to_major)] or list(sizes)
    tile = list(layout.tiles[0].dimensions) if layout.tiles else []
    for back, width in enumerate(reversed(tile[-len(padded) :] if padded else []), 1):
        padded[-back] = -(-padded[-back] // width) * width
    yield Buffer(
        size=-(-math.prod(sizes) * bits // 8),
        padded=-(-math.prod(padded) * bits // 8),
        space=layout.memory_space,
    )
