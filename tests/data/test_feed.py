"""Batches on a mesh of eight devices, made ahead of whoever takes them."""

import dataclasses
import os
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest
from data_samples import (
    COLUMNS,
    FIRST_CLASS,
    FakeConfig,
    FakeSource,
    assert_same,
    record,
    tokenizer,
)
from jax.sharding import PartitionSpec

from jaxvl.config import ConfigError
from jaxvl.data.batches import Batches, Start
from jaxvl.data.bottlenecks import STAGES
from jaxvl.data.config import DataConfig, ReaderConfig
from jaxvl.data.feed import MOST_AHEAD, SIGNAL, Feed, fed_shapes, row_owners
from jaxvl.data.fields.caption import Caption
from jaxvl.data.fields.numbers import Group
from jaxvl.data.fields.picture import Picture
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.samplers.in_order import InOrder
from jaxvl.data.samplers.mixture import Mixture
from jaxvl.data.sources.base import Column
from jaxvl.data.sources.mixture import MixtureSource
from jaxvl.sharding import MeshConfig, make_mesh
from jaxvl.sharding.hosts import Signal

N = 24
B = 8
S = 12
T = 16
TOKENIZER = tokenizer()
TEXT = Caption({"name/en": 1, "keywords/en": 1, "name/*": 1}, length=T, joined=2)
FIELDS = dict(image=Picture(size=S), text=TEXT, group_id=Group("class_label"))
CONFIG = DataConfig(
    FakeConfig(), batch=B, fields=FIELDS, reader=ReaderConfig(threads=2), error_minimum=1000
)
IN_ORDER = dict(sampler=InOrder())
BAD = {3: BadRecord("record cannot be read", "x"), 8: {**record(8), "image": b""}}


def config_of(fields=None, **options):
    return dataclasses.replace(
        CONFIG,
        fields={
            name: field for name, field in (FIELDS | (fields or {})).items() if field is not None
        },
        **options,
    )


def feed(source=None, mesh=None, start=None, seed=0, fields=None, **options):
    config = config_of(fields, **options)
    return Feed(
        config, source or FakeSource(N), TOKENIZER, seed=seed, mesh=mesh or make_mesh(), start=start
    )


def taken(n, **options):
    """Rows of `n` batches of a feed; its position before and after, and its steps."""
    f = feed(**options)
    before = f.position
    try:
        batches = [next(f) for _ in range(n)]
        rows = {key: np.concatenate([np.asarray(b[key]) for b in batches]) for key in batches[0]}
        return rows, (before, f.position, f.steps)
    finally:
        f.close()


def test_devices_are_eight():
    assert jax.device_count() == B  # one row each in the tests below


@pytest.mark.parametrize("shape", [dict(), dict(data=2, fsdp=4), dict(data=1, fsdp=2, tensor=4)])
def test_the_feed_gives_global_arrays_of_the_same_batches(shape):
    f = feed(mesh=make_mesh(MeshConfig(**shape)))
    expected = Batches(CONFIG, FakeSource(N), TOKENIZER, seed=0)
    try:
        for i in range(5):
            assert (f.position, f.steps) == (i * B, i)
            batch = next(f)
            assert_same(batch, expected[i])
            for key, array in batch.items():
                assert (
                    array.sharding.spec == PartitionSpec(("data", "fsdp"))
                    and array.shape == f.shapes[key].shape
                )
                assert array.dtype == f.shapes[key].dtype
    finally:
        f.close()
        expected.close()


def test_resuming_at_a_position_equals_going_on():
    whole, counts = taken(9)
    assert counts == (0, 9 * B, 9)
    again, counts = taken(4, start=Start(5 * B))
    assert counts == (5 * B, 9 * B, 9)
    assert_same(again, {key: rows[5 * B :] for key, rows in whole.items()})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(image=Picture(size=S, crop=(0.1, 0.9))),
        dict(text=dataclasses.replace(TEXT, count=3)),
    ],
)
def test_another_batch_size_continues_where_the_run_was(fields):
    """Five batches of 8, then batches of 16: the same records with the same captions and cuts as in
    batches of 8 all along."""
    whole, _ = taken(9, fields=fields)
    later, counts = taken(2, start=Start(5 * B, steps=5), batch=2 * B, fields=fields)
    assert counts == (5 * B, 9 * B, 7)
    assert_same(later, {key: rows[5 * B :] for key, rows in whole.items()})


def test_the_state_of_the_sampler_goes_with_the_position():
    """Other weights from the fourth batch on: the first part's epoch goes on where it was, so that
    none of its records comes twice."""
    one = {i: {**record(i), "class_label": i} for i in range(N)}
    two = {i: {**record(i), "class_label": 1000 + i} for i in range(N)}
    columns = {name: column for name, column in COLUMNS.items() if name != "class_label"} | {
        "class_label": Column("class")
    }
    sources = [FakeSource(N, records, columns) for records in (one, two)]
    f = feed(MixtureSource(sources, [1.0, 1.0], ["a", "b"]), sampler=Mixture())
    before = np.concatenate([np.asarray(next(f)["group_id"]) for _ in range(3)])
    state = f.sampler_state
    f.close()
    assert state
    options = dict(source=MixtureSource(sources, [3.0, 1.0], ["a", "b"]), sampler=Mixture())
    after, _ = taken(2, start=Start(3 * B, sampler=state), **options)
    own = [number for number in (*before, *after["group_id"]) if number < 1000]
    assert len(own) == 12 + 12 and sorted(own) == list(range(N))
    plain = feed()
    assert plain.sampler_state == {}
    plain.close()


def test_the_number_of_threads_and_of_batches_made_ahead_changes_nothing():
    one, _ = taken(7, source=FakeSource(N, BAD), reader=ReaderConfig(threads=1, prefetch_mb=1))
    other, _ = taken(7, source=FakeSource(N, BAD), reader=ReaderConfig(threads=4, prefetch_mb=64))
    assert_same(one, other)


def test_a_feed_says_which_records_it_reads():
    columns = {**COLUMNS, "name/it": Column("text", optional=True)}
    some = {i: {**record(i), "name/it": f"it {i}"} for i in range(5)}
    source = FakeSource(N, some, columns, known=("name/it",))
    found = {}
    for name, column in (("all", "name/en"), ("some", "name/it")):
        f = feed(source, fields=dict(text=Caption(column, length=T)))
        found[name] = f.identity
        assert (f.rows, f.records, f.name) == (B, f.identity["records"], "fake")
        f.close()
    assert (found["all"]["records"], found["some"]["records"]) == (N, 5)
    assert found["all"]["fingerprint"] == "fake" != found["some"]["fingerprint"]


# --------------------------------------------------------------------------------------------------
# Made ahead


@pytest.mark.parametrize("megabytes, count", [(1, 1), (6, 2), (9, 3), (64, MOST_AHEAD)])
def test_what_is_made_ahead_is_bounded(megabytes, count):
    """Batches of 2.8 MB: so many in flight as `prefetch_mb` has room for, at least one, and two
    more on the mesh."""
    source = FakeSource(N)
    fields = dict(image=Picture(size=300))
    f = feed(
        source, fields=fields, reader=ReaderConfig(threads=2, prefetch_mb=megabytes, cache_mb=0)
    )
    try:
        most = (
            count + 2
        ) * B  # two wait for whoever takes them, the oldest in flight for room there
        deadline = time.monotonic() + 60
        while len(source.reads) < most and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        assert len(source.reads) == most
        next(f)
        while len(source.reads) < most + B and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(source.reads) >= most + B
    finally:
        f.close()


class Unique(FakeSource):
    """No text comes twice, as in a file that is read once."""

    def __len__(self):
        return 100_000

    def read(self, i, columns=None):
        found = {
            "image": self.records[0]["image"],
            "name/en": f"red star {i} " + " ".join(f"{i + j:05d}" for j in range(20)),
        }
        return {name: found[name] for name in columns}


def test_nothing_grows_over_many_batches_of_unique_texts():
    """Python's objects, descriptors and threads; what the cache may hold is held before it is
    measured. Threads that earlier tests of this process left may end meanwhile, so fewer are no
    fault."""
    reader = ReaderConfig(threads=2, prefetch_mb=1, cache_mb=1)
    fields = dict(text=Caption("name/en", length=T), group_id=None)
    f = feed(
        Unique(1),
        mesh=make_mesh(devices=jax.devices()[:1]),
        fields=fields,
        reader=reader,
        **IN_ORDER,
    )

    def used():
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    for _ in range(200):
        next(f)
    before = sys.getallocatedblocks()
    descriptors, threads = used()
    for _ in range(200):
        next(f)
    after = sys.getallocatedblocks()
    descriptors_later, threads_later = used()
    cache = f._batches._pool.filler.cache
    assert 0.9 * 2**20 < cache.used <= 2**20
    f.close()
    assert descriptors_later <= descriptors
    assert threads_later <= threads
    assert after - before < 3_000, "1,600 texts with their tokens would be 6,000 objects"


class Gated(FakeSource):
    """Nothing can be read before `gate` is set."""

    def __init__(self, n):
        super().__init__(n)
        self.gate = threading.Event()

    def read(self, i, columns=None):
        self.gate.wait(30)
        return super().read(i, columns)


def test_waiting_is_measured_and_a_slow_reader_does_not_stop_the_feed():
    source = Gated(N)
    f = feed(source)
    threading.Timer(0.4, source.gate.set).start()
    next(f)
    assert 0.2 < f.waited < 10
    waited = f.waited
    while f._ahead._ready.qsize() < 2:  # the step takes its time
        time.sleep(0.01)
    next(f)
    assert f.waited - waited < 0.1
    f.close()


def test_the_time_of_each_stage_is_told():
    f = feed()
    for _ in range(3):
        next(f)
    spent = f.stage_seconds
    f.close()
    assert list(spent) == list(STAGES) and all(0 < seconds < 60 for seconds in spent.values())


def test_close_ends_the_threads():
    before = set(threading.enumerate())
    f = feed()
    next(f)
    assert set(threading.enumerate()) - before
    f.close()
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("jaxvl")]
    with pytest.raises(ValueError, match="the feed is closed"):
        next(f)


def test_close_ends_a_feed_whose_records_are_being_read():
    source = Gated(N)
    before = set(threading.enumerate())
    f = feed(source, reader=ReaderConfig(threads=2))
    threading.Timer(0.3, source.gate.set).start()
    f.close()
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("jaxvl")]
    assert len(source.reads) < MOST_AHEAD * B, "what nobody has begun to read is left out"


# --------------------------------------------------------------------------------------------------
# What goes wrong


def test_skips_are_counted_and_what_a_batch_raises_is_raised_by_next():
    f = feed(FakeSource(N, BAD))
    for _ in range(3):
        next(f)
    assert (
        f.skipped.keys() == {"record cannot be read", "image cannot be decoded"}
        and f.counts()[0] >= 3 * B + 2
    )
    f.close()
    f = feed(FakeSource(N, {i: BAD[8] for i in range(N)}))
    for _ in range(2):  # and again, should anyone ask again
        with pytest.raises(
            DataError, match=r"100 bad records in a row \(image cannot be decoded: \d+\)$"
        ):
            next(f)
    f.close()


def test_only_batches_that_were_given_are_counted():
    """Not those made ahead, so that a bad record is counted once, wherever a run was stopped; nor
    those that are taken back."""
    f = feed(FakeSource(N, BAD), reader=ReaderConfig(threads=4, prefetch_mb=64), **IN_ORDER)
    deadline = time.monotonic() + 60
    while f._ahead._ready.qsize() < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    counts = [f.counts()]
    for _ in range(4):
        f.take()
        counts.append(f.counts())
    f.take_back()
    counts.append(f.counts())
    f.close()
    unreadable = {"record cannot be read": 1}
    undecoded = {"image cannot be decoded": 1}
    assert counts[:3] == [(0, {}), (B + 1, unreadable), (2 * B + 2, unreadable | undecoded)]
    assert counts[3:] == [
        (N + 2, unreadable | undecoded),
        (N + B + 3, {**undecoded, **dict.fromkeys(unreadable, 2)}),
        counts[3],
    ]


class Leaving(FakeSource):
    """Records of files that were not all taken."""

    def left_out(self):
        return {"damaged header": 2, "link": 1}


def test_what_was_left_out_when_the_data_was_opened_is_told_of_all_parts():
    source = MixtureSource([Leaving(N), FakeSource(N), Leaving(N)], [None] * 3, ["a", "b", "c"])
    f = feed(source)
    f.close()
    assert f.left_out == {"damaged header": 4, "link": 2}
    f = feed(FakeSource(N))
    f.close()
    assert f.left_out == {}


def test_an_error_that_is_no_bad_record_is_not_swallowed():
    f = feed(FakeSource(N, {0: ZeroDivisionError("a bug in a source")}), **IN_ORDER)
    with pytest.raises(ZeroDivisionError, match="a bug in a source"):
        next(f)
    f.close()


def test_a_feed_that_fails_goes_on_with_rows_that_are_marked():
    f = feed(
        FakeSource(N, {10: ZeroDivisionError("a bug in a source")}),
        reader=ReaderConfig(threads=1, prefetch_mb=1),
        **IN_ORDER,
    )
    good = f.take()
    called = f.take(call=True)
    bad = f.take()
    worse = f.take(call=True)
    f.close()
    assert good.keys() == bad.keys() == {*f.shapes, SIGNAL} == set(fed_shapes(f.config))
    for batch, signal in ((good, Signal.FINE), (bad, Signal.BROKEN), (worse, Signal.BROKEN)):
        assert np.asarray(batch[SIGNAL]).tolist() == [signal] * B
        for name, shape in fed_shapes(f.config).items():
            assert (batch[name].shape, batch[name].dtype) == (shape.shape, shape.dtype)
            assert batch[name].sharding.spec == PartitionSpec(("data", "fsdp"))
    assert np.asarray(called[SIGNAL]).tolist() == [Signal.BROKEN] * B and isinstance(
        f.failure, ZeroDivisionError
    )
    assert f.position == 4 * B
    f.take_back()
    assert (f.position, f.steps) == (3 * B, 3)


def test_a_call_is_marked():
    f = feed()
    assert np.asarray(f.take(call=True)[SIGNAL]).tolist() == [Signal.CALL] * B
    f.close()


def test_a_field_that_the_source_cannot_serve_is_named_and_no_thread_is_left():
    before = set(threading.enumerate())
    with pytest.raises(ConfigError, match="fields.text.columns: 'title' is no column of fake"):
        feed(fields=dict(text=Caption("title")))
    with pytest.raises(ConfigError, match="fields.group_id.column: 'title' is no column of fake"):
        feed(fields=dict(group_id=Group("title")))
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("jaxvl")]


class Device:
    def __init__(self, process):
        self.process_index = process


def test_rows_that_several_processes_hold_are_owned_by_all_of_them():
    devices = [Device(i // 2) for i in range(8)]  # four processes of two
    places = {device: (slice(4 * (i // 4), 4 * (i // 4) + 4),) for i, device in enumerate(devices)}
    sharding = types.SimpleNamespace(devices_indices_map=lambda shape: places)
    assert row_owners(sharding, 8) == [{0, 1}] * 4 + [{2, 3}] * 4


def test_each_row_is_counted_by_one_process(monkeypatch):
    from jaxvl.data import feed as module

    devices = [Device(i // 2) for i in range(8)]
    places = {device: (slice(4 * (i // 4), 4 * (i // 4) + 4),) for i, device in enumerate(devices)}
    sharding = types.SimpleNamespace(devices_indices_map=lambda shape: places)
    counted = np.zeros(8, int)
    for process in range(4):
        monkeypatch.setattr(module.jax, "process_index", lambda process=process: process)
        rows = module.own_rows(sharding, 8)
        assert rows.index.tolist() == ([0, 1, 2, 3] if process < 2 else [4, 5, 6, 7])
        counted[rows.index[rows.counted]] += 1
    assert counted.tolist() == [1] * 8


def test_records_of_the_first_epoch_are_all_there():
    rows, _ = taken(3)
    assert sorted(rows["group_id"]) == list(range(FIRST_CLASS, FIRST_CLASS + N))
