"""Which collectives a compiled program runs, how often, and what it computes meanwhile.

Read from the text of a compiled module (`jax.stages.Compiled.as_text()`). A TPU's is scheduled: the
instructions of a computation stand in the order in which they run, and what stands between the
`-start` and the `-done` of a collective runs while it is on its way.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

# A `recv` is of another slice; of which, the program does not say.
KINDS = ("collective-permute", "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "recv")
KERNELS = re.compile(
    r'custom_call_target="(tpu_custom_call|mosaic_gpu\w*|__gpu\$xla\.gpu\.triton)"'
)
BITS = re.compile(r"(\d+)")
_SHAPE = re.compile(r"\b(pred|[sufb]\w*?\d+\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation; `rest`: its operands and attributes."""

    name: str
    shape: str
    opcode: str
    rest: str

    def calls(self) -> list[str]:
        """Names of the computations that it runs."""
        found = re.findall(
            r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)", self.rest
        )
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        return found + (re.findall(r"%?([\w.\-]+)", branches[1]) if branches else [])


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of a program.

    Attributes:
      kind: one of `KINDS`.
      nbytes: bytes of the arrays that it brings to one device.
      times: how often it runs.
      pairs: who sends to whom, of a permutation.
      behind: names of the Pallas kernels that run between its start and its done, also
        those within loops; None where it is synchronous.
    """

    kind: str
    nbytes: int
    times: int
    pairs: tuple[tuple[int, int], ...]
    behind: tuple[str, ...] | None


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled module, in no particular order."""
    computations = dict(_computations(text))
    entry = next(name for name, (is_entry, _) in computations.items() if is_entry)
    bodies = {name: lines for name, (_, lines) in computations.items()}
    return list(_of(entry, 1, bodies))


def payload(shape: str) -> int:
    """Bytes of the arrays in the text of a shape."""
    total = 0
    for kind, dims in _SHAPE.findall(shape):
        bits = 8 if kind == "pred" else int(BITS.search(kind)[1])
        total += math.prod(int(n) for n in dims.split(",") if n) * bits // 8
    return total


def _received(line: Instruction) -> str:
    """The part of a collective's shape that it brings. Most of those that only begin also name
    their operands, and a counter."""
    parts = _parts(line.shape)
    if line.opcode == "recv":
        return parts[0]
    if line.opcode.endswith("-start") and line.opcode != "all-reduce-start":
        return parts[1]
    return line.shape


def _parts(shape: str) -> list[str]:
    """The elements of a tuple's shape, which may be tuples and hold layouts with brackets."""
    parts = [""]
    depth = 0
    for letter in shape.removeprefix("(").removesuffix(")"):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _computations(text: str) -> Iterator[tuple[str, tuple[bool, list[Instruction]]]]:
    name = None
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name = start[1]
            is_entry = line.startswith("ENTRY")
            lines: list[Instruction] = []
        elif line == "}" and name is not None:
            yield name, (is_entry, lines)
            name = None
        elif name is not None and (found := _INSTRUCTION.match(line)):
            lines.append(Instruction(*found.groups()))


def _of(name: str, times: int, bodies: dict[str, list[Instruction]]) -> Iterator[Collective]:
    lines = bodies[name]
    for i, line in enumerate(lines):
        kind = line.opcode.removesuffix("-start")
        if kind in KINDS:
            is_async = line.opcode.endswith("-start") or kind == "recv"
            done = _done(lines, i) if is_async else None
            behind = None
            if done is not None:
                behind = tuple(k for other in lines[i + 1 : done] for k in _kernels(other, bodies))
            pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", line.rest)
            numbers = re.findall(r"\{(\d+),(\d+)\}", pairs[1]) if pairs else []
            yield Collective(
                kind,
                payload(_received(line)),
                times,
                tuple((int(a), int(b)) for a, b in numbers),
                behind,
            )
        rounds = _rounds(line, bodies) if line.opcode == "while" else 1
        for inner in line.calls():
            if inner in bodies:
                yield from _of(inner, times * rounds, bodies)


def _done(lines: list[Instruction], start: int) -> int:
    operand = re.compile(rf"^%?{re.escape(lines[start].name)}\b(?![.\-])")
    for i in range(start + 1, len(lines)):
        if lines[i].opcode.endswith("-done") and operand.match(lines[i].rest):
            return i
    raise ValueError(f"{lines[start].name} has no -done")


def _kernels(line: Instruction, bodies: dict[str, list[Instruction]]) -> Iterator[str]:
    if line.opcode == "custom-call" and KERNELS.search(line.rest):
        yield line.name
    for inner in line.calls():
        for other in bodies.get(inner, []):
            yield from _kernels(other, bodies)


def _rounds(loop: Instruction, bodies: dict[str, list[Instruction]]) -> int:
    """How often a loop turns: as the compiler has noted it, or the constant that its condition
    compares a counter from 0 with."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    lines = bodies[condition[1]]
    constants = [re.match(r"(\d+)\)", x.rest) for x in lines if x.opcode == "constant"]
    found = [int(c[1]) for c in constants if c]
    if len(found) != 1 or not any("direction=LT" in x.rest for x in lines):
        raise ValueError(f"{loop.name}: how often this loop turns is not known")
    return found[0]
