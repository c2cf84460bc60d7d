"""Parts of a batch, and the arrays that they fill."""

import dataclasses
import pickle

import numpy as np
import pytest
from data_samples import FakeConfig, FakeSource, assert_same, tokenizer

from jaxvl.data.config import DataConfig
from jaxvl.data.fields.caption import Caption
from jaxvl.data.fields.picture import Picture
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.reading.fill import Filler, Layout, Part, Recipe, Tally
from jaxvl.data.records import BadRecord
from jaxvl.data.samplers.in_order import InOrderOrder

CONFIG = DataConfig(FakeConfig(), 8, dict(image=Picture(size=5), text=Caption("name/en", length=7)))


def part_of(n):
    return Part(
        np.arange(n),
        np.arange(n) + 2**31,
        np.arange(n) * 3,
        {"text": np.arange(2.0 * n).reshape(n, 2)},
    )


@pytest.mark.parametrize(
    "n, pieces, sizes", [(10, 4, [3, 3, 3, 1]), (3, 8, [1, 1, 1]), (8, 1, [8]), (0, 4, [])]
)
def test_parts_are_cut_equally(n, pieces, sizes):
    cut = part_of(n).cut(pieces)
    assert [len(piece.rows) for piece in cut] == sizes
    for i, values in enumerate(zip(*cut)):
        whole = part_of(n)[i]
        if isinstance(whole, dict):
            whole = whole["text"]
            values = [value["text"] for value in values]
        np.testing.assert_array_equal(np.concatenate(values), whole)


def test_a_layout_in_memory_is_that_of_new_arrays():
    layout = Layout(CONFIG, 8, pad_id=3)
    memory = bytearray(layout.nbytes)
    new = layout.new()
    within = layout.within(memory)
    assert (new["text"] == 3).all() and not new["image"].any() and not within["text"].any()
    assert {name: (a.shape, a.dtype) for name, a in new.items()} == {
        name: (a.shape, a.dtype) for name, a in within.items()
    }
    addresses = sorted((a.ctypes.data, a.ctypes.data + a.nbytes) for a in within.values())
    assert all(end <= first for (_, end), (first, _) in zip(addresses, addresses[1:]))
    assert all((first - addresses[0][0]) % 64 == 0 for first, _ in addresses)
    for array in within.values():
        array[...] = 1
    layout.clear(within, np.array([1, 6]))
    for name, array in within.items():
        rest = np.delete(np.arange(8), [1, 6])
        assert (array[rest] == 1).all()
        np.testing.assert_array_equal(array[[1, 6]], new[name][[1, 6]])


def test_a_filled_part_is_the_same_wherever_it_is_filled():
    recipe = Recipe(
        CONFIG, FakeSource(24), InOrderOrder(24), tokenizer(), Preprocess(5), np.arange(8) % 2 == 0
    )
    draws = {"image": np.full((8, 4), 0.5), "text": np.full((8, 10), 0.5)}
    part = Part(np.arange(8), np.arange(8), np.arange(8), draws)
    whole = recipe.layout.new()
    pieces = recipe.layout.new()
    tally = Filler(recipe, 0).fill(whole, part)
    again = pickle.loads(pickle.dumps(recipe))
    added = Tally()
    for piece in reversed(part.cut(3)):
        one = Filler(again, 1000).fill(pieces, piece)
        added.add(pickle.loads(pickle.dumps(one)))
    assert_same(whole, pieces)
    assert (tally.seen, added.seen) == (4, 4), "every other row is counted"
    assert tally.seconds.keys() == added.seconds.keys() and min(added.seconds.values()) > 0


def test_a_bad_record_is_counted_with_the_one_that_takes_its_place():
    source = FakeSource(
        24, {0: BadRecord("record cannot be read", "x"), 1: BadRecord("no text", "x")}
    )
    config = dataclasses.replace(CONFIG, fields=dict(text=CONFIG.fields["text"]))
    part = Part(*part_of(8)[:2], np.arange(8), {"text": np.full((8, 10), 0.5)})
    recipe = Recipe(config, source, InOrderOrder(24), tokenizer(), Preprocess(5), np.ones(8, bool))
    tally = Filler(recipe, 0).fill(recipe.layout.new(), part)
    assert tally.seen == 8 + 3 and tally.skipped == {"record cannot be read": 1, "no text": 2}
    tally.take_away(Filler(recipe, 0).fill(recipe.layout.new(), part.some(slice(1, 8))))
    assert tally.seen == 3 and tally.skipped == {"record cannot be read": 1, "no text": 1}
