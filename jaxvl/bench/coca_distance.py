"""Why CoCa finds fewer pictures than ALIGN: `configs/coca_distance.py`, run by run, with a table.

    python -m jaxvl.bench.coca_distance --runs=align,coca --seeds=0       # these two, once
    python -m jaxvl.bench.coca_distance                                   # all of RUNS, three seeds
    python -m jaxvl.bench.coca_distance --size=demo --runs=align,pooler   # as large as the demo
    python -m jaxvl.bench.coca_distance --runs=                           # only the table

Each run is a training run of its own process, below OUT/SIZE. What it found is in RUN/SEED.json; a
run whose file is there is not repeated, and one that was interrupted goes on from its last
checkpoint. All runs of the first seed come before those of the second. The figures are the share of
pictures of an unseen style that are recognised at the first guess, and the mean recall of pictures
and names (at 1, 5 and 10, both ways), which varies less; differences are of the same seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json
from jaxvl.bench.harness import publish
from jaxvl.command import STOPPED
from jaxvl.config import load_file, resolve, to_dict
from jaxvl.training.experiment import Experiment
from jaxvl.training.figures import Figures

CONFIG = "configs/coca_distance.py"
BASE = "align"
FIGURE = "unseen_style/acc@1"
RECALL = "retrieval/mean_recall"
# One change alone; then ALIGN with several, up to all that CoCa's contrastive side has; then CoCa.
RUNS = (
    BASE,
    "text_class",
    "pooler",
    "coca",
    "coca+captions_2",
    "text_wide",
    "text_prenorm",
    "text_mean",
    "text_causal",
    "text_class_both_ways",
    "text_class_2_layers",
    "pooler+queries_1",
    "pooler+queries_32",
    "pooler+parallel",
    "scale_14",
    "scale_free",
    "no_bias",
    "half_rate",
    "more_steps",
    "emoji_rows",
    "text_class+pooler+no_bias",
    "coca+captions_0.5",
    "coca+captions_1",
    "coca+captions_2+parallel",
    "coca+captions_2+queries_32",
    "coca+captions_2+unimodal_2",
    "coca+captions_2+untied",
    "coca+captions_2+half_rate",
    "coca+captions_2+more_steps",
)


def argument(run: str, seed: int, size: str, steps: int) -> str:
    """The config of one run, as `jaxvl.train` takes it."""
    return f"{CONFIG}:run={run},seed={seed},size={size},steps={steps}"


def digest(config: str) -> str:
    """Of everything that a run's figures depend on."""
    node = to_dict(resolve(Experiment, load_file(config)))
    node.pop("plugins")  # they hold where files lie
    return hashlib.sha256(json.dumps(node, sort_keys=True).encode()).hexdigest()[:16]


def train(config: str, workdir: pathlib.Path) -> int:
    """A training run in a process of its own; its exit status."""
    command = [sys.executable, "-m", "jaxvl.train", f"--config={config}", f"--workdir={workdir}"]
    with (workdir / "output.txt").open("a") as output:
        return subprocess.run(command, stdout=output, stderr=output).returncode


def take(config: str, workdir: pathlib.Path, file: pathlib.Path) -> str:
    """Trains one run, unless `file` is there and of the same config; what happened, in words."""
    own = digest(config)
    if file.exists() and json.loads(file.read_text())["digest"] == own:
        return "is there"
    began = time.perf_counter()
    workdir.mkdir(parents=True, exist_ok=True)
    code = train(config, workdir)
    if code == STOPPED:
        return "was interrupted; call again, and it goes on"
    if code:
        return f"failed with {code}; see {workdir / 'output.txt'}"
    steps = resolve(Experiment, load_file(config)).steps
    seconds = time.perf_counter() - began
    figures = Figures(workdir, until=steps).latest
    result = {"digest": own, "config": config, "seconds": seconds, "figures": figures}
    file.write_text(json.dumps(result, indent=1) + "\n")
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    return f"took {seconds:.0f} s: {100 * figures[FIGURE]:.1f} %"


def collect(folder: pathlib.Path) -> dict[str, dict[int, dict[str, Json]]]:
    """Run -> seed -> result, of all that are there."""
    found: dict[str, dict[int, dict[str, Json]]] = {}
    for file in sorted(folder.glob("*/*.json")):
        found.setdefault(file.parent.name, {})[int(file.stem)] = json.loads(file.read_text())
    return found


def spread(values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation, in percent."""
    if not values:
        return "-"
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def table_of(found: dict[str, dict[int, dict[str, Json]]], title: str) -> Table:
    """The base first, then the runs from the worst to the best difference."""
    table = Table(title=title, title_justify="left")
    headings = ("run", "seeds", "first guess %", f"less than {BASE}", "mean recall %")
    for heading in (*headings, f"less than {BASE}", "token F1 %", "s"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    base = {seed: r["figures"] for seed, r in found.get(BASE, {}).items()}

    def losses(run: str, figure: str) -> list[float]:
        return [
            base[seed][figure] - r["figures"][figure]
            for seed, r in found[run].items()
            if seed in base
        ]

    def rank(run: str) -> tuple[bool, float]:
        return run != BASE, -statistics.mean(losses(run, RECALL) or [0.0])

    for run in sorted(found, key=rank):
        results = found[run].values()
        written = [r["figures"].get("written/token_f1") for r in results]
        cells = [run, str(len(results))]
        for figure in (FIGURE, RECALL):
            cells.append(spread([r["figures"][figure] for r in results]))
            cells.append("" if run == BASE else spread(losses(run, figure)))
        cells.append(spread([value for value in written if value is not None]))
        cells.append(f"{statistics.median(r['seconds'] for r in results):.0f}")
        table.add_row(*cells)
    return table


def main(argv: list[str] | None = None) -> dict[str, Json]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", default=",".join(RUNS), help="of the config, by commas")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--size", default="small", help="tiny, small or demo")
    parser.add_argument("--steps", type=int, default=0, help="instead of the size's")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/coca_distance"))
    parser.add_argument("--json", type=pathlib.Path, help="file for all figures")
    args = parser.parse_args(argv)
    console = Console()
    kind = args.size if not args.steps else f"{args.size}_{args.steps}"
    folder = args.out / kind
    for seed in map(int, args.seeds.split(",")):
        for run in filter(None, args.runs.split(",")):
            config = argument(run, seed, args.size, args.steps)
            place = folder / run / str(seed)
            said = take(config, place, place.with_suffix(".json"))
            console.print(f"{run}, seed {seed}: {said}", highlight=False)
    found = collect(folder)
    table = table_of(found, f"CoCa's distance to ALIGN, {kind}")
    return publish(console, table, {"size": kind, "runs": found}, args.json)


if __name__ == "__main__":
    main()
