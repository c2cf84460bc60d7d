"""Time of a compiled program on a CPU by kind of operation, from a profile."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from jax.stages import Compiled
from rich.table import Table

from jaxvl.hlo.program import Operation, Program, read

REST = "elementwise"
# What holds others, which are counted themselves.
_CONTAINERS = frozenset(("while", "conditional", "call", "async-start", "async-done"))
_PRODUCT = frozenset(("dot",))
# The first kind of which an operation has one of the opcodes.
_KINDS = {
    "convolutions": frozenset(("convolution",)),
    "collectives": frozenset(("all-reduce", "all-gather", "reduce-scatter", "collective-permute")),
    "reductions": frozenset(("reduce", "reduce-window")),
    "concatenations": frozenset(("concatenate",)),
    "gathers and scatters": frozenset(("gather", "scatter")),
}
_SLICES = frozenset(("slice", "dynamic-slice", "dynamic-update-slice", "pad"))
# What moves numbers and computes none.
_MOVES = frozenset(
    ("bitcast", "broadcast", "constant", "copy", "iota", "parameter", "reshape", "transpose")
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a step spends on operations of one kind.

    Attributes:
      name: of the kind.
      seconds: the sum over its operations, each from its start to its end; two that run at once
        count both.
      calls: operations that run.
      longest: name of the one that takes most, all its calls together, and JAX's name for it.
    """

    name: str
    seconds: float
    calls: float
    longest: str


def kind_of(operation: Operation, program: Program) -> str:
    """The kind by what an operation, or the computation that it fuses, is made of.

    A product with a batch dimension, as attention's, is another kind than one of two matrices.
    Elementwise is what is none of the others.
    """
    parts = list(_inside(operation, program))
    opcodes = {part.opcode for part in parts}
    if opcodes & _PRODUCT:
        apart = any(part.raw.dot_numbers.lhs_batch for part in parts if part.opcode in _PRODUCT)
        return "products by head" if apart else "products of matrices"
    for name, of_kind in _KINDS.items():
        if opcodes & of_kind:
            return name
    # Scalars are indices.
    of_arrays = {part.opcode for part in parts if part.raw.shape.dimensions}
    if not of_arrays <= _SLICES | _MOVES:
        return REST
    return "slices and updates of stacks" if opcodes & _SLICES else "copies and transposes"


def _inside(operation: Operation, program: Program) -> Iterator[Operation]:
    if operation.opcode != "fusion":
        yield operation
        return
    for called in operation.called:
        for part in program.computations[called].operations:
            yield from _inside(part, program)


def time_by_kind(
    compiled: Compiled, take: Callable[[], object], steps: int = 3, warm: int = 1
) -> list[Kind]:
    """Means over `steps` calls of `take`, each of which runs the program once; longest first.

    Args:
      warm: calls before, which do not count.
    """
    program = read(compiled)
    named = {operation.name: operation for operation in program.operations.values()}
    for _ in range(warm):
        jax.block_until_ready(take())
    seconds: dict[str, Counter[str]] = {}
    calls: Counter[str] = Counter()
    for name, duration in _events(take, steps):
        operation = named.get(name)
        if operation is None or operation.opcode in _CONTAINERS:
            continue
        kind = kind_of(operation, program)
        seconds.setdefault(kind, Counter())[name] += duration / steps
        calls[kind] += 1
    kinds = []
    for kind, spent in seconds.items():
        name = max(spent, key=spent.__getitem__)
        longest = f"{name}: {named[name].raw.metadata.op_name}"
        kinds.append(Kind(kind, spent.total(), calls[kind] / steps, longest))
    return sorted(kinds, key=lambda kind: -kind.seconds)


def _events(take: Callable[[], object], steps: int) -> Iterator[tuple[str, float]]:
    """Name of an operation and seconds, for each time that one runs."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(steps):
                jax.block_until_ready(take())
        (file,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(file))
        for plane in profile.planes:
            for line in plane.lines:
                for event in line.events:
                    operation = dict(event.stats).get("hlo_op")
                    if operation is not None:
                        yield operation, event.duration_ns / 1e9


def table_of_kinds(kinds: Sequence[Kind], title: str) -> Table:
    """ms and share of each kind in a step."""
    total = sum(kind.seconds for kind in kinds)
    table = Table(title=title, title_justify="left")
    for heading in ("kind", "ms", "share", "operations", "the longest"):
        names = heading in ("kind", "the longest")
        table.add_column(heading, justify="left" if names else "right")
    for kind in kinds:
        figures = (f"{1e3 * kind.seconds:.1f}", f"{kind.seconds / total:.1%}", f"{kind.calls:.0f}")
        table.add_row(kind.name, *figures, kind.longest)
    table.add_row("all", f"{1e3 * total:.1f}", "", f"{sum(kind.calls for kind in kinds):.0f}", "")
    return table
