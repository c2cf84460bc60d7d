"""From an experiment and a topology to its figures: the steps are compiled, nothing is run."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from jax.stages import Compiled

from jaxvl.aliases import Tree
from jaxvl.data.tokenizers import Tokenizer, make_tokenizer
from jaxvl.hlo import Collective, Program, collectives, peak, read, traffic
from jaxvl.kernels.device import device
from jaxvl.planning import prices
from jaxvl.planning.figures import (
    CollectiveFigures,
    Plan,
    Refusal,
    StateBytes,
    StepBytes,
    StepFigures,
)
from jaxvl.planning.network import Network
from jaxvl.planning.parameters import by_axes, sharded_parameters
from jaxvl.planning.roofline import Roofline, scheduled_seconds
from jaxvl.sharding.mesh import make_mesh
from jaxvl.sharding.topology import Topology, compile_only_devices, parse_topology
from jaxvl.training.build import Vocabulary, build_model, fresh_state, make_tasks
from jaxvl.training.checkpoint import abstract_state
from jaxvl.training.compile import Program as CompiledStep
from jaxvl.training.compile import by_signature, compile_turns
from jaxvl.training.compiler import writing_texts
from jaxvl.training.experiment import Experiment
from jaxvl.training.state import TrainState
from jaxvl.training.teacher_models import make_teachers

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_USED = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])")
_TEMPORARIES = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)")


def vocabulary_of(experiment: Experiment) -> Vocabulary | Tokenizer:
    """What a model has to know of the tokenizer; one that a run would make is not made."""
    tokenizer = experiment.tokenizer
    if tokenizer.kind == "unigram":
        return Vocabulary(tokenizer.vocab_size, 0, 1)
    return make_tokenizer(tokenizer, ())


def per_device(shapes: Tree, shardings: Tree) -> int:
    """Bytes of a device's part of the arrays."""
    sizes = jax.tree.map(
        lambda s, where: math.prod(where.shard_shape(s.shape)) * np.dtype(s.dtype).itemsize,
        shapes,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))


def state_bytes(shapes: TrainState, shardings: TrainState) -> StateBytes:
    parts = {
        "parameters": per_device(shapes.params, shardings.params),
        "optimiser": per_device(shapes.opt_state, shardings.opt_state),
        "average": per_device(shapes.ema, shardings.ema),
        "teachers": per_device(shapes.teachers, shardings.teachers),
        "objectives": per_device(shapes.objective_state, shardings.objective_state),
    }
    return StateBytes(**parts, rest=per_device(shapes, shardings) - sum(parts.values()))


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where a run is planned: `costs` are US dollars for a chip and hour; `quick`: the compiler
    optimises little; `peak`: it is asked what lives at the peak."""

    topology: Topology
    name: str
    devices: Sequence[jax.Device]
    costs: Mapping[str, prices.Price]
    quick: bool = False
    peak: bool = False

    @classmethod
    def of(cls, name: str, costs: Mapping[str, prices.Price], **how: bool) -> Setting:
        """Raises ConfigError for a topology that cannot be compiled for. `how`: `quick`,
        `peak`."""
        topology = parse_topology(name)
        return cls(topology, name, compile_only_devices(name), costs, **how)

    @property
    def price(self) -> float | None:
        known = self.costs.get(self.topology.name)
        return None if known is None else known.price


def measure(
    experiment: Experiment,
    setting: Setting,
    progress: Callable[[str], None] = lambda _: None,
    *,
    stop_at_refusal: bool = False,
) -> Plan:
    """The figures.

    Args:
      progress: is told what is being done.
      stop_at_refusal: no further step is compiled once the compiler has refused one.

    Raises:
      ConfigError: the config, or it does not fit the topology.
    """
    mesh = make_mesh(experiment.mesh, setting.devices)
    experiment.check_mesh(mesh)
    progress("tracing the model")
    vocabulary = vocabulary_of(experiment)
    model = build_model(experiment, vocabulary)
    tasks = make_tasks(experiment)
    teachers = make_teachers(experiment, model, vocabulary)
    steps = []
    refused = []
    with jax.set_mesh(mesh):
        _, shapes, shardings = fresh_state(experiment, model, mesh, teachers)
        abstract = abstract_state(shapes, shardings)
        turns = experiment.schedule.build(list(tasks), experiment.steps).turns
        for same in by_signature(tasks, turns):
            name = ", ".join(map(str, same))
            progress(f"compiling {name}")
            try:
                with _effort(setting.quick), _texts(setting.peak) as texts:
                    [program] = compile_turns(
                        experiment, tasks, same, model, abstract, shardings, mesh, teachers
                    )
                    most = None if texts is None else peak(read(program.step), texts)
            except jax.errors.JaxRuntimeError as error:
                refused.append(refusal(name, str(error), per_device(shapes, shardings)))
                if stop_at_refusal:
                    break
                continue
            rows = sum(experiment.tasks[task].data.batch for task in same[0].tasks)
            state = per_device(shapes, shardings)
            step = _step(name, rows, state, program, mesh, setting)
            steps.append(dataclasses.replace(step, peak=most))
    sharded = sharded_parameters(model.axes, model.params, mesh)
    chip = setting.topology.chip
    return Plan(
        topology=setting.name,
        devices=mesh.size,
        slices=setting.topology.slices,
        quick=setting.quick,
        mesh={axis: n for axis, n in mesh.shape.items() if n > 1},
        parameters=sum(math.prod(s.shape) for s in model.params.values()),
        memory=None if chip is None else chip.memory,
        state=state_bytes(shapes, shardings),
        sharding=by_axes(sharded),
        sharded=tuple(sharded),
        steps=tuple(steps),
        refused=tuple(refused),
    )


@contextlib.contextmanager
def _effort(quick: bool) -> Iterator[None]:
    before = jax.config.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", -1.0 if quick else before)
    try:
        yield
    finally:
        jax.config.update("jax_exec_time_optimization_effort", before)


@contextlib.contextmanager
def _texts(wanted: bool) -> Iterator[pathlib.Path | None]:
    """A folder into which the compiler writes where values lie. Programs that are kept on disk are
    passed by: with them it would write nothing."""
    if not wanted:
        yield None
        return
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # which has looked at the setting once and for all
    try:
        with tempfile.TemporaryDirectory() as folder, writing_texts(folder):
            yield pathlib.Path(folder)
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def refusal(name: str, message: str, state: int) -> Refusal:
    """What the compiler's message says; one about temporaries alone leaves out the `state`."""
    used = _USED.search(message)
    temporaries = _TEMPORARIES.search(message)
    found = used or temporaries
    if found is None:
        return Refusal(name, message, None, None)
    needed, unit, available, of = found.groups()
    extra = 0 if used else state
    return Refusal(name, message, float(needed) * UNITS[unit] + extra, float(available) * UNITS[of])


def _step(
    name: str, rows: int, state: int, compiled: CompiledStep, mesh: Mesh, setting: Setting
) -> StepFigures:
    program = read(compiled.step)
    found = collectives(program, mesh.size)
    moved = traffic(program)
    cost = compiled.cost
    chip = setting.topology.chip
    network = None if chip is None else Network(setting.topology, list(mesh.devices.flat))
    roofline = None
    speed = None
    price = None
    if network is not None:
        roofline = _roofline(cost.flops / mesh.size, moved, found, program, network)
        if setting.quick:  # a run's program is scheduled otherwise
            roofline = dataclasses.replace(roofline, scheduled=None)
        speed = (rows / roofline.high, rows / roofline.low)
        if setting.price is not None:
            slow, fast = (prices.of_examples(setting.price, mesh.size, s) for s in speed)
            price = (fast, slow)
    return StepFigures(
        name=name,
        rows=rows,
        flops=cost.flops,
        model_flops=cost.model_flops,
        bytes=step_bytes(compiled.step, state, on_cpu=device()[0] == "cpu"),
        traffic=moved,
        collectives=tuple(_gathered(found, mesh, network)),
        roofline=roofline,
        examples_per_second=speed,
        price=price,
        loops=program.loops_without_count,
        compile_seconds=compiled.seconds,
    )


def step_bytes(compiled: Compiled, state: int, *, on_cpu: bool) -> StepBytes:
    """What a compiled step needs of a device, of which `state` are its arguments' own."""
    told = compiled.memory_analysis()
    # The CPU's compiler leaves temporaries out of its peak.
    most = None if on_cpu else told.peak_memory_in_bytes or None
    return StepBytes(
        state=min(state, told.argument_size_in_bytes),
        batch=max(0, told.argument_size_in_bytes - state),
        temporaries=told.temp_size_in_bytes,
        output=told.output_size_in_bytes - told.alias_size_in_bytes,
        code=told.generated_code_size_in_bytes,
        peak=most,
    )


def _roofline(
    flops: float, moved: float, found: list[Collective], program: Program, network: Network
) -> Roofline:
    chip = network.chip
    times = [(c, network.seconds(c)) for c in found]
    exposed = sum(c.times * (t.inside + t.between) for c, t in times if not c.overlaps)
    cycles = sum(e.times * e.operation.cycles for e in program.executions)
    return Roofline(
        compute=flops / chip.flops,
        memory=moved / chip.bandwidth,
        ici=sum(c.times * t.inside for c, t in times),
        dcn=sum(c.times * t.between for c, t in times),
        exposed=exposed,
        scheduled=scheduled_seconds(chip, cycles, exposed),
    )


def _gathered(
    found: list[Collective], mesh: Mesh, network: Network | None
) -> list[CollectiveFigures]:
    """Those of one kind, axes and overlap together; the longest first."""
    alike: dict[tuple[str, str, bool], list[Collective]] = collections.defaultdict(list)
    for collective in found:
        key = (collective.kind, collective.axes(mesh.shape), collective.overlaps)
        alike[key].append(collective)
    rows = []
    for (kind, axes, overlaps), group in alike.items():
        seconds = None
        if network is not None:
            times = [(c.times, network.seconds(c)) for c in group]
            seconds = sum(n * (t.inside + t.between) for n, t in times)
        largest = max(group, key=lambda c: c.size * c.times)
        rows.append(
            CollectiveFigures(
                kind=kind,
                axes=axes,
                overlaps=overlaps,
                number=len(group),
                times=sum(c.times for c in group),
                bytes=sum(c.size * c.times for c in group),
                sent=sum(c.sent * c.times for c in group),
                seconds=seconds,
                largest=largest.source,
            )
        )
    return sorted(rows, key=lambda row: -row.sent)
