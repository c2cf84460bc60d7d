"""What a run prepares before its first step: the tokenizer of several tasks, and models that do not
go with it."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from jaxvl import train
from jaxvl.config import ConfigError, resolve, to_dict
from jaxvl.data.config import DataConfig
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.sources.base import Column
from jaxvl.data.sources.demo.recipe import DemoSource
from jaxvl.data.sources.demo.shapes import Shapes
from jaxvl.data.sources.demo.store import Corpus
from jaxvl.data.sources.mixture import MixtureSource
from jaxvl.sharding import make_mesh
from jaxvl.tasks import Task
from jaxvl.training import teacher_models
from jaxvl.training.build import Vocabulary, build_model
from jaxvl.training.experiment import Experiment
from jaxvl.training.inputs import open_sources, task_tokenizer, vocabulary_templates
from jaxvl.training.restore import restore_weights
from jaxvl.training.setup import setup
from jaxvl.training.writer import Writer

CLIPS = dict(tiny.TRAIN, clips=True)
DATA = tiny.data(source=CLIPS)
SOUND = dict(name="waveform", columns="speech/*", languages=("fr",), seconds=0.1)
SPOKEN = tiny.data(source=CLIPS, fields=dict(waveform=dict(SOUND, text="name/*", text_length=6)))
FRENCH = "trois étoiles bleues"  # no É in the English names


def tokenizer(**tasks):
    config = tiny.config(tokenizer=dict(kind="unigram", vocab_size=96)).to_dict()
    config["tasks"] = {
        name: dict(data=data, objectives=dict(align=1.0)) for name, data in tasks.items()
    }
    experiment = resolve(Experiment, config)
    return task_tokenizer(experiment, open_sources(experiment, print))


@pytest.mark.parametrize("order", ["pictures first", "speech first"])
def test_a_vocabulary_has_the_texts_of_all_tasks(order):
    tasks = dict(pictures=DATA, speech=SPOKEN)
    both = tokenizer(**(tasks if order == "pictures first" else dict(reversed(tasks.items()))))
    assert both.decode(both.encode([FRENCH, "three blue stars"], 32)) == [
        FRENCH,
        "three blue stars",
    ]
    english = tokenizer(pictures=DATA)
    assert english.decode(english.encode([FRENCH], 32)) != [FRENCH]


def write_questions(folder, words):
    """A folder of questions as `questions` reads them, without pictures: no vocabulary needs
    them."""
    folder.mkdir(parents=True)
    lines = [
        {"image": "x.png", "question": f"is it a {word}?", "answers": [word]} for word in words
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = dict(name="questions", folder=str(folder), split="train")
    return tiny.data(source=source, fields=tiny.fields(text=dict(columns="text")))


def test_a_vocabulary_is_that_of_the_texts_wherever_they_lie(tmp_path, monkeypatch):
    """Two folders of one name with other texts; then the first one's again in another place, and
    changed in its place."""
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path / "cache"))
    fruit = ("mango", "quince", "papaya", "kumquat")
    birds = ("heron", "wigeon", "dunnock", "siskin")
    first, second = (
        tokenizer(vqa=write_questions(tmp_path / place / "vqa", words))
        for place, words in (("a", fruit), ("b", birds))
    )
    for own, words in ((first, fruit), (second, birds)):
        texts = [f"is it a {word}?" for word in words]
        assert own.decode(own.encode(texts, 32)) == texts
    same = tokenizer(vqa=write_questions(tmp_path / "c" / "elsewhere", fruit))
    assert (
        same.to_json() == first.to_json()
        and len(list((tmp_path / "cache" / "tokenizers").iterdir())) == 2
    )
    shutil.rmtree(tmp_path / "a" / "vqa")
    assert (
        tokenizer(vqa=write_questions(tmp_path / "a" / "vqa", birds)).to_json() == second.to_json()
    )


class PlainSource(DemoSource):
    """Of a corpus whose index says nothing of columns."""

    columns = {"image": Column("image")}


def test_fingerprints_are_of_the_content(tmp_path):
    def corpus(folder, size, name="records"):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "index.npz", labels=np.zeros(size, np.int32))
        return Corpus(tmp_path / folder, {"files": {name: {"bytes": size, "sha256": f"{size}"}}})

    a = corpus("a", 1)
    b = corpus("b", 1)
    c = corpus("c", 2)
    assert a.fingerprint == b.fingerprint != c.fingerprint
    a, b, c = (PlainSource(part, {}) for part in (a, b, c))
    assert a.fingerprint == b.fingerprint != c.fingerprint
    mixed = [MixtureSource(parts, [None, None], ("0", "1")) for parts in ((a, c), (b, c), (c, a))]
    assert mixed[0].fingerprint == mixed[1].fingerprint != mixed[2].fingerprint


FIELDS = dict(
    image=dict(name="picture", size=16, augment=dict(rotate=10.0)),
    text=dict(name="caption", columns="name/en", length=6),
    video=dict(name="frames", size=16, frames=3),
    waveform=dict(name="waveform", columns="speech/*", seconds=0.01),
    group_id=dict(name="group", column="class_label"),
)
HOST_SIDE = [
    dict(video=dict(stride=2)),
    dict(video=dict(random=False)),
    dict(waveform=dict(languages=("fr",), random=False)),
    dict(image=dict(crop=(0.1, 0.9), crop_ratio=(0.5, 2.0), fast_decode=False)),
    dict(text=dict(columns={"name/en": 1.0, "keywords/en": 2.0}, joined=3)),
    dict(group_id=dict(column="name/en")),
    dict(
        source=dict(tiny.SHAPES, split="train_b"),
        sampler=dict(name="in_order"),
        error_budget=0.5,
        error_minimum=2,
        reader=dict(threads=3, prefetch_mb=1, cache_mb=0),
    ),
]
DEVICE_SIDE = [
    dict(video=dict(frames=4)),
    dict(batch=8),
    dict(image=dict(size=8)),
    dict(image=dict(augment=dict(hue=3.0))),
    dict(video=dict(augment=dict(hue=3.0))),
    dict(view=dict(name="picture", size=16)),
    dict(missing="mask"),
]


def task(**changes):
    """Changes of fields go to them; others are of the data."""
    fields = {
        name: {**FIELDS.get(name, {}), **changes.pop(name, {})}
        for name in [*FIELDS, "view"]
        if name in FIELDS or name in changes
    }
    tasks = dict(one={**tiny.task(fields=fields, **changes), "objectives": dict(one_to_k=1.0)})
    return Task(
        "one", resolve(Experiment, tiny.config(tasks=tasks)).tasks["one"], Preprocess(image_size=16)
    )


def program(task):
    """What the device computes for a batch of the task, as text."""
    batch = {name: shape for name, shape in task.config.data.shapes.items()}
    return str(jax.make_jaxpr(task.prepare)(batch, jax.eval_shape(lambda: jax.random.key(0))))


@pytest.mark.parametrize("changes", HOST_SIDE)
def test_what_only_the_host_reads_compiles_nothing_new(changes):
    one = task()
    other = task(**changes)
    assert (
        one.config.data != other.config.data
        and one.signature == other.signature
        and program(one) == program(other)
    )


@pytest.mark.parametrize("changes", DEVICE_SIDE)
def test_what_the_devices_see_is_another_program(changes):
    assert task().signature != task(**changes).signature and program(task()) != program(
        task(**changes)
    )


@pytest.mark.parametrize(
    "fields, expected",
    [
        (tiny.FIELDS, ("name/en",)),
        (
            tiny.fields(text=dict(columns={"name/en": 1.0, "name/de": 0.5, "name/fr": 0.0})),
            ("name/de", "name/en"),
        ),
        (tiny.fields(text=dict(columns="name/*")), ("name/de", "name/en", "name/fr")),
        (tiny.fields(text=None), ()),
        (dict(waveform=dict(SOUND, text="name/*")), ("name/fr",)),
        (
            dict(waveform=dict(SOUND, languages=(), text="name/*")),
            ("name/de", "name/en", "name/fr"),
        ),
        (tiny.fields(waveform=SOUND), ("name/en",)),  # what is heard is not what is read
        (
            tiny.fields(more=dict(name="caption", columns="keywords/en", length=6)),
            ("keywords/en", "name/en"),
        ),
    ],
)
def test_texts_that_a_task_reads(fields, expected):
    data = resolve(DataConfig, tiny.data(source=CLIPS, fields=fields))
    found = vocabulary_templates(data, data.source.open(lambda text: None))
    assert found == {column: ("{}",) for column in expected}


def test_templates_that_texts_are_read_in():
    asked = dict(name="caption", columns="name/*", template="what is a {}?", length=8)
    data = resolve(DataConfig, tiny.data(source=CLIPS, fields=tiny.fields(asked=asked)))
    found = vocabulary_templates(data, data.source.open(lambda text: None))
    assert found == {
        "name/de": ("what is a {}?",),
        "name/en": ("what is a {}?", "{}"),
        "name/fr": ("what is a {}?",),
    }


def test_a_model_whose_texts_begin_otherwise_is_refused():
    vit = dict(name="vit", variant="Ti/8", width=16, depth=1, heads=2, pool="cls")
    model = dict(
        name="open_clip_coca",
        image=vit,
        width=16,
        unimodal=1,
        multimodal=1,
        heads=2,
        embed_dim=16,
        poolers="shared",
        cross="after",
        late_mask=True,
        start_id=5,
    )
    experiment = tiny.experiment(model=model)
    found = task_tokenizer(experiment, open_sources(experiment, print))
    assert found.cls_id is None
    with pytest.raises(
        ConfigError, match=r"model.start_id: 5 is not what the tokenizer begins texts with \(None\)"
    ):
        build_model(experiment, found)


def test_an_encoder_that_a_run_freezes_runs_as_in_evaluation():
    vocabulary = Vocabulary(64, 0, 1)
    frozen = build_model(
        tiny.experiment(optim=dict(freeze="^image/encoder/", warmup=2)), vocabulary
    )
    inside = {path for path in frozen.params if path.startswith("image/encoder/")}
    assert frozen.frozen == inside and inside
    assert build_model(tiny.experiment(), vocabulary).frozen == frozenset()


def test_training_pictures_follow_preprocess(tmp_path, monkeypatch):
    """The run's own feed, up to the first batch; nothing is compiled."""
    monkeypatch.setattr("jaxvl.training.setup.compile_turns", lambda *args: [])
    fields = tiny.fields(image=dict(size=8, fast_decode=False))
    data = tiny.data(source=dict(tiny.TRAIN, size=40), fields=fields)
    how = dict(image_size=16, scale_to=20, interpolation="bilinear")
    experiment = tiny.experiment(
        tasks=dict(pairs=dict(data=data, objectives=dict(align=1.0))), preprocess=how
    )
    with (
        Writer(tmp_path, 6, tensorboard=False) as writer,
        jax.set_mesh(mesh := make_mesh(experiment.mesh)),
    ):
        run = setup(experiment, mesh, tmp_path, writer)
        batch = next(run.feeds["pairs"])
        run.close()
    source = Shapes(size=40, variants=1, split="train_a").open(print)
    expected = set()
    for i in range(len(source)):
        picture = Image.open(io.BytesIO(source[i]["image"])).convert("RGBa")
        scaled = picture.resize((10, 10), Image.Resampling.BILINEAR).convert(
            "RGBA"
        )  # 20 of 16 are 10 of 8
        expected.add(np.asarray(scaled)[1:9, 1:9].tobytes())
    assert {np.asarray(row).tobytes() for row in np.asarray(batch["image"])} <= expected


def test_a_teacher_of_before_a_field_of_preprocess_existed(tmp_path, monkeypatch):
    """Its checkpoint lacks the field; the default is meant."""
    experiment = tiny.experiment()
    found = task_tokenizer(experiment, open_sources(experiment, print))
    frame = {
        "tokenizer": found.to_json(),
        "preprocess": '{"image_size": 16}',
        "config": to_dict(experiment),
    }
    monkeypatch.setattr(teacher_models.Checkpoints, "frame", lambda self: (6, frame))
    assert teacher_models._of_workdir(experiment, tmp_path, found) is not None
    frame["preprocess"] = '{"image_size": 16, "resize": "squash"}'
    with pytest.raises(ConfigError, match="source: the preprocess of .* is not that of this run"):
        teacher_models._of_workdir(experiment, tmp_path, found)


MOE = dict(
    last=1,
    experts=4,
    bias=True,
    router=dict(name="token_choice", top=2, capacity_factor=None, renormalise=True),
)


def with_experts(**moe):
    model = tiny.config().to_dict()["model"]
    for tower in ("image", "text"):
        model[tower]["moe"] = {**MOE, **moe}
    return model


@pytest.mark.slow
def test_a_run_with_experts_starts_from_dense_weights(tmp_path):
    """Sparse upcycling: at the start the model with experts is the dense one; only the routers are
    new."""
    quiet = dict(log=dict(every=10, tensorboard=False, report=False))
    train.train(tiny.experiment(steps=2, checkpoint=dict(every=2), **quiet), tmp_path / "dense")
    dense = restore_weights(tmp_path / "dense")
    (tmp_path / "sparse").mkdir()
    sparse = tiny.experiment(model=with_experts(), start=str(tmp_path / "dense"), **quiet)
    with (
        Writer(tmp_path / "sparse", 6, tensorboard=False) as writer,
        jax.set_mesh(mesh := make_mesh(sparse.mesh)),
    ):
        run = setup(sparse, mesh, tmp_path / "sparse", writer)
        image = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
        text = np.full((8, 6), 5)
        for method, x in (("encode_image", image), ("encode_text", text)):
            want, _ = dense.model.apply(dense.params, dense.model_state, x, method=method)
            got, _ = run.model.apply(run.state.params, run.state.model_state, x, method=method)
            np.testing.assert_allclose(got, want, atol=1e-5)
            averaged, _ = run.model.apply(
                run.state.weights("")[0], run.state.model_state, x, method=method
            )
            np.testing.assert_allclose(averaged, want, atol=1e-5)
        run.close()
    train.train(
        tiny.experiment(steps=2, model=with_experts(), start=str(tmp_path / "dense"), **quiet),
        tmp_path / "run",
    )
    for changed, message in (
        (
            dict(bias=False),
            r"start\[0\]: upcycle: .*of the source without a place: \[.*mlp/down/bias",
        ),
        (dict(hidden=5), r"start\[0\]: upcycle: .*of another shape: \[.*up/kernel"),
    ):
        with pytest.raises(ConfigError, match=message):
            train.train(
                tiny.experiment(
                    model=with_experts(**changed), start=str(tmp_path / "dense"), **quiet
                ),
                tmp_path / "other",
            )


def test_a_phase_of_small_pictures_with_dropped_patches_and_short_texts():
    """CLIPA's first phase and its last one, as two tasks of one model."""
    small = tiny.fields(image=dict(name="picture", size=16), text=dict(length=4))
    full = tiny.fields(image=dict(name="picture", size=32))
    first = dict(tiny.task(fields=small), encode=dict(drop=dict(image=0.5)))
    tasks = dict(first=first, last=tiny.task(fields=full))
    made = dict(preprocess=dict(image_size=32), tasks=tasks)
    model = build_model(tiny.experiment(**made), Vocabulary(64, 0, 1))
    assert model.params["image/encoder/positions"].shape == (16, 16)
    first["encode"] = dict(drop=dict(text=0.5))
    words = r"tasks.first.encode.drop.text: is no input that can lose tokens .those that can: image"
    with pytest.raises(ConfigError, match=words):
        build_model(tiny.experiment(**made), Vocabulary(64, 0, 1))
