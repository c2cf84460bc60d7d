"""Whole runs of several tasks: compilations, resume, sizes, schedules, options."""

import functools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import assert_same_state, saved_state

from jaxvl import train as train_command
from jaxvl.config import ConfigError
from jaxvl.data.feed import SIGNAL
from jaxvl.data.tokenizers import make_tokenizer
from jaxvl.models.base import InputSpec
from jaxvl.models.functional import functional
from jaxvl.models.vit import ViTConfig
from jaxvl.objectives import Context
from jaxvl.sharding.mesh import MeshConfig, batch_sharding, make_mesh
from jaxvl.tasks import Task
from jaxvl.training.build import (
    Vocabulary,
    build_model,
    fresh_state,
    make_forward,
    make_tasks,
)
from jaxvl.training.checkpoint import Checkpoints, abstract_state
from jaxvl.training.compile import compile_turns, make_part, make_update
from jaxvl.training.optim import learning_rate, optimiser
from jaxvl.training.schedule import Turn

pytestmark = pytest.mark.usefixtures("programs_kept", "one_device")
PAIRS = tiny.config().to_dict()["tasks"]["pairs"]


def task(**data):
    return {**PAIRS, "data": tiny.data(**data)}


LARGE = tiny.fields(image=dict(size=24), text=dict(length=4))
# `more` has the signature of `pairs`; `large` has larger pictures, shorter texts and a smaller
# batch. They run by name.
TASKS = dict(
    large=task(fields=LARGE, batch=8),
    more=task(source=dict(tiny.SHAPES, split="train_b")),
    pairs=PAIRS,
)
CHANGES = dict(
    tasks=TASKS,
    schedule=dict(name="round_robin", intervals=dict(large=2)),
    steps=8,
    checkpoint=dict(every=4),
)
ORDER = ["more", "pairs", "large", "more", "pairs", "more", "pairs", "large"]


def train(workdir, **changes):
    train_command.train(tiny.experiment(**{**CHANGES, **changes}), workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        (line["step"], line["name"]): line for line in lines if line["kind"] in ("train", "event")
    }


def steps_of(records):
    return {key: line["loss"] for key, line in records.items() if key[1] in TASKS}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and records of a run of `CHANGES`, and the names of what was compiled before its loop,
    and in it."""
    workdir = tmp_path_factory.mktemp("agd")
    compiled = []
    counts = []
    loop = train_command.loop

    def counted(*args):
        counts.append(len(compiled))
        loop(*args)

    def listen(event, seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about["fun_name"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command, "loop", counted)
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            records = train(workdir)
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
    return workdir, records, compiled[: counts[0]], compiled[counts[0] :]


def test_there_is_one_compilation_per_signature_and_none_in_the_loop(finished):
    _, records, before, during = finished
    assert sum("step" in name for name in before) == 2, before
    assert not any("step" in name for name in during), during
    programs = {
        name: line["tasks"] for (_, name), line in records.items() if name.startswith("compile/")
    }
    assert programs == {"compile/large": "large", "compile/more": "more | pairs"}


def test_the_order_and_the_record_of_all(finished):
    _, records, *_ = finished
    losses = steps_of(records)
    assert sorted(losses) == list(enumerate(ORDER, 1))
    last = records[8, "all"]
    assert last["loss"] == pytest.approx(
        np.mean([losses[6, "more"], losses[7, "pairs"], losses[8, "large"]])
    )
    assert [last[f"steps/{t}"] for t in TASKS] == [2, 3, 3]


def test_the_sequence_goes_on_after_a_restart_bit_for_bit(finished, tmp_path):
    workdir, records, *_ = finished
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "8")
    again = steps_of(train(tmp_path))
    assert again == {k: v for k, v in steps_of(records).items() if k[0] > 4}
    assert_same_state(workdir, tmp_path, 8)


def test_a_summed_run_advances_and_saves_all_positions(tmp_path):
    tasks = dict(pairs=PAIRS, large=TASKS["large"])
    records = train(
        tmp_path,
        tasks=tasks,
        schedule=dict(name="summed", weights=dict(large=0.5)),
        steps=2,
        checkpoint=dict(every=1),
    )
    a = records[2, "pairs"]
    b = records[2, "large"]
    assert (
        a["summed_loss"] == b["summed_loss"] == pytest.approx(a["loss"] + 0.5 * b["loss"], rel=1e-6)
    )
    _, frame = Checkpoints(tmp_path / "checkpoints", read_only=True).frame()
    assert frame["positions"] == {"pairs": 2 * 16, "large": 2 * 8}
    assert frame["task_steps"] == {"pairs": 2, "large": 2}


def test_one_task_is_the_plain_loop_bit_for_bit(monkeypatch):
    # Two programs round alike only by the newer emitters, which users have and the tests, for
    # speed, do without.
    own = (
        {"xla_cpu_use_fusion_emitters": True}
        if "fusion_emitters=false" in os.environ["XLA_FLAGS"]
        else None
    )
    compiled = jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered,
        "compile",
        lambda lowered, compiler_options=None: compiled(lowered, compiler_options=own),
    )

    pairs = task(fields=tiny.fields(image=dict(augment=dict(hue=10.0))))
    experiment = tiny.experiment(
        tasks=dict(pairs=pairs), optim=dict(lr=1e-2, warmup=2, ema=0.9, weight_decay=0.1)
    )
    tokenizer = make_tokenizer(
        experiment.tokenizer,
        ["red circle", "two blue squares", "three green stars", "a ring and a cross"] * 4,
    )
    mesh = make_mesh(MeshConfig(1), jax.devices()[:1])
    alone = Task("pairs", experiment.tasks["pairs"], experiment.preprocess)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 255, (16, 16, 16, 4), np.uint8),
        "text": rng.integers(2, tokenizer.vocab_size, (16, 6), np.int32),
        "group_id": np.arange(16, dtype=np.int32),
        "position": np.arange(16, dtype=np.int32),
    }
    with jax.set_mesh(mesh):
        model = build_model(experiment, tokenizer)
        fresh, shapes, shardings = fresh_state(experiment, model, mesh)
        state = jax.jit(fresh, out_shardings=shardings)()
        root = jax.random.wrap_key_data(jnp.copy(state.rng))
        states = state.objective_state
        tx, _ = optimiser(experiment.optim, model.axes)
        rate = learning_rate(experiment.optim, experiment.steps)

        @functools.partial(jax.jit, compiler_options=own)
        def plain(params, rest, opt, ema, t, batch):
            keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(root, t), 0), 3)
            inputs = alone.prepare(batch, keys[0])

            def loss(params):
                outputs, new = model.apply(params, rest, inputs, train=True, key=keys[1])
                return alone.loss(outputs, inputs, states, Context(keys[2], t, t / 6))[0], new

            (value, rest), gradient = jax.value_and_grad(loss, has_aux=True)(params)
            update, opt = tx.update(gradient, opt, params)
            params = optax.apply_updates(params, jax.tree.map(lambda u: -rate(t) * u, update))
            decay = jnp.minimum(0.9, (1 + t) / (10 + t))
            return (
                params,
                rest,
                opt,
                {p: e + (1 - decay) * (params[p] - e) for p, e in ema.items()},
                value,
            )

        (program,) = compile_turns(
            experiment,
            {"pairs": alone},
            [Turn(("pairs",))],
            model,
            abstract_state(shapes, shardings),
            shardings,
            mesh,
        )
        step = program.bind(program.turns[0], ["pairs"], mesh)
        batch = jax.device_put(batch, batch_sharding(mesh))
        signal = jax.device_put(np.zeros(16, np.uint8), batch_sharding(mesh))
        params, rest, opt, ema = jax.tree.map(
            jnp.copy, (state.params, state.model_state, state.opt_state, state.ema)
        )
        for t in range(3):
            params, rest, opt, ema, value = plain(params, rest, opt, ema, np.int32(t), batch)
            state, (metrics,) = step(state, (batch | {SIGNAL: signal},))
            assert metrics["loss"] == value
    for mine, theirs in (
        (state.params, params),
        (state.model_state, rest),
        (state.opt_state, opt),
        (state.ema, ema),
    ):
        jax.tree.map(np.testing.assert_array_equal, mine, theirs)


@pytest.mark.parametrize(
    "tasks, message",
    [
        (
            dict(pairs=PAIRS, odd=task(fields=tiny.fields(image=dict(size=20)))),
            r"tasks\.odd\.data\.fields\.image\.size: 20 does not fit the model: image\.variant: .* patch of 8 pixels must divide the image of 20",
        ),
        (
            dict(pairs={**PAIRS, "encode": dict(droop=0.5)}),
            r"tasks\.pairs\.encode\.droop: is no option of TwoTower\.__call__.*\(valid: drop\)",
        ),
        (dict(all=PAIRS), r"tasks\.all: is the name of what is logged of all tasks"),
        (
            dict(pairs={**PAIRS, "objectives": dict(align=0.0)}),
            r"tasks\.pairs\.objectives: the loss depends on no parameter",
        ),
    ],
)
def test_impossible_tasks(tmp_path, tasks, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, tasks=tasks, schedule="round_robin")


def test_a_captioner_alone_leaves_what_only_embeddings_need():
    experiment = tiny.experiment(
        model=tiny.COCA,
        tasks=dict(pairs={**PAIRS, "objectives": dict(align=0.0, captioning=1.0)}),
    )
    model = build_model(experiment, Vocabulary(64, 0, 1))
    _, shapes, _ = fresh_state(experiment, model, make_mesh(MeshConfig(1), jax.devices()[:1]))
    captions = make_tasks(experiment)["pairs"]
    forward = make_forward(experiment, captions, model)
    update = make_update(experiment, model)
    part = make_part(forward, 1.0, update, shapes, captions.config.data.shapes)
    others = model.params.keys() - part.learns
    assert {path.split("/")[0] for path in others} == {
        "contrastive_pooler",
        "image_projection",
        "text_projection",
        "text_norm",
        "log_scale",
    }
    assert not any(path.split("/")[0] in {p.split("/")[0] for p in others} for path in part.learns)


def test_positions_of_other_image_sizes_are_resampled_by_place():
    config = ViTConfig(variant="Ti/8", width=4, depth=1, heads=1, pool="cls")
    model = functional(config, InputSpec(16, 4, 8))
    params, rest = model.init(jax.random.key(0))
    table = np.asarray(params["positions"])
    two = np.array(
        [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    )  # bilinear, from 2 to 4: half-pixel centres, held at the borders
    expected = np.einsum("yv,xu,vud->yxd", two, two, table[1:].reshape(2, 2, 4)).reshape(16, 4)
    np.testing.assert_array_equal(model.apply(params, rest, 2, method="_positions")[0], table)
    np.testing.assert_allclose(
        model.apply(params, rest, 4, method="_positions")[0],
        np.concatenate([table[:1], expected]),
        atol=1e-6,
    )


@pytest.mark.slow  # parts of the model: `test_skills_are_a_mean…`, of the step: `test_imp.py`
def test_skills_that_a_task_does_not_name_keep_value_and_moments(tmp_path):
    """IMP with skills in the place of MLPs: a step of clips alone neither runs nor moves the skill
    of texts (SkillNet)."""
    model = dict(
        tiny.IMP,
        classes=dict(colour=6),
        moe=dict(last=1, experts=2, router=dict(name="skills", names=("vision", "text"))),
    )
    source = dict(tiny.TRAIN, clips=True)
    fields = dict(
        video=dict(name="frames", size=16, frames=2), colour=dict(name="label", column="colour")
    )
    clips = tiny.data(source=source, fields=fields)
    kind = dict(name="classification", head="colour", label="colour")
    heads = dict(objectives=dict(kind=kind), encode=dict(classes=dict(colour="vision")))
    tasks = dict(
        first=dict(data=tiny.data(source=source), objectives=dict(nce=1.0)),
        second=dict(data=clips, **heads),
    )
    train(
        tmp_path,
        model=model,
        tasks=tasks,
        schedule=dict(name="round_robin"),
        steps=2,
        checkpoint=dict(every=1, keep=2),
        optim=dict(lr=1e-2, warmup=0, weight_decay=0.1),
    )
    before, after = (
        jax.tree_util.tree_leaves_with_path(saved_state(tmp_path, step)) for step in (1, 2)
    )
    changed = {"vision": [], "text": []}
    for (path, a), (_, b) in zip(before, after):
        for skill in changed:
            if f"/skills/{skill}/" in jax.tree_util.keystr(path):
                assert np.any(a), path
                changed[skill].append(not np.array_equal(a, b))
    assert (
        len(changed["text"]) == len(changed["vision"]) >= 3 * 2
    )  # values and both moments of two kernels
    assert all(changed["vision"]) and not any(changed["text"])
