"""Teachers: the average that follows the student, what leaves it alone, runs that are killed; and a
whole step of ALBEF, in parts and over eight devices as on one."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_step
import tiny

from jaxvl import train as train_command
from jaxvl.data.feed import SIGNAL
from jaxvl.objectives import Context
from jaxvl.sharding.mesh import batch_sharding, make_mesh
from jaxvl.training.build import build_model, fresh_state, make_forward, make_tasks
from jaxvl.training.compile import make_update
from jaxvl.training.forward import split_keys
from jaxvl.training.restore import restore_weights
from jaxvl.training.step import Part, make_step
from jaxvl.training.teacher_models import make_teachers
from jaxvl.training.teachers import Teacher, update_teachers

DECAY = 0.9
QUEUE = 40  # two batches and a half
SHORT = dict(steps=6, checkpoint=dict(every=3))
FUSION = dict(
    name="fusion",
    depth=1,
    heads=2,
    hidden=16,
    negatives="negatives",
    words="masked_text",
    vocab_size=64,
)
CONTRAST = dict(name="itc_momentum", weight=1.0, queue=QUEUE, duplicates="positive", ramp=0.3)


def contrast(**changes):
    """A miniature with a teacher that follows and a queue."""
    root = tiny.config().to_dict()
    pairs = dict(
        root["tasks"]["pairs"],
        before=dict(momentum=dict(name="teach", teacher="momentum")),
        objectives=dict(itc=CONTRAST),
    )
    return dict(
        dict(
            teachers=dict(momentum=dict(source="ema", decay=DECAY)),
            tasks=dict(pairs=pairs),
            **test_step.SGD_LIKE,
        ),
        **changes,
    )


def albef(entries, microbatches=1):
    """All three losses of ALBEF."""
    changes = contrast()
    pairs = changes["tasks"]["pairs"]
    outputs = ("image", "text", "fusion/words")
    pairs["before"] = dict(
        momentum=dict(name="teach", teacher="momentum", outputs=outputs),
        negatives=dict(name="hard_negatives", entries=entries),
    )
    pairs["objectives"] = dict(itc=CONTRAST, itm=1.0, masked_words=dict(weight=1.0, ramp=0.3))
    pairs["microbatches"] = microbatches
    masked = dict(name="masked_text", columns="name/en", length=6, mask_id=2)
    pairs["data"]["fields"] = tiny.fields(masked_text=masked)
    views = {"masked_text": "text"}
    if entries == "rows":
        views |= {"negatives/image": "image", "negatives/text": "text"}
    model = dict(
        tiny.config().to_dict()["model"],
        views=views,
        heads=dict(fusion=dict(FUSION, entries=entries)),
    )
    return dict(changes, model=model)


def values():
    given = test_step.batch()
    target = np.where(np.arange(6) == 1, given["text"], -1).astype(np.int32)
    masked = np.where(target >= 0, 2, given["text"]).astype(np.int32)
    given["group_id"] = (np.arange(16) % 11).astype(np.int32)
    return {**given, "masked_text": masked, "masked_text_target": target}


@pytest.fixture(scope="module")
def begun(one_device, programs_kept, tmp_path_factory):
    """A run of `contrast` before its first step, with its compiled step."""
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command, "loop", lambda run, *_: kept.append(run))
        train_command.train(tiny.experiment(**contrast(**SHORT)), tmp_path_factory.mktemp("begun"))
    return kept[0]


def step_of(run, state, batch):
    """The state after a step, and the figures; `state` is kept."""
    with jax.set_mesh(run.mesh):
        batch = jax.device_put({**batch, SIGNAL: np.zeros(16, np.uint8)}, batch_sharding(run.mesh))
        (step,) = run.steps.values()
        state, (metrics,) = step(jax.tree.map(jnp.copy, state), (batch,))
    return state, jax.device_get(metrics)


class Stepper:
    """A compiled step of a config, and its first state."""

    def __init__(self, devices=1, **changes):
        experiment = tiny.experiment(**changes)
        self.mesh = make_mesh(experiment.mesh, jax.devices()[:devices])
        with jax.set_mesh(self.mesh):
            tokenizer = test_step.tokenizer()
            model = build_model(experiment, tokenizer)
            teachers = make_teachers(experiment, model, tokenizer)
            fresh, _, shardings = fresh_state(experiment, model, self.mesh, teachers)
            self.first = jax.device_put(fresh(), shardings)
            update = make_update(experiment, model)
            forward = make_forward(experiment, make_tasks(experiment)["pairs"], model, teachers)
            learned = frozenset(path for path, yes in update.trained.items() if yes)
            step = make_step([Part(forward, 1.0, learned)], update, ["pairs"])
            self._step = jax.jit(step, out_shardings=(shardings, None))

    def __call__(self, state, batch):
        with jax.set_mesh(self.mesh):
            batch = jax.device_put(batch, batch_sharding(self.mesh))
            state, (metrics,) = self._step(state, (batch,), np.zeros(1, np.int32))
        return state, jax.device_get(metrics)


def test_the_average_follows_the_student(begun):
    """t <- decay t + (1 - decay) w after every step, in float64; a step that is not applied leaves
    it, and the queue, as they were."""
    step = functools.partial(step_of, begun)
    state = begun.state
    teacher = {p: np.float64(v) for p, v in state.teachers["momentum"][0].items()}
    jax.tree.map(np.testing.assert_array_equal, state.teachers["momentum"][0], state.params)
    for i in range(3):
        state, metrics = step(state, test_step.batch())
        assert metrics["skipped"] == 0 and metrics["itc/filled"] == min(16 * i, QUEUE)
        for path, value in state.params.items():
            teacher[path] = DECAY * teacher[path] + (1 - DECAY) * np.float64(value)
    moved = 0.0
    for path, value in state.teachers["momentum"][0].items():
        np.testing.assert_allclose(value, teacher[path], rtol=1e-6, atol=1e-7, err_msg=path)
        moved = max(moved, np.abs(value - begun.state.params[path]).max())
    assert moved > 1e-4
    broken = {**state.params, "log_scale": jnp.float32(jnp.nan)}
    after, metrics = step(dataclasses.replace(state, params=broken), test_step.batch())
    assert metrics["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, after.teachers, state.teachers)
    jax.tree.map(np.testing.assert_array_equal, after.objective_state, state.objective_state)


def test_no_gradient_reaches_a_teacher(begun):
    state = begun.state
    teachers = make_teachers(begun.experiment, begun.model, begun.tokenizer)
    task = make_tasks(begun.experiment)["pairs"]
    forward = make_forward(begun.experiment, task, begun.model, teachers)

    def found(weights):
        taught = dataclasses.replace(state, teachers={"momentum": (weights, {})})
        batch = forward.hooked(taught, test_step.batch(), split_keys(jax.random.key(0)))
        return (batch["momentum/image"] * jnp.arange(16)).sum()

    with jax.set_mesh(begun.mesh):
        value, slope = jax.jit(jax.value_and_grad(found))(state.params)
        other = jax.jit(found)(jax.tree.map(lambda x: 1.1 * x + 0.01, state.params))
    assert abs(value - other) > 1e-3, "what it finds must depend on the teacher"
    for path, gradient in slope.items():
        np.testing.assert_array_equal(gradient, 0.0, err_msg=path)


def test_decay_changes_over_the_run_and_counts_are_taken_over():
    teachers = {
        "slow": Teacher("ema", ((0, 0.0), (10, 1.0)), None),
        "first": Teacher("initial", None, None),
    }
    weights = {name: ({"w": jnp.float32(4.0)}, {"calls": jnp.int32(1)}) for name in teachers}
    student = ({"w": jnp.float32(8.0)}, {"calls": jnp.int32(5)})
    for step, want in ((0, 8.0), (5, 6.0), (20, 4.0)):
        where = Context(jax.random.key(0), jnp.int32(step), jnp.float32(0))
        new = update_teachers(teachers, weights, student, where)
        assert new["slow"] == ({"w": want}, {"calls": 5})
        assert new["first"] is weights["first"]


@pytest.mark.slow
def test_a_step_of_albef_in_parts_and_on_eight_devices_is_that_of_the_whole():
    """Queue, teacher, negatives and masked words: negatives by place in one call on one device, as
    copied rows in two parts on eight."""
    one = Stepper(**albef("index"), mesh=dict(data=1))
    eight = Stepper(8, **albef("rows", microbatches=2), mesh=dict(data=8))
    first, second = one.first, eight.first
    for _ in range(3):
        first, m1 = one(first, values())
        second, m8 = eight(second, values())
    assert m1["itc/filled"] == 32
    for name in ("loss/itc", "loss/itm", "loss/masked_words", "itm/accuracy", "norm/gradient"):
        assert np.isfinite(m1[name])
        np.testing.assert_allclose(m1[name], m8[name], rtol=2e-5, err_msg=name)
    spec = second.objective_state["pairs/itc"]["image_queue"].sharding.spec
    assert spec[0] in ("data", ("data", "fsdp")), spec
    for part in ("params", "teachers", "objective_state"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            *(jax.device_get(getattr(state, part)) for state in (first, second)),
        )


@pytest.mark.usefixtures("one_device", "programs_kept")
def test_a_killed_run_goes_on_with_teacher_and_queue_as_they_were(tmp_path):
    run = tiny.experiment(**contrast(**SHORT))
    train_command.train(run, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "killed" / "checkpoints")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "6")
    train_command.train(run, tmp_path / "killed")
    tiny.assert_same_state(tmp_path / "whole", tmp_path / "killed", 6)
    state = tiny.saved_state(tmp_path / "whole", 6)
    queue = state["objective_state"]["pairs/itc"]
    assert queue["filled"] == QUEUE and queue["place"] == 6 * 16 % QUEUE
    assert (np.abs(np.linalg.norm(queue["image_queue"], axis=1) - 1) < 1e-5).all()


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_weights_of_another_run_teach_and_stay(tmp_path):
    train_command.train(
        tiny.experiment(**contrast(steps=2, checkpoint=dict(every=2))), tmp_path / "first"
    )
    teachers = dict(momentum=dict(source=str(tmp_path / "first")))
    other = tiny.experiment(**contrast(teachers=teachers, steps=2, checkpoint=dict(every=2)))
    train_command.train(other, tmp_path / "taught")
    known = restore_weights(tmp_path / "first").params
    state = tiny.saved_state(tmp_path / "taught", 2)
    params = state["teachers"]["momentum"][0]
    assert params.keys() == known.keys()
    for path, value in params.items():
        np.testing.assert_array_equal(value, known[path], err_msg=path)
    assert not np.array_equal(state["params"]["log_scale"], known["log_scale"])
