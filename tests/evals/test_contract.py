"""Evaluators against a model and data that they do not fit: one line that names the field, before anything is compiled."""

import dataclasses
import pathlib
import sys

import jax
import pytest
from known_answers import Corpus, Source, corpus, encoders, scorer, two_splits, unit
from known_answers import bigram_logits as logits

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "training"))
import tiny

from jaxvl import train
from jaxvl.config import ConfigError, choose
from jaxvl.data.corpora.shapes import Shapes
from jaxvl.evals import EVALUATORS
from jaxvl.evals.contract import Evaluator, check_evaluators, gives
from jaxvl.models.generate import Generation
from jaxvl.sharding import make_mesh
from jaxvl.training import setup
from jaxvl.training.build import Vocabulary, build_model
from jaxvl.training.encode import make_encoders
from jaxvl.training.inputs import prepare_corpora

ONE = make_mesh(devices=jax.devices()[:1])
TABLE = unit(64, 8)
SHAPES = dict(tiny.CORPUS)
HERE = dict(corpus=SHAPES, split="test_b_new")
TOY = two_splits(range(12), range(12))
NO_LABEL_SHARED = two_splits(range(4), range(8, 12))
EMPTY = Corpus({"test": Source([]), "train": Source([])}, {"en": []})
NO_CAPTIONS = Corpus({"test": Source([(0, {})])}, {"en": ["a"]})


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
    return make_encoders(experiment, model, tokenizer, make_mesh(experiment.mesh), (model.params, model.rest))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(HERE, name="captioning"), r"evals\.x\.name: needs a model that writes captions, as coca"),
        (dict(HERE, name="likelihood"), r"evals\.x\.name: needs a model that gives the probability of a text, as coca"),
        (dict(HERE, name="vqa"), r"evals\.x\.name: needs a model that gives the probability"),
        (dict(HERE, name="vqa", method="generate"), r"evals\.x\.name: needs a model that writes captions"),
        (dict(HERE, name="zero_shot", split="test_b_nwe"), r"evals\.x\.split: 'test_b_nwe' is not a split of the corpus; did you mean 'test_b_new'"),
        (dict(HERE, name="zero_shot", locale="xx"), r"evals\.x\.locale: .*no names in locale 'xx' \(there are: .*en"),
        (dict(HERE, name="zero_shot", classes=("blue squares", "nothing")), r"evals\.x\.classes\[\d\]: .*is not a class of the corpus in 'en'"),
        (dict(HERE, name="retrieval", locale="xx"), r"evals\.x\.locale: 'xx': no record of split 'test_b_new' has a name in it .*its languages: .*en"),
        (dict(HERE, name="retrieval", locale="de", captions="keywords"), r"evals\.x\.locale: 'de': no record of split 'test_b_new' has keywords"),
        (dict(HERE, name="linear_probe", train_split="trian_a"), r"evals\.x\.train_split: 'trian_a' is not a split .* did you mean 'train_a'"),
        (dict(HERE, name="linear_probe", train_split="train_a", label="color"), r"evals\.x\.label: 'color' is not an attribute .* did you mean 'colour'"),
        (dict(HERE, name="attentional_probe", train_split="train_a", heads=3), r"evals\.x\.heads: 3 must divide the width of 16"),
        (dict(HERE, name="attentional_probe", train_split="train_a", memory_gib=1e-6), r"evals\.x\.memory_gib: .* take"),
        (dict(HERE, name="interleaved"), r"evals\.x\.name: "),
        (dict(HERE, name="interleaved", images_per_row=1024), r"evals\.x\.images_per_row: split 'test_b_new' has \d+ records, too few"),
        (dict(HERE, name="masked_image"), r"evals\.x\.name: needs the model output 'patch_prediction'"),
        (dict(HERE, name="masked_image", locale="xx"), r"evals\.x\.locale: 'xx': no record"),
        (dict(HERE, name="modalities", pair=("image", "text")), r"evals\.x\.name: needs the model output 'vision>text'"),
        (dict(HERE, name="modalities", pair=("image", "waveform")), r"evals\.x\.pair: .*no record has speech"),
        (dict(HERE, name="modalities", pair=("image", "waveform"), locales=("fr",)), r"evals\.x\.locales\[0\]: .*no record has speech/fr"),
        (dict(HERE, name="modalities", pair=("video", "text")), r"evals\.x\.pair: .*no record has frames"),
    ],
)  # fmt: skip
def test_a_dual_encoder_and_what_it_cannot_be_asked(dual_encoder, options, message):
    evaluator = choose(EVALUATORS, options, "evals.x")
    with pytest.raises(ConfigError, match=message):
        check_evaluators({"x": evaluator}, dual_encoder)


def of(name, toy, split="test", **options):
    return EVALUATORS[name](toy, split, **options)


@pytest.mark.parametrize(
    "evaluator, message",
    [
        (of("retrieval", EMPTY), r"split: 'test' has no records"),
        (of("zero_shot", NO_CAPTIONS, locale="de"), r"locale: toy: no names in locale 'de'"),
        (of("retrieval", NO_CAPTIONS), r"locale: 'en': no record of split 'test' has a name in it \(its languages: none\)"),
        (of("linear_probe", NO_LABEL_SHARED, train_split="train"), r"split: 'test' has no image of a class of the train split"),
        (of("linear_probe", two_splits([3, 3], [3]), train_split="train"), r"train_split: 'train' has one class only"),
        (of("zero_shot", TOY, classes=("word 99",)), r"classes\[0\]: 'word 99' is not a class"),
    ],
)
def test_a_split_that_has_not_what_is_asked(evaluator, message):
    with pytest.raises(ConfigError, match=rf"evals\.x\.{message}"):
        check_evaluators({"x": evaluator}, encoders(ONE, TABLE, TABLE))


def test_a_captioner_and_what_it_cannot_be_asked():
    writes = scorer(ONE, logits("uniform"))
    check_evaluators({"x": of("captioning", corpus([1, 2])), "y": of("likelihood", corpus([1, 2]))}, writes)
    for evaluator, message in (
        (of("captioning", corpus([1, 2]), more_locales=("de", "fr")), r"evals\.x\.more_locales\[1\]: 'fr': no record"),
        (of("captioning", corpus([1, 2]), generation=Generation(method="sample", top_k=100)), r"evals\.x\.generation: the model does not"),
        (of("vqa", corpus([1, 2])), r"evals\.x\.split: 'test' has no record with a question and its answers"),
        (of("linear_probe", TOY, train_split="train", features="mean_tokens"), r"evals\.x\.name: needs a model that has tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_evaluators({"x": evaluator}, writes)


def test_a_tokenizer_that_was_left_behind():
    blind = encoders(ONE, TABLE, TABLE)
    blind.tokenizer = LeftBehind()
    for name in ("zero_shot", "retrieval"):
        with pytest.raises(ConfigError, match=r"evals\.x\.tokenizer: was left behind"):
            check_evaluators({"x": of(name, TOY)}, blind)
    check_evaluators({"x": of("linear_probe", TOY, train_split="train")}, blind)  # reads no text


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
    with pytest.raises(ConfigError, match=r"checkpoint\.best_metric: 'unseen' must name a figure, as unseen/FIGURE"):
        check_evaluators(own, encoders(ONE, TABLE, TABLE), "unseen")
    assert gives(evals["words"], "vqa_acc_yes-no") and not gives(evals["words"], "accuracy")


def test_what_is_no_evaluator_is_named():
    @dataclasses.dataclass(frozen=True)
    class Half:
        corpus: object = None
        split: str = "test"
        every: int = 0

    with pytest.raises(ConfigError, match=r"evals\.x\.name: Half must have check\(encoders\), figures and run\(encoders\)"):
        check_evaluators({"x": Half()}, encoders(ONE, TABLE, TABLE))
    assert all(isinstance(of(name, TOY), Evaluator) for name in ("zero_shot", "retrieval", "vqa", "captioning", "likelihood"))


def test_a_run_is_refused_before_anything_is_compiled(tmp_path, monkeypatch):
    """Until now it trained to its last step, and ended there with an error and no checkpoint of it."""

    def compiles(*args, **kwargs):
        raise AssertionError("compiled first")

    monkeypatch.setattr(setup, "compile_turns", compiles)
    with pytest.raises(ConfigError, match=r"evals\.written\.name: needs a model that writes captions, as coca"):
        train.train(tiny.experiment(evals=dict(written=dict(HERE, name="captioning"))), tmp_path)
    with pytest.raises(
        ConfigError, match=r"checkpoint\.best_metric: 'names/acc@2': evaluator 'names' does not give 'acc@2'; did you mean 'acc@"
    ):
        best = dict(every=3, best_metric="names/acc@2")
        train.train(tiny.experiment(evals=dict(names=dict(HERE, name="zero_shot")), checkpoint=best), tmp_path)


def test_a_corpus_is_prepared_once_for_tasks_and_evaluators(monkeypatch):
    prepared = []
    prepare = Shapes.prepare
    monkeypatch.setattr(Shapes, "prepare", lambda self, log=print: (prepared.append(self), prepare(self, log=log))[1])
    experiment = tiny.experiment(evals=dict(names=dict(HERE, name="zero_shot")))
    prepare_corpora(experiment, lambda text: None)
    model = build_model(experiment, Vocabulary(64, 0, 1))
    tokenizer = encoders(ONE, TABLE, TABLE).tokenizer
    made = make_encoders(experiment, model, tokenizer, make_mesh(experiment.mesh), (model.params, model.rest))
    check_evaluators(experiment.evals, made)
    assert prepared == [experiment.tasks["pairs"].data.corpus]
    prepare_corpora(experiment, lambda text: None)  # another run reads its corpora anew
    assert len(prepared) == 2
