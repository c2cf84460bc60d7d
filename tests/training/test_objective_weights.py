"""What the step contract gives an objective: weights over the run, a context, a state by shapes."""

import dataclasses
import types
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxvl import train as train_command
from jaxvl.config import ConfigError, to_dict
from jaxvl.objectives import OBJECTIVES, Context, Loss, Objective, StateSpec
from jaxvl.tasks import Task, TaskConfig


@OBJECTIVES.register("says_where")
@dataclasses.dataclass(frozen=True)
class SaysWhere(Objective):
    """Its loss is 1, and its figures are what it is told."""

    def init_state(self, spec: StateSpec) -> dict[str, jax.Array]:
        return {"seen": jnp.zeros(spec.outputs["image"].shape[0])}

    def __call__(self, outputs, batch, state, context):
        figures = {"step": context.step, "progress": context.progress}
        return Loss(jnp.float32(1), figures), {"seen": state["seen"] + 1}


@OBJECTIVES.register("no_objective")
@dataclasses.dataclass(frozen=True)
class NoObjective:
    """It does not extend `Objective`."""


def context(step, steps=10):
    return Context(jax.random.key(0), jnp.int32(step), jnp.float32(step / steps))


def task_of(**objectives):
    config = tiny.experiment(tasks=dict(pairs=dict(data=tiny.data(), objectives=objectives)))
    return Task("pairs", config.tasks["pairs"], config.preprocess)


@pytest.mark.parametrize("step, weight", [(0, 0.0), (2, 0.5), (4, 1.0), (8, 3.0), (50, 3.0)])
def test_a_weight_follows_its_points(step, weight):
    points = ((0, 0.0), (4, 1.0), (8, 3.0))
    task = task_of(says_where=dict(weight=points))
    total, _ = task.loss({}, {}, {"pairs/says_where": {"seen": jnp.zeros(2)}}, context(step))
    np.testing.assert_allclose(total, weight)


def test_points_are_kept_by_a_config_and_are_part_of_the_program():
    flat = task_of(says_where=dict(weight=1.0))
    points = task_of(says_where=dict(weight=[[0, 0.0], [4, 1.0]]))
    again = TaskConfig(points.config.data, to_dict(points.config)["objectives"])
    assert again.objectives["says_where"].weight == ((0, 0.0), (4, 1.0))
    assert flat.signature != points.signature


def test_points_that_do_not_ascend_are_refused():
    with pytest.raises(ConfigError, match=r"says_where\.weight: the steps \[4, 4\] must ascend"):
        task_of(says_where=dict(weight=[[4, 0.0], [4, 1.0]]))


def test_an_objective_is_told_where_it_stands_and_keeps_its_state():
    task = task_of(says_where=dict(weight=1.0))
    state = {"pairs/says_where": {"seen": jnp.zeros(2)}}
    _, (metrics, state) = task.loss({}, {}, state, context(3))
    assert metrics["says_where/step"] == 3
    np.testing.assert_allclose(metrics["says_where/progress"], 0.3)
    assert state["pairs/says_where"]["seen"].tolist() == [1, 1]
    assert task.objectives["says_where"].keeps_state


@OBJECTIVES.register("forgets")
@dataclasses.dataclass(frozen=True)
class Forgets(Objective):
    """Its state comes back as `MADE` says."""

    made: str = "same"

    state_axes: ClassVar[dict] = {"queue": ("queues", None)}

    def init_state(self, spec):
        return {"queue": jnp.zeros((4, 2)), "filled": jnp.int32(0)}

    def __call__(self, outputs, batch, state, context):
        return Loss(jnp.float32(1)), MADE[self.made](state)


MADE = {
    "same": lambda state: dict(state),
    "shape": lambda state: dict(state, queue=state["queue"][:1]),
    "dtype": lambda state: dict(state, filled=state["filled"] * 1.0),
    "less": lambda state: {"queue": state["queue"]},
    "more": lambda state: dict(state, place=jnp.int32(0)),
}


@pytest.mark.parametrize(
    "made, said",
    [
        ("shape", r"'queue' as float32\[1, 2\], where init_state has float32\[4, 2\]"),
        ("dtype", r"'filled' as float32\[\], where init_state has int32\[\]"),
        ("less", r"'filled' as missing, where init_state has int32\[\]"),
        ("more", r"'place' as int32\[\], where init_state has nothing"),
    ],
)
def test_another_state_than_the_first_is_refused_by_name(made, said):
    """A row of queue would else be spread over all of it, silently."""
    state = {"pairs/mine": Forgets().init_state(None)}
    task_of(mine=dict(name="forgets")).loss({}, {}, state, context(0))
    with pytest.raises(ConfigError, match=rf"^tasks\.pairs\.objectives\.mine: gives .* {said}"):
        task_of(mine=dict(name="forgets", made=made)).loss({}, {}, state, context(0))


def test_axes_of_a_state_are_those_that_there_are(monkeypatch, tmp_path):
    run = tiny.experiment(tasks=dict(pairs=dict(data=tiny.data(), objectives=dict(forgets=1.0))))
    said = r"forgets: state_axes: 'queues' of 'queue' has no sharding rule; did you mean 'queue'"
    with pytest.raises(ConfigError, match=said):
        train_command.train(run, tmp_path)
    monkeypatch.setattr(Forgets, "state_axes", {"rows": ("queue", None)})
    said = r"'rows' is no array of its state \(there are: filled, queue"
    with pytest.raises(ConfigError, match=said):
        train_command.train(run, tmp_path)


def test_what_is_no_objective_or_no_hook_is_refused():
    with pytest.raises(ConfigError, match="NoObjective must extend jaxvl.objectives.Objective"):
        task_of(no_objective=1.0)
    pairs = dict(data=tiny.data(), objectives=dict(clip=1.0), before=dict(teech={}))
    with pytest.raises(ConfigError, match="'teech' is not a known hook.*did you mean 'teach'"):
        tiny.experiment(tasks=dict(pairs=pairs))


def test_the_shapes_of_outputs_make_the_state():
    spec = StateSpec({"image": jax.ShapeDtypeStruct((16, 8), jnp.float32)}, {}, 10)
    objective = SaysWhere()
    assert objective.init_state(spec)["seen"].shape == (16,)
    assert Objective().init_state(types.SimpleNamespace()) == {}


@OBJECTIVES.register("names_the_batch")
@dataclasses.dataclass(frozen=True)
class NamesTheBatch(Objective):
    """Its figures are the batch entries that it is given."""

    def __call__(self, outputs, batch, state, context):
        return Loss(jnp.float32(1), {name: jnp.float32(1) for name in batch}), state


def test_pictures_are_kept_from_objectives_and_embeddings_of_pictures_are_not():
    task = task_of(names_the_batch=1.0)
    shapes = {
        "image": (2, 4, 4, 3),
        "negatives/image": (2, 4, 4, 3),
        "momentum/image": (2, 8),
        "text": (2, 6),
    }
    batch = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    _, (metrics, _) = task.loss({}, batch, {"pairs/names_the_batch": {}}, context(0))
    given = {name.removeprefix("names_the_batch/") for name in metrics if "names_the" in name}
    assert given - {"loss/names_the_batch"} == {"momentum/image", "text"}


@OBJECTIVES.register("reads_in_rows")
@dataclasses.dataclass(frozen=True)
class ReadsInRows(Objective):
    """It takes something from single rows, of an output that no model has."""

    reads: ClassVar[tuple[str, ...]] = ("nowhere",)

    def per_row(self, outputs, inputs):
        return {"twice": 2 * outputs["nowhere"]}


def test_an_output_that_is_missing_is_named_before_rows_are_read():
    task = task_of(reads_in_rows=1.0)
    with pytest.raises(ConfigError, match="reads_in_rows: needs the model output 'nowhere'"):
        task.per_row({"image": jnp.zeros((2, 4))}, {})


def meeting(**options):
    parts = dict(data=tiny.data(), objectives=dict(clip=1.0), **options)
    config = tiny.experiment(tasks=dict(pairs=parts))
    return Task("pairs", config.tasks["pairs"], config.preprocess)


def test_a_task_says_how_its_rows_meet_on_a_mesh():
    rows = jnp.eye(16)
    outputs = {"image": rows, "text": rows, "log_scale": jnp.float32(1)}
    programs = {}
    signatures = set()
    types = (jax.sharding.AxisType.Auto,)
    for name in ("auto", "gather", "ring", "grid"):
        task = meeting(collective=name)
        signatures.add(task.signature)
        loss = lambda outputs, task=task: task.loss(outputs, {}, {"pairs/clip": {}}, context(0))[0]
        with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=types)):
            programs[name] = str(jax.make_jaxpr(loss)(outputs))
    assert "ppermute" in programs["ring"]
    assert "axis_index_groups=None" in programs["gather"] and "ppermute" not in programs["gather"]
    assert "axis_index_groups=((0, 1)" in programs["grid"]
    assert programs["auto"] == programs["gather"], "which is best for so little"
    assert len(signatures) == 4 and meeting().signature in signatures
    problem = r"tasks\.pairs\.collective: 'tree' is not valid; one of 'auto'"
    with pytest.raises(ConfigError, match=problem):
        meeting(collective="tree")
