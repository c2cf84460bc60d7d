"""What a run prepares before its first step: the tokenizer of several tasks, and models that do not go with it."""

import io

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from jaxvl import train
from jaxvl.config import ConfigError, resolve, to_dict
from jaxvl.data.loader import DataConfig
from jaxvl.sharding import make_mesh
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
