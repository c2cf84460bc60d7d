import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from synthetic import Synthetic, mixed, read_by_hosts

from jaxvl.config import ConfigError, choose
from jaxvl.data.samplers import SAMPLERS
from jaxvl.data.samplers.in_order import InOrder
from jaxvl.data.samplers.shuffled import Shuffled, ShuffledOrder

SHARDS = np.random.default_rng(0).integers(0, 30, 150)  # some are empty
BIG = Synthetic(np.full(100_000, 100_000))  # 10^10 records


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=40).filter(any),
    st.integers(1, 9),
    st.integers(0, 2**31 - 1),
)
@settings(max_examples=50, deadline=None)
def test_every_record_comes_once_per_epoch(shards, window, seed):
    order = Shuffled(window).order(Synthetic(shards), seed)
    epochs = order(np.arange(3 * order.epoch)).reshape(3, -1)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(sum(shards)), (3, 1)))


@pytest.mark.parametrize("window", [8, 64, 1000])
def test_a_record_is_a_function_of_its_position(window):
    order = Shuffled(window).order(Synthetic(SHARDS), 7)
    whole = order(np.arange(2 * order.epoch + 100))
    some = np.random.default_rng(1).integers(0, len(whole), 3000)
    np.testing.assert_array_equal(order(some), whole[some])
    again = pickle.loads(pickle.dumps(order))
    np.testing.assert_array_equal(
        np.concatenate([again(rows) for rows in np.array_split(some, 50)]), whole[some]
    )
    assert order(np.array([], np.int64)).shape == (0,)
    assert whole.dtype == np.int64


@pytest.mark.parametrize(
    "plan",
    [[(1, 40)], [(2, 40)], [(4, 40)], [(1, 13), (4, 20), (2, 7)]],
    ids=["1", "2", "4", "1-4-2"],
)
def test_any_hosts_read_every_record_once(plan):
    """40 batches of 52 are one epoch of 2,080 records. A resume makes the order anew from seed and
    position."""
    shards = [52] * 40
    found = read_by_hosts(ShuffledOrder(shards, 3, window=8), 52, plan)
    np.testing.assert_array_equal(np.sort(found), np.arange(2080))
    np.testing.assert_array_equal(found, ShuffledOrder(shards, 3, window=8)(np.arange(2080)))


def test_a_batch_may_lie_over_the_border_of_two_epochs():
    order = ShuffledOrder([10] * 10, 0, window=4)
    batches = np.concatenate([order(np.arange(i * 64, (i + 1) * 64)) for i in range(25)])
    for epoch in batches.reshape(16, 100):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(100))


def test_rows_that_follow_each_other_are_of_one_window():
    order = ShuffledOrder([100] * 640, 0, window=64)
    windows = order(np.arange(order.epoch)).reshape(10, -1) // 100
    assert [len(np.unique(shards)) for shards in windows] == [64] * 10
    # All shards of a window are in use from its beginning on.
    assert len(np.unique(windows[0][:1000])) == 64


def test_windows_are_even():
    """65 shards with windows of 64 are 33 and 32, not 64 and 1."""
    order = ShuffledOrder([10] * 65, 0, window=64)
    first = len(np.unique(order(np.arange(320)) // 10))
    second = len(np.unique(order(np.arange(320, 650)) // 10))
    assert {first, second} == {32, 33}


def test_epochs_seeds_and_parts_differ_as_numpys_permutations_do():
    """Fixed points of one order against another: a Poisson number of mean 1; and no correlation."""
    n = 6400
    orders = {
        "epoch 0": ShuffledOrder([100] * 64, 0, 64)(np.arange(n)),
        "epoch 1": ShuffledOrder([100] * 64, 0, 64)(np.arange(n, 2 * n)),
        "seed 1": ShuffledOrder([100] * 64, 1, 64)(np.arange(n)),
        "part 1": ShuffledOrder([100] * 64, 0, 64, "1")(np.arange(n)),
        "windows": ShuffledOrder([100] * 64, 0, 8)(np.arange(n)),
        "numpy": np.random.default_rng(0).permutation(n),
    }
    names = list(orders)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert (orders[one] == orders[other]).sum() < 9, (one, other)
            assert abs(np.corrcoef(orders[one], orders[other])[0, 1]) < 0.06, (one, other)


def test_places_are_even_over_epochs():
    """Chi-squared of (record, place) over 3,000 epochs of 24 records in windows of four shards."""
    order = ShuffledOrder([3] * 8, 0, window=4)
    found = order(np.arange(3000 * 24)).reshape(3000, 24)
    counts = np.bincount((np.arange(24) * 24 + found).ravel(), minlength=24 * 24)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_ten_thousand_million_records_need_no_memory_for_a_record():
    order = ShuffledOrder(BIG.shards(), 1, 64)
    starts = [0, 3 * 10**9, 10**10 - 2000, 2**62 - 5000]
    order(np.arange(10))
    before = resident()
    for start in starts:
        found = order(np.arange(start, start + 4096))
        assert (found >= 0).all() and (found < 10**10).all()
        assert len(np.unique(found)) == 4096 or start == starts[2]
    began = time.process_time()
    for i in range(50):
        order(np.arange(i * 4096, (i + 1) * 4096))
    each = (time.process_time() - began) / 50
    began = time.process_time()
    for i in range(500):
        order(np.arange(i * 64, (i + 1) * 64))
    small = (time.process_time() - began) / 500
    grown = resident() - before
    kept = sum(a.nbytes for layout in order._layouts.values() for a in layout)
    print(
        f"10^10 records in 10^5 shards: {kept / 2**20:.2f} MiB kept of two epochs, "
        f"{grown / 2**20:.1f} MiB of memory more, ",
        end="",
    )
    print(f"{each * 1e6 / 4096:.3f} us a row of 4,096, {small * 1e6 / 64:.2f} us a row of 64")
    assert kept < 2e6
    assert grown < 32 * 2**20
    assert each / 4096 < 4e-6  # about 0.1 us on a free core


def resident():
    """Bytes of memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_records_beyond_2_to_the_32nd_are_reached():
    found = ShuffledOrder([2**40] * 3, 0, 64)(np.arange(100_000))
    assert stats.kstest(found / (3 * 2**40), "uniform").pvalue > 1e-4


def test_threads_agree():
    order = ShuffledOrder([7] * 1000, 0, window=100)
    rows = np.random.default_rng(0).permutation(5 * 7000).reshape(100, 350)
    expected = [ShuffledOrder([7] * 1000, 0, window=100)(each) for each in rows[:10]]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(order, rows))
    for one, other in zip(expected, found):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        np.sort(np.concatenate(found)), np.sort(np.tile(np.arange(7000), 5))
    )


def test_weights_are_not_dropped_in_silence():
    with pytest.raises(ConfigError, match="must be 'mixture'"):
        Shuffled().order(mixed([[3], [4]], [1.0, 2.0]), 0)
    assert Shuffled().order(mixed([[3], [4]]), 0).epoch == 7


def test_in_order():
    order = InOrder().order(Synthetic([3, 4]), 5)
    assert order(np.array([0, 6, 7, 2**62 - 1])).tolist() == [0, 6, 0, (2**62 - 1) % 7]
    assert order.epoch == 7 and order.group == 1
    assert order.consumed(12) == (12,)


def test_samplers_are_found_by_name():
    assert set(SAMPLERS) == {
        "few_shot",
        "in_order",
        "mixture",
        "per_cluster",
        "replay",
        "shuffled",
        "with_negatives",
    }
    assert choose(SAMPLERS, dict(name="shuffled", window=8), "data.sampler") == Shuffled(8)
    with pytest.raises(ConfigError, match="data.sampler.window"):
        choose(SAMPLERS, dict(name="shuffled", window=0), "data.sampler")
