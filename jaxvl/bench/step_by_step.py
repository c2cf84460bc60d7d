"""Training beside open_clip, step by step: how far the losses of the two part.

    python -m jaxvl.bench.step_by_step                     # CLIP, SigLIP and CoCa, 300 steps each
    python -m jaxvl.bench.step_by_step --systems clip --mutants     # what a wrong rule looks like

open_clip builds a small model with random weights: ViT 4 x 96, text 2 x 96. `interop.open_clip`
converts them, and both libraries train from there on the same batches, which jaxvl's loader reads
from the emoji corpus. One side is open_clip's model, its loss, `torch.optim.AdamW` with open_clip's
two groups of parameters, and its `cosine_lr`. The other side is a run of jaxvl, by `setup` and its
compiled step, once with the whole batch and once with four microbatches.

What is left of a difference is the order of float32 sums. To show that, `--exact` trains a third
copy of open_clip's side in float64: jaxvl is not farther from it than torch's own float32 is, but
for a small factor.

The limit of the scale can be kept in two ways. open_clip clamps the parameter after each step, and
so does jaxvl here (`optim.clamp="update"`). By default jaxvl reads min(parameter, limit) and lets
no gradient push the parameter farther. With that the two agree until the limit is met. There Adam's
momentum carries our parameter up to 12 learning rates beyond, unseen by the loss; open_clip's
stays, but keeps the momentum. When the gradient turns after a long time, the scale leaves 100 after
9 steps here and after 6 there. See --clamp=loss --init-scale=100.

The peer needs torch and open_clip, `pip install 'jaxvl[interop]'`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json
from jaxvl.bench.harness import publish
from jaxvl.bench.open_clip_side import MEAN, STD, SYSTEMS, Peer, Rules, Sizes, System, write_peer
from jaxvl.config import resolve
from jaxvl.interop import open_clip
from jaxvl.interop.bundle import Bundle
from jaxvl.interop.peers import peer
from jaxvl.models import presets
from jaxvl.sharding.mesh import MeshConfig, make_mesh
from jaxvl.training.experiment import Experiment
from jaxvl.training.setup import setup
from jaxvl.training.weights import save_weights
from jaxvl.training.writer import Writer

THEIRS = "open_clip"
OURS = ("whole", "accumulated")
EXACT = {"float64": Rules(double=True)}
MUTANTS = {
    "decay of gains and biases": Rules(decay_all=True),
    "b2 = 0.999": Rules(b2=0.999),
    "eps = 1e-8": Rules(eps=1e-8),
    "schedule one step late": Rules(late=1),
}


def experiment_of(
    system: System, sizes: Sizes, start: pathlib.Path, microbatches: int
) -> Experiment:
    """The run of jaxvl that does what `Peer` does; `start`: workdir with the converted weights."""
    model = presets.saved(str(start))
    fields = dict(
        image=dict(name="picture", size=sizes.image_size),
        text=dict(name="caption", columns="name/en", length=sizes.length),
    )
    data = dict(source=dict(sizes.source), batch=sizes.batch, fields=fields)
    task = dict(data=data, objectives=dict(system.objectives), microbatches=microbatches)
    config = dict(
        model=model,
        start=str(start),
        preprocess=dict(image_size=sizes.image_size, mean=MEAN, std=STD),
        tasks=dict(pairs=task),
        steps=sizes.steps,
        optim=dict(
            name="adamw",
            lr=sizes.lr,
            warmup=sizes.warmup,
            schedule="cosine",
            b1=0.9,
            b2=0.98,
            eps=1e-6,
            weight_decay=sizes.weight_decay,
            clip_norm=None,
            clamp=sizes.clamp if model["max_scale"] else "loss",
        ),
        log=dict(tensorboard=False, report=False),
    )
    return resolve(Experiment, ConfigDict(config, convert_dict=True))


class Ours:
    """A run of jaxvl, made by `setup`; its steps are taken one by one."""

    def __init__(self, experiment: Experiment, workdir: pathlib.Path, mesh: jax.sharding.Mesh):
        workdir.mkdir()
        quiet = Console(file=io.StringIO())
        with Writer(workdir, experiment.steps, tensorboard=False, console=quiet) as writer:
            self.run = setup(experiment, mesh, workdir, writer)
        self.state = self.run.take_state()

    def step(self, number: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """The batch and the figures of a step."""
        turn = self.run.schedule(number)
        (batch,) = (self.run.feeds[task].take() for task in turn.tasks)
        self.state, (figures,) = self.run.steps[turn](self.state, (batch,))
        arrays = {name: np.array(batch[name]) for name in ("image", "text")}  # torch wants to write
        return arrays, {name: float(value) for name, value in figures.items()}


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a comparison has seen, by run: `open_clip`, `float64`, mutants; `whole`, `accumulated`.

    Attributes:
      figures: run -> name -> float64 [steps]: the losses by open_clip's names, `loss`, the weighted
        sum of them, and the learning rate `lr`.
      weights: run -> weights after the last step, by open_clip's names.
      decayed: names of the parameters that decay in open_clip.
      seconds: run -> of all steps.
    """

    figures: dict[str, dict[str, np.ndarray]]
    weights: dict[str, dict[str, np.ndarray]]
    decayed: frozenset[str]
    seconds: dict[str, float]

    def apart(self, one: str, other: str, name: str = "loss") -> np.ndarray:
        """Difference of a figure at each step, float64 [steps]."""
        return np.abs(self.figures[one][name] - self.figures[other][name])

    def weights_apart(self, one: str, other: str) -> float:
        """Largest difference of any weight after the last step."""
        pairs = [(self.weights[one][n], self.weights[other][n]) for n in self.weights[one]]
        return max(float(np.abs(a - b).max()) for a, b in pairs)


def compare(
    system: System,
    sizes: Sizes = Sizes(),
    others: Mapping[str, Rules] | None = None,
    log: Callable[[str], None] = lambda message: None,
) -> Trace:
    """Trains both from one set of weights on the same batches.

    Args:
      others: further copies of open_clip's side, with other rules.
      log: is told every ten steps how far the losses are apart.

    Raises:
      RuntimeError: tokenizers or batches differ, or a step was left out.
    """
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with contextlib.ExitStack() as stack:
        root = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(jax.set_mesh(mesh))
        texts = write_peer(root / THEIRS, system, sizes)
        bundle = open_clip.load(root / THEIRS)
        check_tokens(bundle, root / THEIRS, texts, sizes.length)
        save_weights(bundle, root / "start")
        rules = {THEIRS: Rules(), **(others or {})}
        theirs = {name: Peer(root / THEIRS, system, sizes, how) for name, how in rules.items()}
        ours = {}
        for name, count in zip(OURS, (1, sizes.microbatches)):
            if name == "whole" or count > 1:
                experiment = experiment_of(system, sizes, root / "start", count)
                ours[name] = Ours(experiment, root / name, mesh)
                stack.callback(ours[name].run.close)
        figures, seconds = _train(system, sizes, theirs, ours, log)
        weights = {run: side.state() for run, side in theirs.items()}
        for run, side in ours.items():
            weights[run] = in_their_names(bundle, side.state.params)
    return Trace(figures, weights, frozenset(theirs[THEIRS].decayed), seconds)


def _train(
    system: System,
    sizes: Sizes,
    theirs: Mapping[str, Peer],
    ours: Mapping[str, Ours],
    log: Callable[[str], None],
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, float]]:
    """All steps of all runs: figures, and seconds."""
    names = (*system.losses, "loss", "lr")
    found = {run: {name: np.zeros(sizes.steps) for name in names} for run in (*theirs, *ours)}
    seconds = dict.fromkeys(found, 0.0)
    for step in range(sizes.steps):
        seen = None
        for run, side in ours.items():
            began = time.perf_counter()
            batch, figures = side.step(step)
            seconds[run] += time.perf_counter() - began
            seen = seen or batch
            if figures["skipped"] or any(not np.array_equal(seen[k], batch[k]) for k in batch):
                raise RuntimeError(f"{run}, step {step}: left out, or of another batch")
            weighted = {
                name: system.objectives[objective] * figures[f"loss/{objective}"]
                for name, objective in system.losses.items()
            }
            for name in names:
                found[run][name][step] = {**figures, **weighted}[name]
        for run, side in theirs.items():
            began = time.perf_counter()
            figures = side.step(step, seen["image"], seen["text"])
            seconds[run] += time.perf_counter() - began
            for name in names:
                found[run][name][step] = figures[name]
        if (step + 1) % 10 == 0:
            log(f"{step + 1} steps, " + _so_far(found, step + 1))
    return found, seconds


def _so_far(found: Mapping[str, Mapping[str, np.ndarray]], steps: int) -> str:
    """Largest difference of every run's loss from open_clip's."""
    apart = {
        run: np.abs(figures["loss"] - found[THEIRS]["loss"])[:steps].max()
        for run, figures in found.items()
        if run != THEIRS
    }
    return ", ".join(f"{run} {value:.2e}" for run, value in apart.items())


def check_tokens(bundle: Bundle, folder: pathlib.Path, texts: list[str], length: int) -> None:
    """Raises RuntimeError where open_clip's tokenizer and ours, of one folder, give other ids."""
    from open_clip.tokenizer import HFTokenizer

    theirs = HFTokenizer(str(folder), context_length=length)(texts).numpy()
    same = (bundle.tokenizer.encode(texts, length) == theirs).all(1)
    if not same.all():
        raise RuntimeError(f"{texts[int(same.argmin())]!r} has other ids in open_clip")


def in_their_names(bundle: Bundle, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters by open_clip's names, float64."""
    arrays = {path: np.asarray(value) for path, value in params.items()}
    written = open_clip.write_state(
        dataclasses.replace(bundle, arrays=arrays), bundle.origin["open_clip"]["model_cfg"]
    )
    return {name: np.asarray(value, np.float64) for name, value in written.items()}


def rows_of(trace: Trace, tolerance: float) -> Iterator[dict[str, Json]]:
    """One row for each pair of runs: the largest difference of the loss and of its parts, its step,
    and the first step beyond `tolerance`."""
    ours = [run for run in OURS if run in trace.figures]
    others = [run for run in trace.figures if run not in (THEIRS, *OURS)]
    pairs = [(run, THEIRS) for run in ours]
    pairs += [(run, other) for other in others for run in (THEIRS, *ours)]
    pairs += [("accumulated", "whole")] * (len(ours) == 2)
    for one, other in pairs:
        apart = trace.apart(one, other)
        beyond = np.flatnonzero(apart > tolerance)
        yield {
            "run": one,
            "against": other,
            "largest": float(apart.max()),
            "at_step": int(apart.argmax()),
            "each": {n: float(trace.apart(one, other, n).max()) for n in trace.figures[one]},
            "beyond_at": int(beyond[0]) if len(beyond) else None,
            "weights": trace.weights_apart(one, other),
        }


def main(argv: list[str] | None = None) -> dict[str, Json]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--steps", type=int, default=Sizes.steps)
    parser.add_argument("--init-scale", type=float, help="of CLIP's and CoCa's cosine")
    parser.add_argument("--clamp", choices=("update", "loss"), default=Sizes.clamp)
    parser.add_argument("--exact", action="store_true", help="open_clip's side in float64 as well")
    parser.add_argument("--mutants", action="store_true", help="and with wrong rules")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="for the step of parting")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args(argv)
    peer("torch").set_num_threads(args.threads)
    console = Console(width=120)
    sizes = Sizes(steps=args.steps, init_scale=args.init_scale, clamp=args.clamp)
    others = (EXACT if args.exact else {}) | (MUTANTS if args.mutants else {})
    result: dict[str, Json] = {"sizes": dataclasses.asdict(sizes)}
    table = Table(title=f"{sizes.steps} steps beside open_clip", title_justify="left")
    for heading in ("system", "run", "against", "largest", "at step", "beyond at", "weights"):
        table.add_column(heading)
    for name in args.systems:
        trace = compare(SYSTEMS[name], sizes, others, console.print)
        rows = list(rows_of(trace, args.tolerance))
        ends = {run: [float(x["loss"][i]) for i in (0, -1)] for run, x in trace.figures.items()}
        result[name] = {"rows": rows, "first_and_last_loss": ends, "seconds": trace.seconds}
        for row in rows:
            beyond = "never" if row["beyond_at"] is None else str(row["beyond_at"])
            figures = (f"{row['largest']:.2e}", str(row["at_step"]), beyond)
            table.add_row(name, row["run"], row["against"], *figures, f"{row['weights']:.1e}")
    return publish(console, table, result, args.json)


if __name__ == "__main__":
    main()
