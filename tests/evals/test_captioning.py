"""Captioning figures, against hand-worked examples, and a model that learns to write."""

import json

import numpy as np
import pytest
from known_answers import corpus

from jaxvl import caption, train
from jaxvl import evaluate as command
from jaxvl.config import ConfigError, choose, resolve
from jaxvl.data.corpora import CORPORA
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
        self.texts, self.preprocess, self.missing = texts, preprocess, missing

    def captions(self, source, generation):
        del generation
        index = np.array([i for i in range(len(source)) if i != self.missing])
        return [self.texts[i] for i in index], EncodedImages(np.zeros((len(index), 1)), index, {"record is incomplete": 1})


def test_figures_count_what_can_be_read():
    toy = corpus([0, 1, 2, 3])
    names = [toy.split("test")[i]["captions"]["en"][0] for i in range(4)]
    texts = [names[0].upper(), "nothing of the kind", names[2] + " indeed", "never read"]
    result = Captioning(toy, "test", gallery=0).run(Writes(texts, None, missing=3))
    f1 = token_f1(texts[2], names[2])
    assert result.metrics["exact"] == pytest.approx(1 / 3) and result.metrics["token_f1"] == pytest.approx((1 + 0 + f1) / 3)
    assert result.metrics["distinct"] == 3 and result.metrics["images"] == 3 and result.metrics["skipped/record is incomplete"] == 1


def test_references_are_all_texts_of_all_languages_that_are_asked_for():
    toy = corpus([0, 1, 2])
    texts = ["wort 0", "k1", "word 2"]
    figures = lambda **options: Captioning(toy, "test", gallery=0, **options).run(Writes(texts, None, missing=None)).metrics
    assert figures()["exact"] == pytest.approx(1 / 3)
    declared = Captioning(toy, "test", scores=("bleu", "rouge_l", "meteor", "cider_d")).figures
    assert set(declared) - {"skipped/*"} == set(figures(scores=("bleu", "rouge_l", "meteor", "cider_d"))) - {"skipped/record is incomplete"}
    assert figures(captions="all", more_locales=("de",))["exact"] == 1.0
    scored = figures(captions="all", more_locales=("de",), scores=("bleu", "rouge_l", "meteor", "cider_d"))
    assert [scored["bleu_1"], scored["rouge_l"]] == pytest.approx([1, 1]) and scored["bleu_4"] == 0
    assert scored["meteor_exact_stem"] == pytest.approx((2 * (1 - 0.5 / 8) + 0.5) / 3)  # one chunk of two words, one of one
    # Of each image's four references, one is right in its unigrams and (but for "k1") in its bigrams.
    assert 0 < scored["cider_d"] < 10


def test_ids_become_texts_again():
    texts = ["red apple", "green apple tree", "Ünïcödé"]
    tokenizer = Tokenizer("unigram", train_unigram(texts * 3, 40, lowercase=True), pad_id=0, eos_id=1)
    assert tokenizer.decode(tokenizer.encode(texts, 20)) == ["red apple", "green apple tree", "ünïcödé"]
    assert tokenizer.decode(np.array([[1, 5, 6]])) == [""]  # nothing after the end counts


def shapes_split(config):
    return choose(CORPORA, config, "corpus").prepare().split("test_b_new")


@pytest.mark.slow
def test_a_run_that_learns_to_write(tmp_path, capsys):
    """Overfits generated pictures until it names them, in the training loop and by the command."""
    shapes = dict(name="shapes", size=16, variants=1)
    data = dict(corpus=shapes, split="test_b_new", batch=32, image_size=16, text_length=14, threads=2)
    config = dict(
        model=dict(
            name="coca", image=dict(name="vit", variant="Ti/4", width=64, depth=2, heads=2, pool="mean"), width=64, heads=2, hidden=128,
            unimodal=1, multimodal=1, queries=4, embed_dim=32,
        ),
        preprocess=dict(image_size=16),
        tokenizer=dict(vocab_size=64),
        tasks=dict(pairs=dict(data=data, objectives=dict(clip=1.0, captioning=2.0))),
        evals=dict(written=dict(name="captioning", corpus=shapes, split="test_b_new", gallery=2)),
        steps=120,
        optim=dict(lr=3e-3, warmup=20),
        log=dict(every=50, tensorboard=False),
    )  # fmt: skip
    latest = train.train(resolve(Experiment, config), tmp_path)
    assert latest["written/exact"] > 0.95, latest
    assert command.main([f"--workdir={tmp_path}"]) == 0
    results = json.loads((tmp_path / "evaluate" / "results.json").read_text())
    assert results["written/exact"] == latest["written/exact"]
    # The command for pictures of one's own: those of the corpus, of which one is not a picture.
    toy = shapes_split(shapes)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(toy[i]["image"])
    (folder / "broken.png").write_bytes(b"no picture")
    capsys.readouterr()
    assert caption.main([f"--workdir={tmp_path}", str(folder)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"{folder / f'{i}.png'}\t{toy[i]['captions']['en'][0]}" for i in range(3)]
    assert "broken.png" in printed.err and "3 of 4 pictures captioned, 1 left out" in printed.err
    checkpoint = tmp_path / "checkpoints" / "120"
    assert caption.main([f"--checkpoint={checkpoint}", "--json", "--method=beam", "--beams", "2", str(folder)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in lines] == [str(folder / name) for name in ("0.png", "1.png", "2.png", "broken.png")]
    assert lines[0]["caption"] == toy[0]["captions"]["en"][0] and "error" in lines[3]
    # A model that writes nothing says so.
    with pytest.raises(ConfigError, match=r"evals\.written\.name: needs a model that writes captions, as coca"):
        config["model"] = dict(name="dual_encoder", image=dict(name="vit", variant="Ti/8", width=16, depth=1, heads=2),
                               text=dict(name="text_transformer", variant="Ti", width=16, depth=1, heads=2), embed_dim=8)  # fmt: skip
        config["tasks"]["pairs"]["objectives"] = dict(clip=1.0)
        train.train(resolve(Experiment, {**config, "steps": 2, "optim": {"warmup": 0}}), tmp_path / "other")
    train.train(resolve(Experiment, {**config, "steps": 1, "optim": {"warmup": 0}, "evals": {}}), tmp_path / "other")
    assert caption.main([f"--workdir={tmp_path / 'other'}", str(folder)]) == 2
    assert "is 'dual_encoder', which writes no captions; coca does" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--workdri=x", "a.png"], "--workdri: unknown option; did you mean 'workdir'?"),
        (["a.png"], "--workdir: is required"),
        (["--workdir=x"], "IMAGE: no picture and no folder given"),
        (["--workdir=x", "not_there.png"], "not_there.png: is not there; must be a picture or a folder"),
        (["--checkpoint=runs/x", "a.png"], "is not named like a checkpoint of a run: WORKDIR/checkpoints/N"),
        (["--workdir=x", "--temperature=0", "a.png"], "temperature: 0 must be > 0"),
    ],
)
def test_wrong_options_of_the_command(argv, message, capsys):
    assert caption.main(argv) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
