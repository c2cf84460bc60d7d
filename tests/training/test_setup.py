"""What a run prepares before its first step: the tokenizer of several tasks, and models that do not go with it."""

import io
import json
import shutil
import types

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from jaxvl import train
from jaxvl.config import ConfigError, resolve, to_dict
from jaxvl.data.corpora.mixture import MixedCorpus
from jaxvl.data.corpora.store import Corpus
from jaxvl.data.loader import DataConfig
from jaxvl.data.preprocess import Preprocess
from jaxvl.sharding import make_mesh
from jaxvl.tasks import Task
from jaxvl.training import judges
from jaxvl.training.build import build_model
from jaxvl.training.experiment import Experiment
from jaxvl.training.inputs import prepare_corpora, task_tokenizer
from jaxvl.training.restore import restore_weights
from jaxvl.training.setup import setup
from jaxvl.training.writer import Writer

DATA = dict(corpus=dict(tiny.CORPUS, clips=True), split="train_a", batch=16, image_size=16, text_length=6, threads=1)
SPOKEN = dict(DATA, modalities=("waveform", "text"), audio=dict(locales=("fr",), seconds=0.1, paired=True))
FRENCH = "trois étoiles bleues"  # no É in the English names


def tokenizer(**tasks):
    config = tiny.config(tokenizer=dict(kind="unigram", vocab_size=96)).to_dict()
    config["tasks"] = {name: dict(data=data, objectives=dict(align=1.0)) for name, data in tasks.items()}
    experiment = resolve(Experiment, config)
    return task_tokenizer(experiment, prepare_corpora(experiment, print))


@pytest.mark.parametrize("order", ["pictures first", "speech first"])
def test_a_vocabulary_has_the_texts_of_all_tasks(order):
    tasks = dict(pictures=DATA, speech=SPOKEN)
    both = tokenizer(**(tasks if order == "pictures first" else dict(reversed(tasks.items()))))
    assert both.decode(both.encode([FRENCH, "three blue stars"], 32)) == [FRENCH, "three blue stars"]
    english = tokenizer(pictures=DATA)
    assert english.decode(english.encode([FRENCH], 32)) != [FRENCH]


def write_questions(folder, words):
    """A folder of questions as `questions` reads them, without pictures: no vocabulary needs them."""
    folder.mkdir(parents=True)
    lines = [{"image": "x.png", "question": f"is it a {word}?", "answers": [word]} for word in words]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return dict(corpus=dict(name="questions", folder=str(folder)), split="train", batch=16, image_size=16, text_length=6)


def test_a_vocabulary_is_that_of_the_texts_wherever_they_lie(tmp_path, monkeypatch):
    """Two folders of one name with other texts; then the first one's again in another place, and changed in its place."""
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path / "cache"))
    fruit, birds = ("mango", "quince", "papaya", "kumquat"), ("heron", "wigeon", "dunnock", "siskin")
    first, second = (tokenizer(vqa=write_questions(tmp_path / place / "vqa", words)) for place, words in (("a", fruit), ("b", birds)))
    for own, words in ((first, fruit), (second, birds)):
        texts = [f"is it a {word}?" for word in words]
        assert own.decode(own.encode(texts, 32)) == texts
    same = tokenizer(vqa=write_questions(tmp_path / "c" / "elsewhere", fruit))
    assert same.to_json() == first.to_json() and len(list((tmp_path / "cache" / "tokenizers").iterdir())) == 2
    shutil.rmtree(tmp_path / "a" / "vqa")
    assert tokenizer(vqa=write_questions(tmp_path / "a" / "vqa", birds)).to_json() == second.to_json()


def test_fingerprints_are_of_the_content(tmp_path):
    def corpus(folder, size, name="records"):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "index.npz", labels=np.zeros(size, np.int32))
        return Corpus(tmp_path / folder, {"files": {name: {"bytes": size, "sha256": f"{size}"}}})

    a, b, c = corpus("a", 1), corpus("b", 1), corpus("c", 2)
    assert a.fingerprint == b.fingerprint != c.fingerprint
    mixed = [MixedCorpus.__new__(MixedCorpus) for _ in range(3)]
    for mixture, parts in zip(mixed, ((a, c), (b, c), (c, a))):
        mixture._parts, mixture._corpora = [types.SimpleNamespace(split="train")] * 2, parts
    assert mixed[0].fingerprint == mixed[1].fingerprint != mixed[2].fingerprint


HOST_SIDE = [
    dict(video=dict(frames=3, stride=2)),
    dict(video=dict(frames=3, random=False)),
    dict(audio=dict(kind="sound", seconds=0.01)),
    dict(audio=dict(locales=("fr",), random=False, seconds=0.01)),
    dict(split="train_b", shuffle=False, threads=3, prefetch=1, cache_mb=0, error_budget=0.5, error_minimum=2),
    dict(crop=(0.1, 0.9), crop_ratio=(0.5, 2.0), captions=dict(keyword=1.0)),
]
DEVICE_SIDE = [dict(video=dict(frames=4)), dict(batch=8), dict(image_size=8), dict(augment=dict(hue=3.0)), dict(missing="mask")]


def task(**changes):
    data = dict(
        corpus=tiny.CORPUS, split="train_a", batch=16, image_size=16, text_length=6, modalities=("image", "text", "video", "waveform")
    )
    data |= dict(video=dict(frames=3), audio=dict(seconds=0.01), augment=dict(rotate=10.0))
    config = tiny.config().to_dict()
    config["tasks"] = dict(one=dict(data={**data, **changes}, objectives=dict(align=1.0)))
    return Task("one", resolve(Experiment, config).tasks["one"], Preprocess(image_size=16))


def program(task):
    """What the device computes for a batch of the task, as text."""
    batch = {name: shape for name, shape in task.config.data.shapes.items()}
    return str(jax.make_jaxpr(task.prepare)(batch, jax.eval_shape(lambda: jax.random.key(0))))


@pytest.mark.parametrize("changes", HOST_SIDE)
def test_what_only_the_host_reads_compiles_nothing_new(changes):
    one, other = task(), task(**changes)
    assert one.config.data != other.config.data and one.signature == other.signature and program(one) == program(other)


@pytest.mark.parametrize("changes", DEVICE_SIDE)
def test_what_the_devices_see_is_another_program(changes):
    assert task().signature != task(**changes).signature and program(task()) != program(task(**changes))


@pytest.mark.parametrize(
    "data, expected",
    [
        (DATA, ("en",)),
        (dict(DATA, captions=dict(foreign=0.5, foreign_locales=("de",))), ("en", "de")),
        (dict(DATA, captions=dict(foreign=0.5)), None),
        (dict(DATA, modalities=("image",)), ()),
        (SPOKEN, ("en", "fr")),
        (dict(SPOKEN, audio=dict(paired=True)), None),
        (dict(SPOKEN, audio=dict(locales=("fr",))), ("en",)),  # what is heard is not what is read
    ],
)  # fmt: skip
def test_languages_that_a_task_reads(data, expected):
    assert resolve(DataConfig, data).locales == expected


def test_a_model_whose_texts_begin_otherwise_is_refused():
    vit = dict(name="vit", variant="Ti/8", width=16, depth=1, heads=2, pool="cls")
    model = dict(
        name="coca", image=vit, width=16, unimodal=1, multimodal=1, heads=2, embed_dim=16, poolers="shared", cross="after",
        late_mask=True, start_id=5,
    )  # fmt: skip
    experiment = tiny.experiment(model=model)
    found = task_tokenizer(experiment, prepare_corpora(experiment, print))
    assert found.cls_id is None
    with pytest.raises(ConfigError, match=r"model.start_id: 5 is not what the tokenizer begins texts with \(None\)"):
        build_model(experiment, found)


def test_training_pictures_follow_preprocess(tmp_path, monkeypatch):
    """The run's own feed, up to the first batch; nothing is compiled."""
    monkeypatch.setattr("jaxvl.training.setup.compile_turns", lambda *args: [])
    data = dict(DATA, corpus=dict(tiny.CORPUS, size=40), image_size=8, fast_decode=False)
    how = dict(image_size=16, scale_to=20, interpolation="bilinear")
    experiment = tiny.experiment(tasks=dict(pairs=dict(data=data, objectives=dict(align=1.0))), preprocess=how)
    with Writer(tmp_path, 6, tensorboard=False) as writer, jax.set_mesh(mesh := make_mesh(experiment.mesh)):
        run = setup(experiment, mesh, tmp_path, writer)
        batch = next(run.feeds["pairs"])
        run.close()
    source = experiment.tasks["pairs"].data.corpus.prepare(log=print).split("train_a")
    expected = set()
    for i in range(len(source)):
        picture = Image.open(io.BytesIO(source[i]["image"])).convert("RGBa")
        scaled = picture.resize((10, 10), Image.Resampling.BILINEAR).convert("RGBA")  # 20 of 16 are 10 of 8
        expected.add(np.asarray(scaled)[1:9, 1:9].tobytes())
    assert {np.asarray(row).tobytes() for row in np.asarray(batch["image"])} <= expected


def test_a_judge_of_before_a_field_of_preprocess_existed(tmp_path, monkeypatch):
    """Its checkpoint lacks the field; the default is meant."""
    experiment = tiny.experiment()
    found = task_tokenizer(experiment, prepare_corpora(experiment, print))
    frame = {"tokenizer": found.to_json(), "preprocess": '{"image_size": 16}', "config": to_dict(experiment)}
    monkeypatch.setattr(judges.Checkpoints, "frame", lambda self: (6, frame))
    assert judges._other(experiment, tmp_path, found) is not None
    frame["preprocess"] = '{"image_size": 16, "resize": "squash"}'
    with pytest.raises(ConfigError, match="judge: the preprocess of .* is not that of this run"):
        judges._other(experiment, tmp_path, found)


MOE = dict(last=1, experts=4, bias=True, router=dict(name="token_choice", top=2, capacity_factor=None, renormalise=True))


def with_experts(**moe):
    model = tiny.config().to_dict()["model"]
    for tower in ("image", "text"):
        model[tower]["moe"] = {**MOE, **moe}
    return model


@pytest.mark.slow
def test_a_run_with_experts_starts_from_dense_weights(tmp_path):
    """Sparse upcycling: at the start the model with experts is the dense one; only the routers are new."""
    quiet = dict(log=dict(every=10, tensorboard=False, report=False))
    train.train(tiny.experiment(steps=2, checkpoint=dict(every=2), **quiet), tmp_path / "dense")
    dense = restore_weights(tmp_path / "dense")
    (tmp_path / "sparse").mkdir()
    sparse = tiny.experiment(model=with_experts(), init_from=str(tmp_path / "dense"), **quiet)
    with Writer(tmp_path / "sparse", 6, tensorboard=False) as writer, jax.set_mesh(mesh := make_mesh(sparse.mesh)):
        run = setup(sparse, mesh, tmp_path / "sparse", writer)
        image, text = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32), np.full((8, 6), 5)
        for method, x in (("encode_image", image), ("encode_text", text)):
            want, _ = dense.model.apply(dense.params, dense.rest, x, method=method)
            got, _ = run.model.apply(run.state.params, run.state.rest, x, method=method)
            np.testing.assert_allclose(got, want, atol=1e-5)
            averaged, _ = run.model.apply(run.state.eval_params, run.state.rest, x, method=method)
            np.testing.assert_allclose(averaged, want, atol=1e-5)
        run.close()
    train.train(tiny.experiment(steps=2, model=with_experts(), init_from=str(tmp_path / "dense"), **quiet), tmp_path / "run")
    for changed, message in (
        (dict(bias=False), r"init_from: upcycle: .*of the source without a place: \[.*mlp/down/bias"),
        (dict(hidden=5), r"init_from: upcycle: .*of another shape: \[.*up/kernel"),
    ):
        with pytest.raises(ConfigError, match=message):
            train.train(tiny.experiment(model=with_experts(**changed), init_from=str(tmp_path / "dense"), **quiet), tmp_path / "other")
