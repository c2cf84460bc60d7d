import dataclasses
import pickle

import numpy as np
import pytest

from jaxvl.config import ConfigError, choose, to_dict
from jaxvl.data.classes import ClassSet
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Column
from jaxvl.data.sources.in_memory import InMemory
from jaxvl.data.sources.mixture import MixtureConfig, MixtureSource, PartConfig

CATS = ClassSet({"en": ("tabby", "tiger"), "de": ("getigert", "Tiger")}, ("a photo of a {} cat.",))
DOGS = ClassSet({"en": ("beagle", "pug", None)}, ("a photo of a {} dog.",))


class Sharded(InMemory):
    """Records in memory, or an error in place of one, with shards of their own."""

    def __init__(self, name, columns, records, shards=None):
        super().__init__(name, columns, records, f"fingerprint of {name}")
        self._shards = shards or [len(records)]

    def read(self, i, columns=None):
        if isinstance(self._records[i], Exception):
            raise self._records[i]
        return super().read(i, columns)

    def shards(self):
        return np.array(self._shards)


def cats(classes=CATS, **options):
    columns = {"text": Column("text"), "class_label": Column("class", classes=classes)}
    records = [{"text": f"cat {i}", "class_label": i % 2} for i in range(5)]
    return Sharded("cats", columns, records, **options)


def dogs(classes=DOGS, kind="text"):
    columns = {
        "text": Column(kind),
        "class_label": Column("class", classes=classes),
        "width": Column("int"),
    }
    records = [{"text": f"dog {i}", "class_label": i % 3, "width": 100 + i} for i in range(4)]
    return Sharded("dogs", columns, records)


def mixed(*sources, weights=None):
    return MixtureSource(
        sources, weights or [None] * len(sources), [str(i) for i in range(len(sources))]
    )


def test_records_are_those_of_the_parts_one_part_after_the_other():
    source = mixed(cats(shards=[2, 3]), dogs())
    assert len(source) == 9
    assert [source[i]["text"] for i in range(9)] == [f"cat {i}" for i in range(5)] + [
        f"dog {i}" for i in range(4)
    ]
    assert source.read(6, ("width", "text")) == {"width": 101, "text": "dog 1"}
    assert source.read(0, ("width",)) == {}
    assert source.shards().tolist() == [2, 3, 4]
    assert [(part.name, part.start, part.end, len(part)) for part in source.parts] == [
        ("0", 0, 5, 5),
        ("1", 5, 9, 4),
    ]
    assert source.name == "cats + dogs"
    for i in (-1, 9):
        with pytest.raises(IndexError):
            source.read(i)
    assert pickle.loads(pickle.dumps(source))[8] == source[8]


def test_classes_of_different_sets_have_places_of_their_own():
    source = mixed(cats(), dogs(), cats())
    joined = source.columns["class_label"].classes
    assert joined.names == {
        "en": ("tabby", "tiger", "beagle", "pug", None),
        "de": ("getigert", "Tiger", None, None, None),
    }
    assert joined.templates == ()
    labels = [0, 1, 0, 1, 0, 2, 3, 4, 2, 0, 1, 0, 1, 0]
    assert [source[i]["class_label"] for i in range(14)] == labels
    assert source.column("class_label").tolist() == labels
    assert source.read(5, ("class_label",)) == {"class_label": 2}


def test_equal_class_sets_are_one():
    source = mixed(cats(), cats(dataclasses.replace(CATS)))
    assert len(source.columns["class_label"].classes) == 2
    assert source.columns["class_label"].classes.templates == CATS.templates
    assert [source[i]["class_label"] for i in (1, 6)] == [1, 1]


def test_numbers_without_class_sets_stay():
    source = mixed(cats(None), dogs(None))
    assert source.columns["class_label"].classes is None
    assert source.column("class_label").tolist() == [0, 1, 0, 1, 0, 0, 1, 2, 0]


def test_a_column_that_a_part_lacks_is_optional():
    source = mixed(cats(), dogs())
    assert source.columns["width"].optional and not source.columns["text"].optional
    assert source.present("width").tolist() == [False] * 5 + [True] * 4
    assert source.column("width").tolist() == [0] * 5 + [100, 101, 102, 103]
    assert source.present("text").all()
    assert source.column("text").tolist() == [source[i]["text"] for i in range(9)]
    assert source.column("none") is None


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        ConfigError,
        match="^parts: column 'text' is of kind 'text' in part '0' and 'texts' in part '1'",
    ):
        mixed(cats(), dogs(kind="texts"))
    with pytest.raises(
        ConfigError, match="^parts: column 'class_label' of part '1' has no class set"
    ):
        mixed(cats(), dogs(None))
    with pytest.raises(
        ConfigError, match="^parts: part '1' is a mixture whose weights would be lost"
    ):
        mixed(cats(), mixed(dogs(), cats(), weights=[1.0, 2.0]))
    with pytest.raises(DataError, match="part '1' of the mixture, nothing, has no records"):
        mixed(cats(), Sharded("nothing", {}, []))


def test_bad_records_are_the_parts_own():
    bad = Sharded("bad", {"text": Column("text")}, [BadRecord("record cannot be read", "here")])
    with pytest.raises(BadRecord, match="here"):
        mixed(cats(), bad).read(5)


def test_the_fingerprint_is_of_the_records_and_not_of_the_weights():
    one = mixed(cats(), dogs()).fingerprint
    assert one == mixed(cats(), dogs(), weights=[1.0, 2.0]).fingerprint
    assert one != mixed(dogs(), cats()).fingerprint


@dataclasses.dataclass(frozen=True)
class Animals:
    which: str = "cats"

    def open(self, log=print):
        if self.which not in ("cats", "dogs"):
            raise ConfigError("which", f"{self.which!r} must be cats or dogs")
        return {"cats": cats, "dogs": dogs}[self.which]()


def config(*parts):
    return MixtureConfig(tuple(PartConfig(Animals(which), **options) for which, options in parts))


def test_a_config_opens_its_parts():
    source = config(("cats", dict(weight=1.0, name="c")), ("dogs", dict(weight=3.0))).open()
    assert [(part.name, part.weight) for part in source.parts] == [("c", 1.0), ("1", 3.0)]
    with pytest.raises(ConfigError, match=r"^parts\[1\].source.which: 'birds' must be"):
        config(("cats", {}), ("birds", {})).open()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "must name at least one"),
        ([("cats", dict(weight=1.0)), ("dogs", {})], "must be given for all parts or none"),
        ([("cats", dict(weight=0.0)), ("dogs", dict(weight=0.0))], "must not all be 0"),
        ([("cats", dict(name="1")), ("dogs", {})], "must differ"),
    ],
)
def test_parts_that_make_no_mixture_are_refused(parts, message):
    with pytest.raises(ConfigError, match=f"^parts: .*{message}"):
        config(*parts)


def test_a_mixture_is_found_by_name_and_may_hold_mixtures():
    parts = (
        dict(source=Animals("cats"), weight=2.0),
        dict(source=dict(name="mixture", parts=(dict(source=Animals("dogs")),)), weight=1.0),
    )
    found = choose(SOURCES, dict(name="mixture", parts=parts), "data.source")
    assert found.open().column("class_label").tolist() == [0, 1, 0, 1, 0, 2, 3, 4, 2]
    assert to_dict(found)["name"] == "mixture"
    with pytest.raises(ConfigError, match=r"data.source.parts\[0\].weight"):
        choose(
            SOURCES,
            dict(name="mixture", parts=(dict(source=Animals(), weight=-1.0),)),
            "data.source",
        )
