import pickle

import numpy as np
import pytest
from data_samples import FIRST_CLASS, FakeSource

from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources.base import Column
from jaxvl.data.sources.mixture import MixtureSource
from jaxvl.data.sources.selected import Selected, select

COLUMNS = {
    "class_label": Column("class"),
    "text": Column("text"),
    "de": Column("text", optional=True),
    "fr": Column("text", optional=True),
    "unknown": Column("text", optional=True),
}
KNOWN = ("de", "fr")


class Ten(FakeSource):
    """Ten records in shards of 4, 5 and 1: de of those that 2 divides, fr of those that 3
    divides."""

    def __init__(self, name="ten"):
        records = {i: {"class_label": FIRST_CLASS + i, "text": f"text {i}"} for i in range(10)}
        for i in range(0, 10, 2):
            records[i]["de"] = f"de {i}"
        for i in range(0, 10, 3):
            records[i]["fr"] = f"fr {i}"
        super().__init__(10, records, COLUMNS, KNOWN)
        self.name = self.fingerprint = name

    def column(self, name):
        return np.arange(FIRST_CLASS, FIRST_CLASS + 10) if name == "class_label" else None

    def shards(self):
        return np.array([4, 5, 1], np.int64)


def labels(source):
    return [source[i]["class_label"] - FIRST_CLASS for i in range(len(source))]


NEEDS = [
    ([], range(10)),
    ([("text",)], range(10)),
    ([("de",)], [0, 2, 4, 6, 8]),
    ([("de",), ("fr",)], [0, 6]),
    ([("de", "fr")], [0, 2, 3, 4, 6, 8, 9]),
    ([("de", "text")], range(10)),  # all have one of them
    ([("unknown",)], range(10)),  # only reading tells
    ([("unknown",), ("fr",)], [0, 3, 6, 9]),
    ([("de", "unknown")], range(10)),
    ([("de", "none of the source's")], [0, 2, 4, 6, 8]),
    ([("none of the source's",)], range(10)),  # the field's reader says so
]


@pytest.mark.parametrize("needs, expected", NEEDS, ids=[str(needs) for needs, _ in NEEDS])
def test_records_that_have_one_column_of_each_entry(needs, expected):
    source = select(Ten(), needs)
    assert labels(source) == list(expected)
    assert isinstance(source, Selected) == (len(source) < 10)


def test_a_selection_is_a_source():
    whole = Ten()
    source = select(whole, [("fr",)])
    assert source.name == "ten" and source.columns == whole.columns
    assert source.read(2, ["text", "fr"]) == {"text": "text 6", "fr": "fr 6"} and whole.asked[
        -1
    ] == ["text", "fr"]
    assert (
        source.column("class_label").tolist() == [100, 103, 106, 109]
        and source.column("text") is None
    )
    assert source.present("fr").all() and source.present("de").tolist() == [
        True,
        False,
        True,
        False,
    ]
    assert source.present("unknown") is None and source.present("text").tolist() == [True] * 4
    assert source.shards().tolist() == [2, 1, 1] and source.shards().dtype == np.int64
    assert labels(pickle.loads(pickle.dumps(source))) == labels(source)
    for i in (-1, 4, 10**12):
        with pytest.raises(IndexError):
            source.read(i)


def test_shards_without_any_are_left_out():
    assert Selected(Ten(), np.array([0, 3, 9]), "some").shards().tolist() == [2, 1]
    assert Selected(Ten(), np.array([4, 5]), "some").shards().tolist() == [2]


def test_fingerprints_say_what_was_selected():
    whole = Ten()
    prints = [
        select(whole, needs).fingerprint
        for needs in ([], [("de",)], [("fr",)], [("de",), ("fr",)], [("de", "fr")])
    ]
    assert len(set(prints)) == 5 and prints[0] == whole.fingerprint
    assert (
        select(Ten(), [("de",)]).fingerprint
        == prints[1]
        != select(Ten("other"), [("de",)]).fingerprint
    )


def test_a_selection_of_a_selection():
    once = select(Ten(), [("de",)])
    twice = select(once, [("fr",)])
    assert labels(twice) == [0, 6] and twice.shards().tolist() == [1, 1]
    assert twice.fingerprint != once.fingerprint


def test_nothing_is_left():
    whole = Ten()
    for i in range(10):
        whole.replace[i].pop("fr", None)
    with pytest.raises(DataError, match="ten: no record has fr$"):
        select(whole, [("fr",)])
    whole.replace[1]["fr"] = "fr 1"
    with pytest.raises(DataError, match="ten: no record has all of de, fr$"):
        select(whole, [("de",), ("fr",)])


def test_bad_records_are_the_sources_own():
    whole = Ten()
    whole.present = lambda name: np.arange(10) >= 5
    whole.replace[7] = BadRecord("record cannot be read", "here")
    source = select(whole, [("de",)])
    with pytest.raises(BadRecord, match="here"):
        source.read(2)


def test_what_is_left_of_the_parts_of_a_mixture():
    mixed = MixtureSource([Ten("a"), Ten("b")], [1.0, 3.0], ["a", "b"])
    source = select(mixed, [("fr",)])
    assert [(p.name, p.start, p.end, p.weight, p.shards.tolist()) for p in source.parts] == [
        ("a", 0, 4, 1.0, [2, 1, 1]),
        ("b", 4, 8, 3.0, [2, 1, 1]),
    ]
    assert Selected(mixed, np.array([12, 13, 19]), "of the second").parts[0].shards.tolist() == []
    assert select(Ten(), [("fr",)]).parts == ()
