"""Bytes that a compiled program moves through the device's main memory."""

from __future__ import annotations

from collections.abc import Iterator

from jaxvl.hlo.program import Computation, Operation, Program

# What moves nothing: names for what is there already, and ends of what has been counted.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "opt-barrier",
    "partition-id",
    "replica-id",
}
_FREE_CALLS = {"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding"}
_VIEWS = {"bitcast", "reshape", "copy", "convert", "transpose"}


def traffic(program: Program) -> float:
    """Bytes read and written in one run.

    Each operation of the schedule reads its operands and writes its results once, those that lie in
    main memory, tiles filled up; loops count every round. Of an operand of which a slice is taken
    the slice counts, of an array that is updated in place the update. The compiler's own figure
    takes the bodies of loops once, and on-chip memory for main memory.
    """
    return sum(e.times * _moved(program, e.operation) for e in program.executions)


def _moved(program: Program, operation: Operation) -> int:
    opcode = operation.opcode
    if opcode in _FREE or opcode.endswith("-done") or opcode == "async-update":
        return 0
    if opcode == "custom-call" and operation.raw.custom_call_target in _FREE_CALLS:
        return 0
    if opcode.endswith("-start"):
        return _started(program, operation)
    if opcode == "fusion":
        return _fused(program, operation)
    operands = [program.operations[o] for o in dict.fromkeys(operation.operands)]
    if opcode in ("dynamic-slice", "slice", "gather"):
        return operation.in_memory + _slice_read(operation, operands[0])
    if opcode == "dynamic-update-slice":
        return 2 * operands[1].in_memory
    if opcode == "scatter":
        return operation.in_memory and 3 * operands[-1].in_memory
    return operation.in_memory + sum(o.in_memory for o in operands)


def _slice_read(operation: Operation, source: Operation) -> int:
    """Bytes that a slice takes out of its source, which may lie in main memory when the slice does
    not."""
    padded = sum(buffer.padded for buffer in operation.buffers)
    return padded if source.in_memory else 0


def _started(program: Program, operation: Operation) -> int:
    """An asynchronous copy, slice or collective: what it reads and what it makes, once."""
    operands = [program.operations[o] for o in dict.fromkeys(operation.operands)]
    if operation.opcode == "copy-start":
        return operation.buffers[0].in_memory + operands[0].in_memory
    if operation.opcode in ("async-start", "slice-start"):
        root = program.computations[operation.called[0]].root if operation.called else None
        if root is not None and root.opcode in ("slice", "dynamic-slice"):
            return root.in_memory + _slice_read(root, operands[0])
    # What most of them make is named together with what they are given.
    given = sum(o.in_memory for o in operands)
    together = len(operation.buffers) > len(operands)
    return operation.in_memory if together else operation.in_memory + given


def _fused(program: Program, fusion: Operation) -> int:
    computation = program.computations[fusion.called[0]]
    read = 0
    for parameter, operand in zip(computation.parameters, fusion.operands):
        source = program.operations[operand]
        if source.in_memory:
            read += min(source.in_memory, _used(program, computation, parameter))
    return read + _written(program, fusion, computation)


def _used(program: Program, computation: Computation, value: Operation) -> int:
    """Bytes of a value that a fused computation reads."""
    whole = sum(buffer.padded for buffer in value.buffers)
    total = 0
    for user in computation.users[value.id]:
        if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == value.id:
            total += sum(buffer.padded for buffer in user.buffers)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.id:
            continue  # in place
        elif user.opcode in ("bitcast", "tuple") and user is not computation.root:
            total += _used(program, computation, user)
        elif user.opcode == "fusion":
            inner = program.computations[user.called[0]]
            for parameter, operand in zip(inner.parameters, user.operands):
                if operand == value.id:
                    total += _used(program, inner, parameter)
        else:
            return whole
    return min(total, whole)


def _written(program: Program, fusion: Operation, computation: Computation) -> int:
    """Bytes that a fusion writes: of an array that it updates in place, the update."""
    roots = list(_results(computation))
    if len(roots) != len(fusion.buffers):
        return fusion.in_memory
    total = 0
    for buffer, root in zip(fusion.buffers, roots):
        update = _update(program, computation, root)
        total += min(buffer.in_memory, buffer.in_memory if update is None else update)
    return total


def _results(computation: Computation) -> Iterator[Operation]:
    by_id = {o.id: o for o in computation.operations}
    if computation.root.opcode == "tuple":
        yield from (by_id[o] for o in computation.root.operands)
    else:
        yield computation.root


def _update(program: Program, computation: Computation, result: Operation) -> int | None:
    """Bytes that are put into an array that was there before; None: it is a new array."""
    while result.opcode in _VIEWS:
        result = program.operations[result.operands[0]]
    if result.opcode == "parameter":
        return 0  # it is passed on
    if result.opcode == "fusion":
        inner = program.computations[result.called[0]]
        return _update(program, inner, inner.root)
    if result.opcode != "dynamic-update-slice":
        return None
    return sum(b.padded for b in program.operations[result.operands[1]].buffers)
