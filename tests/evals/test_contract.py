"""Evaluators against a model and data that they do not fit: one line that names the field, before
anything is compiled."""

import dataclasses
import pathlib
import sys

import jax
import pytest
from known_answers import Records, Toy, encoders, pair, scorer, toy, unit
from known_answers import bigram_logits as logits

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "training"))
import tiny

from jaxvl import train
from jaxvl.config import ConfigError, choose
from jaxvl.data.sources.demo.shapes import Shapes
from jaxvl.evals import EVALUATORS
from jaxvl.evals.contract import Evaluator, check_evaluators, gives
from jaxvl.models.generate import Generation
from jaxvl.sharding import make_mesh
from jaxvl.training import setup
from jaxvl.training.build import Vocabulary, build_model
from jaxvl.training.encode import make_encoders
from jaxvl.training.inputs import open_sources

ONE = make_mesh(devices=jax.devices()[:1])
TABLE = unit(64, 8)
HERE = dict(source=dict(tiny.SHAPES, split="test_b_new"))
TOY = toy(range(12))
SPOKEN = dict(waveform="speech/{language}", text="name/{language}")
EMPTY = Toy(Records([]))
NO_CAPTIONS = Toy(Records([(0, {})], {"en": ["a"]}))
SILENT = Toy(Records([(0, {"en": [None, []]})], {"en": ["a"]}))


class LeftBehind:
    """A tokenizer that was not converted with its weights."""

    def encode(self, texts, length):
        raise ConfigError("tokenizer", "was left behind")


@pytest.fixture(scope="module")
def dual_encoder():
    """Encoders of a dual encoder, whose weights are shapes."""
    experiment = tiny.experiment()
    model = build_model(experiment, Vocabulary(64, 0, 1))
    tokenizer = encoders(ONE, TABLE, TABLE).tokenizer
    return make_encoders(
        experiment, model, tokenizer, make_mesh(experiment.mesh), (model.params, model.model_state)
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(HERE, name="captioning"),
            r"evals\.x\.name: needs a model that writes captions, as coca",
        ),
        (
            dict(HERE, name="likelihood"),
            r"evals\.x\.name: needs a model that gives the probability of a text, as coca",
        ),
        (dict(HERE, name="vqa"), r"evals\.x\.name: needs a model that gives the probability"),
        (
            dict(HERE, name="vqa", method="generate"),
            r"evals\.x\.name: needs a model that writes captions",
        ),
        (
            dict(name="zero_shot", source=dict(tiny.SHAPES, split="test_b_nwe")),
            r"evals\.x\.source\.split: 'test_b_nwe' is none; did you mean 'test_b_new'",
        ),
        (
            dict(HERE, name="zero_shot", language="xx"),
            r"evals\.x\.language: 'xx': the classes of 'class_label' of shapes.* have no names in it \(languages: en, de, fr\)",
        ),
        (
            dict(HERE, name="zero_shot", label="labels"),
            r"evals\.x\.label: 'labels' is not a column of shapes.*; did you mean 'class_label'\? \(columns: key, image",
        ),
        (
            dict(HERE, name="zero_shot", label="image"),
            r"evals\.x\.label: 'image' of shapes.* holds values of kind 'image'; must be class or int or text",
        ),
        (
            dict(HERE, name="zero_shot", image="class_label"),
            r"evals\.x\.image: 'class_label' of shapes.* of kind 'class'; must be image \(such columns: image\)",
        ),
        (
            dict(HERE, name="zero_shot", classes=("blue squares", "nothing")),
            r"evals\.x\.classes\[\d\]: .*is not a class of 'class_label' of shapes.* in 'en'",
        ),
        (
            dict(HERE, name="retrieval"),
            r"evals\.x\.text: 'text' is not a column of shapes.*\(columns: key, image, style, class_label, name/en, ",
        ),
        (
            dict(HERE, name="retrieval", text="name/xx"),
            r"evals\.x\.text: 'name/xx' is not a column of shapes.*; did you mean 'name/",
        ),
        (
            dict(HERE, name="retrieval", text="image"),
            r"evals\.x\.text: 'image' of shapes.* of kind 'image'; must be text or texts \(such columns: key, style, name/en",
        ),
        (
            dict(HERE, name="retrieval", text=("name/de", "keywords/de")),
            r"evals\.x\.text\[1\]: 'keywords/de': no record of shapes.* has a text in it",
        ),
        (dict(HERE, name="retrieval", text=()), r"evals\.x\.text: must name a column or several"),
        (
            dict(HERE, name="retrieval", text="name/en", group="image_id"),
            r"evals\.x\.group: 'image_id' is not a column",
        ),
        (
            dict(HERE, name="linear_probe", train=dict(tiny.SHAPES, split="trian_a")),
            r"evals\.x\.train\.split: 'trian_a' is none; did you mean 'train_a'",
        ),
        (
            dict(HERE, name="linear_probe", train=tiny.TRAIN, label="color"),
            r"evals\.x\.label: 'color' is not a column .* did you mean 'colour'",
        ),
        (
            dict(HERE, name="linear_probe", train=tiny.TRAIN, image="photo"),
            r"evals\.x\.image: 'photo' is not a column",
        ),
        (
            dict(HERE, name="attentional_probe", train=tiny.TRAIN, heads=3),
            r"evals\.x\.heads: 3 must divide the width of 16",
        ),
        (
            dict(HERE, name="attentional_probe", train=tiny.TRAIN, memory_gib=1e-6),
            r"evals\.x\.memory_gib: .* take",
        ),
        (dict(HERE, name="interleaved", text="name/en"), r"evals\.x\.name: "),
        (
            dict(HERE, name="interleaved", text="name/en", interleave=dict(records=1024)),
            r"evals\.x\.interleave: shapes.* has \d+ records, too few",
        ),
        (
            dict(HERE, name="interleaved", text="name/en", interleave=dict(records=4, length=5)),
            r"evals\.x\.interleave\.length: 5 must be >=",
        ),
        (
            dict(HERE, name="masked_image", text="name/en"),
            r"evals\.x\.name: needs the model output 'patch_prediction'",
        ),
        (
            dict(HERE, name="masked_image", text="name/xx"),
            r"evals\.x\.text: 'name/xx' is not a column",
        ),
        (
            dict(HERE, **SPOKEN, name="cross_modal_retrieval", pair=("image", "text")),
            r"evals\.x\.name: needs the model output 'vision>text'",
        ),
        (
            dict(HERE, **SPOKEN, name="cross_modal_retrieval", pair=("image", "waveform")),
            r"evals\.x\.waveform: 'speech/en' is not a column",
        ),
        (
            dict(
                HERE,
                **SPOKEN,
                name="cross_modal_retrieval",
                pair=("image", "waveform"),
                languages=("fr",),
            ),
            r"evals\.x\.languages\[0\]: 'speech/fr' is not",
        ),
        (
            dict(HERE, name="cross_modal_retrieval", pair=("video", "text")),
            r"evals\.x\.video: 'frames' is not a column",
        ),
    ],
)
def test_a_dual_encoder_and_what_it_cannot_be_asked(dual_encoder, options, message):
    evaluator = choose(EVALUATORS, options, "evals.x")
    with pytest.raises(ConfigError, match=message):
        check_evaluators({"x": evaluator}, dual_encoder)


def of(name, config, **options):
    return EVALUATORS[name](config, **options)


@pytest.mark.parametrize(
    "evaluator, message",
    [
        (of("retrieval", EMPTY), r"source: toy has no records"),
        (
            of("zero_shot", NO_CAPTIONS, language="de"),
            r"language: 'de': the classes of 'class_label' of toy have no names in it",
        ),
        (
            of("retrieval", NO_CAPTIONS),
            r"text: 'text' is not a column of toy \(columns: image, class_label, parity\)",
        ),
        (
            of("retrieval", SILENT, text="name/en"),
            r"text: 'name/en': no record of toy has a text in it \(columns of texts: name/en, keywords/en\)",
        ),
        (
            EVALUATORS["linear_probe"](**pair(range(4), range(8, 12))),
            r"source: test has no image of a class of the train source train",
        ),
        (EVALUATORS["linear_probe"](**pair([3, 3], [3])), r"train: train has one class only"),
        (of("zero_shot", TOY, classes=("word 99",)), r"classes\[0\]: 'word 99' is not a class"),
    ],
)
def test_a_source_that_has_not_what_is_asked(evaluator, message):
    with pytest.raises(ConfigError, match=rf"evals\.x\.{message}"):
        check_evaluators({"x": evaluator}, encoders(ONE, TABLE, TABLE))


def test_many_columns_are_named_in_few_words():
    languages = [f"l{i}" for i in range(50)]
    source = Toy(Records([(0, {language: ["a", []] for language in languages})]))
    with pytest.raises(ConfigError) as met:
        check_evaluators({"x": of("retrieval", source)}, encoders(ONE, TABLE, TABLE))
    assert (
        "name/l0, name/l1, name/l10, name/l11, … (50 name/…), keywords/l0" in str(met.value)
        and len(str(met.value)) < 300
    )


def test_a_captioner_and_what_it_cannot_be_asked():
    writes = scorer(ONE, logits("uniform"))
    both = {
        "x": of("captioning", TOY, references="name/en"),
        "y": of("likelihood", TOY, text="name/en"),
    }
    check_evaluators(both, writes)
    for evaluator, message in (
        (
            of("captioning", TOY, references=("name/de", "name/fr")),
            r"evals\.x\.references\[1\]: 'name/fr' is not a column of toy",
        ),
        (
            of("captioning", TOY, generation=Generation(method="sample", top_k=100)),
            r"evals\.x\.generation: the model does not",
        ),
        (of("vqa", TOY), r"evals\.x\.question: 'question' is not a column of toy"),
        (
            EVALUATORS["linear_probe"](**pair([1, 2], [1, 2]), features="mean_tokens"),
            r"evals\.x\.name: needs a model that has tokens",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            check_evaluators({"x": evaluator}, writes)


def test_a_tokenizer_that_was_left_behind():
    blind = encoders(ONE, TABLE, TABLE)
    blind.tokenizer = LeftBehind()
    for name in ("zero_shot", "retrieval"):
        with pytest.raises(ConfigError, match=r"evals\.x\.tokenizer: was left behind"):
            check_evaluators({"x": of(name, TOY)}, blind)
    check_evaluators(
        {"x": EVALUATORS["linear_probe"](**pair([1, 2], [1, 2]))}, blind
    )  # reads no text


def test_the_best_metric_must_be_one_that_its_evaluator_gives():
    evals = {"unseen": of("zero_shot", TOY), "words": of("vqa", TOY)}
    own = {"unseen": evals["unseen"]}
    for good in ("unseen/acc@1", "-unseen/skipped/image cannot be decoded"):
        check_evaluators(own, encoders(ONE, TABLE, TABLE), good)
    with pytest.raises(
        ConfigError,
        match=r"checkpoint\.best_metric: '-unseen/acc@10': evaluator 'unseen' does not give 'acc@10'.*its figures: acc@1, acc@5",
    ):
        check_evaluators(own, encoders(ONE, TABLE, TABLE), "-unseen/acc@10")
    with pytest.raises(
        ConfigError, match=r"checkpoint\.best_metric: 'unseen' must name a figure, as unseen/FIGURE"
    ):
        check_evaluators(own, encoders(ONE, TABLE, TABLE), "unseen")
    assert gives(evals["words"], "vqa_acc_yes-no") and not gives(evals["words"], "accuracy")


def test_what_is_no_evaluator_is_named():
    @dataclasses.dataclass(frozen=True)
    class Half:
        sources: tuple = ()
        every: int = 0

    with pytest.raises(
        ConfigError,
        match=r"evals\.x\.name: Half must have check\(encoders\), figures and run\(encoders\)",
    ):
        check_evaluators({"x": Half()}, encoders(ONE, TABLE, TABLE))
    assert all(
        isinstance(of(name, TOY), Evaluator)
        for name in ("zero_shot", "retrieval", "vqa", "captioning", "likelihood")
    )


def test_a_run_is_refused_before_anything_is_compiled(tmp_path, monkeypatch):
    """Until now it trained to its last step, and ended there with an error and no checkpoint of
    it."""

    def compiles(*args, **kwargs):
        raise AssertionError("compiled first")

    monkeypatch.setattr(setup, "compile_turns", compiles)
    with pytest.raises(
        ConfigError, match=r"evals\.written\.name: needs a model that writes captions, as coca"
    ):
        train.train(tiny.experiment(evals=dict(written=dict(HERE, name="captioning"))), tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"checkpoint\.best_metric: 'names/acc@2': evaluator 'names' does not give 'acc@2'; did you mean 'acc@",
    ):
        best = dict(every=3, best_metric="names/acc@2")
        train.train(
            tiny.experiment(evals=dict(names=dict(HERE, name="zero_shot")), checkpoint=best),
            tmp_path,
        )


def test_a_corpus_is_prepared_once_for_tasks_and_evaluators(monkeypatch):
    prepared = []
    prepare = Shapes.prepare
    monkeypatch.setattr(
        Shapes,
        "prepare",
        lambda self, log=print: (prepared.append(self), prepare(self, log=log))[1],
    )
    experiment = tiny.experiment(evals=dict(names=dict(HERE, name="zero_shot")))
    open_sources(experiment, lambda text: None)
    model = build_model(experiment, Vocabulary(64, 0, 1))
    tokenizer = encoders(ONE, TABLE, TABLE).tokenizer
    made = make_encoders(
        experiment, model, tokenizer, make_mesh(experiment.mesh), (model.params, model.model_state)
    )
    check_evaluators(experiment.evals, made)
    assert len(prepared) == 1  # of which task and evaluator read a split each
    open_sources(experiment, lambda text: None)  # another run opens its sources anew
    assert len(prepared) == 2
