import collections
import dataclasses
import io
import threading

import jax
import numpy as np
import pytest
from data_samples import Corpus, Source, encoded, noise, record, tokenizer
from jax.sharding import PartitionSpec
from PIL import Image

from jaxvl.config import ConfigError
from jaxvl.data import loader
from jaxvl.data.captions import CaptionConfig
from jaxvl.data.corpora.shapes import Shapes
from jaxvl.data.feed import Feed
from jaxvl.data.loader import Batches, DataConfig
from jaxvl.data.records import BadRecord, DataError, RecordSource, write_records
from jaxvl.sharding import MeshConfig, make_mesh

N, B, S, T = 24, 8, 12, 16
TOKENIZER = tokenizer()
CONFIG = DataConfig(
    corpus=Shapes(), split="train", batch=B, image_size=S, text_length=T, threads=2,
    captions=CaptionConfig(name=1, keyword=1, keywords_joined=2, foreign=1), error_minimum=1000,
)  # fmt: skip


def batches(source=None, rows=None, seed=0, **options):
    return Batches(dataclasses.replace(CONFIG, **options), Source(N) if source is None else source, TOKENIZER, seed=seed, rows=rows)


def feed(source=None, mesh=None, start=0, seed=0, **options):
    mesh = mesh or make_mesh()
    return Feed(dataclasses.replace(CONFIG, **options), Corpus(source or Source(N)), TOKENIZER, seed=seed, mesh=mesh, start=start)


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
    assert len(source.reads) == N + 2 * (N - 3)
    assert len(b._cache) == 3 and b._cache_left < 600 * 600 * 4


def test_the_token_memory_is_bounded_and_safe_with_threads(monkeypatch):
    monkeypatch.setattr(loader, "KNOWN_TEXTS", 10)
    b, expected = batches(), batches()
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
    assert not errors and len(b._tokens) <= 10 + B
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
    assert b.skipped == {**CAUSES, "image cannot be decoded": 3}  # 8 was met twice: in its own place and in that of 7
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
    assert b[0]["id"].tolist() == [100, 101, 102, 103, 104, 106, 106, 107] and b.skipped == {"record cannot be read": 1}


def test_the_error_budget_ends_the_run(tmp_path):
    source = Source(N, {i: BAD[3] for i in range(0, N, 2)})
    source.path = "/data/records.array_record"
    b = batches(source, error_budget=0.25, error_minimum=4)
    with pytest.raises(
        DataError,
        match=r"split 'train' of /data/records.array_record: \d+ of \d+ records are bad .record cannot be read: \d+., more than error_budget 0.25",
    ):
        [b[i] for i in range(9)]
    patient = batches(Source(N, {0: BAD[3]}), error_budget=0.25, error_minimum=1)
    for i in range(9):
        patient[i]
    assert patient.skipped == {"record cannot be read": 3}


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
            assert f.position == i
            batch = next(f)
            assert_same(batch, expected[i])
            for key, array in batch.items():
                assert array.sharding.spec == PartitionSpec(("data", "fsdp")) and array.shape == f.shapes[key].shape
                assert array.dtype == f.shapes[key].dtype
    finally:
        f.close()


def test_resuming_at_a_position_equals_going_on():
    f = feed()
    whole = [next(f) for _ in range(9)]
    f.close()
    f = feed(start=5)
    assert f.position == 5
    for expected in whole[5:]:
        assert_same(next(f), expected)
    f.close()


def test_the_number_of_threads_changes_nothing():
    streams = []
    for threads, prefetch in ((1, 1), (4, 8)):
        f = feed(Source(N, BAD), threads=threads, prefetch=prefetch)
        streams.append([next(f) for _ in range(7)])
        f.close()
    for a, b in zip(*streams):
        assert_same(a, b)


def test_skips_are_counted_and_a_full_budget_is_raised_by_next():
    f = feed(Source(N, BAD), captions=CaptionConfig())
    for _ in range(3):
        next(f)
    assert f.skipped.keys() == CAUSES.keys() and isinstance(f.skipped, dict)
    f.close()
    f = feed(Source(N, {i: BAD[8] for i in range(N)}), error_minimum=1)
    for _ in range(2):  # and again, should anyone ask again
        with pytest.raises(DataError, match="image cannot be decoded"):
            next(f)
    f.close()


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
