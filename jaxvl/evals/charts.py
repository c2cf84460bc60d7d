"""Line charts for a page: scales, ticks and SVG paths, so that a template only has to place them.

A plot is an SVG stretched over a box whose corners are (0, 0) and (100, 100), with labels in HTML
at percentages: lines and text keep their size whatever the width of the page, and nothing needs
JavaScript to be seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

Kind = Literal["number", "percent"]
Point = tuple[float, float | None]
MOST_POINTS = 500


@dataclasses.dataclass(frozen=True)
class Series:
    """One line: points (step, value), ascending; None breaks the line. Lines differ by colour and
    by dashes."""

    name: str
    points: tuple[Point, ...]
    colour: int = 0
    dash: int = 0

    @property
    def last(self) -> float | None:
        return next((y for _, y in reversed(self.points) if y is not None), None)


@dataclasses.dataclass(frozen=True)
class Chart:
    """A finished chart.

    Attributes:
      title, kind: heading, and how values are written.
      series: thinned out to what can be seen.
      paths: SVG path data of each series in the 100 x 100 box.
      x_ticks, y_ticks: (position in percent from the left, or from the top; label).
      scaled: for the page's script: each series as [x percent, y percent, step, value as text].
      summary: the chart in words, for who cannot see it.
      log: whether the vertical axis is logarithmic.
    """

    title: str
    kind: Kind
    series: tuple[Series, ...]
    paths: tuple[str, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    scaled: tuple[tuple[tuple[float, float, int, str], ...], ...]
    summary: str
    log: bool


def chart(title: str, series: Sequence[Series], kind: Kind = "number") -> Chart | None:
    """Lays out a chart; None where there is no finite value to draw. Steps start at zero, and so do
    percentages."""
    series = tuple(
        dataclasses.replace(s, points=_thin(s.points)) for s in series if s.last is not None
    )
    if not series:
        return None
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points if y is not None]
    log = kind == "number" and min(ys) > 0 and max(ys) > 30 * min(ys)
    low, high, ticks = _axis(min(ys), max(ys), kind, log)
    left = 0
    right = max(*xs, 1)
    scale = math.log10 if log else float

    def place(x: float, y: float) -> tuple[float, float]:
        return round(100 * (x - left) / (right - left), 3), round(
            100 - 100 * (scale(y) - scale(low)) / (scale(high) - scale(low)), 3
        )

    paths = []
    scaled = []
    for s in series:
        paths.append(_path([place(x, y) if y is not None else None for x, y in s.points]))
        scaled.append(
            tuple((*place(x, y), int(x), write(y, kind)) for x, y in s.points if y is not None)
        )
    x_ticks = tuple(
        (place(x, low)[0], compact(x)) for x in _ticks(left, right, 5) if left <= x <= right
    )
    y_ticks = tuple((place(left, y)[1], write(y, kind, axis=True)) for y in ticks)
    words = "; ".join(
        f"{s.name} from {write(_first(s), kind)} to {write(s.last, kind)}" for s in series
    )
    summary = f"{title}, steps {compact(min(xs))} to {compact(right)}: {words}"
    return Chart(title, kind, series, tuple(paths), x_ticks, y_ticks, tuple(scaled), summary, log)


def write(value: float | None, kind: Kind = "number", axis: bool = False) -> str:
    """A value as a person reads it: shares as per cent, large numbers in groups."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if kind == "percent":
        per_cent = 100 * value
        if axis:
            return f"{per_cent:.4g}\u00a0%"
        return f"{per_cent:.{2 if 0 < abs(per_cent) < 1 else 1}f}\u00a0%"
    if axis and abs(value) >= 1000:
        return compact(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u00a0")
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u00a0")
    return f"{value:.3g}" if axis or abs(value) < 1e-3 else f"{value:.4g}"


def compact(value: float) -> str:
    """1500 -> "1.5k"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _first(series: Series) -> float:
    return next(y for _, y in series.points if y is not None)


def _thin(points: Sequence[Point]) -> tuple[Point, ...]:
    """At most `MOST_POINTS` of the points: of each run of neighbours its mean, and None where all
    of it is missing."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return tuple(points)
    out = []
    for start in range(0, len(points), size):
        run = points[start : start + size]
        ys = [y for _, y in run if y is not None]
        out.append((run[-1][0], sum(ys) / len(ys) if ys else None))
    return tuple(out)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """`M x y L x y …`; a lone point becomes a line of no length, which round caps draw as a dot."""
    out = []
    pen_up = True
    for i, point in enumerate(points):
        if point is None:
            pen_up = True
            continue
        out.append(f"{'M' if pen_up else 'L'}{point[0]:g} {point[1]:g}")
        if pen_up and (i + 1 == len(points) or points[i + 1] is None):
            out.append("h0")
        pen_up = False
    return "".join(out)


def _axis(low: float, high: float, kind: Kind, log: bool) -> tuple[float, float, list[float]]:
    """Ends of the vertical axis and its ticks."""
    if log:
        first = math.floor(math.log10(low))
        last = math.ceil(math.log10(high))
        every = -(-(last - first) // 5) or 1
        return 10.0**first, 10.0**last, [10.0**e for e in range(first, last + 1, every)]
    if kind == "percent":
        low = min(0.0, low)
    if high <= low:
        pad = abs(low) / 2 or 1.0
        low, high = (low, low + pad) if kind == "percent" else (low - pad, high + pad)
    ticks = _ticks(low, high, 5)
    return ticks[0], ticks[-1], ticks


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) that cover [low, high] in at most `most`
    steps."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10, 20) if m * power >= rough * (1 - 1e-9))
    while math.ceil(high / step - 1e-9) - math.floor(low / step + 1e-9) > most:
        step *= 2
    return [
        i * step for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)
    ]
