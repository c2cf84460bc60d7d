"""Records in memory."""

import pickle

import numpy as np
import pytest

from jaxvl.data.sources.base import Column
from jaxvl.data.sources.in_memory import InMemory

COLUMNS = {"image": Column("image"), "text": Column("text", optional=True), "n": Column("int")}
RECORDS = [{"image": b"a", "text": "ay", "n": 1}, {"image": b"b", "n": 2}]


def test_records_and_columns():
    source = pickle.loads(pickle.dumps(InMemory("two", COLUMNS, RECORDS)))
    assert [source[i] for i in range(len(source))] == RECORDS
    assert source.read(0, ["text", "nothing"]) == {"text": "ay"}
    assert source.column("n").tolist() == [1, 2] and source.column("text").tolist() == ["ay", ""]
    assert (
        source.column("image") is None
        and source.column("nothing") is None
        and source.present("nothing") is None
    )
    np.testing.assert_array_equal(source.present("text"), [True, False])
    assert source.shards().tolist() == [2] and source.left_out() == {}
    for i in (-1, 2):
        with pytest.raises(IndexError):
            source[i]
