"""Samplers that read a table: few_shot, per_cluster, with_negatives."""

import pickle

import numpy as np
import pytest
from synthetic import Synthetic

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.data.samplers.few_shot import FewShot
from jaxvl.data.samplers.per_cluster import PerCluster
from jaxvl.data.samplers.with_negatives import WithNegatives

CLASSES = np.random.default_rng(0).integers(0, 7, 500)
CLASSES[:20] = -1
SOURCE = Synthetic([50] * 10, class_label=CLASSES, cluster=CLASSES)


def assert_pure(order, n):
    whole = order(np.arange(n))
    some = np.random.default_rng(0).permutation(n)
    again = pickle.loads(pickle.dumps(order))
    np.testing.assert_array_equal(
        np.concatenate([again(rows) for rows in np.array_split(some, 20)]), whole[some]
    )
    assert order(np.array([], np.int64)).shape == (0,)


@pytest.mark.parametrize("k", [1, 16])
def test_few_shot_has_k_records_of_each_class_once_per_epoch(k):
    order = FewShot(k).order(SOURCE, 0)
    assert order.epoch == 7 * k
    found = order(np.arange(3 * order.epoch)).reshape(3, -1)
    for epoch in found:
        np.testing.assert_array_equal(np.sort(epoch), order.chosen)
    assert np.bincount(CLASSES[order.chosen]).tolist() == [k] * 7
    assert (found[0] != found[1]).any()
    assert_pure(order, 200)


def test_few_shot_draws_by_seed_and_fewer_are_among_more():
    few, more, other = (
        FewShot(k).order(SOURCE, seed).chosen for k, seed in ((4, 0), (16, 0), (4, 1))
    )
    assert set(few) <= set(more)
    assert set(few) != set(other)


def test_few_shot_draws_evenly():
    counts = np.zeros(500)
    for seed in range(300):
        counts[FewShot(10).order(SOURCE, seed).chosen] += 1
    for label in range(7):
        own = counts[label == CLASSES]
        mean = 300 * 10 / len(own)
        assert ((own - mean) ** 2 / (mean * (1 - 10 / len(own)))).mean() == pytest.approx(
            1, abs=0.6
        )


def test_few_shot_says_what_is_too_few():
    fewest = np.bincount(CLASSES[CLASSES >= 0]).min()
    with pytest.raises(ConfigError, match=rf"^k: 400 records .* 7 of 7 classes .*at most {fewest}"):
        FewShot(400).order(SOURCE, 0)
    assert FewShot(400, allow_fewer=True).order(SOURCE, 0).epoch == 480
    with pytest.raises(ConfigError, match=r"^column: 'class_lable' .*did you mean 'class_label'"):
        FewShot(1, "class_lable").order(SOURCE, 0)


@pytest.mark.parametrize("batch", [1, 8, 64, 480])
def test_every_batch_is_of_one_cluster(batch):
    order = PerCluster("cluster").for_batch(batch).order(SOURCE, 0)
    sizes = np.bincount(CLASSES[CLASSES >= 0])
    assert order.epoch == 480 // batch * batch
    seen = []
    for epoch in order(np.arange(6 * order.epoch)).reshape(6, -1):
        assert len(np.unique(epoch)) == len(epoch)
        assert (CLASSES[epoch] >= 0).all()
        batches = np.sort(CLASSES[epoch].reshape(-1, batch), axis=1)
        pure = (batches[:, 0] == batches[:, -1]).sum()
        assert pure >= (sizes // batch).sum()
        seen.append(tuple(epoch))
    assert len(set(seen)) == 6
    assert_pure(order, 3 * order.epoch)


def test_no_batch_mixes_clusters_where_leftovers_are_dropped():
    order = PerCluster("cluster", 16, leftover="dropped").order(SOURCE, 0)
    sizes = np.bincount(CLASSES[CLASSES >= 0])
    assert order.epoch == (sizes // 16).sum() * 16 < 480
    found = order(np.arange(30 * order.epoch))
    batches = CLASSES[found].reshape(-1, 16)
    assert (batches == batches[:, :1]).all()
    assert len(np.unique(found[: order.epoch])) == order.epoch
    assert np.bincount(found, minlength=500)[20:].min() >= 15, "others are left out every epoch"
    assert_pure(order, 3 * order.epoch)
    with pytest.raises(ConfigError, match=f"^batch: 200 must be at most {sizes.max()}, the record"):
        PerCluster("cluster", 200, leftover="dropped").order(SOURCE, 0)


def test_all_records_have_their_turn_where_some_are_left_out():
    order = PerCluster("cluster", 64).order(SOURCE, 0)
    found = order(np.arange(40 * order.epoch))
    counts = np.bincount(found, minlength=500)
    assert counts[:20].sum() == 0
    assert counts[20:].min() >= 25
    assert counts.max() == 40


def test_clusters_of_a_file_and_another_batch_at_a_resume(tmp_path):
    np.save(tmp_path / "clusters.npy", CLASSES)
    of_file = PerCluster(str(tmp_path / "clusters.npy"), 8).order(SOURCE, 0)
    of_column = PerCluster("cluster", 8).order(SOURCE, 0)
    np.testing.assert_array_equal(of_file(np.arange(500)), of_column(np.arange(500)))
    state = of_file.state(88)
    np.testing.assert_array_equal(
        PerCluster("cluster", 8).order(SOURCE, 0, state)(np.arange(500)), of_column(np.arange(500))
    )
    other = PerCluster("cluster", 16).order(SOURCE, 0, state)
    batches = CLASSES[other(np.arange(88, 88 + 480))].reshape(-1, 16)
    assert (batches == batches[:, :1]).all(axis=1).sum() >= (np.bincount(CLASSES[20:]) // 16).sum()
    with pytest.raises(ValueError, match="begins at position 88"):
        other(np.array([0]))


def test_a_batch_that_is_larger_than_all_clusters_is_refused():
    with pytest.raises(ConfigError, match="^batch: 481 must be at most 480"):
        PerCluster("cluster", 481).order(SOURCE, 0)
    with pytest.raises(ConfigError, match="^batch: None"):
        PerCluster("cluster").order(SOURCE, 0)


def negatives(folder, values):
    np.save(folder / "negatives.npy", values)
    return str(folder / "negatives.npy")


def test_groups_are_an_anchor_and_its_negatives(tmp_path):
    table = np.random.default_rng(0).integers(0, 500, (500, 4))
    order = WithNegatives(negatives(tmp_path, table)).order(SOURCE, 0)
    assert order.group == 5 and order.epoch == 2500
    groups = order(np.arange(2500)).reshape(500, 5)
    np.testing.assert_array_equal(np.sort(groups[:, 0]), np.arange(500))
    np.testing.assert_array_equal(groups[:, 1:], table[groups[:, 0]])
    assert_pure(order, 3000)


def test_fewer_negatives_are_drawn_without_replacement(tmp_path):
    table = np.arange(500 * 6).reshape(500, 6) % 500
    order = WithNegatives(negatives(tmp_path, table), negatives=2).order(SOURCE, 0)
    groups = order(np.arange(40 * 1500)).reshape(-1, 3)
    places = (groups[:, 1:] - groups[:, :1] * 6) % 500
    assert (places < 6).all() and (places[:, 0] != places[:, 1]).all()
    counts = np.bincount(places.ravel())
    np.testing.assert_allclose(counts, counts.mean(), rtol=0.1)


def test_a_negative_that_is_not_there_is_drawn_at_random(tmp_path):
    table = np.full((500, 2), -1)
    order = WithNegatives(negatives(tmp_path, table)).order(SOURCE, 0)
    found = order(np.arange(20 * 1500)).reshape(-1, 3)[:, 1:]
    counts = np.bincount(found.ravel(), minlength=500)
    assert (counts > 10).all() and counts.sum() == 20_000


def test_a_negative_that_is_no_record_is_named(tmp_path):
    table = np.zeros((500, 2), int)
    table[7, 1] = 500
    order = WithNegatives(negatives(tmp_path, table)).order(SOURCE, 0)
    with pytest.raises(
        DataError, match=r"negatives.npy: row 7 names record 500, but there are 500"
    ):
        order(np.arange(1500))


def test_a_file_is_mapped_anew_in_another_process(tmp_path):
    order = WithNegatives(negatives(tmp_path, np.zeros((500, 1000), np.int64))).order(SOURCE, 0)
    assert len(pickle.dumps(order)) < 20_000
    assert isinstance(order._table.values, np.memmap)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((500, 2)), "of type float64; must be integers"),
        (np.zeros(500, int), r"the shape \[500\]; must be \[n, N\]"),
        (np.zeros((499, 2), int), "499 rows; must be 500"),
        (np.zeros((500, 0), int), "must have a negative for each record"),
        (np.array([None] * 500), "is no .npy file of numbers"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, values, message):
    with pytest.raises(ConfigError, match=f"^table: .*{message}"):
        WithNegatives(negatives(tmp_path, values)).order(SOURCE, 0)


def test_what_is_no_table_is_refused(tmp_path):
    for name, message in (("gone.npy", "is not there"), ("clster", "did you mean 'cluster'")):
        with pytest.raises(ConfigError, match=message):
            PerCluster(name, 4).order(SOURCE, 0)
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(ConfigError, match="is no .npy file"):
        PerCluster(str(tmp_path / "text.npy"), 4).order(SOURCE, 0)
    table = negatives(tmp_path, np.zeros((500, 2), int))
    with pytest.raises(ConfigError, match="^negatives: 3 must be at most 2"):
        WithNegatives(table, 3).order(SOURCE, 0)
