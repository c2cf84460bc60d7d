"""Batches of several sources, rows drawn from each by weight."""

import collections
import dataclasses

import ml_collections
import numpy as np
import pytest
from data_samples import COLUMNS, FakeConfig, FakeSource, assert_same, record, tokenizer

from jaxvl.config import ConfigError, resolve, to_dict
from jaxvl.data.batches import Batches, Rows
from jaxvl.data.config import DataConfig, ReaderConfig
from jaxvl.data.fields.caption import Caption
from jaxvl.data.fields.numbers import Group, Label
from jaxvl.data.fields.picture import Picture
from jaxvl.data.fields.waveform import Waveform
from jaxvl.data.records import BadRecord
from jaxvl.data.samplers.mixture import Mixture
from jaxvl.data.samplers.shuffled import Shuffled
from jaxvl.data.sources.base import Column
from jaxvl.data.sources.demo.shapes import Shapes
from jaxvl.data.sources.mixture import MixtureSource, PartConfig

SIZES = (20, 7, 3)
TOKENIZER = tokenizer()
FIELDS = dict(image=Picture(size=12), text=Caption("name/en", length=8), group_id=Group("id"))
CONFIG = DataConfig(
    FakeConfig(),
    batch=10,
    fields=FIELDS,
    sampler=Mixture(),
    reader=ReaderConfig(threads=2),
    error_minimum=1000,
    error_budget=1.0,
)
HERE = {**COLUMNS, "id": Column("int")}


def part(number, size, bad=()):
    """A source whose records have ids 1000 * number + i; those in `bad` cannot be read."""
    records = {i: {**record(i), "id": 1000 * number + i} for i in range(size)}
    return FakeSource(
        size, records | {i: BadRecord("record cannot be read", "x") for i in bad}, HERE
    )


def mixed(weights=(5, 4, 1), bad=()):
    parts = [part(k, size, bad) for k, size in enumerate(SIZES)]
    return MixtureSource(parts, weights, [str(k) for k in range(len(SIZES))])


@pytest.fixture
def batches():
    """Makes `Batches`, closed when the test ends."""
    made = []

    def make(source, rows=None, seed=0, **options):
        made.append(
            Batches(dataclasses.replace(CONFIG, **options), source, TOKENIZER, seed=seed, rows=rows)
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_the_shares_are_those_of_the_weights_and_every_part_goes_through_its_epochs(batches):
    b = batches(mixed(), fields=dict(group_id=Group("id"), text=FIELDS["text"]))
    ids = np.concatenate([b[i]["group_id"] for i in range(100)])
    parts = ids // 1000
    for start in range(0, 1000, 100):  # exact in every stretch, not only on the average
        assert collections.Counter(parts[start : start + 100].tolist()) == {0: 50, 1: 40, 2: 10}
    for number, n in enumerate(SIZES):
        own = ids[parts == number] % 1000
        epochs = [tuple(own[k : k + n]) for k in range(0, len(own) - n + 1, n)]
        assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
        assert n < 5 or len(set(epochs)) > 0.9 * len(epochs)


def test_batches_depend_on_seed_and_number_only(batches):
    one = batches(mixed(), seed=5)
    two = batches(mixed(), seed=5)
    stream = [one[i] for i in range(8)]
    for i in (7, 2, 5):
        assert_same(two[i], stream[i])
    halves = [
        batches(mixed(), Rows(rows, np.ones(5, bool)), seed=5)[3]
        for rows in np.split(np.arange(10), 2)
    ]
    assert_same(
        {key: np.concatenate([half[key] for half in halves]) for key in halves[0]}, stream[3]
    )
    assert (batches(mixed(), seed=6)[0]["group_id"] != stream[0]["group_id"]).any()


def test_one_part_is_that_source_itself(batches):
    mixture = batches(MixtureSource([part(0, 20)], [1.0], ["0"]))
    alone = batches(part(0, 20), sampler=Shuffled())
    for i in range(5):
        assert_same(mixture[i], alone[i])


def test_a_bad_record_is_replaced_and_counted(batches):
    b = batches(mixed(bad=(2,)))
    ids = np.concatenate([b[i]["group_id"] for i in range(30)])
    assert not {2, 1002, 2002} & set(ids.tolist()) and b.counts()[1]["record cannot be read"] > 3


def test_records_without_a_weight_come_equally_often(batches):
    b = batches(mixed([None] * 3), fields=dict(group_id=Group("id")))
    ids = np.concatenate([b[i]["group_id"] for i in range(3)])
    assert sorted(ids.tolist()) == sorted(
        1000 * k + i for k, n in enumerate(SIZES) for i in range(n)
    )


# --------------------------------------------------------------------------------------------------
# Of recipes


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


SHAPES = [dict(name="shapes", size=8, variants=1, seed=seed) for seed in (0, 1)]
PARTS = (
    dict(source=dict(SHAPES[0], split="train_a")),
    dict(source=dict(SHAPES[1], split="test_a")),
)


def node(parts=PARTS, **options):
    fields = dict(text=dict(name="caption", columns="name/fr"), class_label="label")
    return ml_collections.ConfigDict(
        dict(source=dict(name="mixture", parts=parts), batch=8, fields=fields) | options
    )


def test_a_mixture_as_a_config():
    parts = (
        dict(PARTS[0], weight=3),
        dict(source=dict(name="emoji", split="train_a"), weight=1.0, name="e"),
    )
    data = resolve(DataConfig, node(parts, sampler="mixture"))
    assert data.source.parts[0] == PartConfig(Shapes(size=8, variants=1, split="train_a"), 3.0)
    assert resolve(DataConfig, to_dict(data)) == data and hash(data.source) == hash(
        resolve(DataConfig, to_dict(data)).source
    )
    with pytest.raises(ConfigError, match=r"^source.parts\[0\].weight: "):
        resolve(DataConfig, node((dict(PARTS[0], weight=-1.0), PARTS[1])))


def test_a_mixture_of_recipes(batches):
    config = resolve(DataConfig, node())
    source = config.source.open(log=lambda text: None)
    alone = [part.source.open(log=lambda text: None) for part in config.source.parts]
    n = len(alone[0])
    assert len(source) == n + len(alone[1])
    labels = source.column("class_label")
    assert [source[i]["class_label"] for i in (0, n - 1, n, len(source) - 1)] == labels[
        [0, n - 1, n, -1]
    ].tolist()
    assert (
        source[n]["name/de"] == alone[1][0]["name/de"]
        and source[n - 1]["image"] == alone[0][n - 1]["image"]
    )
    classes = source.columns["class_label"].classes
    assert all(
        classes.names["de"][labels[i]] == source[i]["name/de"] for i in range(0, len(source), 41)
    )
    b = batches(source, fields=config.fields, sampler=Shuffled())
    found = np.concatenate([b[i]["class_label"] for i in range(len(source) // 10)])
    assert np.isin(found, labels).all() and len(np.unique(found)) == len(np.unique(labels))
    assert isinstance(config.fields["class_label"], Label)
    with pytest.raises(
        ConfigError, match=r"fields.sound.columns: 'speech/\*' is no column of shapes-"
    ):
        dataclasses.replace(config, fields=dict(sound=Waveform("speech/*"))).select(source)


def test_a_split_of_a_part_that_is_not_there():
    parts = (PARTS[0], dict(source=dict(SHAPES[1], split="train")))
    with pytest.raises(
        ConfigError, match=r"parts\[1\].source.split: 'train' is none; did you mean 'train_"
    ):
        resolve(DataConfig, node(parts)).source.open(log=lambda text: None)
