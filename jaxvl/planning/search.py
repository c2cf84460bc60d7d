"""The best of what a config could be on a topology, by compiling the most promising."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import jax

from jaxvl.config import ConfigError, check
from jaxvl.models.functional import Functional
from jaxvl.planning.candidates import (
    Candidate,
    candidates,
    meshes,
    other_collectives,
    own_choice,
)
from jaxvl.planning.estimate import Model, estimate, widest
from jaxvl.planning.figures import Plan
from jaxvl.planning.measure import Setting, measure, per_device, vocabulary_of
from jaxvl.planning.roofline import Roofline
from jaxvl.sharding.mesh import AXES, make_mesh
from jaxvl.training.build import build_model, fresh_state, make_tasks
from jaxvl.training.checkpoint import abstract_state
from jaxvl.training.compile import trace_turns
from jaxvl.training.experiment import Command, Experiment
from jaxvl.training.stages import one_of
from jaxvl.training.teacher_models import make_teachers

GIB = 2**30
FITS = "fits"
NO_ROOM = "no room"
SLOWER = "slower"
NOT_TRIED = "not compiled"
# Part of the budget that is left for the collectives of the best.
COLLECTIVES_SHARE = 1 / 5
DOUBT = 1.02  # an estimate that is so much longer may still be of something faster


@dataclasses.dataclass(frozen=True)
class Trial:
    """A candidate and what became of it.

    Attributes:
      candidate: see `Candidate`.
      assignments: what it is on the command line, `--config.KEY=VALUE`; empty: the config as it is.
      state: bytes of a device, exact.
      estimate: seconds before compiling, slow end of the range; of several tasks, of a step of each
        together, as all seconds here.
      outcome: "fits", "no room", "slower" (not compiled, since it would take too long) or "not
        compiled".
      reason: of the outcome.
      needed: bytes of a device, where it was compiled and the compiler tells.
      seconds: low and high end of the range, where it fits.
      limit: what takes longest.
      examples_per_second: low and high end.
      compile_seconds: that trying it took.
    """

    candidate: Candidate
    assignments: dict[str, str]
    state: int
    estimate: float
    outcome: str
    reason: str = ""
    needed: float | None = None
    seconds: tuple[float, float] | None = None
    limit: str = ""
    examples_per_second: tuple[float, float] | None = None
    compile_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
      topology, devices, memory: as of `Plan`.
      rows: examples of all tasks' steps together.
      budget, spent: seconds.
      trials: those that fit, the fastest first (by the slow end of their range), then the others by
        their estimate.
    """

    topology: str
    devices: int
    memory: float
    rows: int
    budget: float
    spent: float
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        first = self.trials[0] if self.trials else None
        return first if first is not None and first.outcome == FITS else None


@dataclasses.dataclass(frozen=True)
class Guess:
    """A candidate with its state's bytes on a device and its estimated seconds; `own`: it is the
    config as it is."""

    candidate: Candidate
    state: int
    roofline: Roofline
    own: bool = False


def search(
    command: Command, setting: Setting, budget: float, tell: Callable[[str], None]
) -> Search:
    """Tries the config as it is first, then candidates in the order of their estimate, until
    `budget` seconds are over; the one that is being compiled then is finished. In the last fifth of
    the budget, the best with each other collective of its contrastive losses.

    Never compiled are those whose state alone has no room, those that need more than one that had
    none, and, once one fits, those that do more than it only to need less and those that are
    expected to be slower than the best, or to have no room: by their estimate and by how those of
    others with the same remat policy were wrong.

    Raises:
      ConfigError: the config, or a topology of CPUs.
    """
    began = time.perf_counter()
    chip = setting.topology.chip
    check(chip is not None, "--search", "needs a chip with published figures, not a CPU")
    experiment = one_of(command, command.options.get("stage"))
    rows = sum(task.data.batch for task in experiment.tasks.values())
    tell("tracing the model")
    left = guesses(experiment, setting)
    tell(f"{len(left)} candidates; the config as it is comes first")
    trials: list[Trial] = []

    def try_all(left: list[Guess], until: float) -> None:
        while left:
            guess = next_guess(left, trials, rows, chip.memory)
            left.remove(guess)
            made = {} if guess.own else guess.candidate.assignments(experiment)
            outcome, reason = judge(guess, trials, rows, chip.memory)
            spent = time.perf_counter() - began
            if outcome == FITS and spent > until:
                outcome = NOT_TRIED
                reason = f"its budget of {until:.0f} s was over"
            if outcome != FITS:
                seconds = guess.roofline.high
                trials.append(Trial(guess.candidate, made, guess.state, seconds, outcome, reason))
                continue
            tell(f"[{spent:.0f} s] compiling {describe(guess.candidate)}")
            trials.append(_try(command, setting, guess, made))
            tell(f"    {told(trials[-1])}")

    known = {guess.candidate: guess for guess in left}
    try_all(left, (1 - COLLECTIVES_SHARE) * budget)
    fitting = [trial for trial in trials if trial.outcome == FITS]
    if fitting:
        best = known[min(fitting, key=lambda t: t.seconds[1]).candidate]
        others = other_collectives(best.candidate)
        try_all([dataclasses.replace(best, candidate=c, own=False) for c in others], budget)
    fitting = [trial for trial in trials if trial.outcome == FITS]
    others = [trial for trial in trials if trial.outcome != FITS]
    ranked = sorted(fitting, key=lambda t: t.seconds[1]) + sorted(others, key=lambda t: t.estimate)
    return Search(
        topology=setting.name,
        devices=len(setting.devices),
        memory=chip.memory,
        rows=rows,
        budget=budget,
        spent=time.perf_counter() - began,
        trials=tuple(ranked),
    )


def describe(candidate: Candidate) -> str:
    """`data 64, fsdp 4; remat full; 2 microbatches; bfloat16 moments`."""
    axes = ", ".join(f"{axis} {n}" for axis, n in zip(AXES, candidate.mesh) if n > 1)
    parts = [axes or "one device"]
    if candidate.remat is not None:
        parts.append(f"remat {candidate.remat}")
    if candidate.microbatches > 1:
        parts.append(f"{candidate.microbatches} microbatches")
    parts.append(f"{candidate.moments} moments")
    if candidate.collective != "auto":
        parts.append(f"losses over a {candidate.collective}")
    return "; ".join(parts)


def told(trial: Trial) -> str:
    """What became of a trial, in words."""
    if trial.outcome != FITS:
        return f"{trial.outcome}: {trial.reason}"
    low, high = trial.seconds
    return (
        f"fits: {trial.needed / GIB:.2f} GiB, {low:.3f} - {high:.3f} s, limited by {trial.limit} "
        f"({trial.compile_seconds:.0f} s to try)"
    )


def guesses(experiment: Experiment, setting: Setting) -> list[Guess]:
    """All candidates with their estimates: the config's own first, then the fastest first."""
    model = build_model(experiment, vocabulary_of(experiment))
    shapes = {path: shape.shape for path, shape in model.params.items()}
    own = own_choice(experiment, experiment.mesh.shape(len(setting.devices)))
    known = _trace(experiment, setting, model)
    every = candidates(experiment, meshes(len(setting.devices), model.axes, shapes))
    held: dict[tuple[tuple[int, ...], str], tuple[int, int]] = {}
    found = []
    for candidate in dict.fromkeys([own, *every]):
        key = candidate.mesh, candidate.moments
        if key not in held:
            held[key] = _held(experiment, setting, model, candidate)
        state, parameters = held[key]
        roofline = estimate(candidate, known, state, parameters, setting.topology.chip)
        found.append(Guess(candidate, state, roofline, own=candidate == own))
    return found[:1] + sorted(found[1:], key=_urgency(found))


def _urgency(found: list[Guess]) -> Callable[[Guess], tuple[float, bool]]:
    """What guesses are sorted by: the estimate, and moments in float32 before the same with smaller
    ones, which are for what has no room."""

    def but_moments(guess: Guess) -> Candidate:
        return dataclasses.replace(guess.candidate, moments="float32")

    highest: dict[Candidate, float] = {}
    for guess in found:
        alike = but_moments(guess)
        highest[alike] = max(guess.roofline.high, highest.get(alike, 0.0))
    return lambda guess: (highest[but_moments(guess)], guess.candidate.moments != "float32")


def _trace(experiment: Experiment, setting: Setting, model: Functional) -> Model:
    mesh = make_mesh(experiment.mesh, setting.devices)
    experiment.check_mesh(mesh)
    tasks = make_tasks(experiment)
    teachers = make_teachers(experiment, model, vocabulary_of(experiment))
    with jax.set_mesh(mesh):
        _, shapes, shardings = fresh_state(experiment, model, mesh, teachers)
        abstract = abstract_state(shapes, shardings)
        turns = experiment.schedule.build(list(tasks), experiment.steps).turns
        steps = trace_turns(experiment, tasks, turns, model, abstract, shardings, mesh, teachers)
        flops = sum(step.needed_flops for step in steps)
    parameters = sum(shape.size for shape in model.params.values())
    return Model(flops, widest(model.axes, model.params), parameters)


def _held(
    experiment: Experiment, setting: Setting, model: Functional, candidate: Candidate
) -> tuple[int, int]:
    """Bytes of a device: of the state, and of the parameters alone."""
    optim = dataclasses.replace(experiment.optim, moment_dtype=candidate.moments)
    experiment = dataclasses.replace(experiment, optim=optim)
    mesh = make_mesh(candidate.mesh_config, setting.devices)
    teachers = make_teachers(experiment, model, vocabulary_of(experiment))
    with jax.set_mesh(mesh):
        _, shapes, shardings = fresh_state(experiment, model, mesh, teachers)
    return per_device(shapes, shardings), per_device(shapes.params, shardings.params)


def next_guess(left: list[Guess], trials: list[Trial], rows: int, memory: float) -> Guess:
    """The first of those left that is likely to have room, else the first."""
    for guess in left:
        if _scaled(guess, trials, rows) <= memory:
            return guess
    return left[0]


def _scaled(guess: Guess, trials: list[Trial], rows: int) -> float:
    """Bytes that a candidate needs if its activations are those of the nearest trial with the same
    remat policy, in proportion to the rows that a device encodes at once and split over `tensor`
    and `expert` as evenly as they could be; 0 where there is none. Of trials as near, one with the
    same mesh, whose state is the same too."""
    remat, each = guess.candidate.hunger(rows)
    needed = 0.0
    nearest = math.inf, True
    for trial in trials:
        other, other_each = trial.candidate.hunger(rows)
        if trial.needed is None or other != remat:
            continue
        ratio = each / other_each * _thickness(guess) / _thickness(trial)
        distance = abs(math.log(ratio)), trial.candidate.mesh != guess.candidate.mesh
        if distance <= nearest:
            nearest = distance
            needed = guess.state + (trial.needed - trial.state) * ratio
    return needed


def _thickness(of: Guess | Trial) -> float:
    """Share of the widths that a device has."""
    return 1 / math.prod(of.candidate.mesh[2:])


def judge(guess: Guess, trials: list[Trial], rows: int, memory: float) -> tuple[str, str]:
    """("fits", "") where a candidate is worth compiling, else why it is not."""
    if guess.state > memory:
        over = (guess.state - memory) / GIB
        return NO_ROOM, f"the state alone needs {guess.state / GIB:.2f} GiB, {over:.2f} too many"
    remat, each = guess.candidate.hunger(rows)
    for trial in trials:
        other, other_each = trial.candidate.hunger(rows)
        hungrier = remat >= other and each >= other_each and guess.state >= trial.state
        if trial.outcome == NO_ROOM and trial.needed and hungrier and _as_thick(guess, trial):
            over = (trial.needed - memory) / GIB
            what = describe(trial.candidate)
            return NO_ROOM, f"needs more than {what}, which needs {over:.2f} GiB too many"
        if trial.outcome == FITS and guess.candidate.only_saves(trial.candidate):
            return SLOWER, f"does more than {describe(trial.candidate)}, which fits, to save memory"
    fitting = [trial for trial in trials if trial.seconds]
    if not fitting:
        return FITS, ""
    slow = min(trial.seconds[1] for trial in fitting)
    if guess.roofline.low > slow:
        least = guess.roofline.low
        return SLOWER, f"{guess.roofline.limit} alone takes {least:.3f} s, the best {slow:.3f} s"
    needed = _scaled(guess, trials, rows)
    if needed > memory:
        return NOT_TRIED, f"expected {needed / GIB:.2f} GiB, as others need with so many rows"
    # What the estimates know nothing of: traffic of activations, which goes with the policy.
    alike = [trial for trial in fitting if trial.candidate.remat == guess.candidate.remat]
    lacked = min((trial.seconds[1] - trial.estimate for trial in alike), default=-math.inf)
    if guess.roofline.high + lacked > slow * DOUBT:
        return SLOWER, f"expected {guess.roofline.high + lacked:.3f} s, the best {slow:.3f} s"
    return FITS, ""


def _as_thick(guess: Guess, trial: Trial) -> bool:
    """Whether a candidate's activations are split over no more devices of `tensor` and `expert`."""
    return all(g <= t for g, t in zip(guess.candidate.mesh[2:], trial.candidate.mesh[2:]))


def _try(command: Command, setting: Setting, guess: Guess, made: dict[str, str]) -> Trial:
    began = time.perf_counter()
    changed = dataclasses.replace(command, assignments={**command.assignments, **made})
    trial = Trial(guess.candidate, made, guess.state, guess.roofline.high, NOT_TRIED)
    try:
        experiment = one_of(changed, command.options.get("stage"))
        plan = measure(experiment, setting, stop_at_refusal=True)
    except ConfigError as error:
        return dataclasses.replace(trial, reason=f"the config refuses it: {error}")
    trial = dataclasses.replace(trial, compile_seconds=time.perf_counter() - began)
    return _outcome(trial, plan)


def _outcome(trial: Trial, plan: Plan) -> Trial:
    for refusal in plan.refused:
        needed = refusal.needed
        reason = refusal.message.splitlines()[0]
        if needed is None:
            return dataclasses.replace(trial, outcome=NOT_TRIED, reason=reason)
        over = needed - refusal.available
        reason = f"{needed / GIB:.2f} GiB, {over / GIB:.2f} too many"
        return dataclasses.replace(trial, outcome=NO_ROOM, reason=reason, needed=needed)
    needed = max(plan.needed(step) for step in plan.steps)
    trial = dataclasses.replace(trial, needed=needed)
    if not plan.fits:
        over = (needed - plan.memory) / GIB
        reason = f"{needed / GIB:.2f} GiB, {over:.2f} too many"
        return dataclasses.replace(trial, outcome=NO_ROOM, reason=reason)
    low = sum(step.roofline.low for step in plan.steps)
    high = sum(step.roofline.high for step in plan.steps)
    rows = sum(step.rows for step in plan.steps)
    slowest = max(plan.steps, key=lambda step: step.roofline.low)
    return dataclasses.replace(
        trial,
        outcome=FITS,
        seconds=(low, high),
        limit=slowest.roofline.limit,
        examples_per_second=(rows / high, rows / low),
    )
