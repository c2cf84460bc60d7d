"""Zero-shot classification and prompts."""

import dataclasses

import jax
import numpy as np
import pytest
from known_answers import Records, Toy, encoders, toy, unit

from jaxvl.config import ConfigError, choose
from jaxvl.data.class_sets import ClassFile, NamedClasses
from jaxvl.data.classes import ClassSet
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column
from jaxvl.evals import EVALUATORS
from jaxvl.evals.prompts import TEMPLATES, class_vectors, templates_of
from jaxvl.evals.zero_shot import ZeroShot
from jaxvl.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=4, fsdp=2))
ONE = make_mesh(devices=jax.devices()[:1])
TABLE = unit(64, 16)


def test_perfect_encoder():
    evaluator = ZeroShot(toy(range(50)), templates="drawings")
    got = evaluator.run(encoders(MESH, TABLE, TABLE)).metrics
    assert set(got) == set(evaluator.figures) - {"skipped/*"}
    assert got["acc@1"] == got["acc@5"] == got["mean_class_acc@1"] == 1.0
    assert (got["classes"], got["images"], got["acc@1_chance"]) == (50, 50, pytest.approx(1 / 50))


def test_all_equal_encoder_is_at_chance():
    same = np.repeat(unit(1, 16), 64, axis=0)
    got = ZeroShot(toy(range(50))).run(encoders(MESH, same, same)).metrics
    np.testing.assert_allclose([got["acc@1"], got["acc@5"]], [1 / 50, 5 / 50], atol=1e-9)


def test_random_encoder_is_near_chance():
    got = (
        ZeroShot(toy([k % 60 for k in range(300)]))
        .run(encoders(MESH, TABLE, unit(64, 16, seed=1)))
        .metrics
    )
    for k in (1, 5):
        assert abs(got[f"acc@{k}"] - k / 60) < 5 * np.sqrt(
            k / 60 / 60
        )  # one verdict per class: images of a class are equal here


def test_accuracy_against_a_loop_in_float64():
    labels = [k % 30 for k in range(90)] + [0] * 10
    text = unit(64, 16, seed=3)
    got = ZeroShot(toy(labels)).run(encoders(MESH, TABLE, text)).metrics
    scores = TABLE.astype(np.float64) @ text[:30].astype(np.float64).T
    for k in (1, 5):
        assert got[f"acc@{k}"] == pytest.approx(
            np.mean([label in np.argsort(-scores[label])[:k] for label in labels])
        )
    assert got["mean_class_acc@1"] == pytest.approx(
        np.mean([np.argmax(scores[c]) == c for c in range(30)])
    )


@pytest.mark.parametrize(
    "classes, ways, images",
    [("split", 20, 20), ("all", 40, 20), (("word 3", "WORD 30", "word 7"), 3, 2)],
)
def test_candidates(classes, ways, images):
    got = (
        ZeroShot(toy(range(20), classes=40), classes=classes)
        .run(encoders(MESH, TABLE, TABLE))
        .metrics
    )
    assert (got["classes"], got["images"], got["acc@1"]) == (ways, images, 1.0)
    assert got.get("skipped/class is not a candidate", 0) == 20 - images


def test_classes_of_one_name_are_one_answer_and_unnamed_ones_none():
    names = {"fil": ["word 0", "word 1", "Word  1", None, "", *(f"word {k}" for k in range(5, 10))]}
    source = Toy(Records([(k, {}) for k in range(10)], names))
    table = TABLE.copy()
    table[2] = table[1]
    got = ZeroShot(source, language="fil").run(encoders(MESH, table, table)).metrics
    assert (
        got["classes"],
        got["images"],
        got["skipped/class is not a candidate"],
        got["acc@1"],
    ) == (7, 8, 2, 1.0)


def test_eight_devices_equal_one():
    evaluator = ZeroShot(toy([k % 33 for k in range(50)]), templates=("{}", "a {} again"))
    eight, one = (
        evaluator.run(encoders(mesh, TABLE, unit(64, 16, seed=1))) for mesh in (MESH, ONE)
    )
    assert eight.metrics == one.metrics
    assert [[i.text for i in r.items] for r in eight.gallery] == [
        [i.text for i in r.items] for r in one.gallery
    ]


def test_gallery_shows_a_sample_and_the_surest_mistakes_once_per_pair_of_classes():
    table = TABLE.copy()
    table[[3, 4]] = table[[4, 3]]  # the encoder takes 3 for 4 and 4 for 3, and is right otherwise
    labels = [k % 10 for k in range(30)]
    rows = ZeroShot(toy(labels), gallery=5).run(encoders(MESH, TABLE, table)).gallery
    assert [r.group for r in rows] == ["Image to class"] * 5 + ["Surest mistakes"] * 2
    assert {(r.text, r.items[0].text) for r in rows[5:]} == {
        ("word 3", "word 4"),
        ("word 4", "word 3"),
    }
    for row in rows[5:]:
        assert row.rank > 1 and not row.items[0].right
        assert row.note == f"3 of the 3 images of this class are taken for “{row.items[0].text}”"
    assert all(i.image is not None for r in rows for i in r.items)


def test_broken_embeddings_score_nothing():
    broken = np.full_like(TABLE, np.nan)
    got = ZeroShot(toy(range(20))).run(encoders(MESH, broken, TABLE))
    assert got.metrics["acc@1"] == got.metrics["acc@5"] == 0


def test_prompt_ensemble_equals_the_closed_form():
    """With prompts at angles a and b in a plane, the renormalised mean is at (a + b) / 2, whatever
    the rows' lengths."""
    angles = {"x of 0": 0.2, "x of 1": 1.4, "y 0": 1.0, "y 1": 0.4}
    encode = lambda texts: np.array(
        [[3 * np.cos(angles[t]), 3 * np.sin(angles[t])] for t in texts], np.float32
    )
    got = class_vectors(encode, ["0", "1"], ["x of {}", "y {}"])
    middle = np.array([0.6, 0.9])
    np.testing.assert_allclose(got, np.stack([np.cos(middle), np.sin(middle)], 1), atol=1e-6)


def test_prompt_ensemble_renormalises_before_the_mean():
    rows = {"a 0": [10.0, 0.0], "b 0": [0.0, 0.1]}
    got = class_vectors(
        lambda texts: np.array([rows[t] for t in texts], np.float32), ["0"], ["a {}", "b {}"]
    )
    np.testing.assert_allclose(got, [[np.sqrt(0.5), np.sqrt(0.5)]], atol=1e-6)


def test_templates():
    assert templates_of("plain") == ("{}",)
    for name, templates in TEMPLATES.items():
        assert templates == templates_of(list(templates)) and len(set(templates)) == len(
            templates
        ), name
    with pytest.raises(
        ConfigError,
        match=r"templates: 'drawing' is not a known set of templates; did you mean 'drawings'\?",
    ):
        ZeroShot(toy(range(3)), templates="drawing")
    with pytest.raises(
        ConfigError, match=r"templates: 'a {}' .*one template of your own is a list: \['a {}'\]"
    ):
        ZeroShot(toy(range(3)), templates="a {}")
    with pytest.raises(ConfigError, match=r"templates\[1\]: 'no place' must hold '{}' once"):
        ZeroShot(toy(range(3)), templates=("{}", "no place"))


def test_templates_come_with_the_classes():
    """Prompts with the class's own templates: a model that reads the last number of a text takes
    each for the next class."""
    source = toy(range(10))
    own = ClassSet(source.records.columns["class_label"].classes.names, ("a word {}, not 3",))
    source.records.columns["class_label"] = Column("class", classes=own)

    def run(**options):
        known = encoders(ONE, TABLE, TABLE)
        seen = []
        encode = known.texts
        known.texts = lambda texts: (seen.extend(texts), encode(texts))[1]
        ZeroShot(source, gallery=0, **options).run(known)
        return set(seen)

    assert run() == {f"a word word {k}, not 3" for k in range(10)}
    assert run(templates="plain") == {f"word {k}" for k in range(10)}
    assert run(templates=("{} is",)) == {f"word {k} is" for k in range(10)}


def test_labels_that_are_texts_and_records_without_one():
    rows = [(k, {"en": [f"word {k}", []]}) for k in range(12)]
    rows[5] = (5, {})
    source = Toy(Records(rows))
    evaluator = ZeroShot(source, label="name/en", gallery=2)
    evaluator.check(encoders(MESH, TABLE, TABLE))
    got = evaluator.run(encoders(MESH, TABLE, TABLE))
    assert (got.metrics["classes"], got.metrics["images"], got.metrics["acc@1"]) == (11, 11, 1.0)
    assert got.metrics["skipped/class is not a candidate"] == 1
    assert ("image", "name/en") not in source.records.asked and ("name/en",) in source.records.asked


def test_classes_of_a_class_set():
    """Numbers without names get them from the set, with its prompts; texts are looked up among its
    names."""
    names = [f"word {k}" for k in range(20)]
    numbers = toy(range(12))
    numbers.records.columns["class_label"] = Column("int")
    own = dict(name="names", names=names, templates=["a word {c}"])
    evaluator = choose(EVALUATORS, dict(name="zero_shot", source="shapes", classes=own), "x")
    for label in ("class_label", "name/en"):
        made = dataclasses.replace(evaluator, source=numbers, label=label)
        made.check(encoders(ONE, TABLE, TABLE))
        got = made.run(encoders(ONE, TABLE, TABLE)).metrics
        assert (got["classes"], got["images"], got["acc@1"]) == (20, 12, 1.0)
    few = dataclasses.replace(evaluator, source=numbers, classes=NamedClasses(("word 0", "word 1")))
    with pytest.raises(
        ConfigError, match="label: 'class_label' of toy has the number 11, but there are 2 classes"
    ):
        few.check(encoders(ONE, TABLE, TABLE))
    by_name = dataclasses.replace(few, label="name/en").run(encoders(ONE, TABLE, TABLE)).metrics
    assert (by_name["classes"], by_name["images"], by_name["skipped/class is not a candidate"]) == (
        2,
        2,
        10,
    )
    with pytest.raises(
        ConfigError,
        match=r"x\.classes\.name: 'imagnet' is not a known class set; did you mean 'imagenet'",
    ):
        choose(
            EVALUATORS, dict(name="zero_shot", source="shapes", classes=dict(name="imagnet")), "x"
        )
    with pytest.raises(ConfigError, match=r"classes\.path: .*nothing"):
        ZeroShot(numbers, classes=ClassFile("nothing.txt")).check(encoders(ONE, TABLE, TABLE))
    assert (
        len(
            choose(
                EVALUATORS,
                dict(name="zero_shot", source="shapes", classes=dict(name="imagenet")),
                "x",
            ).classes.load()
        )
        == 1000
    )


def test_errors():
    known = encoders(ONE, TABLE, TABLE)
    with pytest.raises(
        ConfigError,
        match=r"classes: 'some' must be 'split', 'all', a list of class names, or a class set",
    ):
        ZeroShot(toy(range(3)), classes="some")
    listed = ZeroShot(toy(range(3)), classes=("word 1", "wort 2"))
    with pytest.raises(
        ConfigError,
        match=r"classes\[1\]: 'wort 2' is not a class of 'class_label' of toy in 'en'; did you mean 'word 2'\?",
    ):
        listed.run(known)
    unnamed = Toy(Records([(0, {})], {"en": [None]}))
    with pytest.raises(DataError, match="no image of the 0 candidate classes in 'en'"):
        ZeroShot(unnamed).run(known)
    with pytest.raises(ConfigError, match="label: toy has no image of a class with a name in 'en'"):
        ZeroShot(unnamed).check(known)
    numbers = toy(range(3))
    numbers.records.columns["class_label"] = Column("int")
    with pytest.raises(
        ConfigError,
        match=(
            "label: 'class_label' of toy holds numbers, and the source has no names of the "
            "classes; name a class set"
        ),
    ):
        ZeroShot(numbers).check(known)
    few = Toy(Records([(k, {}) for k in range(3)], {"en": ["a", "b"]}))
    with pytest.raises(
        ConfigError, match="label: 'class_label' of toy has the number 2, but there are 2 classes"
    ):
        ZeroShot(few).check(known)
