"""Answers to questions: VQA's accuracy by its definition, a loop in float64, an oracle, a model
that knows nothing, ties."""

import itertools
import json

import jax
import numpy as np
import pytest
import scipy.special
import tokenizers
from known_answers import Records, Toy, Words, bigram_logits, picture, scorer
from known_answers import encoded as png
from training import tiny

from jaxvl import evaluate as command
from jaxvl import train
from jaxvl.config import ConfigError, choose, resolve
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Column
from jaxvl.data.tokenizers import Tokenizer
from jaxvl.evals import EVALUATORS
from jaxvl.evals.contract import gives
from jaxvl.evals.encoders import EncodedImages
from jaxvl.evals.vqa import Vqa, accuracy, normalised
from jaxvl.sharding.mesh import MeshConfig, make_mesh
from jaxvl.training.experiment import Experiment

MESH = make_mesh(MeshConfig(data=4, fsdp=2))
ONE = make_mesh(devices=jax.devices()[:1])
LABELS = [k % 5 for k in range(27)]


class Asked(Records):
    """Records with a question."""

    def __init__(self, rows, questions, **faults):
        super().__init__(rows, **faults)
        self.questions = questions
        self.columns |= {
            "question": Column("text"),
            "answers": Column("texts"),
            "type": Column("text", optional=True),
        }

    def record(self, i, columns):
        return {**super().record(i, columns), **self.questions[i]}


def asked(labels, answers=lambda k: [f"{k}"], **faults):
    """A question for every picture, whose token is 9; its class is the right answer."""
    questions = [
        {"question": "what 9?", "answers": answers(k), "type": "even" if k % 2 == 0 else "odd/one"}
        for k in labels
    ]
    return Toy(Asked([(k, {}) for k in labels], questions, **faults))


@pytest.mark.parametrize(
    "people",
    [
        ["a b"] * 10,
        ["x"] * 2 + ["y"] * 8,
        ["x"] * 3 + ["y"] * 7,
        ["x"] * 4 + list("yzuvwq"),
        list("xxy"),
        ["x", "x"],
    ],
)
def test_accuracy_is_the_mean_over_subsets_of_people(people):
    for answer in ("x", "y", "a b", "nobody's"):
        subsets = list(itertools.combinations(range(len(people)), len(people) - 1))
        enough = min(3, len(people) - 1)
        expected = np.mean([min(sum(people[i] == answer for i in s) / enough, 1) for s in subsets])
        assert accuracy(answer, people) == pytest.approx(expected)
    assert accuracy("x", ["x"]) == 1 and accuracy("x", ["y"]) == 0


def test_answers_are_compared_after_vqas_rules():
    assert (
        normalised("The  Two dogs.") == normalised("2 dogs")
        and normalised("NONE") == "0"
        and normalised("a") == "a"
        and normalised("red") != normalised("read")
    )


@pytest.mark.parametrize("method", ["likelihood", "generate"])
def test_oracle(method):
    source = asked(LABELS, broken=(3,), unreadable=(8,))
    evaluator = Vqa(source, method=method, gallery=3)
    result = evaluator.run(scorer(MESH, bigram_logits("oracle")))
    m = result.metrics
    assert all(gives(evaluator, figure) for figure in m) and {
        f for f in evaluator.figures if f[-1] != "*"
    } <= set(m)
    assert m["vqa_acc"] == m["exact"] == m["vqa_acc_even"] == m["vqa_acc_odd-one"] == 1.0
    assert (
        m["questions"] == 25
        and m["skipped/image cannot be decoded"] == 1
        and m["skipped/record cannot be read"] == 1
    )
    kept = np.bincount([k for i, k in enumerate(LABELS) if i not in (3, 8)])
    assert m["vqa_acc_majority"] == pytest.approx(kept[0] / 25)
    assert all(row.items[0].right for row in result.gallery)
    assert set(source.records.asked) == {("question", "answers", "type"), ("image",)}
    if method == "likelihood":
        assert (m["candidates"], m["vqa_acc_chance"], m["vqa_acc_best_possible"]) == (
            5,
            pytest.approx(1 / 5),
            1.0,
        )


def test_a_model_that_knows_nothing_is_at_chance():
    """All candidates are equally likely: each counts by a fifth, whatever its place in the list."""
    got = Vqa(asked(LABELS), gallery=0).run(scorer(MESH, bigram_logits("uniform"))).metrics
    assert got["vqa_acc"] == got["exact"] == pytest.approx(1 / 5)


@pytest.mark.parametrize("per_token", [False, True])
def test_likelihood_is_that_of_a_loop_in_float64(per_token):
    table = bigram_logits("random", seed=4)
    candidates = ("say 0", "say 1 2", "3", "4 4")
    people = lambda k: ["say 0", "4 4", "4 4", "0"] if k == 2 else [f"{k} 2"] * 10
    evaluator = Vqa(asked(LABELS, people), candidates=candidates, per_token=per_token, gallery=0)
    eight, one = (evaluator.run(scorer(mesh, table)).metrics for mesh in (MESH, ONE))
    expected = []
    for k in LABELS:
        log_p = table[k] - scipy.special.logsumexp(table[k], -1, keepdims=True)
        scores = []
        for ids in Words().ids(candidates):
            path = [11, *ids, 1]  # the question's token stands before the answer's
            s = sum(log_p[a, b] for a, b in zip(path, path[1:]))
            scores.append(s / (len(ids) + 1) if per_token else s)
        expected.append(accuracy(candidates[int(np.argmax(scores))], people(k)))
    assert eight["vqa_acc"] == pytest.approx(np.mean(expected)) == one["vqa_acc"]
    worth = np.array([[accuracy(c, people(k)) for c in candidates] for k in LABELS])
    assert eight["vqa_acc_chance"] == pytest.approx(worth.mean()) and eight[
        "vqa_acc_best_possible"
    ] == pytest.approx(worth.max(1).mean())


def test_generation_is_greedy_after_the_question():
    table = bigram_logits("random", seed=6)
    texts = []
    for k in LABELS:
        path = [11]
        while path[-1] != 1:
            z = table[k, path[-1]].copy()
            z[0] = -np.inf  # padding
            path.append(1 if len(path) == 4 else int(z.argmax()))
        texts.append(" ".join(str(i - 2) for i in path[1:-1] if i > 1))
    source = asked(LABELS, lambda k: [texts[k] or "nothing"] if k != 3 else ["other"])
    got = Vqa(source, method="generate", gallery=0).run(scorer(MESH, table)).metrics
    assert (
        got["vqa_acc"] == pytest.approx(np.mean([k != 3 and bool(texts[k]) for k in LABELS]))
        and got["vqa_acc"] > 0
    )


class Reads:
    """Stands for `Encoders`; keeps the tokens that it is given."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.text_length = 8
        self.batch = 8
        self.preprocess = None
        self.tokens = []

    def scores(self, source, tokens, begin, column):
        self.tokens += [tuple(row) for of in tokens for row in of.tolist()]
        return EncodedImages(
            np.zeros((len(tokens), tokens.shape[1], 3)) + 1, np.arange(len(tokens)), {}
        )

    def captions(self, source, generation, prompt, column):
        self.tokens += [tuple(row) for row in prompt.tolist()]
        return ["yes"] * len(prompt), EncodedImages(prompt, np.arange(len(prompt)), {})


@pytest.mark.parametrize("clean", ["lower", "canonical", "open_clip_lower"])
def test_questions_and_answers_are_cleaned_as_every_text(clean):
    """A converted captioner reads no capital that it never saw: the ids are those of the whole
    text, and those written here."""
    words = {
        "[UNK]": 0,
        "<end>": 1,
        "what": 2,
        "colour": 3,
        "?": 4,
        "dark": 5,
        "red": 6,
        "<pad>": 7,
    }
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = Tokenizer("json", model.to_str().encode(), pad_id=7, eos_id=1, clean=clean)
    mark = [] if clean == "canonical" else [4]  # which leaves punctuation out
    expected = [2, 3, *mark, 5, 6, 1]
    padded = tuple(expected + [7] * (8 - len(expected)))
    source = Toy(Asked([(0, {})], [{"question": "What COLOUR?", "answers": ["Dark Red"]}]))
    reads = Reads(tokenizer)
    Vqa(source, gallery=0).run(reads)
    Vqa(source, gallery=0, method="generate").run(reads)
    assert reads.tokens == [padded, tuple([2, 3, *mark] + [7] * (6 - len(mark)))]
    assert tuple(tokenizer.encode(["What COLOUR? Dark Red"], 8)[0].tolist()) == padded
    assert tokenizer.ids(["What COLOUR?"]) == [[2, 3, *mark]]


def test_columns_by_other_names_and_one_answer_as_a_text():
    source = asked(LABELS)
    records = source.records
    records.columns |= {"q": Column("text"), "a": Column("text")}
    for question in records.questions:
        question["q"], question["a"] = question.pop("question"), question.pop("answers")[0]
    evaluator = Vqa(source, question="q", answers="a", kind=None, gallery=1)
    evaluator.check(scorer(ONE, bigram_logits("oracle")))
    got = evaluator.run(scorer(ONE, bigram_logits("oracle"))).metrics
    assert got["vqa_acc"] == 1 and not [name for name in got if name.startswith("vqa_acc_even")]
    for field in ("question", "answers", "kind"):
        with pytest.raises(ConfigError, match=f"^{field}: 'nothing' is not a column of toy"):
            Vqa(source, **{"question": "q", "answers": "a", "kind": None, field: "nothing"}).check(
                scorer(ONE, bigram_logits("oracle"))
            )


def test_candidates_of_another_source():
    few = asked([0, 0, 1, 3])
    evaluator = Vqa(asked(LABELS), candidates=few, gallery=0)
    assert evaluator.sources == (evaluator.source, few) and Vqa(few, candidates=("a",)).sources == (
        few,
    )
    got = evaluator.run(scorer(MESH, bigram_logits("oracle"))).metrics
    assert (
        got["candidates"] == 3
        and got["vqa_acc"] == got["vqa_acc_best_possible"] == np.isin(LABELS, [0, 1, 3]).mean()
    )
    node = dict(name="vqa", source="shapes_vqa", candidates=dict(name="shapes_vqa", split="train"))
    assert choose(EVALUATORS, node, "x").candidates.split == "train"
    with pytest.raises(ConfigError, match=r"x\.candidates\.name: 'train' is not a known source"):
        choose(EVALUATORS, {**node, "candidates": "train"}, "x")
    assert choose(EVALUATORS, {**node, "candidates": ["yes", "no"]}, "x").candidates == (
        "yes",
        "no",
    )


def test_wrong_options():
    run = lambda config, **options: Vqa(config, **options).run(
        scorer(MESH, bigram_logits("uniform"))
    )
    with pytest.raises(
        ConfigError, match="candidates: question: 'question' is not a column of toy"
    ):
        run(asked([1, 2]), candidates=Toy(Records([(0, {})])))
    with pytest.raises(
        DataError, match="no question that leaves room .* 'question is too long': 2"
    ):
        run(asked([1, 2]), template="1 2 3 4 {}")
    with pytest.raises(ConfigError, match="candidates: toy has no answers to choose from"):
        run(asked([1, 2], unreadable=(0, 1)))
    with pytest.raises(
        ConfigError, match="candidates: must be a source or hold at least one answer"
    ):
        Vqa(asked([1]), candidates=())
    assert run(asked(LABELS), most=2).metrics["candidates"] == 2


def folder_of(tmp_path, lines):
    (tmp_path / "images").mkdir()
    for k in range(3):
        (tmp_path / "images" / f"{k}.png").write_bytes(png(picture(k)))
    (tmp_path / "val.jsonl").write_text("\n".join(lines) + "\n")
    return dict(
        name="questions", folder=str(tmp_path), images=str(tmp_path / "images"), split="val"
    )


def test_questions_of_your_own(tmp_path):
    lines = [
        json.dumps(
            {
                "image": f"{k}.png",
                "question": "What 9?",
                "answers": [f"{k}", f"{k}", "x"],
                "type": "t",
            }
        )
        for k in (0, 1, 2, 7)
    ]
    config = choose(SOURCES, folder_of(tmp_path, lines), "source")
    got = Vqa(config, gallery=1).run(scorer(MESH, bigram_logits("oracle"))).metrics
    assert got["exact"] == 1.0 and got["vqa_acc"] == got["vqa_acc_t"] == pytest.approx(
        2 / 3
    )  # one of three people said "x"
    assert got["questions"] == 3 and got["skipped/record cannot be read"] == 1
    assert got["candidates"] == 5  # the four, and "x"


@pytest.mark.slow
def test_every_evaluator_of_a_captioner_in_the_loop_and_offline(tmp_path):
    """One step of training on generated questions; the same figures after it and from the
    checkpoint."""
    scenes = dict(name="shapes_vqa", size=16, scenes=40)
    shapes = dict(name="shapes", size=16, variants=1)
    train_scenes = dict(scenes, split="train")
    test_scenes = dict(scenes, split="test")
    fields = dict(
        image=dict(name="picture", size=16), text=dict(name="caption", columns="name/en", length=32)
    )
    data = dict(source=train_scenes, batch=8, fields=fields, reader=dict(threads=2))
    both = dict(
        source=dict(shapes, split="test_b_new"),
        train=dict(shapes, split="test_b_train_styles"),
        gallery=1,
    )
    config = dict(
        model=tiny.COCA,
        preprocess=dict(image_size=16),
        tokenizer=dict(vocab_size=80),
        steps=1,
        optim=dict(warmup=0),
        tasks=dict(pairs=dict(data=data, objectives=dict(clip=1.0, captioning=1.0))),
        log=dict(tensorboard=False),
        evals=dict(
            likely=dict(name="likelihood", source=test_scenes, text="name/en", gallery=1),
            answers=dict(name="vqa", source=test_scenes, candidates=train_scenes, gallery=1),
            written=dict(name="vqa", source=test_scenes, method="generate", gallery=1),
            linear=dict(name="linear_probe", label="colour", l2=[0.1], iterations=20, **both),
            attentional=dict(name="attentional_probe", label="shape", epochs=1, heads=2, **both),
        ),
    )
    latest = train.train(resolve(Experiment, config), tmp_path)
    assert command.main([f"--workdir={tmp_path}"]) == 0
    results = json.loads((tmp_path / "evaluate" / "results.json").read_text())
    names = {k.split("/")[0] for k in latest} & set(config["evals"])
    assert names == set(config["evals"])
    for k, v in results.items():
        if k.split("/")[0] in names:
            assert latest[k] == pytest.approx(v, abs=1e-5), k
    assert (
        latest["likely/perplexity"] > 2
        and latest["answers/questions"] == latest["written/questions"] == latest["likely/captions"]
    )
    assert latest["linear/classes"] >= 5 and latest["attentional/acc@1_chance"] == pytest.approx(
        1 / latest["attentional/classes"]
    )
