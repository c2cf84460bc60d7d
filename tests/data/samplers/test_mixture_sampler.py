import json
import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import Synthetic, mixed, read_by_hosts

from jaxvl.config import ConfigError
from jaxvl.data.samplers.mixture import Mixture
from jaxvl.data.samplers.replay import Replay
from jaxvl.data.samplers.shares import Shares
from jaxvl.data.samplers.shuffled import Shuffled

SIZES = (200, 70, 30)
SHARDS = [[20] * 10, [35, 35], [30]]


def split_by_part(records, sizes=SIZES):
    """(part, record number within it) of each record."""
    starts = np.cumsum([0, *sizes])
    part = np.searchsorted(starts, records, side="right") - 1
    return part, records - starts[part]


def assert_epochs(own, size):
    """Every epoch of a part's own stream has every record once; what is left of the last has none
    twice."""
    for first in range(0, len(own), size):
        epoch = own[first : first + size]
        assert len(np.unique(epoch)) == len(epoch)
        assert len(epoch) < size or (np.sort(epoch) == np.arange(size)).all()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=9).filter(any), st.integers(1, 2000))
@settings(max_examples=60, deadline=None)
def test_shares_are_exact_in_every_prefix(weights, n):
    """Against counting: each stream's rows are numbered one by one, and their number is its share
    of the prefix."""
    shares = Shares(weights)
    stream, place = shares(np.arange(n))
    given_rows = np.cumsum(np.eye(len(weights), dtype=int)[stream], axis=0)
    np.testing.assert_array_equal(place, given_rows[np.arange(n), stream] - 1)
    wanted = np.arange(1, n + 1)[:, None] * (np.array(weights) / sum(weights))
    assert np.abs(given_rows - wanted).max() <= 1.5 + 1e-6
    assert shares.counts(n) == tuple(given_rows[-1])


def test_two_shares_are_within_half_a_row():
    for weights in ([0.85, 0.15], [1, 1], [1e-6, 3.0]):
        stream, _ = Shares(weights)(np.arange(5000))
        wanted = np.arange(1, 5001) * weights[1] / sum(weights)
        assert np.abs(np.cumsum(stream) - wanted).max() <= 0.5 + 1e-9


def test_shares_are_exact_at_any_position():
    lengths = (10**10, 3, 77_777_777, 12_345)
    shares = Shares(lengths)
    for epochs in (1, 2, 1000, 4 * 10**8):
        assert shares.counts(epochs * sum(lengths)) == tuple(epochs * n for n in lengths)
    first = 2**62 - 5000
    stream, _ = shares(np.arange(first, first + 4000))
    counts = np.subtract(shares.counts(first + 4000), shares.counts(first))
    np.testing.assert_array_equal(np.bincount(stream, minlength=4), counts)


@pytest.mark.parametrize(
    "plan",
    [[(1, 30)], [(2, 30)], [(4, 30)], [(1, 7), (4, 20), (2, 3)]],
    ids=["1", "2", "4", "1-4-2"],
)
def test_without_weights_any_hosts_read_every_record_once_per_epoch(plan):
    order = Mixture().order(mixed(SHARDS), 5)
    assert order.epoch == 300
    for epoch in read_by_hosts(order, 20, plan).reshape(-1, 300):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(300))


def test_rows_go_by_weight_and_each_part_has_epochs_of_its_own():
    order = Mixture().order(mixed(SHARDS, [5, 4, 1]), 0)
    assert order.epoch is None
    part, own = split_by_part(order(np.arange(2000)))
    for first in range(0, 2000, 10):
        assert np.abs(np.bincount(part[first : first + 10], minlength=3) - [5, 4, 1]).max() <= 1
    assert np.bincount(part).tolist() == [1000, 800, 200] == list(order.consumed(2000))
    for i, size in enumerate(SIZES):
        assert_epochs(own[part == i], size)


@pytest.mark.parametrize(
    ("weight_by", "share"),
    [("share", (1, 2, 4)), ("records", (200, 140, 120)), ("shards", (10, 4, 4))],
)
def test_what_a_weight_is_of(weight_by, share):
    order = Mixture(weight_by).order(mixed(SHARDS, [1, 2, 4]), 0)
    counts = np.array(order.consumed(46_000))
    np.testing.assert_allclose(counts, 46_000 * np.array(share) / sum(share), atol=1.5)


def test_upsampling_factors_are_those_of_shards_drawn_with_replacement():
    """open_clip's ResampledShards2: shards drawn by the factor of their source, each with all its
    records."""
    factors = [1.0, 2.0, 0.5]
    sizes = np.concatenate(SHARDS)
    of_source = np.repeat(np.arange(3), [len(each) for each in SHARDS])
    weights = np.array(factors)[of_source]
    drawn = np.random.default_rng(0).choice(len(sizes), 100_000, p=weights / weights.sum())
    rows = np.bincount(of_source[drawn], sizes[drawn])
    order = Mixture("records", resampled=True).order(mixed(SHARDS, factors), 0)
    np.testing.assert_allclose(
        np.array(order.consumed(10**6)) / 10**6, rows / rows.sum(), atol=0.005
    )


def test_resampled_records_are_drawn_with_replacement():
    order = Mixture(resampled=True).order(mixed(SHARDS, [1, 1, 1]), 0)
    part, own = split_by_part(order(np.arange(60_000)))
    assert order.epoch is None
    for i, size in enumerate(SIZES):
        counts = np.bincount(own[part == i], minlength=size)
        mean = 20_000 / size
        assert ((counts - mean) ** 2 / mean).mean() == pytest.approx(1, abs=5 * (2 / size) ** 0.5)
        assert len(np.unique(own[part == i][:size])) < 0.75 * size


def test_a_homogeneous_batch_is_of_one_part():
    sampler = Mixture(homogeneous=True).for_batch(16)
    order = sampler.order(mixed(SHARDS, [5, 4, 1]), 0)
    part, own = split_by_part(order(np.arange(16 * 200)))
    batches = part.reshape(200, 16)
    assert (batches == batches[:, :1]).all()
    assert np.bincount(batches[:, 0]).tolist() == [100, 80, 20]
    for i, size in enumerate(SIZES):
        assert_epochs(own[part == i], size)
    for position in (0, 5, 16, 1000):
        assert order.consumed(position) == tuple(np.bincount(part[:position], minlength=3))
    with pytest.raises(ConfigError, match="^batch: None"):
        Mixture(homogeneous=True).order(mixed(SHARDS), 0)


def test_other_weights_at_a_resume_keep_what_was_seen():
    """Weights, batch and parts change twice; each part's own stream goes on, none repeated or left
    out within its epoch."""
    stages = [
        (Mixture(), mixed(SHARDS, [5, 4, 1]), 333),
        (Mixture(), mixed(SHARDS, [1, 1, 8]), 401),
        (Mixture(homogeneous=True, batch=7), mixed(SHARDS, [2, 3, 1]), 700),
    ]
    state = None
    position = 0
    found = []
    for sampler, source, rows in stages:
        order = sampler.order(source, 9, state)
        found.append(order(np.arange(position, position + rows)))
        position += rows
        state = json.loads(json.dumps(order.state(position)))
    part, own = split_by_part(np.concatenate(found))
    assert tuple(np.bincount(part)) == order.consumed(position)
    for i, size in enumerate(SIZES):
        mine = own[part == i]
        assert_epochs(mine, size)
        never_changed = Mixture().order(mixed(SHARDS, [1, 1, 1]), 9)
        other_part, other_own = split_by_part(never_changed(np.arange(6000)))
        np.testing.assert_array_equal(mine, other_own[other_part == i][: len(mine)])


def test_a_resume_without_change_is_the_same_stream():
    source = mixed(SHARDS, [5, 4, 1])
    first = Mixture().order(source, 0)
    changed = Mixture().order(mixed(SHARDS, [1, 2, 3]), 0, first.state(100))
    for order in (first, changed):
        state = json.loads(json.dumps(order.state(777)))
        again = Mixture().order(source if order is first else mixed(SHARDS, [1, 2, 3]), 0, state)
        np.testing.assert_array_equal(again(np.arange(700, 900)), order(np.arange(700, 900)))
        assert again.consumed(900) == order.consumed(900)
        assert again.state(900) == order.state(900)


def test_parts_come_and_go_at_a_resume():
    order = Mixture().order(mixed(SHARDS[:2], names=["web", "books"]), 0)
    state = order.state(150)
    seen = dict(zip(["web", "books"], order.consumed(150)))
    with_new = Mixture().order(mixed([SHARDS[2], SHARDS[0]], names=["new", "web"]), 0, state)
    assert with_new.consumed(150) == (0, seen["web"])
    back = Mixture().order(mixed(SHARDS[:2], names=["web", "books"]), 0, with_new.state(200))
    assert back.consumed(200)[1] == seen["books"]


def test_positions_before_a_change_are_refused():
    order = Mixture().order(
        mixed(SHARDS, [1, 2, 3]), 0, Mixture().order(mixed(SHARDS, [1, 1, 1]), 0).state(100)
    )
    with pytest.raises(ValueError, match="begins at position 100"):
        order(np.array([99]))
    with pytest.raises(ValueError, match="before this order began"):
        order.consumed(99)


@pytest.mark.parametrize(
    "sampler",
    [
        Mixture(),
        Mixture(resampled=True),
        Mixture(homogeneous=True, batch=8),
        Replay(("1",), 0.25, 10),
    ],
)
def test_a_record_is_a_function_of_its_position(sampler):
    order = sampler.order(mixed(SHARDS, [5, 4, 1]), 0)
    whole = order(np.arange(3000))
    some = np.random.default_rng(0).permutation(3000)
    again = pickle.loads(pickle.dumps(order))
    np.testing.assert_array_equal(
        np.concatenate([again(rows) for rows in np.array_split(some, 30)]), whole[some]
    )
    assert order(np.array([], np.int64)).shape == (0,)


def test_one_part_is_that_source_itself():
    rows = np.arange(500)
    np.testing.assert_array_equal(
        Mixture().order(mixed([SHARDS[0]]), 3)(rows),
        Shuffled().order(Synthetic(SHARDS[0]), 3)(rows),
    )


def test_a_source_without_parts_is_refused():
    with pytest.raises(ConfigError, match="^name: needs a source of parts"):
        Mixture().order(Synthetic([3]), 0)


def test_a_share_of_rows_is_replayed():
    order = Replay(("0", "2"), 0.25).order(mixed(SHARDS), 0)
    part, own = split_by_part(order(np.arange(8000)))
    np.testing.assert_allclose(
        np.bincount(part), [8000 * 0.25 * 200 / 230, 6000, 8000 * 0.25 * 30 / 230], atol=1.5
    )
    for i, size in enumerate(SIZES):
        assert_epochs(own[part == i], size)


def test_a_buffer_holds_some_records_of_a_replayed_part():
    order = Replay(("0",), 0.5, buffer=25).order(mixed(SHARDS, [1, 1, 1]), 0)
    part, own = split_by_part(order(np.arange(1000)))
    for epoch in own[part == 0].reshape(20, 25):
        assert (np.sort(epoch) == np.unique(own[part == 0])).all()
    other = Replay(("0",), 0.5, buffer=25).order(mixed(SHARDS, [1, 1, 1]), 1)
    assert set(order(np.arange(1000))) != set(other(np.arange(1000)))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "must name the parts"),
        (("webb",), "did you mean 'web'"),
        (("web", "new"), "at least one must be new"),
    ],
)
def test_replay_says_which_parts_there_are(parts, message):
    with pytest.raises(ConfigError, match=message):
        Replay(parts, 0.1).order(mixed(SHARDS[:2], names=["web", "new"]), 0)


def test_ten_thousand_million_records_of_three_parts():
    source = mixed([[10**5] * 60_000, [10**5] * 39_999, [10**5]], [0.5, 0.4, 0.1])
    order = Mixture().order(source, 0)
    for first in (0, 10**10 - 2000, 2**62 - 5000):
        part, own = split_by_part(
            order(np.arange(first, first + 4096)), (6 * 10**9, 3_999_900_000, 10**5)
        )
        np.testing.assert_allclose(np.bincount(part), [2048, 1638.4, 409.6], atol=3)
        assert (own >= 0).all()
    began = time.process_time()
    for i in range(30):
        order(np.arange(i * 4096, (i + 1) * 4096))
    each = (time.process_time() - began) / 30
    print(f"mixture of 10^10 records: {each * 1e6 / 4096:.3f} us a row of 4,096")
    assert each / 4096 < 8e-6
