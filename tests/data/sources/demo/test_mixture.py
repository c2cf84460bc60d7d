import collections
import dataclasses

import ml_collections
import numpy as np
import pytest
from data_samples import Source, tokenizer
from jaxvl.data.corpora.mixture import MixedSource, Mixture, Part
from jaxvl.data.corpora.shapes import Shapes
from jaxvl.data.loader import Batches, DataConfig

from jaxvl.config import ConfigError, resolve, to_dict
from jaxvl.data.records import BadRecord, DataError

SIZES = (20, 7, 3)
FIRST = (0, 1000, 2000)
TOKENIZER = tokenizer()
CONFIG = DataConfig(corpus=Shapes(), split="train", batch=10, image_size=12, text_length=8, error_minimum=1000, error_budget=1.0)


def mixed(weights=(5, 4, 1), replace=None):
    return MixedSource([Source(n, replace) for n in SIZES], weights, FIRST)


def batches(source, rows=None, seed=0, **options):
    return Batches(dataclasses.replace(CONFIG, **options), source, TOKENIZER, seed=seed, rows=rows)


def test_records_are_those_of_the_parts_with_labels_of_their_own():
    source = mixed()
    assert len(source) == sum(SIZES)
    records = [source[i] for i in range(len(source))]
    assert [r["label"] for r in records] == [FIRST[p] + 100 + i for p, n in enumerate(SIZES) for i in range(n)]
    assert len({r["key"] for r in records}) == len(source) and records[20]["key"] == "1/style/0"
    for i in (-1, len(source)):
        with pytest.raises(IndexError):
            source[i]


def test_the_shares_are_those_of_the_weights_and_every_part_goes_through_its_epochs():
    b = batches(mixed())
    ids = np.concatenate([b[i]["id"] for i in range(200)])
    parts = ids // 1000
    for start in range(0, 2000, 100):  # exact in every stretch, not only on the average
        assert collections.Counter(parts[start : start + 100].tolist()) == {0: 50, 1: 40, 2: 10}
    for part, n in enumerate(SIZES):
        own = ids[parts == part]
        epochs = [tuple(own[k : k + n] - FIRST[part]) for k in range(0, len(own) - n + 1, n)]
        assert all(sorted(epoch) == list(range(100, 100 + n)) for epoch in epochs)
        assert n < 5 or len(set(epochs)) > 0.9 * len(epochs)
    in_order = batches(mixed(), shuffle=False)
    own = np.concatenate([in_order[i]["id"] for i in range(5)])
    assert own[own < 1000].tolist() == [100 + i % 20 for i in range(25)]


def test_batches_depend_on_seed_and_number_only():
    one, two = batches(mixed(), seed=5), batches(mixed(), seed=5)
    stream = [one[i] for i in range(8)]
    for i in (7, 2, 5):
        for key, value in two[i].items():
            np.testing.assert_array_equal(value, stream[i][key], err_msg=key)
    halves = [batches(mixed(), seed=5, rows=rows)[3] for rows in np.split(np.arange(10), 2)]
    np.testing.assert_array_equal(np.concatenate([h["id"] for h in halves]), stream[3]["id"])
    assert (batches(mixed(), seed=6)[0]["id"] != stream[0]["id"]).any()


def test_one_part_is_that_corpus_itself():
    mixture, alone = batches(MixedSource([Source(20)], [1.0], [0])), batches(Source(20))
    for i in range(5):
        for key, value in alone[i].items():
            np.testing.assert_array_equal(mixture[i][key], value, err_msg=key)


def test_a_bad_record_is_replaced_and_counted():
    b = batches(mixed(replace={2: BadRecord("record cannot be read", "x")}))
    ids = np.concatenate([b[i]["id"] for i in range(30)])
    assert not {102, 1102, 2102} & set(ids.tolist()) and b.counts()[1]["record cannot be read"] > 3


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two generated corpora, mixed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVL_CACHE", str(tmp_path_factory.mktemp("cache")))
        shapes = [Shapes(size=8, variants=1, seed=seed) for seed in (0, 1)]
        parts = (Part(shapes[0], "train_a"), Part(shapes[1], "test_a"))
        return [s.prepare(log=lambda text: None) for s in shapes], Mixture(parts).prepare(), parts


def test_a_prepared_mixture(prepared):
    (a, b), corpus, _ = prepared
    n, concepts = len(a.split("train_a")), len(a.class_names())
    source = corpus.split("train")
    assert corpus.splits == ["train"] and len(source) == n + len(b.split("test_a"))
    labels = corpus.labels("train")
    assert [source[i]["label"] for i in (0, n - 1, n, len(source) - 1)] == labels[[0, n - 1, n, -1]].tolist()
    assert labels[:n].max() < concepts <= labels[n:].min()
    names = corpus.class_names("de")
    assert len(names) == 2 * concepts and names[labels[n]] == b.class_names("de")[b.labels("test_a")[0]]
    assert set(corpus.texts("train", ["fr"])) == {*a.texts("train_a", ["fr"]), *b.texts("test_a", ["fr"])}
    shares = collections.Counter(bool(i >= n) for i in (source.order(0, True)[k] for k in range(len(source))))
    assert shares[True] == len(b.split("test_a"))  # no weights: by number of records
    with pytest.raises(KeyError):
        corpus.split("test")
    with pytest.raises(DataError, match="no record has speech"):
        corpus.split("train", [("speech",)])


def test_as_a_config(prepared):
    _, corpus, parts = prepared
    node = ml_collections.ConfigDict(
        dict(
            corpus=dict(
                name="mixture",
                parts=(
                    dict(corpus=dict(name="shapes", size=8, variants=1), split="train_a", weight=3),
                    dict(corpus="emoji", split="train_a", weight=1.0),
                ),
            ),
            split="train",
            batch=8,
        )
    )
    data = resolve(DataConfig, node)
    assert data.corpus.parts[0] == Part(Shapes(size=8, variants=1), "train_a", 3.0)
    assert resolve(DataConfig, to_dict(data)) == data and hash(data.corpus) == hash(resolve(DataConfig, to_dict(data)).corpus)


def test_refusals(prepared):
    _, _, (one, two) = prepared
    with pytest.raises(ConfigError, match="parts: must name at least one corpus"):
        Mixture(())
    with pytest.raises(ConfigError, match=r"parts: the weights \[1.0, None\] must be given for all parts or none"):
        Mixture((dataclasses.replace(one, weight=1.0), two))
    with pytest.raises(ConfigError, match="weight: 0 must be > 0"):
        dataclasses.replace(one, weight=0)
    with pytest.raises(ConfigError, match=r"corpus.parts\[1\].split: 'train' is not a split of the corpus; did you mean 'train_"):
        Mixture((one, dataclasses.replace(two, split="train"))).prepare(log=lambda text: None)
