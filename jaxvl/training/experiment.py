"""The root of a config, and the command line that fills it.

python -m jaxvl.train --config=configs/align_emoji.py:long --config.optim.lr=1e-3 --workdir=runs
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from jax.sharding import Mesh

from jaxvl.adapters import ADAPTERS
from jaxvl.adapters.base import check_pattern
from jaxvl.aliases import Node
from jaxvl.config import (
    ConfigError,
    Count,
    PathText,
    Plugin,
    Seed,
    Steps,
    Tokens,
    check,
    load_file,
    load_plugins,
    nearest,
    override,
    resolve,
)
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.tokenizers import TokenizerConfig
from jaxvl.evals import EVALUATORS
from jaxvl.jobs import JOBS
from jaxvl.models import MODELS, InputSpec
from jaxvl.models.base import ModelConfig
from jaxvl.sharding.mesh import MeshConfig, batch_shards
from jaxvl.tasks import TaskConfig
from jaxvl.training.checkpoint import CheckpointConfig
from jaxvl.training.compiler import Choice
from jaxvl.training.guard import GuardConfig
from jaxvl.training.meter import ALL
from jaxvl.training.older import with_start
from jaxvl.training.optim import OptimConfig
from jaxvl.training.schedule import SCHEDULES, RoundRobin
from jaxvl.training.sinks import WandbConfig
from jaxvl.training.teachers import TeacherConfig


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is written while training.

    Attributes:
      every: steps between two records of the metrics.
      tensorboard: also write TensorBoard files under `workdir/tb`.
      wandb: also send them to Weights & Biases: `dict(project="pairs", mode="offline")`, see
        `WandbConfig`.
      peak_flops: FLOP/s that one device can do, for MFU; None: as published for its kind
        (`chips.py`).
      report: write `workdir/report.html` at the end.
    """

    every: Steps = 50
    tensorboard: bool = True
    wandb: WandbConfig | None = None
    peak_flops: float | None = None
    report: bool = True

    def __post_init__(self):
        check(self.every >= 1, "every", f"{self.every!r} must be >= 1 step")
        peak = self.peak_flops
        check(
            peak is None or 0 < peak < math.inf,
            "peak_flops",
            f"{peak!r} must be > 0 FLOP/s, as 312e12, or None",
        )


@dataclasses.dataclass(frozen=True)
class ResumeConfig:
    """What may differ from the checkpoint that a run goes on from.

    Attributes:
      accept: options, such as `optim.lr`, or groups of them, such as `tasks.pairs.data`, whose new
        value holds from the checkpoint's step on. Without it, a change that would make the run
        another one is refused.
      devices: that the config is written for; on a part of them the run goes on with the same
        global batch in more microbatches (`training/elastic.py`). None: as the config says,
        whatever devices there are.
    """

    accept: tuple[str, ...] = ()
    devices: Count | None = None


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """A rule: which parameters and model state of other weights a run begins with.

    Attributes:
      source: workdir of a run or of `jaxvl.convert`, whose newest weights are read, or
        `hf:FOLDER`, `open_clip:FOLDER`, `big_vision:FILE.npz`. Several are dense models of one
        shape for a model with experts: expert e is the MLP of source e mod N, everything else is
        the first's (`adapters/upcycle.py`).
      take: regular expression of the source's paths that are taken (`re.search`).
      cut, put: prefix that the taken paths lose, and the one that they get instead.
    """

    source: str | tuple[PathText, ...]
    take: str = ""
    cut: str = ""
    put: str = ""

    def __post_init__(self):
        check(bool(self.source), "source", "is empty; must be a path")
        check_pattern("take", self.take)

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else self.source


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A whole training run.

    Attributes:
      model: a model by name, with its options.
      tasks: name -> task; only weights that were converted have none.
      steps: steps of the run.
      optim, schedule, mesh, guard, checkpoint, resume, log: see their classes.
      tokenizer, preprocess: shared by all tasks and evaluators; they travel in the checkpoint.
      evals: name -> evaluator by name, with its options.
      after: name of a table -> the job that computes it, by name, with its options: after the last
        step, or every so many steps (`jobs/base.py`). The table is in `WORKDIR/tables/NAME`.
      adapters: label -> adapter by name, with its options: parameters beside the model's own, which
        are then frozen (`jaxvl/adapters`).
      start: rules of what the run begins with, see `StartConfig`; a text alone is the source of
        one that takes everything. Where words are taken, their tokenizer is this run's.
        `presets.saved(workdir)` is the model of a workdir.
      fresh: regular expression of parameters that no rule of `start` need cover; they are drawn.
      teachers: name -> weights beside those that are trained, which hooks of tasks (`before`) read:
        `dict(momentum=dict(source="ema", decay=0.995))`, see `TeacherConfig`.
      text_length: tokens T of texts that are evaluated; None: the longest of the tasks'.
      seed: of initialisation, data order and all randomness in the steps.
      dtype: of computation; parameters are float32.
      deterministic: whether the same run on the same devices gives the same bits on GPUs too, at
        some cost of speed; elsewhere it always does (`training/deterministic.py`).
      compiler: `default`, or `recommended`: flags of XLA by platform (`training/compiler.py`).
      plugins: files and modules of your own, which register components; see `config.plugins`.
    """

    model: Annotated[ModelConfig, MODELS]
    steps: Steps
    tasks: dict[str, TaskConfig] = dataclasses.field(default_factory=dict)
    optim: OptimConfig = OptimConfig()
    schedule: Annotated[Any, SCHEDULES] = RoundRobin()
    mesh: MeshConfig = MeshConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    preprocess: Preprocess = Preprocess()
    evals: dict[str, Annotated[Any, EVALUATORS]] = dataclasses.field(default_factory=dict)
    after: dict[str, Annotated[Any, JOBS]] = dataclasses.field(default_factory=dict)
    checkpoint: CheckpointConfig = CheckpointConfig()
    resume: ResumeConfig = ResumeConfig()
    guard: GuardConfig = GuardConfig()
    log: LogConfig = LogConfig()
    adapters: dict[str, Annotated[Any, ADAPTERS]] = dataclasses.field(default_factory=dict)
    start: tuple[StartConfig, ...] = ()
    fresh: str = r"(^|/)(adapter|heads)/"
    teachers: dict[str, TeacherConfig] = dataclasses.field(default_factory=dict)
    text_length: Tokens | None = None
    seed: Seed = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    deterministic: bool = False
    compiler: Choice = "default"
    plugins: tuple[Plugin, ...] = ()

    @classmethod
    def before_resolving(cls, node: Node) -> Node:
        """Imports the plugins, whose components the other keys may name; a text in `start` is the
        source of a rule."""
        node = with_start({**node, "plugins": load_plugins(node.get("plugins", ()))})
        start = node.get("start", ())
        start = (start,) if isinstance(start, str) else start
        if isinstance(start, (list, tuple)):
            start = tuple(dict(source=rule) if isinstance(rule, str) else rule for rule in start)
        return {**node, "start": start}

    def __post_init__(self):
        check(self.steps >= 1, "steps", f"{self.steps!r} must be >= 1")
        check(
            bool(self.tasks) or self.text_length is not None, "tasks", "must name at least one task"
        )
        check(
            self.optim.warmup <= self.steps,
            "optim.warmup",
            f"{self.optim.warmup!r} is longer than the run of {self.steps} steps; must be at most "
            f"`steps`",
        )
        check_pattern("fresh", self.fresh)
        for label in self.adapters:
            check("/" not in label, f"adapters.{label}", "an adapter's label may not hold '/'")
        for name in self.tasks:
            check("/" not in name, f"tasks.{name}", "a task's name may not hold '/'")
            check(
                name != ALL,
                f"tasks.{name}",
                "is the name of what is logged of all tasks together; choose another",
            )
            data = self.tasks[name].data
            reads_rows = data.interleave is None or self.model.capabilities().interleaved
            check(
                reads_rows,
                f"tasks.{name}.data.interleave",
                "the model reads one image per row; must be None (cosmo reads more)",
            )
            reads_texts = data.texts_per_row == 1 or self.model.capabilities().multi_instance
            problem = (
                f"{data.texts_per_row!r}: the model reads one text per row; must be 1 (imp reads "
                f"more)"
            )
            check(reads_texts, f"tasks.{name}.data.fields.text.count", problem)
            self._check_masked(name)
        self._check_tables()
        if self.tasks:
            self.schedule.build(list(self.tasks), self.steps)
        best = self.checkpoint.best_metric
        if best is not None:
            evaluator = best.lstrip("-").split("/")[0]
            check(
                evaluator in self.evals,
                "checkpoint.best_metric",
                f"{best!r}: no evaluator {evaluator!r}{nearest(evaluator, list(self.evals))} "
                f"(evals: {', '.join(self.evals)})",
            )

    def _check_masked(self, task: str) -> None:
        """Raises ConfigError for objectives that would train on what a row lacks."""
        if self.tasks[task].data.missing != "mask":
            return
        reported = self.model.capabilities().reports_missing
        enough = ("by batch", "by output") if reported else ("by batch",)
        for key, use in self.tasks[task].objectives.items():
            problem = (
                f"'mask': {use.name} would train on the padding of rows that lack an input; must "
                f"be 'skip', or tasks.{task}.objectives.{key} one that leaves such rows out (nce, "
                f"symile, one_to_k; of imp, classification)"
            )
            fits = use.objective.masks_missing in enough
            check(fits, f"tasks.{task}.data.missing", problem)

    def _check_tables(self) -> None:
        """Raises ConfigError for jobs and tables that name what there is not."""
        for name, job in self.after.items():
            check("/" not in name, f"after.{name}", "a table's name may not hold '/'")
            known = list(self.tasks)
            problem = f"{job.task!r} is no task{nearest(job.task, known)} (tasks: {known})"
            check(job.task is None or job.task in known, f"after.{name}.task", problem)
        _ = self.jobs_in_order
        made = [name for name, job in self.after.items() if job.every]
        for task, config in self.tasks.items():
            key = f"tasks.{task}.data"
            for label, where in config.data.tables.items():
                problem = (
                    f"{where!r} is neither the folder of a table, RUN/tables/NAME, nor a job in "
                    f"after with every >= 1{nearest(where, made)} (such jobs: {made})"
                )
                check("/" in where or where in made, f"{key}.tables.{label}", problem)
            label = (config.data.keep or "").partition("/")[0]
            changes = config.data.tables.get(label) in made
            problem = f"{config.data.keep!r} is of a table that changes while the run reads it"
            check(not changes, f"{key}.keep", problem)

    @property
    def jobs_in_order(self) -> list[str]:
        """Names of the jobs, each after those whose tables it reads; else in order of the names.

        Raises ConfigError where a job waits for itself, for one that there is not, or for one that
        does not run whenever it does.
        """
        order: list[str] = []
        left = {
            name: [where for where in job.tables.values() if "/" not in where]
            for name, job in sorted(self.after.items())
        }
        for name, needed in left.items():
            for where in needed:
                every = self.after[name].every
                runs = where in self.after and self.after[where].every == every
                problem = (
                    f"{where!r} is neither the folder of a table, RUN/tables/NAME, nor a job in "
                    f"after with every={every}{nearest(where, list(left))}"
                )
                check(runs, f"after.{name}.tables", problem)
        while left:
            ready = [name for name, needed in left.items() if set(needed) <= set(order)]
            problem = f"{sorted(left)} wait for each other's tables"
            check(bool(ready), "after", problem)
            order.append(ready[0])
            del left[ready[0]]
        return order

    @property
    def longest_text(self) -> int:
        """Tokens of the longest texts that the model is given."""
        return max([self.text_length or 0, *(t.data.tokens for t in self.tasks.values())])

    def inputs(self, vocab_size: int, pad_id: int, eos_id: int | None) -> InputSpec:
        """What the model is built for: pictures of the evaluators' size, the longest texts of any
        task.

        Tasks may give it pictures of other sizes; how encoders meet those is theirs to say.
        """
        return InputSpec(self.preprocess.image_size, self.longest_text, vocab_size, pad_id, eos_id)

    def check_mesh(self, mesh: Mesh) -> None:
        """Raises ConfigError where a batch or chunk does not divide over the mesh."""
        shards = batch_shards(mesh)
        for name, task in self.tasks.items():
            rows = task.data.batch // task.microbatches
            if rows % shards:
                up = -(-rows // shards) * shards * task.microbatches
                what = f"{task.data.batch}" + (
                    f" in {task.microbatches} microbatches" if task.microbatches > 1 else ""
                )
                raise ConfigError(
                    f"tasks.{name}.data.batch",
                    f"{what} does not divide over the {shards} batch shards of the mesh (data "
                    f"x fsdp); the nearest that does: {up}",
                )


@dataclasses.dataclass(frozen=True)
class Command:
    """A parsed command line: the config's assignments by path, the options of the command itself,
    and its other words."""

    config: str
    assignments: dict[str, str]
    options: dict[str, str]
    words: tuple[str, ...] = ()

    def experiment(self) -> Experiment:
        """Raises ConfigError for whatever is wrong with the config, or where it has stages."""
        config = load_file(self.config)
        check(
            not config.get("stages"), "stages", "are several runs, of which this command takes one"
        )
        return resolve(Experiment, override(config, self.assignments))


def parse_command(
    argv: Sequence[str],
    options: dict[str, str | None],
    *,
    flags: Sequence[str] = (),
    words: str | None = None,
    config: bool = True,
) -> Command:
    """Reads `--config=FILE[:ARG] --config.KEY=VALUE … --OPTION=VALUE …` (`--OPTION VALUE` as well).

    Args:
      argv: without the program's name.
      options: the command's own options with their defaults; None: not given.
      flags: of these, those that stand without a value, which then is "true".
      words: what words that are no options are; None: there may be none.
      config: whether the command has `--config`.

    Raises:
      ConfigError: an unknown option, a value that is missing, or one of a flag.
    """
    file = ""
    assignments = {}
    values = {k: v for k, v in options.items() if v is not None}
    others = []
    names = [*(["config"] if config else []), *options]
    known = f"options: {', '.join('--' + o for o in names)}"
    left = list(argv)
    while left:
        word = left.pop(0)
        name, has_value, value = word.partition("=")
        if not name.startswith("--"):
            check(words is not None, "command line", f"{word!r} is not an option ({known})")
            others.append(word)
            continue
        name = name[2:]
        of_config = config and (name == "config" or name.startswith("config."))
        problem = f"unknown option{nearest(name, names)} ({known})"
        check(of_config or name in options, f"--{name}", problem)
        if name in flags:
            problem = f"takes no value, but has {value!r}; without the option it is off"
            check(not has_value, f"--{name}", problem)
            value = "true"
        elif not has_value:
            check(bool(left) and not left[0].startswith("--"), f"--{name}", "needs a value")
            value = left.pop(0)
        if not of_config:
            values[name] = value
        elif name == "config":
            file = value
        else:
            assignments[name[len("config.") :]] = value
    return Command(file, assignments, values, tuple(others))
