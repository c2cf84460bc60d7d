"""A model that writes, in the frame of a run: on meshes, in chunks, rewarded by a teacher, resumed,
started from another run."""

import functools
import io
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from test_step import batch, tokenizer

from jaxvl import train as train_command
from jaxvl.config import ConfigError
from jaxvl.data.sources.demo import shapes
from jaxvl.data.tokenizers import make_tokenizer
from jaxvl.models.generate import Generation
from jaxvl.sharding.mesh import batch_sharding, make_mesh
from jaxvl.training.build import build_model, fresh_state, make_forward, make_tasks
from jaxvl.training.compile import make_update
from jaxvl.training.encode import make_encoders
from jaxvl.training.forward import split_keys
from jaxvl.training.restore import seat_teachers
from jaxvl.training.step import Part, make_step
from jaxvl.training.teacher_models import make_teachers

MODEL = dict(tiny.COCA, embed_dim=16)


def config(objectives, microbatches=1, teacher=None, **changes):
    pairs = tiny.config().to_dict()["tasks"]["pairs"]
    pairs |= dict(objectives=objectives, microbatches=microbatches)
    if teacher is not None:
        hook = dict(name="sample_captions", teacher="reward", broken=True)
        pairs["before"] = dict(captions=hook)
        changes = {**changes, "teachers": dict(reward=dict(source=teacher))}
    return tiny.experiment(**{"model": MODEL, "tasks": dict(pairs=pairs), **changes})


class Stage:
    """A model, its first state, one task and its step on one batch, on the first `devices`
    devices."""

    def __init__(self, experiment, devices=1, words=None, values=None):
        self.experiment = experiment
        self.mesh = make_mesh(experiment.mesh, jax.devices()[:devices])
        self.values = values or batch()
        words = words or tokenizer()
        with jax.set_mesh(self.mesh):
            self.model = build_model(experiment, words)
            teachers = make_teachers(experiment, self.model, words)
            fresh, _, self.shardings = fresh_state(experiment, self.model, self.mesh, teachers)
            state = jax.jit(fresh, out_shardings=self.shardings)()
            self.state = seat_teachers(state, self.shardings, teachers)
            update = make_update(experiment, self.model)
            task = make_tasks(experiment)["pairs"]
            self.forward = make_forward(experiment, task, self.model, teachers)
            learns = frozenset(p for p, yes in update.trained.items() if yes)
            step = make_step([Part(self.forward, 1.0, learns)], update, [task.name])
            self._step = jax.jit(step, out_shardings=(self.shardings, None))

    def run(self, steps):
        """Metrics of every step."""
        with jax.set_mesh(self.mesh):
            values = jax.device_put(self.values, batch_sharding(self.mesh))
            out = []
            for _ in range(steps):
                self.state, (metrics,) = self._step(self.state, (values,), jnp.array([0]))
                out.append(metrics)
            return jax.device_get(out)


@pytest.mark.slow
def test_meshes_and_chunks_give_the_numbers_of_one_device():
    # Losses near the start are sums of differences of nearly equal rewards: the parameters are what
    # is compared.
    settings = dict(optim=dict(lr=1e-3, warmup=0, eps=1.0, clip_norm=None, ema=0.9), steps=6)
    objectives = dict(self_critical=dict(grammar=1.0), captioning=0.1)
    make = functools.partial(config, objectives, teacher="ema", **settings)
    one = Stage(make(mesh=dict(data=1)))
    many = Stage(make(microbatches=2, mesh=dict(data=2, fsdp=2)), devices=4)
    (_, m1), (_, m4) = one.run(2), many.run(2)
    assert m1["norm/gradient"] > 1e-3
    for name in m1:
        np.testing.assert_allclose(m1[name], m4[name], rtol=1e-3, atol=1e-6, err_msg=name)
    for a, b in zip(
        *(
            jax.tree.leaves(jax.device_get((s.state.params, s.state.objective_state)))
            for s in (one, many)
        )
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_reward_rises_and_the_teacher_stays():
    stage = Stage(
        config(
            dict(self_critical=1.0),
            teacher="initial",
            mesh=dict(data=1),
            steps=150,
            optim=dict(lr=1e-2, warmup=10),
        )
    )
    before = jax.device_get(stage.state.params)
    for path, value in jax.device_get(stage.state.teachers["reward"][0]).items():
        np.testing.assert_array_equal(value, before[path])
    metrics = stage.run(150)
    sampled = np.array([m["self_critical/reward_sampled"] for m in metrics])
    assert sampled[-20:].mean() > sampled[:10].mean() + 0.2, sampled[::10]
    for path, value in jax.device_get(stage.state.teachers["reward"][0]).items():
        np.testing.assert_array_equal(value, before[path])
    _check_captions(stage)


def _check_captions(stage):
    """What the objective gets is what the model writes and the teacher says, called one by one."""
    state = stage.state
    keys = split_keys(jax.random.key(7))
    rows = {k: jnp.asarray(v) for k, v in batch().items()}
    batch_of = jax.jit(lambda state, rows: stage.forward.hooked(state, rows, keys))(state, rows)
    found = {name.split("/")[1]: v for name, v in batch_of.items() if "/" in name}
    inputs = stage.forward.task.prepare(rows, keys.prepare)
    sampled = np.asarray(found["sampled"])
    drawn = np.asarray(found["drawn"])
    for tokens, mask in zip(sampled.tolist(), drawn.tolist()):
        end = tokens.index(1)
        assert mask == [i <= end and i < len(tokens) - 1 for i in range(len(tokens))]
        assert tokens[end + 1 :] == [0] * (len(tokens) - end - 1)
    apply = functools.partial(stage.model.apply, *state.teachers["reward"])
    image = apply(inputs["image"], method="encode_image")[0]
    np.testing.assert_allclose(found["image"], image, atol=1e-5)
    for name in ("sampled", "greedy"):
        text = apply(found[name], method="encode_text")[0]
        np.testing.assert_allclose(found[f"{name}_text"], text, atol=1e-5)
    weights = (state.params, state.model_state)
    outputs, _ = stage.model.apply(*weights, {**inputs, "captions/sampled": found["sampled"]})
    logits, _ = stage.model.apply(
        *weights, inputs["image"], found["sampled"], method="caption_logits"
    )
    expected = np.take_along_axis(
        np.asarray(jax.nn.log_softmax(logits))[:, : sampled.shape[1]], sampled[..., None], -1
    )[..., 0]
    np.testing.assert_allclose(outputs["sampled_log_p"], expected, atol=1e-4)


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


@pytest.mark.slow
def test_a_run_starts_from_another_is_taught_by_it_and_resumes(tmp_path):
    quiet = dict(log=dict(every=1, tensorboard=False, report=False), mesh=dict(data=-1))
    first = config(
        dict(clip=1.0, captioning=1.0),
        steps=2,
        checkpoint=dict(every=2),
        optim=dict(lr=1e-2, warmup=0),
        **quiet,
    )
    train_command.train(first, tmp_path / "first")
    second = functools.partial(
        config,
        dict(self_critical=dict(grammar=0.5)),
        teacher=str(tmp_path / "first"),
        checkpoint=dict(every=2),
        start=str(tmp_path / "first"),
        optim=dict(lr=1e-3, warmup=0),
    )
    train_command.train(second(steps=4, **quiet), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "again" / "checkpoints")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "4")
    train_command.train(second(steps=4, **quiet), tmp_path / "again")
    assert losses(tmp_path / "again") == {
        s: v for s, v in losses(tmp_path / "whole").items() if s > 2
    }
    # Of another model, or without a teacher that fits.
    with pytest.raises(
        ConfigError,
        match=r"start\[0\]: caption_pooler/query is \(3, 16\) in this run's model and \(2, 16\)",
    ):
        train_command.train(
            second(steps=4, model={**MODEL, "queries": 3}, **quiet), tmp_path / "other"
        )
    with pytest.raises(ConfigError, match=r"start\[0\]\.source: .*no readable checkpoint"):
        train_command.train(
            config(dict(clip=1.0), start=str(tmp_path / "nothing"), **quiet), tmp_path / "other"
        )
    with pytest.raises(
        ConfigError,
        match=r"teachers\.reward\.source: the tokenizer of .*first is not that of this run",
    ):
        train_command.train(
            second(steps=4, start=(), tokenizer=dict(vocab_size=40), **quiet),
            tmp_path / "other",
        )


def test_teachers_that_do_not_fit_are_refused():
    objectives = dict(self_critical=1.0)
    for changes, message in (
        (
            dict(teacher="ema", optim=dict(warmup=0)),
            r"teachers\.reward\.decay: is None, which means the average of optim\.ema",
        ),
        (
            dict(teachers=dict(other=dict(source="initial"))),
            r"teachers\.other: is read by no hook of any task",
        ),
    ):
        experiment = config(objectives, **changes)
        with pytest.raises(ConfigError, match=message):
            make_teachers(experiment, build_model(experiment, tokenizer()), tokenizer())
    with pytest.raises(ConfigError, match=r"teachers\.reward\.decay: 0\.5 is of source='ema'"):
        tiny.experiment(teachers=dict(reward=dict(source="initial", decay=0.5)))


@pytest.mark.slow
def test_captions_do_not_depend_on_mesh_or_batch_and_numbers_compile_nothing():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    how = [
        Generation(),
        Generation(method="beam", beams=3),
        Generation(method="sample", temperature=1.2),
    ]
    written = {}
    for name, shape, devices, rows in (
        ("one", dict(data=1), 1, 32),
        ("many", dict(data=2, fsdp=2, tensor=2), 8, 8),
    ):
        experiment = config(dict(clip=1.0), mesh=shape)
        stage = Stage(experiment, devices)
        encoders = make_encoders(
            experiment,
            stage.model,
            tokenizer(),
            stage.mesh,
            (stage.state.params, stage.state.model_state),
        )
        encoders.batch = rows
        written[name] = [encoders.captions(pixels, g)[1].rows for g in how]
        if name == "one":
            hotter = encoders.captions(
                pixels, Generation(method="sample", temperature=2.0, seed=1, min_length=2)
            )[1].rows
            assert (hotter != written[name][2]).any()
            encoders.with_weights(jax.tree.map(lambda a: a * 1.1, encoders.weights)).captions(
                255 - pixels, how[2]
            )
            assert encoders._caption._cache_size() == len(how)
            part = encoders.captions(pixels[8:], how[2], first=8)[1].rows
            np.testing.assert_array_equal(part, written[name][2][8:])
            assert len({tuple(r) for r in written[name][2].tolist()}) > 5
    for one, many in zip(written["one"], written["many"]):
        np.testing.assert_array_equal(one, many)
    # What is kept is laid out over the batch's axes, and heads over `tensor`.
    with jax.set_mesh(stage.mesh):
        image = jax.device_put(jnp.zeros((8, 16, 16, 3)), batch_sharding(stage.mesh))
        start = jax.jit(lambda *args: stage.model.apply(*args, 6, method="prefill")[0])
        known, (_, memory) = start(stage.state.params, stage.state.model_state, image)
    for keys in jax.tree.leaves((known, memory)):
        assert keys.sharding.shard_shape(keys.shape) == (2, keys.shape[1], 1, keys.shape[3])


@pytest.mark.slow
def test_64_pairs_are_learnt_to_the_letter():
    """Every caption written as it was taught, word by word with kept keys and values, and every
    pair found both ways."""
    concepts = [concept for concept in itertools.product(shapes.COLOURS, shapes.SHAPES, (1, 2, 3))]
    chosen = np.random.default_rng(0).permutation(len(concepts))[:64]
    texts = [shapes.names(concepts[i])["en"] for i in chosen]
    assert len(set(texts)) == 64 and min(len(t.split()) for t in texts) == 3
    pixels = [
        np.asarray(
            Image.open(io.BytesIO(shapes.draw(concepts[i], "filled", 16, np.random.default_rng(i))))
        )
        for i in chosen
    ]
    words = make_tokenizer(tiny.experiment(tokenizer=dict(vocab_size=64)).tokenizer, texts)
    rows = np.arange(64, dtype=np.int32)
    values = {
        "image": np.stack(pixels),
        "text": words.encode(texts, 14),
        "group_id": rows,
        "position": rows,
    }
    model = {
        **MODEL,
        "image": dict(name="vit", variant="Ti/4", width=64, depth=2, heads=2, pool="mean"),
        "width": 64,
        "hidden": 128,
        "queries": 4,
        "embed_dim": 32,
    }
    pairs = tiny.config().to_dict()["tasks"]["pairs"]
    pairs["data"] = tiny.data(
        batch=64, fields=tiny.fields(image=dict(augment={}), text=dict(length=14))
    )
    pairs["objectives"] = dict(clip=1.0, captioning=2.0)
    settings = dict(steps=150, optim=dict(lr=3e-3, warmup=20), mesh=dict(data=1))
    stage = Stage(
        tiny.experiment(model=model, tasks=dict(pairs=pairs), **settings),
        words=words,
        values=values,
    )
    stage.run(150)
    encoders = make_encoders(
        stage.experiment,
        stage.model,
        words,
        stage.mesh,
        (stage.state.params, stage.state.model_state),
    )
    written, _ = encoders.captions(values["image"], Generation())
    assert written == texts
    similar = encoders.images(values["image"]).rows @ encoders.texts(texts).T
    assert (similar.argmax(1) == rows).all() and (similar.argmax(0) == rows).all()
