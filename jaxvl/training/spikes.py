"""What is known of a step that was not applied: `WORKDIR/spikes/STEP-TASK.json`, and the same with
pictures as a page.

Nothing is kept for it while training: which records a batch had is a pure function of its place in
the stream, and they are read again.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jinja2
import numpy as np

from jaxvl import paths
from jaxvl.aliases import Json
from jaxvl.data.feed import Feed
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import BadRecord
from jaxvl.evals.shown import brief
from jaxvl.evals.thumbnails import Thumbnails
from jaxvl.training.guard import Judged, named
from jaxvl.training.run import Run

SHOWN = 64  # records of a batch whose columns are told
LONGEST = 300  # characters of a text
KINDS = ("text", "texts", "class", "int", "float")
_LOG = logging.getLogger(__name__)


def report_spike(run: Run, judged: Judged) -> None:
    """Says that a step was not applied, and writes which records it had, as often as
    `guard.reports` allows. What fails in it is logged. All processes call it; the first writes."""
    bad = judged.bad
    figures = {
        "loss": judged.figures["loss"],
        "norm": judged.figures["norm/gradient"],
        "typical": judged.figures["norm/typical"],
    }
    told = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    run.watch.reports += 1
    if jax.process_index() != 0 or run.watch.reports > run.experiment.guard.reports:
        return
    path = run.workdir / "spikes" / f"{_name(run, judged)}.json"
    try:
        content = describe(run.feeds[bad.task], judged)
        paths.make_folder(path.parent)
        paths.write_text(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False))
        page = _page(content, run.feeds[bad.task], run.preprocess)
        paths.write_text(path.with_name(f"{_name(run, judged)}.html"), page)
    except Exception as error:  # what cannot be told of a bad step must not end the run
        _LOG.warning("step %d: its records cannot be told: %r", bad.step, error)
        return
    run.writer.record(bad.step, "event", f"spike/{bad.task}", {**figures, "file": str(path)})
    run.writer.say(
        f"[yellow]step {bad.step} of {bad.task} was not applied[/] ({told}); its records: {path}"
    )


def _name(run: Run, judged: Judged) -> str:
    bad = judged.bad
    again = f"-after-rollback-{run.watch.rollbacks}" if run.watch.rollbacks else ""
    return f"{bad.step}-{bad.task}{again}"


def describe(feed: Feed, judged: Judged) -> dict[str, Json]:
    """What the file holds.

    `figures`: metrics of the step; None where they are not finite. `positions`: of the batch in the
    task's stream. `records`: their numbers in the source, in the order of the rows. `rows`: columns
    of the first `SHOWN` records; of pictures and sounds their bytes are counted.
    """
    bad = judged.bad
    numbers = feed.numbers(bad.spans)
    return {
        "step": bad.step,
        "task": bad.task,
        "source": feed.name,
        "figures": {name: _finite(value) for name, value in judged.figures.items()},
        "positions": named(bad.spans),
        "records": numbers.tolist(),
        "rows": [_row(feed, row, int(number)) for row, number in enumerate(numbers[:SHOWN])],
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _row(feed: Feed, row: int, number: int) -> dict[str, Json]:
    try:
        record = feed.source.read(number)
    except BadRecord as error:
        return {"row": row, "record": number, "bad": str(error)}
    columns = {name: _shown(value) for name, value in record.items()}
    return {"row": row, "record": number, "columns": columns}


def _shown(value: Any) -> Json:
    """A value of a column as JSON has it, in short."""
    if isinstance(value, str):
        return brief(value, LONGEST)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, np.ndarray):
        whole = bool(np.isfinite(value).all()) if value.dtype.kind == "f" else True
        return f"{value.dtype}{list(value.shape)}{'' if whole else ', not finite'}"
    if isinstance(value, (list, tuple)):
        return [_shown(each) for each in value[:SHOWN]]
    if isinstance(value, (float, np.floating)):
        return _finite(float(value)) if np.isfinite(value) else str(value)
    return int(value) if isinstance(value, (int, np.integer)) else brief(str(value), LONGEST)


def _page(content: Mapping[str, Json], feed: Feed, preprocess: Preprocess) -> str:
    """The same as HTML, with the pictures."""
    pictured = [name for name, column in feed.source.columns.items() if column.kind == "image"]
    thumbnails = Thumbnails(feed.source, preprocess, pictured[0]) if pictured else None
    pictures = {}
    for row in content["rows"]:
        image = thumbnails(row["record"]) if thumbnails is not None else None
        if image is not None:
            pictures[row["row"]] = "data:image/png;base64," + base64.b64encode(image).decode()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxvl.evals", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("spike.html.j2").render(**content, pictures=pictures)
