"""Captioning figures, against hand-worked examples, and a model that learns to write."""

import json

import numpy as np
import pytest
from known_answers import toy

from jaxvl import caption, train
from jaxvl import evaluate as command
from jaxvl.config import ConfigError, choose, resolve
from jaxvl.data.sources import SOURCES
from jaxvl.data.tokenizers import Tokenizer, train_unigram
from jaxvl.evals.captioning import Captioning, token_f1
from jaxvl.evals.encoders import EncodedImages
from jaxvl.training.experiment import Experiment

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.parametrize(
    "text, reference, f1",
    [
        ("a red apple", "red apple", 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("Red  Apple", "red apple", 1.0),
        ("cat cat cat", "cat dog", 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),
        ("", "red apple", 0.0),
        ("sun", "moon", 0.0),
    ],
)
def test_token_f1(text, reference, f1):
    assert token_f1(text, reference) == pytest.approx(f1)


class Writes:
    """Stands for `Encoders`: writes what it is told to, and cannot read one record."""

    def __init__(self, texts, preprocess, missing):
        self.texts = texts
        self.preprocess = preprocess
        self.missing = missing

    def captions(self, source, generation, column):
        assert column == "image"
        del generation
        index = np.array([i for i in range(len(source)) if i != self.missing])
        return [self.texts[i] for i in index], EncodedImages(
            np.zeros((len(index), 1)), index, {"record is incomplete": 1}
        )


def test_figures_count_what_can_be_read():
    source = toy([0, 1, 2, 3])
    names = [source.records[i]["name/en"] for i in range(4)]
    texts = [names[0].upper(), "nothing of the kind", names[2] + " indeed", "never read"]
    result = Captioning(source, references="name/en", gallery=0).run(Writes(texts, None, missing=3))
    f1 = token_f1(texts[2], names[2])
    assert result.metrics["exact"] == pytest.approx(1 / 3) and result.metrics[
        "token_f1"
    ] == pytest.approx((1 + 0 + f1) / 3)
    assert (
        result.metrics["distinct"] == 3
        and result.metrics["images"] == 3
        and result.metrics["skipped/record is incomplete"] == 1
    )


def test_references_are_all_texts_of_all_columns_that_are_asked_for():
    source = toy([0, 1, 2])
    texts = ["wort 0", "k1", "word 2"]
    scores = ("bleu", "rouge_l", "meteor", "cider_d")
    every = ("name/en", "keywords/en", "name/de", "keywords/de")
    evaluator = lambda references, **options: Captioning(
        source, references=references, gallery=0, **options
    )
    figures = lambda *args, **options: (
        evaluator(*args, **options).run(Writes(texts, None, missing=None)).metrics
    )
    assert figures("name/en")["exact"] == pytest.approx(1 / 3)
    declared = evaluator("name/en", scores=scores).figures
    assert set(declared) - {"skipped/*"} == set(figures("name/en", scores=scores)) - {
        "skipped/record is incomplete"
    }
    assert figures(every)["exact"] == 1.0
    scored = figures(every, scores=scores)
    assert [scored["bleu_1"], scored["rouge_l"]] == pytest.approx([1, 1]) and scored["bleu_4"] == 0
    assert scored["meteor_exact_stem"] == pytest.approx(
        (2 * (1 - 0.5 / 8) + 0.5) / 3
    )  # one chunk of two words, one of one
    # Of each image's four references, one is right in its unigrams and (but for "k1") in its
    # bigrams.
    assert 0 < scored["cider_d"] < 10


def test_ids_become_texts_again():
    texts = ["red apple", "green apple tree", "Ünïcödé"]
    tokenizer = Tokenizer(
        "unigram", train_unigram(texts * 3, 40, lowercase=True), pad_id=0, eos_id=1
    )
    assert tokenizer.decode(tokenizer.encode(texts, 20)) == [
        "red apple",
        "green apple tree",
        "ünïcödé",
    ]
    assert tokenizer.decode(np.array([[1, 5, 6]])) == [""]  # nothing after the end counts


@pytest.mark.slow
def test_a_run_that_learns_to_write(tmp_path, capsys):
    """Overfits generated pictures until it names them, in the training loop and by the command."""
    shapes = dict(name="shapes", size=16, variants=1, split="test_b_new")
    fields = dict(
        image=dict(name="picture", size=16), text=dict(name="caption", columns="name/en", length=20)
    )
    data = dict(source=shapes, batch=32, fields=fields, reader=dict(threads=2))
    config = dict(
        model=dict(
            name="coca",
            image=dict(name="vit", variant="Ti/4", width=64, depth=2, heads=2, pool="mean"),
            width=64,
            heads=2,
            hidden=128,
            unimodal=1,
            multimodal=1,
            queries=4,
            embed_dim=32,
        ),
        preprocess=dict(image_size=16),
        tokenizer=dict(vocab_size=64),
        tasks=dict(pairs=dict(data=data, objectives=dict(clip=1.0, captioning=2.0))),
        evals=dict(written=dict(name="captioning", source=shapes, references="name/en", gallery=2)),
        steps=120,
        optim=dict(lr=3e-3, warmup=20),
        log=dict(every=50, tensorboard=False),
    )
    latest = train.train(resolve(Experiment, config), tmp_path)
    assert latest["written/exact"] > 0.95, latest
    assert command.main([f"--workdir={tmp_path}"]) == 0
    results = json.loads((tmp_path / "evaluate" / "results.json").read_text())
    assert results["written/exact"] == latest["written/exact"]
    # The command for pictures of one's own: those of the source, of which one is not a picture.
    source = choose(SOURCES, shapes, "source").open()
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(source[i]["image"])
    (folder / "broken.png").write_bytes(b"no picture")
    capsys.readouterr()
    assert caption.main([f"--workdir={tmp_path}", str(folder)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"{folder / f'{i}.png'}\t{source[i]['name/en']}" for i in range(3)
    ]
    assert "broken.png" in printed.err and "3 of 4 pictures captioned, 1 left out" in printed.err
    checkpoint = tmp_path / "checkpoints" / "120"
    assert (
        caption.main(
            [f"--checkpoint={checkpoint}", "--json", "--method=beam", "--beams", "2", str(folder)]
        )
        == 0
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in lines] == [
        str(folder / name) for name in ("0.png", "1.png", "2.png", "broken.png")
    ]
    assert lines[0]["caption"] == source[0]["name/en"] and "error" in lines[3]
    # A model that writes nothing says so.
    with pytest.raises(
        ConfigError, match=r"evals\.written\.name: needs a model that writes captions, as coca"
    ):
        config["model"] = dict(
            name="dual_encoder",
            image=dict(name="vit", variant="Ti/8", width=16, depth=1, heads=2),
            text=dict(name="text_transformer", variant="Ti", width=16, depth=1, heads=2),
            embed_dim=8,
        )
        config["tasks"]["pairs"]["objectives"] = dict(clip=1.0)
        train.train(
            resolve(Experiment, {**config, "steps": 2, "optim": {"warmup": 0}}), tmp_path / "other"
        )
    train.train(
        resolve(Experiment, {**config, "steps": 1, "optim": {"warmup": 0}, "evals": {}}),
        tmp_path / "other",
    )
    assert caption.main([f"--workdir={tmp_path / 'other'}", str(folder)]) == 2
    assert (
        "is 'dual_encoder', which writes no captions; coca does"
        in capsys.readouterr().err.replace("\n", " ")
    )


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--workdri=x", "a.png"], "--workdri: unknown option; did you mean 'workdir'?"),
        (["a.png"], "--workdir: is required"),
        (["--workdir=x"], "IMAGE: no picture and no folder given"),
        (
            ["--workdir=x", "not_there.png"],
            "not_there.png: is not there; must be a picture or a folder",
        ),
        (
            ["--checkpoint=runs/x", "a.png"],
            "is not named like a checkpoint of a run: WORKDIR/checkpoints/N",
        ),
        (["--workdir=x", "--temperature=0", "a.png"], "temperature: 0 must be > 0"),
    ],
)
def test_wrong_options_of_the_command(argv, message, capsys):
    assert caption.main(argv) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
