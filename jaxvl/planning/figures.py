"""The figures of a run: what its compiled steps need and take.

`asdict` of a `Plan` is what `--json` writes; the attributes here document its keys. Bytes and
seconds are of one device and one step, unless they say otherwise.
"""

from __future__ import annotations

import dataclasses

from jaxvl.hlo import Peak
from jaxvl.planning.parameters import Sharded
from jaxvl.planning.roofline import Roofline
from jaxvl.sharding.topology import GPUS, parse_topology


@dataclasses.dataclass(frozen=True)
class StateBytes:
    """What a device holds between steps: `parameters`, `optimiser` (its moments), `average` (of the
    parameters), `teachers`, `objectives` (queues, prototypes), `rest` (statistics, counters)."""

    parameters: int
    optimiser: int
    average: int
    teachers: int
    objectives: int
    rest: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class StepBytes:
    """What a step needs.

    Attributes:
      state: see `StateBytes`, as the compiler lays it out.
      batch: the step's other arguments.
      temporaries: what lives during the step only.
      output: what the step returns that does not take the place of its arguments.
      code: the program itself.
      peak: the most at any moment, as the compiler says; None: it does not, as for CPUs.
    """

    state: int
    batch: int
    temporaries: int
    output: int
    code: int
    peak: int | None

    @property
    def total(self) -> int:
        """All of them. A device needs less where the code or what is returned lies in the place of
        temporaries that are no longer needed."""
        return self.state + self.batch + self.temporaries + self.output + self.code


@dataclasses.dataclass(frozen=True)
class CollectiveFigures:
    """Collectives of one kind, over the same axes.

    Attributes:
      kind: `all-reduce` …
      axes: of the mesh, along which devices take part together; `slices`: between slices.
      overlaps: whether something is computed while they are under way.
      number: how many stand in the program.
      times: how often a step executes them.
      bytes: of a device's parts, in a step.
      sent: bytes that a device sends in a step, on a ring.
      seconds: that they take on the links; None: of a chip without figures.
      largest: what the largest of them is for, as JAX names it.
    """

    kind: str
    axes: str
    overlaps: bool
    number: int
    times: int
    bytes: int
    sent: float
    seconds: float | None
    largest: str


@dataclasses.dataclass(frozen=True)
class StepFigures:
    """A compiled step.

    Attributes:
      name: the task, or `A + B` where a step sums them; those that share the program with commas.
      rows: examples of a step, all devices together.
      flops: of products and convolutions, all devices together, recomputation included.
      model_flops: what the model and its gradient need.
      bytes: see `StepBytes`.
      traffic: bytes that a device moves through its main memory.
      collectives: see `CollectiveFigures`.
      roofline: None: of a chip without figures.
      examples_per_second: slow and fast end of the range, all devices together.
      price: US dollars for 10^9 examples, fast and slow end; None: the chip's price is not known.
      loops: whose number of rounds the program does not tell; they count once in `traffic` and in
        `collectives`.
      compile_seconds: that it took to trace and compile.
      peak: what lives when temporaries are at their most; None: not asked for, or not told.
    """

    name: str
    rows: int
    flops: float
    model_flops: float
    bytes: StepBytes
    traffic: float
    collectives: tuple[CollectiveFigures, ...]
    roofline: Roofline | None
    examples_per_second: tuple[float, float] | None
    price: tuple[float, float] | None
    loops: int
    compile_seconds: float
    peak: Peak | None = None


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A step that the compiler refused.

    Attributes:
      name: as of `StepFigures`.
      message: the compiler's.
      needed, available: bytes of the device's memory, where the message tells them.
    """

    name: str
    message: str
    needed: float | None
    available: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a topology.

    Attributes:
      topology: as asked for.
      devices, slices: how many.
      quick: whether the compiler optimised little.
      mesh: axis -> devices, those of more than one.
      parameters: their number.
      memory: bytes of a device; None: of a chip without figures.
      state: see `StateBytes`.
      sharding: mesh axes -> number of parameters that they shard.
      sharded: every parameter, the largest first.
      steps: by program.
      refused: those that do not compile.
    """

    topology: str
    devices: int
    slices: int
    quick: bool
    mesh: dict[str, int]
    parameters: int
    memory: float | None
    state: StateBytes
    sharding: dict[str, int]
    sharded: tuple[Sharded, ...]
    steps: tuple[StepFigures, ...]
    refused: tuple[Refusal, ...]

    @property
    def fits(self) -> bool:
        """Whether every step compiles and has room; the TPU compiler refuses what has none."""
        return not self.refused and all(self.has_room(step) for step in self.steps)

    def has_room(self, step: StepFigures) -> bool:
        told = self.memory is None or parse_topology(self.topology).name not in GPUS
        return told or self.needed(step) <= self.memory

    def needed(self, step: StepFigures) -> int:
        """Bytes that a device must have: of a TPU the most at any moment, by which its compiler
        refuses (temporaries may lie where donated arguments were); else all kinds together."""
        peak = step.bytes.peak
        topology = parse_topology(self.topology)
        on_tpu = topology.chip is not None and topology.name not in GPUS
        return peak if on_tpu and peak is not None else step.bytes.total
