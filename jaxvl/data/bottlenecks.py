"""The stages that a record goes through on the host, and what to change where one of them limits
the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

STAGES = ("read", "decode", "transform", "transfer")
SLOW = 0.05  # share of the time spent waiting for data from which on input is called slow

ADVICE = {
    "read": "more reader.threads, data on a faster or nearer disk, or larger shards",
    "decode": (
        "more reader.threads (reader.processes for small pictures), fast_decode=True, or "
        "pictures stored nearer to the size that is trained at"
    ),
    "transform": (
        "more reader.threads (reader.processes where cores are idle), a larger reader.cache_mb, "
        "or a crop that is less costly to scale"
    ),
    "transfer": "smaller pictures, or more hosts for the same batch",
}


def add(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Seconds of each stage, of several feeds together."""
    total = dict.fromkeys(STAGES, 0.0)
    for seconds in parts:
        for stage in STAGES:
            total[stage] += seconds[stage]
    return total


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Share of each stage in the work of the input; empty where there was none."""
    whole = sum(seconds.values())
    return {stage: seconds[stage] / whole for stage in STAGES} if whole > 0 else {}
