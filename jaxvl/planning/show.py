"""A plan as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxvl.planning.figures import Plan, StepFigures
from jaxvl.planning.parameters import Sharded
from jaxvl.planning.prices import Price
from jaxvl.planning.roofline import MODEL
from jaxvl.sharding.topology import GPUS, parse_topology

GIB = 2**30
MOST = 12  # parameters that are shown
MOST_LIVE = 24  # kinds of values that are shown


def gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size >= GIB / 100 else f"{size / 2**20:.2f} MiB"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> Table:
    """A table whose first `left` columns are texts, the others numbers."""
    made = Table()
    for i, heading in enumerate(headings):
        made.add_column(heading, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    return made


def show(console: Console, plan: Plan, price: Price | None) -> None:
    where = f"{plan.devices} x {plan.topology}"
    console.print(
        f"{where}, mesh {escape(str(plan.mesh or 'of one device'))}; {plan.parameters:,} parameters"
    )
    parts = {k: v for k, v in vars(plan.state).items() if v}
    console.print(
        "state per device, GiB: "
        + ", ".join(f"{name} {gib(size)}" for name, size in parts.items())
        + f"; together {gib(plan.state.total)}"
    )
    if plan.steps:
        _show_bytes(console, plan)
        for step in plan.steps:
            _show_peak(console, step)
            _show_collectives(console, step)
        _show_times(console, plan, price)
    for line in _caveats(plan):
        console.print(line)
    for step in plan.steps:
        if not plan.has_room(step):
            over = plan.needed(step) - plan.memory
            console.print(
                f"{escape(step.name)} has no room: {gib(over)} GiB too much; --search looks for "
                "what fits"
            )
    for refusal in plan.refused:
        first = refusal.message.splitlines()[0]
        console.print(f"{escape(refusal.name)} does not compile: {escape(first)}", soft_wrap=True)
        if refusal.needed is not None:
            console.print(
                f"  needs {gib(refusal.needed)} GiB of {gib(refusal.available)}: "
                f"{gib(refusal.needed - refusal.available)} too much; --search looks for what fits"
            )
    _show_sharding(console, plan)


def _caveats(plan: Plan) -> Iterable[str]:
    """What the figures leave out on this topology."""
    if plan.quick:
        yield (
            "--quick: the compiler optimised little; a run's program is smaller and faster, and "
            "hides more of its collectives"
        )
    if parse_topology(plan.topology).name in GPUS:
        yield (
            "GPU: compiled without one, so kernels are not tuned, and their choice and temporaries "
            "differ from a run's; the compiler does not refuse what has no room"
        )


def _show_bytes(console: Console, plan: Plan) -> None:
    rows = []
    for step in plan.steps:
        size = step.bytes
        share = "" if plan.memory is None else f"{plan.needed(step) / plan.memory:.0%}"
        parts = (size.state, size.batch, size.temporaries, size.output, size.code)
        peak = "not told" if size.peak is None else gib(size.peak)
        rows.append((step.name, *map(gib, parts), gib(size.total), peak, share))
    headings = ("GiB per device", "state", "batch", "temporary", "output", "code", "all", "peak")
    console.print(table((*headings, "of memory"), rows))


def _show_peak(console: Console, step: StepFigures) -> None:
    most = step.peak
    if most is None:
        return
    rows = [
        (gib(row.bytes), f"{row.number:,}", row.shape, row.operation, row.source)
        for row in most.live[:MOST_LIVE]
    ]
    rest = most.live[MOST_LIVE:]
    if rest:
        number = sum(row.number for row in rest)
        rows.append((gib(sum(row.bytes for row in rest)), f"{number:,}", "others", "", ""))
    headings = (f"GiB at the peak of {step.name}", "values", "shape", "made by", "line")
    console.print(table(headings, rows, left=5))
    console.print(
        f"together {gib(most.bytes)} GiB, at {escape(most.operation or 'a copy')}; the compiler "
        f"sets aside {gib(most.allocated)} for them, gaps included, and tells "
        f"{gib(step.bytes.temporaries)} as temporary"
    )


def _show_collectives(console: Console, step: StepFigures) -> None:
    if not step.collectives:
        console.print(f"collectives of {escape(step.name)}: none")
        return
    rows = []
    for row in step.collectives:
        times = f"{row.times:,}" if row.times != row.number else f"{row.number:,}"
        seconds = "" if row.seconds is None else f"{1e3 * row.seconds:,.2f}"
        meanwhile = "computes" if row.overlaps else "waits"
        amounts = (
            f"{row.number:,}",
            times,
            f"{row.bytes / 2**20:,.1f}",
            f"{row.sent / 2**20:,.1f}",
        )
        rows.append((row.kind, row.axes, meanwhile, *amounts, seconds))
    headings = (f"collectives of {step.name}", "over", "meanwhile", "in program", "times a step")
    console.print(table((*headings, "MiB", "MiB sent", "ms on links"), rows, left=3))
    if step.loops:
        console.print(
            f"{step.loops} loops of {escape(step.name)} do not tell how many rounds they have, and "
            "count once"
        )


def _show_times(console: Console, plan: Plan, price: Price | None) -> None:
    rows = []
    for step in plan.steps:
        roofline = step.roofline
        if roofline is None:
            continue
        low, high = step.examples_per_second
        dollars = "not known" if step.price is None else "{:,.0f} - {:,.0f}".format(*step.price)
        scheduled = "" if roofline.scheduled is None else f"{roofline.scheduled:.3f}"
        seconds = (roofline.compute, roofline.memory, roofline.ici, roofline.dcn)
        rows.append(
            (
                step.name,
                roofline.limit,
                *(f"{s:.3f}" for s in seconds),
                f"{roofline.low:.3f} - {roofline.high:.3f}",
                scheduled,
                f"{low:,.0f} - {high:,.0f}",
                dollars,
            )
        )
    for step in plan.steps:
        console.print(
            f"{escape(step.name)}: {step.rows:,} examples, {step.flops / 1e12:,.2f} TFLOP a step "
            f"({step.model_flops / 1e12:,.2f} without recomputation), {gib(step.traffic)} GiB "
            f"through a device's memory; compiled in {step.compile_seconds:.0f} s"
        )
    if not rows:
        console.print("a CPU has no published figures: no times")
        return
    headings = ("seconds", "limit", "compute", "memory", "in a slice", "between slices", "a step")
    more = ("by compiler", "examples/s", "$ per 10^9 examples")
    console.print(table((*headings, *more), rows, left=2))
    console.print(f"a step: {MODEL}")
    if any(step.roofline and step.roofline.scheduled is not None for step in plan.steps):
        console.print(
            "by compiler: cycles that the TPU compiler expects of its operations, and the "
            "collectives that it does not hide; kernels written by hand are not in it"
        )
    if price is None or price.price is None:
        console.print("price: not known; give one with --prices=FILE (--show-prices prints a file)")
    else:
        console.print(
            f"price: {price.price} $ an hour and chip, {escape(price.kind)} "
            f"({escape(price.source)}, {escape(price.date)}); --prices=FILE for your own"
        )


def _show_sharding(console: Console, plan: Plan) -> None:
    console.print(
        "sharded over: " + "; ".join(f"{escape(k)} {v:,}" for k, v in plan.sharding.items())
    )
    headings = ("largest on a device", "shape", "logical axes", "sharded over", "MiB")
    rows = [_row(p) for p in plan.sharded[:MOST]]
    console.print(table(headings, rows, left=4))
    whole = [p for p in plan.sharded if p.reasons and len(plan.mesh)]
    if whole:
        headings = ("less split than its rules ask", "shape", "logical axes", "reason", "MiB")
        rows = [_row(p, "; ".join(p.reasons)) for p in whole[:MOST]]
        console.print(table(headings, rows, left=4))
        if len(whole) > MOST:
            console.print(f"and {len(whole) - MOST} smaller ones (all in --json)")


def _row(parameter: Sharded, last: str | None = None) -> tuple[str, ...]:
    over = ", ".join(o or "-" for o in parameter.over)
    shape = " x ".join(map(str, parameter.shape))
    axes = ", ".join(str(a) for a in parameter.axes)
    size = f"{parameter.bytes_per_device / 2**20:,.1f}"
    return parameter.path, shape, axes, last or over, size
