"""Results of benchmarks as files and as a table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from jaxvl import paths
from jaxvl.aliases import Json
from jaxvl.evals.benchmarks.base import TASK_NAMES, Benchmark
from jaxvl.evals.benchmarks.scoring import Score
from jaxvl.evals.charts import write
from jaxvl.evals.shown import brief

ALL = "benchmarks.json"
FORMAT = 2  # of what is measured: a result of another number is measured again


@dataclasses.dataclass(frozen=True)
class Model:
    """Which weights were measured.

    Attributes:
      name: of the model. pretrained: where its weights come from, and of which step.
      weights: `weights_fingerprint`.
    """

    name: str
    pretrained: str
    weights: str


def identity(
    benchmark: Benchmark, model: Model, prompts: Sequence[Sequence[str]]
) -> dict[str, Json]:
    """What a result depends on; equal ones need not be measured twice.

    Args:
      prompts: class names and templates.
    """
    prompts_hash = hashlib.sha256(
        json.dumps([list(part) for part in prompts], ensure_ascii=False).encode()
    ).hexdigest()[:16]
    return {
        "format": FORMAT,
        "weights": model.weights,
        "data": benchmark.source.fingerprint[:16],
        "prompts": prompts_hash,
    }


def result(
    benchmark: Benchmark, score: Score, model: Model, same: Mapping[str, Json]
) -> dict[str, Json]:
    """CLIP_benchmark's fields, and under `jaxvl` what it does not have."""
    return {
        "dataset": benchmark.name,
        "model": model.name,
        "pretrained": model.pretrained,
        "task": TASK_NAMES[benchmark.task],
        "metrics": {name: _finite(value) for name, value in score.metrics.items()},
        "language": benchmark.language,
        "jaxvl": {
            "main_metric": benchmark.main_metric,
            "images": score.images,
            "skipped": score.skipped,
            "notes": list(benchmark.notes),
            "identity": dict(same),
        },
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def save(path: paths.Path, node: Json) -> None:
    paths.write_text(path, json.dumps(node, indent=1, ensure_ascii=False, allow_nan=False))


def saved(path: paths.Path, same: Mapping[str, Json]) -> dict[str, Json] | None:
    """The result in a file; None where there is none, or one of other weights, data or prompts."""
    try:
        node = json.loads(paths.read_text(path))
        return node if node["jaxvl"]["identity"] == same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def table(results: Sequence[Mapping[str, Json]]) -> Table:
    """One line for each benchmark with its own main figure."""
    out = Table(title="Benchmarks", title_justify="left", header_style="bold", pad_edge=False)
    for name in ("benchmark", "language", "figure"):
        out.add_column(name, style="cyan" if name == "benchmark" else "", overflow="fold")
    for name, style in (
        ("value", "bold"),
        ("chance", "dim"),
        ("images", ""),
        ("skipped", "yellow"),
    ):
        out.add_column(name, style=style, justify="right", no_wrap=True)
    for node in results:
        more = node["jaxvl"]
        metric = more["main_metric"]
        chance = node["metrics"].get(f"{metric}_chance")
        bad = sum(more["skipped"].values())
        cells = [
            brief(node["dataset"]),
            node["language"],
            metric,
            _share(node["metrics"].get(metric)),
            _share(chance, ""),
        ]
        out.add_row(
            *map(Text, cells), write(more["images"], "number"), write(bad, "number") if bad else ""
        )
    return out


def failures(failed: Mapping[str, str]) -> Table:
    """Benchmarks that could not be measured, and why."""
    out = Table(title="Not measured", title_justify="left", header_style="bold", pad_edge=False)
    out.add_column("benchmark", style="cyan", overflow="fold")
    out.add_column("why", style="yellow", overflow="fold")
    for name, why in failed.items():
        out.add_row(Text(brief(name)), Text(brief(why)))
    return out


def _share(value: float | None, missing: str = "–") -> str:
    return missing if value is None else write(value, "percent")
