"""What the benchmarks share: timing side by side in one process, and a result as a table and as JSON."""

from __future__ import annotations

import json
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxvl.training.setup import describe_machine


def in_turn(takers: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, `rounds` per taker, one of each in turn, so that a busy moment hits all of them alike.

    One round before is not counted. A taker's result is waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in takers}
    for i in range(rounds + 1):
        for name, take in takers.items():
            began = time.perf_counter()
            jax.block_until_ready(take())
            if i:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> tuple[float, float, float]:
    """How many times as fast as `base` `name` is: median, lowest and highest of the pairs of a round."""
    pairs = [b / a for a, b in zip(seconds[name], seconds[base])]
    return statistics.median(pairs), min(pairs), max(pairs)


def publish(console: Console, table: Table, result: dict[str, Any], path: pathlib.Path | None) -> dict[str, Any]:
    """Prints the table and the machine; returns (and writes to `path`) `result` with the machine."""
    machine = describe_machine()
    result = {"machine": machine, **result}
    console.print(table)
    console.print(f"{machine['cpu']}, {machine['cores']} cores; {machine['devices']}; Python {machine['python']}, jax {machine['jax']}")
    if path:
        path.write_text(json.dumps(result, indent=1) + "\n")
        console.print(f"written to {path}")
    return result
