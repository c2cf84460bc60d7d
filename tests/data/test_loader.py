import collections
import dataclasses
import gc
import io
import threading
import tracemalloc
import types

import jax
import numpy as np
import pytest
from data_samples import Corpus, Source, encoded, noise, record, tokenizer
from jax.sharding import PartitionSpec
from PIL import Image

from jaxvl.config import ConfigError
from jaxvl.data.cache import Cache
from jaxvl.data.captions import CaptionConfig
from jaxvl.data.corpora.shapes import Shapes
from jaxvl.data.feed import SIGNAL, Feed, fed_shapes, row_owners
from jaxvl.data.loader import Batches, DataConfig, causes, check_budget
from jaxvl.data.records import BadRecord, DataError, RecordSource, write_records
from jaxvl.sharding import MeshConfig, make_mesh
from jaxvl.sharding.hosts import Signal

N, B, S, T = 24, 8, 12, 16
TOKENIZER = tokenizer()
CONFIG = DataConfig(
    corpus=Shapes(), split="train", batch=B, image_size=S, text_length=T, threads=2,
    captions=CaptionConfig(name=1, keyword=1, keywords_joined=2, foreign=1), error_minimum=1000,
)  # fmt: skip


def batches(source=None, rows=None, seed=0, counted=None, **options):
    source = Source(N) if source is None else source
    return Batches(dataclasses.replace(CONFIG, **options), source, TOKENIZER, seed=seed, rows=rows, counted=counted)


def feed(source=None, mesh=None, start=0, steps=None, seed=0, **options):
    config, corpus = dataclasses.replace(CONFIG, **options), Corpus(source or Source(N))
    return Feed(config, corpus, TOKENIZER, seed=seed, mesh=mesh or make_mesh(), start=start, steps=steps)


def skipped(b):
    """Cause -> bad records that `b` has counted."""
    return b.counts()[1]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(np.asarray(a[key]), np.asarray(b[key]), err_msg=key)


# ---------------------------------------------------------------------------------------------------------------------
# What is in a batch


def test_rows_are_the_records():
    source = Source(N)
    batch = batches(source, captions=CaptionConfig())[1]
    assert {k: (v.dtype, v.shape) for k, v in batch.items()} == {
        "image": (np.uint8, (B, S, S, 4)), "text": (np.int32, (B, T)), "id": (np.int32, (B,)), "index": (np.int32, (B,))
    }  # fmt: skip
    np.testing.assert_array_equal(batch["index"], np.arange(B, 2 * B))
    for image, text, label in zip(batch["image"], batch["text"], batch["id"]):
        expected = source.records[label - 100]
        pixels = np.array(Image.open(io.BytesIO(expected["image"])))
        np.testing.assert_array_equal(image[..., 3], pixels[..., 3])
        opaque = pixels[..., 3] > 200  # premultiplied 8-bit colours of faint pixels are coarse
        assert np.abs(image.astype(int) - pixels)[opaque].max() <= 2
        np.testing.assert_array_equal(text, TOKENIZER.encode([expected["captions"]["en"][0]], T)[0])


def test_pictures_without_transparency_are_opaque():
    batch = batches(Source(N, channels=3))[0]
    assert (batch["image"][..., 3] == 255).all()


def test_an_attribute_needs_its_values():
    values = np.arange(1000, dtype=np.int32) % 7
    with pytest.raises(ValueError, match="values: those of the attribute 'colour' are needed"):
        batches(attribute="colour")
    batch = Batches(dataclasses.replace(CONFIG, attribute="colour"), Source(N), TOKENIZER, seed=0, values=values)[0]
    np.testing.assert_array_equal(batch["label"], values[batch["id"]])


def test_index_wraps_before_int32_does():
    i = 2**31 // B
    assert batches()[i]["index"].tolist() == list(range(B))


def test_every_epoch_is_another_permutation():
    ids = [np.concatenate([batches_[i]["id"] for i in range(3 * e, 3 * e + 3)]) for batches_ in [batches()] for e in range(4)]
    for epoch in ids:
        assert sorted(epoch) == list(range(100, 100 + N))
    assert len({tuple(e) for e in ids}) == 4
    in_order = batches(shuffle=False)
    assert np.concatenate([in_order[i]["id"] for i in range(3)]).tolist() == list(range(100, 100 + N))


def test_a_batch_may_span_two_epochs():
    ids = np.concatenate([b["id"] for b in map(batches(batch=10).__getitem__, range(12))])
    assert all(sorted(ids[e : e + N]) == list(range(100, 100 + N)) for e in range(0, 120, N))


def test_batches_depend_on_seed_and_number_only():
    one, two = batches(seed=5), batches(seed=5)
    for i in (7, 0, 3):  # in any order, whatever was asked before
        assert_same(one[i], two[i])
    later = two[100]
    assert_same(later, batches(seed=5)[100])
    assert (batches(seed=6)[0]["id"] != batches(seed=5)[0]["id"]).any()


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_the_rows_of_the_same_global_batch(hosts):
    whole, source = batches(), Source(N)
    parts = [batches(source, rows=np.array_split(np.arange(B), hosts)[h]) for h in range(hosts)]
    for i in range(5):
        got = [p[i] for p in parts]
        assert_same(whole[i], {k: np.concatenate([g[k] for g in got]) for k in got[0]})


# ---------------------------------------------------------------------------------------------------------------------
# Work done once


def test_a_record_is_read_and_decoded_once():
    source = Source(N)
    b = batches(source)
    first = [b[i] for i in range(3)]
    assert sorted(source.reads) == list(range(N))
    for i in range(3, 12):
        b[i]
    assert len(source.reads) == N
    assert_same(b[0], first[0])


def test_the_cache_is_bounded():
    source = Source(N, size=300)  # 1.44 MB each at 600 pixels
    b = batches(source, image_size=600, cache_mb=5, captions=CaptionConfig())
    for i in range(9):
        b[i]
    assert 3 * N - 2 * 3 - 6 <= len(source.reads) <= 3 * N, "three of the pictures fit"
    assert 2 * 600 * 600 * 4 < b._cache.used <= 5 * 2**20


class Fresh(Source):
    """Every read makes new texts, as reading a file does."""

    def __getitem__(self, i):
        return record(i, 1, pixels=np.zeros((1, 1, 3), np.uint8))


@pytest.mark.parametrize("megabytes", [0, 1])
def test_the_cache_binds_for_rows_without_pictures(megabytes):
    """Names, keywords and token rows, in the memory that they take."""
    b = batches(Fresh(8), modalities=("text",), cache_mb=megabytes, text_length=T)
    b._source.records = [None] * 20_000
    b._order = range(20_000)
    b[2000]
    tracemalloc.start()
    try:
        for i in range(200):
            b[i]
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.5 * megabytes <= kept / 2**20 < megabytes + 0.2


def test_threads_share_a_small_cache():
    b, expected = batches(), batches()
    b._cache = Cache(8_000)
    want = [expected[i] for i in range(12)]
    got, errors = {}, []

    def work(part):
        try:
            for i in part:
                got[i] = b[i]
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(range(k, 12, 4),)) for k in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors and 0 < b._cache.used <= 8_000
    for i in range(12):
        assert_same(got[i], want[i])


# ---------------------------------------------------------------------------------------------------------------------
# Random crops of the host


def test_crops_are_drawn_per_row_and_repeatable():
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[...] = np.arange(90)[None, :, None]  # the column can be read off the colour
    sources = [Source(N, {i: record(i, pixels=pixels) for i in range(N)}) for _ in range(2)]
    one, two = (batches(s, crop=(0.1, 0.6)) for s in sources)
    a = one[2]
    assert_same(a, two[2])
    left, right = a["image"][:, 5, 0, 0].astype(int), a["image"][:, 5, -1, 0].astype(int)
    assert (right > left).all() and len(set(left)) > B // 2 and right.max() <= 89
    again = one[2 + N // B]  # the next epoch cuts the same pictures elsewhere
    assert {(p[5, 0, 0], p[5, -1, 0]) for p in a["image"]} != {(p[5, 0, 0], p[5, -1, 0]) for p in again["image"]}
    assert len(sources[0].reads) < 2 * N  # whole pictures are kept


# ---------------------------------------------------------------------------------------------------------------------
# Bad records


BAD = {
    3: BadRecord("record cannot be read", "hash mismatch"),
    7: {**record(7), "image": encoded(noise(7, S, S, 4))[:60]},
    8: {**record(8), "image": b""},
    11: {**record(11), "captions": {"ja": ["x", []]}},
}
CAUSES = {"record cannot be read": 1, "image cannot be decoded": 2, "no caption": 1}


def test_a_bad_record_is_replaced_by_the_next_good_one_and_counted():
    options = dict(shuffle=False, captions=CaptionConfig())
    b = batches(Source(N, BAD), **options)
    ids = np.concatenate([b[i]["id"] for i in range(3)]).tolist()
    expected = list(range(100, 100 + N))
    for i, other in ((3, 4), (7, 9), (8, 9), (11, 12)):
        expected[i] = 100 + other
    assert ids == expected
    assert skipped(b) == {**CAUSES, "image cannot be decoded": 3}  # 8 was met twice: in its own place and in that of 7
    assert_same(batches(Source(N, BAD), **options)[0], b[0])


def test_hosts_replace_bad_records_alike():
    whole = batches(Source(N, BAD))
    parts = [batches(Source(N, BAD), rows=rows) for rows in np.split(np.arange(B), 2)]
    for i in range(6):
        got = [p[i] for p in parts]
        assert_same(whole[i], {k: np.concatenate([g[k] for g in got]) for k in got[0]})


def test_the_last_record_is_replaced_by_the_first():
    b = batches(Source(N, {N - 1: BAD[3]}), shuffle=False)
    assert b[2]["id"][-1] == 100


def test_a_damaged_record_in_a_file(tmp_path):
    path = tmp_path / "records.array_record"
    records = [record(i, size=48) for i in range(N)]
    write_records(path, records)
    data = bytearray(path.read_bytes())
    data[data.find(records[5]["image"][40:60])] ^= 255
    path.write_bytes(data)
    b = batches(RecordSource(path, np.arange(N)), shuffle=False)
    assert b[0]["id"].tolist() == [100, 101, 102, 103, 104, 106, 106, 107] and skipped(b) == {"record cannot be read": 1}


def test_the_error_budget():
    source = Source(N, {i: BAD[3] for i in range(0, N, 2)})
    source.path = "/data/records.array_record"
    b = batches(source, error_budget=0.25, error_minimum=4)
    for i in range(9):
        b[i]
    with pytest.raises(
        DataError,
        match=r"split 'train' of /data/records.array_record: 36 of 108 records are bad .record cannot be read: 36., more than error_budget 0.1",
    ):
        check_budget(dataclasses.replace(b.config, error_budget=0.1), b.path, *b_counts(b))
    b.check_budget()  # 36 of 108 may be bad where a quarter is: by chance one time in thirty


def b_counts(b):
    seen, by_cause = b.counts()
    return seen, sum(by_cause.values()), f" ({causes(by_cause)})"


def test_a_bad_beginning_does_not_end_a_run():
    """Ten bad ones of the first 504, then none: within a budget of 1 % that happens to one in fifty hosts."""
    b = batches(Source(600, {50 * i: BAD[3] for i in range(10)}), shuffle=False, error_minimum=10)
    for i in range(60):
        b[i]
    assert b.counts() == (490, {"record cannot be read": 10})
    b.check_budget()


def test_a_split_with_nothing_good_in_it():
    b = batches(Source(N, {i: BAD[8] for i in range(N)}), error_budget=1.0, error_minimum=10**9)
    with pytest.raises(DataError, match="bad records in a row .image cannot be decoded"):
        b[0]
    with pytest.raises(DataError, match="split 'train' has no records"):
        batches(Source(0))


# ---------------------------------------------------------------------------------------------------------------------
# On the mesh


@pytest.mark.parametrize("shape", [dict(), dict(data=2, fsdp=4), dict(data=1, fsdp=2, tensor=4)])
def test_the_feed_gives_global_arrays_of_the_same_batches(shape):
    mesh = make_mesh(MeshConfig(**shape))
    f, expected = feed(mesh=mesh), batches()
    try:
        for i in range(5):
            assert (f.position, f.steps) == (i * B, i)
            batch = next(f)
            assert_same(batch, expected[i])
            for key, array in batch.items():
                assert array.sharding.spec == PartitionSpec(("data", "fsdp")) and array.shape == f.shapes[key].shape
                assert array.dtype == f.shapes[key].dtype
    finally:
        f.close()


def taken(n, **options):
    """Rows of `n` batches of a feed, and its position before and after."""
    f = feed(**options)
    before = f.position
    try:
        batches_ = [next(f) for _ in range(n)]
        return {key: np.concatenate([np.asarray(b[key]) for b in batches_]) for key in batches_[0]}, (before, f.position, f.steps)
    finally:
        f.close()


def test_resuming_at_a_position_equals_going_on():
    whole, counts = taken(9)
    assert counts == (0, 9 * B, 9)
    again, counts = taken(4, start=5 * B)
    assert counts == (5 * B, 9 * B, 9)
    assert_same(again, {key: rows[5 * B :] for key, rows in whole.items()})


@pytest.mark.parametrize("options", [{}, dict(crop=(0.1, 0.9)), dict(texts_per_row=3)])
def test_another_batch_size_continues_where_the_run_was(options):
    """Five batches of 8, then batches of 16: the same records with the same captions and cuts as in batches of 8 all along."""
    whole, _ = taken(9, **options)
    later, counts = taken(2, start=5 * B, batch=2 * B, steps=5, **options)
    assert counts == (5 * B, 9 * B, 7)
    assert_same(later, {key: rows[5 * B :] for key, rows in whole.items()})


def test_no_host_draws_numbers_for_the_rows_of_others(monkeypatch):
    drawn = []

    class Counted(np.random.Generator):
        def random(self, size=None, *rest, **options):
            drawn.append(int(np.prod(size)))
            return super().random(size, *rest, **options)

    b = batches(batch=4096, rows=np.arange(64, 72))
    monkeypatch.setattr(np.random, "Generator", Counted)
    b[3]
    assert sum(drawn) < 8 * 20


def test_neighbouring_seeds_have_orders_of_their_own():
    """With the epoch added to the seed, epoch 1 of seed 0 would be epoch 0 of seed 1."""
    orders = {}
    for seed in range(4):
        b = batches(seed=seed)
        for epoch in range(4):
            orders[seed, epoch] = tuple(np.concatenate([b[3 * epoch + i]["id"] for i in range(3)]))
    assert len(set(orders.values())) == len(orders)


def test_the_number_of_threads_changes_nothing():
    streams = []
    for threads, prefetch in ((1, 1), (4, 8)):
        f = feed(Source(N, BAD), threads=threads, prefetch=prefetch)
        streams.append([next(f) for _ in range(7)])
        f.close()
    for a, b in zip(*streams):
        assert_same(a, b)


def test_skips_are_counted_and_what_a_batch_raises_is_raised_by_next():
    f = feed(Source(N, BAD), captions=CaptionConfig())
    for _ in range(3):
        next(f)
    assert f.skipped.keys() == CAUSES.keys() and f.counts()[0] >= 3 * B + 4
    f.close()
    f = feed(Source(N, {i: BAD[8] for i in range(N)}))
    for _ in range(2):  # and again, should anyone ask again
        with pytest.raises(DataError, match=r"100 bad records in a row \(image cannot be decoded: \d+\)$"):
            next(f)
    f.close()


def test_a_feed_that_fails_goes_on_with_rows_that_are_marked():
    f = feed(Source(N, {10: ZeroDivisionError("a bug in a source")}), shuffle=False, threads=1, prefetch=1)
    good, called, bad, worse = f.take(), f.take(call=True), f.take(), f.take(call=True)
    f.close()
    assert good.keys() == bad.keys() == {*f.shapes, SIGNAL} == set(fed_shapes(f.config))
    for batch, signal in ((good, Signal.FINE), (bad, Signal.BROKEN), (worse, Signal.BROKEN)):
        assert np.asarray(batch[SIGNAL]).tolist() == [signal] * B
        for name, shape in fed_shapes(f.config).items():
            assert (batch[name].shape, batch[name].dtype) == (shape.shape, shape.dtype)
            assert batch[name].sharding.spec == PartitionSpec(("data", "fsdp"))
    assert np.asarray(called[SIGNAL]).tolist() == [Signal.BROKEN] * B and isinstance(f.failure, ZeroDivisionError)
    assert f.position == 4 * B
    f.take_back()
    assert (f.position, f.steps) == (3 * B, 3)


class Device:
    def __init__(self, process):
        self.process_index = process


def test_rows_that_several_processes_hold_are_counted_once():
    devices = [Device(i // 2) for i in range(8)]  # four processes of two
    places = {device: (slice(4 * (i // 4), 4 * (i // 4) + 4),) for i, device in enumerate(devices)}
    sharding = types.SimpleNamespace(devices_indices_map=lambda shape: places)
    assert row_owners(sharding, 8) == [{0, 1}] * 4 + [{2, 3}] * 4
    b = batches(rows=np.arange(4), counted=np.zeros(4, bool))
    b[0]
    assert b.counts() == (0, {})


def test_an_error_that_is_no_bad_record_is_not_swallowed():
    f = feed(Source(N, {0: ZeroDivisionError("a bug in a source")}), shuffle=False)
    with pytest.raises(ZeroDivisionError, match="a bug in a source"):
        next(f)
    f.close()


def test_waiting_is_measured_and_a_slow_reader_does_not_stop_the_feed():
    gate = threading.Event()

    class Slow(Source):
        def __getitem__(self, i):
            gate.wait(10)
            return super().__getitem__(i)

    f = feed(Slow(N))
    threading.Timer(0.4, gate.set).start()
    next(f)
    assert 0.2 < f.waited < 10
    waited = f.waited
    while f._ahead._ready.qsize() < 2:  # the step takes its time
        gate.wait(0.01)
    next(f)
    assert f.waited - waited < 0.1
    f.close()


def test_close_ends_the_threads():
    before = threading.active_count()
    f = feed()
    next(f)
    f.close()
    assert not f._ahead._thread.is_alive()
    assert threading.active_count() <= before + 2  # grain's own pool may linger
    with pytest.raises(ValueError, match="the feed is closed"):
        next(f)


def test_a_split_that_is_not_there():
    with pytest.raises(ConfigError, match=r"data.split: 'test' is not a split of the corpus \(splits: train\)"):
        feed(split="test")


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(batch=0), "batch: 0 must be >= 1"), (dict(text_length=2), "text_length: 2 must be >= 3"),
        (dict(error_budget=2.0), "error_budget"), (dict(crop=(0.0, 1.0)), "crop: "), (dict(crop_ratio=(2.0, 1.0)), "crop_ratio: "),
    ],
)  # fmt: skip
def test_configs_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **values)


def test_captions_follow_their_weights_in_the_stream():
    b = batches(Source(N), captions=CaptionConfig(name=3, foreign=1, foreign_locales=("de",)))
    names = {tuple(TOKENIZER.encode([record(i, 1)["captions"]["en"][0]], T)[0]) for i in range(N)}
    kinds = collections.Counter(tuple(text) in names for i in range(150) for text in b[i]["text"].tolist())
    assert abs(kinds[True] / kinds.total() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / kinds.total())


def test_devices_are_eight():
    assert jax.device_count() == B  # one row each in the tests above
