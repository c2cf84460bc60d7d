"""What lives in a device's memory when the temporaries of a compiled program are at their most.

XLA says of every value where it lies and from when to when it lives, in two texts that it writes
into the folder of its option `xla_dump_to` (compilers of CPUs, GPUs and TPUs alike):

    *after_optimizations-buffer-assignment.txt   allocations, and in them values with size and offset
    *after_optimizations-live-range.txt          first and last operation of each value's life
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping

from jaxvl.hlo.program import Computation, Operation, Program

_ALLOCATION = re.compile(r"allocation \d+: size (\d+)(.*):$")
_VALUE = re.compile(r" value: <\d+ (\S+?)(\{[\d,]*\})?( \(phi\))? @\d+> ")
_PLACE = re.compile(r"\(size=(\d+),offset=(\d+)\): (.*)$")
_RANGE = re.compile(r"    (\S+?)(\{[\d,]*\}):(\d+)-(\d+)$")
_LAYOUT = re.compile(r"\{[^}]*\}")
# What only moves or names a value.
_PASSES_ON = {"bitcast", "copy", "copy-done", "copy-start", "reshape", "transpose", "convert"}
_FAR = 64  # operations that are looked at for a name
# Steps of a name that say nothing of the model.
_STEPS = re.compile(r"^(jit\(.*\)|closed_call|body|cond|checkpoint|while|shard_map|pjit)$")


@dataclasses.dataclass(frozen=True)
class Live:
    """Values of one shape and origin that live at the peak.

    Attributes:
      bytes: of all of them in memory.
      shape: dtype and sizes, `f32[8,128]`.
      number: how many.
      operation: of the model that made them, as JAX names it.
      source: file and line of this package that asked for it; empty where none did.
    """

    bytes: int
    shape: str
    number: int
    operation: str
    source: str


@dataclasses.dataclass(frozen=True)
class Peak:
    """The moment at which the temporaries are at their most.

    Attributes:
      live: what lives then, the largest first.
      bytes: of them together.
      allocated: bytes that the compiler sets aside for temporaries; more than `bytes` where it
        leaves gaps between them.
      operation: of the model that runs then.
    """

    live: tuple[Live, ...]
    bytes: int
    allocated: int
    operation: str


@dataclasses.dataclass(frozen=True)
class _Value:
    """A value in an allocation: `index` is its place in the tuple that `name` makes."""

    name: str
    index: str
    allocation: int
    offset: int
    size: int
    shape: str

    @property
    def place(self) -> tuple[int, int]:
        return self.allocation, self.offset


def peak(program: Program, folder: pathlib.Path) -> Peak | None:
    """The peak of a program that was compiled with `xla_dump_to=folder`; None where the compiler
    wrote neither text, or the program has no temporaries."""
    assigned = sorted(folder.glob("*after_optimizations-buffer-assignment.txt"))
    ranges = sorted(folder.glob("*after_optimizations-live-range.txt"))
    if not assigned or not ranges:
        return None
    lives = dict(_lives(ranges[-1].read_text().splitlines()))
    sizes, values = _temporaries(assigned[-1].read_text().splitlines())
    values = [v for v in values if (v.name, v.index) in lives]
    if not values:
        return None
    moment = _fullest(values, lives)
    alive = [v for v in values if _contains(lives[v.name, v.index], moment)]
    origins = _Origins(program)
    groups: dict[tuple[str, str, str], list[int]] = collections.defaultdict(list)
    for value, size in _apart(alive):
        groups[value.shape, *origins.of(value)].append(size)
    live = [Live(sum(s), shape, len(s), *origin) for (shape, *origin), s in groups.items()]
    live.sort(key=lambda row: -row.bytes)
    running = [name for (name, _), (first, _) in lives.items() if first == moment]
    names = [origins.of_operation(name)[0] for name in running]
    total = sum(row.bytes for row in live)
    return Peak(tuple(live), total, sum(sizes), next((n for n in names if n), ""))


def _lives(lines: Iterable[str]) -> Iterator[tuple[tuple[str, str], tuple[int, int]]]:
    """(value, index) -> first and last place in the schedule."""
    for line in lines:
        found = _RANGE.match(line)
        if found:
            name, index, first, last = found.groups()
            yield (name, index), (int(first), int(last))


def _temporaries(lines: Iterable[str]) -> tuple[list[int], list[_Value]]:
    """Sizes of the allocations of temporaries in main memory, and what lies in them."""
    sizes: list[int] = []
    values: list[_Value] = []
    inside = False
    for line in lines:
        allocation = _ALLOCATION.match(line)
        if allocation:
            inside = "preallocated-temp" in line and ", color " not in line
            if inside:
                sizes.append(int(allocation[1]))
            continue
        value = _VALUE.match(line) if inside else None
        place = _PLACE.search(line) if value else None
        if place:
            shape = _LAYOUT.sub("", place[3])
            at = len(sizes) - 1, int(place[2]), int(place[1])
            values.append(_Value(value[1], value[2] or "{}", *at, shape))
    return sizes, values


def _contains(life: tuple[int, int], moment: int) -> bool:
    return life[0] <= moment <= life[1]


def _fullest(values: list[_Value], lives: Mapping[tuple[str, str], tuple[int, int]]) -> int:
    """The first moment at which most bytes are taken."""
    begins: dict[int, list[_Value]] = collections.defaultdict(list)
    ends: dict[int, list[_Value]] = collections.defaultdict(list)
    for value in values:
        first, last = lives[value.name, value.index]
        begins[first].append(value)
        ends[last + 1].append(value)
    alive: dict[_Value, None] = {}
    best = (-1, 0)
    for moment in sorted({*begins, *ends}):
        for value in ends[moment]:
            del alive[value]
        for value in begins[moment]:
            alive[value] = None
        taken = sum(size for _, size in _apart(alive))
        best = max(best, (taken, -moment))
    return -best[1]


def _apart(alive: Iterable[_Value]) -> Iterator[tuple[_Value, int]]:
    """Values with the bytes that they take and none before them takes: two names of one buffer
    count once."""
    reached = (-1, 0)
    for value in sorted(alive, key=lambda v: (*v.place, -v.size)):
        begin = max(value.offset, reached[1] if reached[0] == value.allocation else 0)
        end = value.offset + value.size
        if end > begin:
            yield value, end - begin
            reached = (value.allocation, end)


class _Origins:
    """Which operation of the model made a value."""

    def __init__(self, program: Program):
        self._program = program
        self._by_name = {o.name: o for o in program.operations.values()}
        self._callers: dict[int, Operation] = {}
        for operation in program.operations.values():
            if operation.opcode in ("while", "call", "conditional"):
                self._callers |= dict.fromkeys(operation.called, operation)
        self._bodies: dict[int, Computation] = {
            c.parameters[0].id: c for c in program.computations.values() if c.parameters
        }

    def of(self, value: _Value) -> tuple[str, str]:
        """Name of the operation, and source."""
        operation = self._by_name.get(value.name)
        index = [int(i) for i in value.index.strip("{}").split(",") if i]
        return self._named(operation, index)

    def of_operation(self, name: str) -> tuple[str, str]:
        return self._named(self._by_name.get(name), [])

    def _named(self, operation: Operation | None, index: list[int]) -> tuple[str, str]:
        seen: set[tuple[int, tuple[int, ...]]] = set()
        while operation is not None and (operation.id, tuple(index)) not in seen:
            seen.add((operation.id, tuple(index)))
            before = self._before(operation, index)
            if before is None:
                break
            operation, index = before
        if operation is None:
            return "", ""
        named = self._with_name(operation)
        return shortened(named.raw.metadata.op_name), self._program.source(named)

    def _with_name(self, operation: Operation) -> Operation:
        """The operation, or where the compiler made it of others, the nearest of those that it
        reads or holds whose name tells something."""
        waiting = collections.deque([operation])
        seen = set()
        while waiting and len(seen) < _FAR:
            found = waiting.popleft()
            if shortened(found.raw.metadata.op_name):
                return found
            if found.id in seen:
                continue
            seen.add(found.id)
            if found.opcode == "fusion":
                waiting.append(self._program.computations[found.called[0]].root)
            waiting.extend(self._program.operations[o] for o in found.operands)
        return operation

    def _before(self, operation: Operation, index: list[int]) -> tuple[Operation, list[int]] | None:
        """What a value is, behind loops, tuples and copies; None: the operation made it."""
        operations = self._program.operations
        if operation.opcode == "tuple" and index:
            return operations[operation.operands[index[0]]], index[1:]
        if operation.opcode == "get-tuple-element":
            return operations[operation.operands[0]], [operation.raw.tuple_index, *index]
        if operation.opcode in _PASSES_ON and not shortened(operation.raw.metadata.op_name):
            return operations[operation.operands[0]], index[:0]
        if operation.opcode == "while" and index:
            body = self._program.computations[operation.called[0]]
            return self._of_loop(operation, body, index)
        if operation.opcode == "parameter" and index and operation.id in self._bodies:
            body = self._bodies[operation.id]
            loop = self._callers.get(body.id)
            if loop is not None and loop.opcode == "while":
                return self._of_loop(loop, self._program.computations[loop.called[0]], index)
        return None

    def _of_loop(
        self, loop: Operation, body: Computation, index: list[int]
    ) -> tuple[Operation, list[int]]:
        """What a round makes, or, where it passes the value on, what entered the loop."""
        operations = self._program.operations
        made = operations[body.root.operands[index[0]]]
        while made.opcode in ("bitcast", "copy"):
            made = operations[made.operands[0]]
        passed = made.opcode == "get-tuple-element" and made.raw.tuple_index == index[0]
        if passed and operations[made.operands[0]].opcode == "parameter":
            return operations[loop.operands[0]], index
        return made, index[1:]


def shortened(name: str) -> str:
    """An operation's name without the steps that say nothing of the model; empty for a name that
    the compiler gave."""
    steps = name.split("/")
    return "/".join(s for s in steps if not _STEPS.match(s)) if len(steps) > 1 else ""
