"""A task: a data source, the objectives with their weights, and the signature (batch, resolution)
that gets compiled.

A task turns a batch into model inputs (`prepare`) and model outputs into a loss (`loss`); both are
pure and run inside the compiled step.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxvl.before import BEFORE, Before
from jaxvl.config import (
    Batch,
    ConfigError,
    Range,
    Weight,
    check,
    choose,
    convert,
    nearest,
    resolve,
    to_dict,
)
from jaxvl.data.config import POSITION, DataConfig
from jaxvl.data.preprocess import Preprocess
from jaxvl.kernels.contrastive import collectives
from jaxvl.objectives import OBJECTIVES, Context, Objective, ObjectiveState, Points

# Modalities that `Task.prepare` makes larger: uint8 from the loader, float32 for the model.
VISUAL = ("image", "video")
_Step = Annotated[int, Range(0, 2**31 - 1)]


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Options of one task.

    Attributes:
      data: source, batch size, image size, text length, captions, augmentation.
      objectives: name -> weight, or name -> group with `weight`, the objective's own options and,
        where the key is a label of your own, `name`: `dict(align=1.0)`,
        `dict(align=dict(weight=0.5, label_smoothing=0.2))`. One of weight 0 is computed for the log
        only. A weight may change over the run: `weight=((0, 0.0), (500, 1.0))` are points (step,
        weight), with straight lines between them.
      before: label -> hook by name with its options (`jaxvl.before`):
        `dict(momentum=dict(name="teach", teacher="momentum"))`.
      microbatches: chunks in which the encoders run; all negatives of the batch count all the same.
      collective: how the rows of a contrastive loss meet on the mesh: `gather`, `ring` or `grid`
        (`kernels/contrastive/collectives.py`); `auto`: by what the chips afford. No number depends
        on it.
      encode: this task's own options of the model's call in training, by name; which there are is
        the model's to say.
    """

    data: DataConfig
    objectives: dict[str, Any]
    before: dict[str, Any] = dataclasses.field(default_factory=dict)
    microbatches: Batch = 1
    collective: collectives.Choice = "auto"
    encode: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check(
            bool(self.objectives),
            "objectives",
            f"must name at least one (known: {', '.join(OBJECTIVES)})",
        )
        n = self.microbatches
        check(
            n >= 1 and self.data.batch % n == 0,
            "microbatches",
            f"{n!r} must divide the batch of {self.data.batch}",
        )
        resolved = {key: _objective(key, value) for key, value in self.objectives.items()}
        object.__setattr__(self, "objectives", resolved)
        hooks = {label: _hook(label, value) for label, value in self.before.items()}
        object.__setattr__(self, "before", _in_order(hooks, self.data))
        for key, use in resolved.items():
            try:
                use.objective.check_data(self.data)
            except ConfigError as error:
                raise error.under(f"objectives.{key}") from None
        for label, hook in hooks.items():
            try:
                hook.check_microbatches(n)
            except ConfigError as error:
                raise error.under(f"before.{label}") from None


@dataclasses.dataclass(frozen=True)
class WeightedObjective:
    """One objective of a task and its weight in the sum."""

    name: str
    weight: float | Points
    objective: Objective


def _objective(key: str, value: Any) -> WeightedObjective:
    path = f"objectives.{key}"
    if isinstance(value, WeightedObjective):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = {"weight": value}
    check(
        isinstance(value, (Mapping, ConfigDict)),
        path,
        f"{value!r} must be a weight, or a group of options with a 'weight'",
    )
    options = dict(value.items())
    weight = options.pop("weight", 1.0)
    name = options.pop("name", key)
    if "objective" in options:  # as `config.to_dict` writes a resolved one
        options = {k: v for k, v in dict(options["objective"]).items() if k != "name"}
    cls = OBJECTIVES.lookup(name, path if name == key else f"{path}.name")
    weight = _weight(weight, f"{path}.weight")
    objective = resolve(cls, options, path)
    check(
        isinstance(objective, Objective),
        path,
        f"{cls.__qualname__} must extend jaxvl.objectives.Objective",
    )
    return WeightedObjective(name, weight, objective)


def _weight(value: Any, path: str) -> float | Points:
    """A number, or points (step, weight) of ascending steps."""
    if isinstance(value, (int, float)):
        return convert(Weight, value, path)
    points = convert(tuple[tuple[_Step, Weight], ...], value, path)
    steps = [step for step, _ in points]
    check(bool(steps), path, "is empty; must be a number, or points (step, weight)")
    check(
        all(a < b for a, b in zip(steps, steps[1:])),
        path,
        f"the steps {steps} must ascend",
    )
    return points


def _hook(label: str, value: Any) -> Before:
    """The hook that a config names under `label`; a bare name is one without options."""
    path = f"before.{label}"
    if isinstance(value, Before):
        return value
    options = {"name": value} if isinstance(value, str) else value
    check(
        isinstance(options, (Mapping, ConfigDict)),
        path,
        f"{value!r} must be a hook's name, or a group of options with a 'name'",
    )
    options = dict(options.items())
    return choose(BEFORE, {"name": label, **options}, path)


def _in_order(hooks: Mapping[str, Before], data: DataConfig) -> dict[str, Before]:
    """The hooks, each after those whose findings it reads; else by label.

    Raises ConfigError where one reads what nobody finds, or two wait for each other.
    """
    for label, hook in hooks.items():
        for name in hook.reads:
            there = name in data.shapes or name.partition("/")[0] in hooks.keys() - {label}
            check(
                there,
                f"before.{label}",
                f"reads {name!r}, which is no entry of the batch and of no hook (hooks: "
                f"{', '.join(hooks)}; entries: {', '.join(sorted(data.shapes))})",
            )
    ordered: dict[str, Before] = {}
    left = dict(sorted(hooks.items()))
    while left:
        waits = {label: _labels(hook, left) for label, hook in left.items()}
        ready = [label for label, others in waits.items() if not others]
        check(bool(ready), f"before.{next(iter(left))}", "waits for a hook that waits for it")
        for label in ready:
            ordered[label] = left.pop(label)
    return ordered


def _labels(hook: Before, hooks: Mapping[str, Before]) -> set[str]:
    """Labels of those hooks whose findings a hook reads."""
    return {name.partition("/")[0] for name in hook.reads} & hooks.keys()


@dataclasses.dataclass(frozen=True)
class Task:
    """A task in use.

    Attributes:
      name: its key in the config.
      config: see `TaskConfig`.
      preprocess: mean, standard deviation and background of model inputs, shared by all tasks.
    """

    name: str
    config: TaskConfig
    preprocess: Preprocess

    @property
    def objectives(self) -> dict[str, Objective]:
        return {key: use.objective for key, use in self.config.objectives.items()}

    @property
    def hooks(self) -> dict[str, Before]:
        return self.config.before

    @property
    def signature(self) -> str:
        """What the compiled step depends on, as JSON; tasks of one signature share one.

        In it: names, shapes and dtypes of the batch; what else of `data` the compiled step reads
        (`DataConfig.on_device`); objectives and hooks in their order, with keys, weights and
        options; microbatches; collective; `encode`. Not in it: whatever the host alone reads (where
        the data comes from, which frames of a clip), and the task's name, unless one of its
        objectives keeps state between steps (a queue, a teacher), which belongs to this task: then
        no other task has its signature.
        """
        config = to_dict(self.config)
        shapes = {name: (s.shape, str(s.dtype)) for name, s in self.config.data.shapes.items()}
        data = self.config.data.on_device
        has_state = any(objective.keeps_state for objective in self.objectives.values())
        parts = (
            shapes,
            data,
            [*config["objectives"].items()],
            [*config["before"].items()],
            self.config.microbatches,
            self.config.collective,
            sorted(self.config.encode.items()),
        )
        return json.dumps([*parts, self.name if has_state else None], default=repr)

    def check_outputs(self, outputs: Collection[str], inputs: Mapping[str, jax.Array]) -> None:
        """Raises ConfigError where an objective reads what the model or the data does not give.

        Args:
          outputs: names of the model's outputs.
          inputs: model inputs, whose pictures are seen by an objective's `per_row` alone.
        """
        fields = f"fields of tasks.{self.name}.data and hooks give them"
        seen = [name for name, value in inputs.items() if not self._is_picture(name, value)]
        for key, use in self.config.objectives.items():
            batch = inputs if use.objective.reads_rows else seen
            path = f"tasks.{self.name}.objectives.{key}"
            _check_given(path, "model output", use.objective.reads, outputs)
            _check_given(path, "batch key", use.objective.batch_keys, batch, f"; {fields}")

    def prepare(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """Model inputs of a training batch or of some of its rows, inside the compiled step.

        Args:
          batch: as the loader gives it (`DataConfig.shapes`), or some of its rows.
          key: of this step. A row's field draws from its place in the stream and the field's name:
            the same on every mesh and host count.

        Returns:
          The batch with what the fields' `on_device` changes: pictures float32 with 3 channels,
          augmented and normalised.
        """
        prepared = dict(batch)
        with jax.named_scope("prepare"):
            for name, field in self.config.data.fields.items():
                if field.compiled() is None:
                    continue
                own = jax.random.fold_in(key, zlib.crc32(name.encode()))
                keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
                    own, batch[POSITION].reshape(-1)
                )
                prepared |= field.on_device(name, batch, keys, self.preprocess)
        return prepared

    def inputs(self, rows: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """Model inputs of a training batch or of some of its rows: prepared, and changed by hooks.

        Args:
          rows: as the loader gives them, with what hooks have found.
          key: see `prepare`.
        """
        prepare = functools.partial(self.prepare, key=key)
        inputs = prepare(rows)
        for label, hook in self.hooks.items():
            inputs = hook.inputs(label, inputs, rows, prepare)
        return inputs

    def per_row(
        self, outputs: dict[str, jax.Array], inputs: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """What objectives take from single rows, beside the model's outputs: `objectives/KEY/NAME`,
        [B, …].

        Args:
          outputs: of the model, of any rows of the batch.
          inputs: model inputs of the same rows. Prepared pictures are seen here and nowhere later.

        Raises:
          ConfigError: an objective reads what the model or the data does not give.
        """
        self.check_outputs(outputs, inputs)
        found = dict(outputs)
        for key, objective in self.objectives.items():
            with jax.named_scope(f"objectives/{key}"):
                figures = objective.per_row(outputs, inputs)
            found |= {f"{_own(key)}{name}": value for name, value in figures.items()}
        return found

    def loss(
        self,
        outputs: Mapping[str, jax.Array],
        batch: Mapping[str, jax.Array],
        states: Mapping[str, ObjectiveState],
        context: Context,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict[str, ObjectiveState]]]:
        """Weighted sum of the objectives.

        Args:
          outputs: of the whole batch, as `per_row` gives them.
          batch: the whole batch; objectives do not see its pictures.
          states: of all objectives, by `task/objective`.

        Returns:
          loss float32 [], and (metrics, states): each objective's `loss/KEY` and `KEY/figure`, and
          the states after the step.
        """
        total = jnp.float32(0)
        metrics = {}
        states = dict(states)
        batch = {name: x for name, x in batch.items() if not self._is_picture(name, x)}
        for i, (name, use) in enumerate(self.config.objectives.items()):
            slot = f"{self.name}/{name}"
            prefix = _own(name)
            own = {k.removeprefix(prefix): v for k, v in outputs.items() if k.startswith(prefix)}
            its_context = dataclasses.replace(context, key=jax.random.fold_in(context.key, i))
            meeting = collectives.using(self.config.collective)
            with jax.named_scope(f"objectives/{name}"), meeting:
                loss, state = use.objective({**outputs, **own}, batch, states[slot], its_context)
            _check_state(f"tasks.{self.name}.objectives.{name}", states[slot], state)
            states[slot] = state
            if use.weight:  # else nothing depends on it, not even by a factor of 0
                total += context.at(use.weight) * loss.value
            metrics[f"loss/{name}"] = loss.value
            metrics |= {f"{name}/{k}": v for k, v in loss.metrics.items()}
        return total, (metrics, states)

    def _is_picture(self, name: str, value: jax.Array) -> bool:
        """Whether a batch entry is a picture, of a field or one that a hook has found for it; an
        embedding of one, as `teach` finds it, is none."""
        return value.ndim > 3 and self.config.data.inputs.get(name.rsplit("/", 1)[-1]) in VISUAL


def _check_given(
    path: str, kind: str, needed: Sequence[str], given: Collection[str], source: str = ""
) -> None:
    """Raises ConfigError at `path` for the first name that is needed and not given. `source`: where
    such names come from, for the message."""
    for name in needed:
        if name not in given:
            known = sorted(given)
            raise ConfigError(
                path,
                f"needs the {kind} {name!r}, which is not there{nearest(name, known)} (there are: "
                f"{', '.join(known)}{source})",
            )


def _check_state(path: str, before: ObjectiveState, after: ObjectiveState) -> None:
    """Raises ConfigError at `path` where an objective gives back another state than it was given,
    in its names, shapes and dtypes."""

    def described(state: ObjectiveState) -> dict[str, str]:
        leaves = jax.tree_util.tree_leaves_with_path(state)
        found = {}
        for place, leaf in leaves:
            kind = jax.typeof(leaf)
            name = jax.tree_util.keystr(place, simple=True, separator="/")
            found[name] = f"{kind.dtype.name}[{', '.join(map(str, kind.shape))}]"
        return found

    made = described(before)
    given = described(after)
    for name in [*made, *(name for name in given if name not in made)]:
        is_now = given.get(name, "missing")
        was = made.get(name, "nothing")
        problem = f"gives back the state {name!r} as {is_now}, where init_state has {was}"
        check(is_now == was, path, problem)


def _own(key: str) -> str:
    """What the per-row figures of the objective `key` begin with, among all outputs."""
    return f"objectives/{key}/"
