"""The page that a run leaves behind, `workdir/report.html`, and the final table at the terminal.

The page is one file: pictures, style and script are inside, and it opens without a network. It is
made of what a workdir holds, each part optional: `metrics.jsonl`, `config.json`, `machine.json`,
`gallery.json`. What of these cannot be used is left out, and the page says so (`recorded.py`).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from rich.table import Table
from rich.text import Text

from jaxvl import paths
from jaxvl.data.bottlenecks import STAGES
from jaxvl.evals import recorded
from jaxvl.evals.charts import Chart, Series, chart, write
from jaxvl.evals.recorded import read_metrics as read_metrics
from jaxvl.evals.result import GalleryRow
from jaxvl.evals.sheet import sheet
from jaxvl.evals.shown import brief

_LOG = logging.getLogger(__name__)
LONGEST_PART = 50_000  # characters of one part of the config, as the page shows it
GALLERY = "gallery.json"
_SHARES = (
    "acc",
    "r@",
    "recall",
    "accuracy",
    "token_f1",
    "data_wait",
    "mfu",
    "hfu",
    "goodput",
    "share_",
    "memory_share",
    "input_",
)
_BESIDE = ("_chance", "_low", "_high")  # ends of figures that are shown with another one


def save_gallery(
    workdir: str | os.PathLike, name: str, step: int, gallery: Sequence[GalleryRow]
) -> np.ndarray:
    """Keeps an evaluator's latest gallery for the report.

    Args:
      workdir: of the run; `gallery.json` in it is replaced whole, never half written. One that is
        damaged is set aside under another name, which is logged, and what can be used of it is
        kept.
      name: of the evaluator. step: that it ran after.

    Returns:
      The gallery as one picture, uint8 [H, W, 3], for TensorBoard.
    """
    path = paths.as_path(workdir) / GALLERY
    damage: list[str] = []
    galleries = recorded.read_galleries(path, damage)
    if damage:
        _LOG.warning(
            "%s: damaged (%s); it is now %s, and a new one is written",
            path,
            "; ".join(damage),
            recorded.set_aside(path).name,
        )
    galleries[brief(name)] = {"step": step, "rows": [row.to_json() for row in gallery]}
    paths.write_text(path, json.dumps(galleries, allow_nan=False))
    return sheet(gallery)


def write_report(workdir: str | os.PathLike) -> paths.Path:
    """Writes `workdir/report.html` and returns its path. Works on a run of any age, an empty one
    included."""
    workdir = paths.as_path(workdir)
    loader = jinja2.PackageLoader("jaxvl.evals", "templates")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["write"] = write
    environment.filters["figure"] = lambda value, key: write(value, kind_of(key))
    environment.filters["json_lines"] = lambda value: brief(
        json.dumps(value, indent=2, ensure_ascii=False), LONGEST_PART
    )
    html = environment.get_template("report.html.j2").render(**context(workdir))
    path = workdir / "report.html"
    paths.write_bytes(path, html.encode("utf-8", errors="replace"))
    return path


def summary_table(latest: Mapping[str, float | None]) -> Table:
    """The last figures of every evaluator as a table for the terminal; those of parts, as `fr/…`,
    are left to the report but for R@10.

    Args:
      latest: `EVALUATOR/METRIC` -> value; shares in 0..1.
    """
    table = Table(title="Final results", title_justify="left", header_style="bold", pad_edge=False)
    for column, style in (
        ("evaluator", "cyan"),
        ("figure", ""),
        ("value", "bold"),
        ("chance", "dim"),
    ):
        table.add_column(
            column, style=style, justify="left" if column in ("evaluator", "figure") else "right"
        )
    before = None
    for key, value in latest.items():
        name, _, metric = key.partition("/")
        of_part = "/" in metric and not metric.startswith("skipped/")  # of one language, say
        if metric.endswith(_BESIDE) or of_part and not metric.endswith("r@10"):
            continue
        chance = latest.get(f"{key}_chance")
        kind = kind_of(metric)
        if before not in (None, name):
            table.add_section()
        table.add_row(
            Text("" if name == before else brief(name)),  # a str would be read as markup
            Text(brief(metric)),
            write(value, kind) + _interval(latest, key, kind),
            "" if chance is None else write(chance, kind),
        )
        before = name
    return table


def _interval(figures: Mapping[str, float | None], key: str, kind: str) -> str:
    """Where `KEY_low` and `KEY_high` are given: that interval."""
    ends = [figures.get(f"{key}_{end}") for end in ("low", "high")]
    return "" if None in ends else f" ({write(ends[0], kind)} … {write(ends[1], kind)})"


def kind_of(metric: str) -> str:
    """How a figure is written: "percent" for shares, else "number"."""
    name = metric.split("/")[-1]
    return "percent" if name == "exact" or any(word in name for word in _SHARES) else "number"


# --------------------------------------------------------------------------------------------------
# What the template shows


def context(workdir: paths.Path) -> dict[str, object]:
    """Everything that `report.html.j2` reads."""
    left_out: list[str] = []
    records = read_metrics(workdir / "metrics.jsonl", left_out)
    config = recorded.read_group(workdir / "config.json", left_out)
    machine = recorded.read_group(workdir / "machine.json", left_out)
    train = [r for r in records if r["kind"] == "train"]
    evals = _by_name(r for r in records if r["kind"] == "eval")
    step = max((r["step"] for r in records), default=0)
    total = config["steps"] if recorded.is_step(config.get("steps")) else None
    results = [_evaluator(name, rows, config) for name, rows in evals.items()]
    return {
        "title": brief(paths.absolute(workdir).name),
        "left_out": left_out,
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "status": f"{write(step)} steps"
        if total in (None, step)
        else f"{write(step)} of {write(total)} steps",
        "duration": _duration(_seconds(records)),
        "results": results,
        "tiles": [_tile(r) for r in results if r["main"]] + _speed_tiles(train),
        "speed": _speed_tiles(train),
        "curves": _curves(train, evals),
        "small_charts": _small_charts(train),
        "galleries": _galleries(recorded.read_galleries(workdir / GALLERY, left_out)),
        "skipped": _skipped(records, train, evals),
        "not_finite": sum(r.get("loss") is None and "loss" in r for r in train),
        "settings": {k: v for k, v in config.items() if not isinstance(v, (dict, list))},
        "config": {k: v for k, v in config.items() if isinstance(v, (dict, list))},
        "machine": machine,
        "events": [
            r
            for r in records
            if r["kind"] == "event" and not r["name"].startswith(("skipped/", "left_out/"))
        ],
    }


def _evaluator(name: str, rows: list[dict[str, Any]], config: Mapping[str, Any]) -> dict[str, Any]:
    """One evaluator: what it is, and each figure with its last and best value and chance."""
    options = _group(_group(config.get("evals")).get(name))
    last = rows[-1]
    figures = {}
    for key in last:
        if (
            key in ("step", "time", "kind", "name")
            or key.endswith(_BESIDE)
            or key.startswith("skipped/")
        ):
            continue
        judged = (
            kind_of(key) == "percent" or "rank" in key
        )  # the others count something; there is no best of them
        values = [(r[key], r["step"]) for r in rows if judged and r.get(key) is not None]
        better = min if "rank" in key else max
        best = better(values, key=lambda v: v[0]) if values else (None, None)
        figures[key] = {
            "last": last[key],
            "best": best[0],
            "best_step": best[1],
            "chance": last.get(f"{key}_chance"),
            "interval": _interval(last, key, kind_of(key)),
        }
    shares = [k for k in figures if kind_of(k) == "percent"]
    about = " · ".join(
        filter(
            None,
            (
                str(options.get("name", "")).replace("_", "-"),
                _data(options),
                str(options.get("language", "")),
            ),
        )
    )
    return {
        "name": name,
        "about": brief(about),
        "step": last["step"],
        "figures": figures,
        "main": shares[:1],
        "shares": shares,
    }


def _data(options: Mapping[str, Any]) -> str:
    """The source of an evaluator, by name and split where it has one."""
    source = options.get("source")
    if not isinstance(source, Mapping):
        return str(source or "")
    return ", ".join(str(source[key]) for key in ("name", "split") if source.get(key))


def _tile(result: Mapping[str, Any]) -> dict[str, str]:
    """A headline: the first share of an evaluator, and what to hold it against."""
    key = result["main"][0]
    figure = result["figures"][key]
    details = []
    details += [
        f"{k}\u00a0{write(result['figures'][k]['last'], 'percent')}"
        for k in result["shares"][1:4]
        if not k.startswith("mean")
    ]
    if figure["chance"]:
        times = f"\u00a0(×\u00a0{figure['last'] / figure['chance']:.3g})" if figure["last"] else ""
        details.append(f"chance\u00a0{write(figure['chance'], 'percent')}{times}")
    if "classes" in result["figures"]:
        details.append(f"{write(result['figures']['classes']['last'])} classes")
    label = result["name"].replace("_", " ")
    return {
        "label": label,
        "key": key,
        "value": write(figure["last"], "percent"),
        "details": " · ".join(details),
    }


def _speed_tiles(train: list[dict[str, Any]]) -> list[dict[str, str]]:
    tiles = []
    for key, label, details in (
        ("examples_per_second", "examples per second", "median over the run"),
        ("data_wait", "waiting for data", "share of the time, median"),
        ("mfu", "MFU", "model FLOP/s as a share of the devices' peak, median"),
    ):
        values = [r[key] for r in train if r.get(key) is not None]
        if key == "data_wait":
            details += _limiting(train)
        if values:
            tiles.append(
                {
                    "label": label,
                    "key": "",
                    "value": write(float(np.median(values)), kind_of(key)),
                    "details": details,
                }
            )
    return tiles


def _limiting(train: list[dict[str, Any]]) -> str:
    """What the input spends most of its work on, as the end of a sentence."""
    worked = {
        stage: [r[f"input_{stage}"] for r in train if r.get(f"input_{stage}") is not None]
        for stage in STAGES
    }
    medians = {stage: float(np.median(values)) for stage, values in worked.items() if values}
    if not medians:
        return ""
    stage = max(medians, key=medians.get)
    return f"; {100 * medians[stage]:.0f}\u00a0% of the input's work is: {stage}"


def _points(rows: Iterable[Mapping[str, Any]], key: str) -> tuple[tuple[float, float | None], ...]:
    return tuple((r["step"], r[key]) for r in rows if key in r)


def _curves(train: list[dict[str, Any]], evals: Mapping[str, list[dict[str, Any]]]) -> list[Chart]:
    """Loss of every task, then the shares of every evaluator."""
    charts = [chart("Loss", _lines(_by_name(train), "loss"))]
    for name, rows in evals.items():
        keys = [
            k
            for k in rows[-1]
            if kind_of(k) == "percent"
            and not k.startswith("mean_")
            and not k.endswith(_BESIDE)
            and "/" not in k
        ]
        kinds, sizes = ([*dict.fromkeys(k.split("@")[part] for k in keys)] for part in (0, -1))
        # What is measured tells the dashes, at how many the colour: r@5 of both directions is of
        # one colour.
        series = [
            Series(k, _points(rows, k), sizes.index(k.split("@")[-1]), kinds.index(k.split("@")[0]))
            for k in keys
        ]
        charts.append(chart(name.replace("_", " "), series, "percent"))
    return [c for c in charts if c]


def _lines(tasks: Mapping[str, list[dict[str, Any]]], key: str) -> list[Series]:
    """One line per task that has the scalar."""
    return [
        Series(task, _points(rows, key), i, i)
        for i, (task, rows) in enumerate(tasks.items())
        if any(key in r for r in rows)
    ]


def _small_charts(train: list[dict[str, Any]]) -> list[Chart]:
    """All other scalars of training, one chart each."""
    tasks = _by_name(train)
    keys = dict.fromkeys(
        k for r in train for k in r if k not in ("step", "time", "kind", "name", "loss")
    )
    charts = []
    for key in keys:
        series = _lines(tasks, key)
        moves = len({y for s in series for _, y in s.points if y is not None}) > 1
        charts += [chart(key, series, kind_of(key))] if moves else []
    return [c for c in charts if c]


def _galleries(saved: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Evaluators with their groups of rows."""
    out = []
    for name, gallery in saved.items():
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in gallery["rows"]:
            place = next((i for i, item in enumerate(row["items"], 1) if item["right"]), None)
            groups.setdefault(row["group"], []).append({**row, "found": place})
        out.append({"name": name, "step": gallery["step"], "groups": groups})
    return out


def _skipped(
    records: list[dict[str, Any]],
    train: list[dict[str, Any]],
    evals: Mapping[str, list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Records left out, by where and why: training tasks (events `skipped/TASK`, else their total)
    and evaluators.

    Events `left_out/TASK` tell of files and members that were in no record from the start.
    """
    out = []
    events = _events(records, "skipped")
    for task, event in _events(records, "left_out").items():
        out += [
            {"where": f"data of task {task}", "cause": cause, "count": n}
            for cause, n in _causes(event).items()
        ]
    for task, rows in _by_name(train).items():
        causes = (
            _causes(events[task])
            if task in events
            else {"all causes": rows[-1].get("skipped_records") or 0}
        )
        if rows[-1].get("skipped"):
            causes["step not applied (loss or gradient not finite, or a spike)"] = rows[-1][
                "skipped"
            ]
        out += [
            {"where": f"task {task}", "cause": cause, "count": n}
            for cause, n in causes.items()
            if n
        ]
    for name, rows in evals.items():
        causes = {k.partition("/")[2]: n for k, n in rows[-1].items() if k.startswith("skipped/")}
        out += [
            {"where": f"evaluator {name}", "cause": cause, "count": n}
            for cause, n in causes.items()
            if n
        ]
    return out


def _events(records: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """Task -> its last event of a kind."""
    return {
        r["name"].partition("/")[2]: r
        for r in records
        if r["kind"] == "event" and r["name"].startswith(f"{kind}/")
    }


def _causes(event: Mapping[str, Any]) -> dict[str, Any]:
    """Cause -> number of an event that tells what was left out."""
    return {
        cause: n
        for cause, n in event.items()
        if cause not in ("step", "time", "kind", "name") and recorded.is_number(n)
    }


def _group(value: Any) -> Mapping[str, Any]:
    """A part of a config that should be a group of keys; {} where it is something else."""
    return value if isinstance(value, Mapping) else {}


def _by_name(records: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        out.setdefault(record["name"], []).append(record)
    return out


def _seconds(records: Sequence[Mapping[str, Any]]) -> float:
    """Time from the first to the last record, without the breaks between a stop and a resume."""
    times = sorted(r["time"] for r in records if r.get("time"))
    gaps = np.diff(times)
    return float(gaps[gaps < max(900.0, 20 * float(np.median(gaps)))].sum()) if len(gaps) else 0.0


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    return (
        f"{minutes} min {int(seconds % 60)} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60} min"
    )
