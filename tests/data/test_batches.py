import collections
import dataclasses
import gc
import io
import threading
import time
import tracemalloc

import numpy as np
import pytest
from data_samples import (
    COLUMNS,
    FIRST_CLASS,
    FakeConfig,
    FakeSource,
    assert_same,
    encoded,
    name_of,
    noise,
    record,
    tokenizer,
)
from PIL import Image

from jaxvl.config import ConfigError
from jaxvl.data import preprocess
from jaxvl.data.augment import Augment
from jaxvl.data.batches import Batches, Rows, Start, check_budget
from jaxvl.data.cache import Cache
from jaxvl.data.config import DataConfig, ReaderConfig
from jaxvl.data.fields.boxes import PictureWithBoxes
from jaxvl.data.fields.caption import Caption
from jaxvl.data.fields.frames import Frames
from jaxvl.data.fields.masked_text import MaskedText
from jaxvl.data.fields.numbers import Array, Group, Label, Number
from jaxvl.data.fields.picture import Picture
from jaxvl.data.fields.waveform import Waveform
from jaxvl.data.reading.fill import REPLACEMENTS
from jaxvl.data.records import BadRecord, DataError, RecordSource, causes, write_records
from jaxvl.data.samplers.in_order import InOrder
from jaxvl.data.samplers.mixture import Mixture
from jaxvl.data.sources.base import Column

N = 24
B = 8
S = 12
T = 16
TOKENIZER = tokenizer()
TEXT = Caption({"name/en": 1, "keywords/en": 1, "name/*": 1}, length=T, joined=2)
NAME = Caption("name/en", length=T)
FIELDS = dict(image=Picture(size=S), text=TEXT, group_id=Group("class_label"))
CONFIG = DataConfig(
    FakeConfig(), batch=B, fields=FIELDS, reader=ReaderConfig(threads=2), error_minimum=1000
)
IN_ORDER = dict(sampler=InOrder())
_MADE = []


@pytest.fixture(autouse=True)
def closed():
    yield
    while _MADE:
        _MADE.pop().close()


def config_of(fields=None, **options):
    """`fields` take the place of those of CONFIG that have their names; None: there is none of that
    name."""
    kept = {name: field for name, field in (FIELDS | (fields or {})).items() if field is not None}
    return dataclasses.replace(CONFIG, fields=kept, **options)


def batches(source=None, rows=None, seed=0, start=None, fields=None, **options):
    """Batches of 24 records, closed when the test ends."""
    source = FakeSource(N) if source is None else source
    made = Batches(
        config_of(fields, **options), source, TOKENIZER, seed=seed, rows=rows, start=start
    )
    _MADE.append(made)
    return made


def part(index):
    """Rows of one of several hosts."""
    return Rows(np.asarray(index), np.ones(len(index), bool))


def numbers(b, count):
    """Record numbers of the first `count` batches."""
    return (np.concatenate([b[i]["group_id"] for i in range(count)]) - FIRST_CLASS).tolist()


def joined(parts):
    return {key: np.concatenate([one[key] for one in parts]) for key in parts[0]}


def skipped(b):
    """Cause -> bad records that `b` has counted."""
    return b.counts()[1]


# --------------------------------------------------------------------------------------------------
# What is in a batch


def test_rows_are_the_records():
    source = FakeSource(N)
    b = batches(source, fields=dict(text=NAME))
    batch = b[1]
    assert {k: (v.dtype, v.shape) for k, v in batch.items()} == {
        "image": (np.uint8, (B, S, S, 4)),
        "text": (np.int32, (B, T)),
        "group_id": (np.int32, (B,)),
        "position": (np.int32, (B,)),
    }
    assert {k: (v.dtype, v.shape) for k, v in batch.items()} == {
        k: (s.dtype, s.shape) for k, s in b.config.shapes.items()
    }
    np.testing.assert_array_equal(batch["position"], np.arange(B, 2 * B))
    for image, text, label in zip(batch["image"], batch["text"], batch["group_id"]):
        expected = source.records[label - FIRST_CLASS]
        pixels = np.array(Image.open(io.BytesIO(expected["image"])))
        np.testing.assert_array_equal(image[..., 3], pixels[..., 3])
        opaque = pixels[..., 3] > 200  # premultiplied 8-bit colours of faint pixels are coarse
        assert np.abs(image.astype(int) - pixels)[opaque].max() <= 2
        np.testing.assert_array_equal(text, TOKENIZER.encode([expected["name/en"]], T)[0])


def test_pictures_without_transparency_are_opaque():
    batch = batches(FakeSource(N, channels=3))[0]
    assert (batch["image"][..., 3] == 255).all()


def test_several_class_columns_are_entries_of_their_own():
    records = {i: {**record(i), "colour": i % 7} for i in range(N)}
    source = FakeSource(N, records, {**COLUMNS, "colour": Column("class")})
    batch = batches(source, fields=dict(class_label=Label(), colour=Label("colour")))[0]
    np.testing.assert_array_equal(batch["class_label"], batch["group_id"])
    np.testing.assert_array_equal(batch["colour"], (batch["group_id"] - FIRST_CLASS) % 7)


def test_the_position_wraps_before_int32_does():
    i = 2**31 // B
    assert batches()[i]["position"].tolist() == list(range(B))


def test_every_epoch_is_another_permutation():
    found = np.array(numbers(batches(), 12)).reshape(4, N)
    assert all(sorted(epoch) == list(range(N)) for epoch in found.tolist())
    assert len({tuple(epoch) for epoch in found.tolist()}) == 4
    assert numbers(batches(**IN_ORDER), 6) == [*range(N), *range(N)]


def test_a_batch_may_span_two_epochs():
    found = numbers(batches(batch=10), 12)
    assert all(sorted(found[first : first + N]) == list(range(N)) for first in range(0, 120, N))


def test_batches_depend_on_seed_and_number_only():
    one = batches(seed=5)
    two = batches(seed=5)
    stream = [one[i] for i in range(9)]
    for i in (7, 0, 3):  # in any order, whatever was asked before
        assert_same(two[i], stream[i])
    assert_same(batches(seed=5)[8], stream[8])  # and alone
    later = two[100]
    assert_same(later, batches(seed=5)[100])
    assert (batches(seed=6)[0]["group_id"] != stream[0]["group_id"]).any()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(image=Picture(size=S, crop=(0.1, 0.9))),
        dict(text=dataclasses.replace(TEXT, count=3)),
    ],
)
@pytest.mark.parametrize("size", [3, 16])
def test_another_batch_size_reads_the_same_stream(fields, size):
    whole = joined([batches(fields=fields)[i] for i in range(6)])
    other = batches(fields=fields, batch=size)
    assert_same(joined([other[i] for i in range(48 // size)]), whole)


def test_a_stream_begins_at_a_position():
    whole = joined([batches()[i] for i in range(6)])
    for position, size in ((5, 8), (2 * B, 8), (13, 3)):
        late = batches(batch=size, start=Start(position))
        assert_same(
            joined([late[i] for i in range(3)]),
            {k: v[position : position + 3 * size] for k, v in whole.items()},
        )


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_the_rows_of_the_same_global_batch(hosts):
    whole = batches()
    parts = [batches(rows=part(rows)) for rows in np.array_split(np.arange(B), hosts)]
    for i in range(5):
        assert_same(whole[i], joined([p[i] for p in parts]))


def test_rows_of_a_host_need_not_stand_together():
    rows = np.array([6, 1, 3])
    whole = batches()[2]
    assert_same(batches(rows=part(rows))[2], {key: value[rows] for key, value in whole.items()})


def test_what_a_row_draws_for_one_field_stays_whatever_else_is_there():
    fields = dict(image=Picture(size=S, crop=(0.3, 1.0)))
    plain = batches(fields=fields)
    more = batches(fields=fields | dict(view=Picture(size=S, crop=(0.2, 0.7)), other=TEXT))
    for i in range(3):
        assert_same(plain[i], {key: more[i][key] for key in plain[i]})
        assert (more[i]["other"] != more[i]["text"]).any()


def test_no_host_draws_numbers_for_the_rows_of_others(monkeypatch):
    drawn = []

    class Counted(np.random.Generator):
        def random(self, size=None, *rest, **options):
            drawn.append(int(np.prod(size)))
            return super().random(size, *rest, **options)

    b = batches(batch=4096, rows=part(np.arange(64, 72)))
    monkeypatch.setattr(np.random, "Generator", Counted)
    b[3]
    assert 0 < sum(drawn) < 8 * 20


def test_neighbouring_seeds_have_orders_of_their_own():
    """With the epoch added to the seed, epoch 1 of seed 0 would be epoch 0 of seed 1."""
    orders = set()
    for seed in range(4):
        found = numbers(batches(seed=seed), 12)
        orders |= {tuple(found[first : first + N]) for first in range(0, 4 * N, N)}
    assert len(orders) == 16


def test_captions_follow_their_weights_in_the_stream():
    b = batches(fields=dict(text=Caption({"name/en": 3, "name/de": 1}, length=T), image=None))
    names = {tuple(TOKENIZER.encode([name_of(i)], T)[0]) for i in range(N)}
    kinds = collections.Counter(
        tuple(text) in names for i in range(150) for text in b[i]["text"].tolist()
    )
    assert abs(kinds[True] / kinds.total() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / kinds.total())


# --------------------------------------------------------------------------------------------------
# What is read, and what is done once


@pytest.mark.parametrize(
    "fields, columns",
    [
        (dict(image=None, text=NAME, group_id=None), {"name/en"}),
        (dict(image=None), {"name/en", "keywords/en", "name/de", "name/fr", "class_label"}),
        (dict(text=None), {"image", "class_label"}),
        (dict(text=None, group_id=Group("image")), {"image"}),
    ],
)
def test_only_the_columns_of_the_fields_are_read(fields, columns):
    class NoPictures(FakeSource):
        def read(self, i, columns=None):
            assert columns is not None and ("image" in columns) == ("image" in wanted), (
                "nobody wants the picture"
            )
            return super().read(i, columns)

    wanted = columns
    source = NoPictures(N)
    batches(source, fields=fields)[0]
    assert len(source.asked) == B and all(
        sorted(asked) == sorted(columns) for asked in source.asked
    )


@pytest.fixture
def decodes(monkeypatch):
    """Every decoding of a picture is in this list."""
    done = []
    whole = preprocess.decode_picture

    def counted(data, *args, **options):
        done.append(data)
        return whole(data, *args, **options)

    monkeypatch.setattr(preprocess, "decode_picture", counted)
    return done


@pytest.mark.parametrize(
    "one, other, times",
    [
        (Picture(size=S), Picture(size=S, augment=Augment(flip=0.5)), 1),
        (
            Picture(size=S, crop=(0.2, 0.8)),
            Picture(size=S, crop=(0.2, 0.8), augment=Augment(flip=0.5)),
            1,
        ),
        (
            Picture(size=S, crop=(0.2, 0.8), fast_decode=False),
            Picture(size=6, crop=(0.1, 0.5), fast_decode=False),
            1,
        ),
        (
            Picture(size=S, crop=(0.2, 0.8)),
            Picture(size=6, crop=(0.1, 0.5)),
            2,
        ),  # each at a fraction of its own
        (Picture(size=S), Picture(size=6), 2),
        (Picture(size=S), Picture(size=S, fast_decode=False), 2),
    ],
)
def test_two_fields_of_a_column_are_two_views_decoded_once(decodes, one, other, times):
    source = FakeSource(N, size=40)
    b = batches(source, fields=dict(image=one, view=other, text=None))
    found = [b[i] for i in range(6)]
    assert sorted(source.reads) == list(range(N)) and all(
        asked.count("image") == 1 for asked in source.asked
    )
    assert len(decodes) == times * N
    assert found[0]["view"].shape == (B, other.size, other.size, 4)
    if one.crop == other.crop == (1.0, 1.0) and times == 1:
        np.testing.assert_array_equal(
            found[0]["image"], found[0]["view"]
        )  # the devices make them differ


def test_views_that_are_cut_on_the_host_are_cut_apart():
    """The column can be read off the colour."""
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[...] = np.arange(90)[None, :, None]
    crop = Picture(size=S, crop=(0.1, 0.3))
    batch = batches(FakeSource(N, pixels=pixels), fields=dict(image=crop, view=crop))[0]
    left = [batch[name][:, 5, 0, 0].astype(int) for name in ("image", "view")]
    assert (np.abs(left[0] - left[1]) > 2).sum() > B // 2


def test_a_record_is_read_and_decoded_once(decodes):
    source = FakeSource(N)
    b = batches(source)
    first = [b[i] for i in range(3)]
    assert sorted(source.reads) == list(range(N))
    for i in range(3, 12):
        b[i]
    assert len(source.reads) == len(decodes) == N
    assert_same(b[0], first[0])


def test_without_a_cache_it_is_read_each_time():
    source = FakeSource(N)
    b = batches(source, reader=ReaderConfig(threads=2, cache_mb=0))
    for i in range(6):
        assert_same(b[i], batches()[i])
    assert sorted(source.reads) == sorted([*range(N), *range(N)])


def test_the_cache_is_bounded():
    source = FakeSource(N, size=300)  # 1.44 MB each at 600 pixels
    b = batches(
        source,
        fields=dict(image=Picture(size=600), text=NAME),
        reader=ReaderConfig(threads=2, cache_mb=5),
    )
    for i in range(9):
        b[i]
    assert 3 * N - 2 * 3 - 6 <= len(source.reads) <= 3 * N, "three of the pictures fit"
    assert 2 * 600 * 600 * 4 < b._pool.filler.cache.used <= 5 * 2**20


class Fresh(FakeSource):
    """Every read makes new texts, as reading a file does."""

    def __len__(self):
        return 20_000

    def read(self, i, columns=None):
        return {
            name: value
            for name, value in record(i, 1, pixels=np.zeros((1, 1, 3), np.uint8)).items()
            if name in columns
        }


@pytest.mark.parametrize("megabytes", [0, 1])
def test_the_cache_binds_for_rows_without_pictures(megabytes):
    """Names, keywords and token rows, in the memory that they take."""
    fields = dict(image=None, group_id=None)
    b = batches(
        Fresh(1), fields=fields, reader=ReaderConfig(threads=2, cache_mb=megabytes), **IN_ORDER
    )
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
    b = batches()
    expected = batches()
    b._pool.filler.cache.limit = 8_000
    want = [expected[i] for i in range(12)]
    got = {}
    errors = []

    def work(numbers):
        try:
            for i in numbers:
                got[i] = b[i]
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(range(k, 12, 4),)) for k in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert (
        not errors
        and isinstance(b._pool.filler.cache, Cache)
        and 0 < b._pool.filler.cache.used <= 8_000
    )
    for i in range(12):
        assert_same(got[i], want[i])


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_the_number_of_threads_changes_nothing(threads):
    many = batches(FakeSource(N, BAD), reader=ReaderConfig(threads=threads))
    ahead = [many.begin(i) for i in range(7)]
    one = batches(FakeSource(N, BAD), reader=ReaderConfig(threads=1))
    for i, pending in enumerate(ahead):
        assert_same(pending.result(), one[i])


def test_threads_read_at_the_same_time_and_end_with_close():
    together = threading.Barrier(4)

    class Meeting(FakeSource):
        def read(self, i, columns=None):
            if not met.is_set():
                together.wait(20)  # breaks where fewer than four read
                met.set()
            return super().read(i, columns)

    met = threading.Event()
    before = set(threading.enumerate())
    b = batches(Meeting(N), reader=ReaderConfig(threads=4))
    b[0]
    assert len(set(threading.enumerate()) - before) == 4
    b.close()
    assert not set(threading.enumerate()) - before
    with pytest.raises(RuntimeError, match="shutdown"):
        b[1]


def test_where_the_time_goes_is_told_by_stage():
    class Slow(FakeSource):
        def read(self, i, columns=None):
            time.sleep(0.005)
            return super().read(i, columns)

    b = batches(Slow(N))
    assert b.seconds() == {"read": 0.0, "decode": 0.0, "transform": 0.0}
    b[0]
    spent = b.seconds()
    assert (
        spent["read"] >= 0.005 * B
        and 0 < spent["decode"] < spent["read"]
        and 0 < spent["transform"] < spent["read"]
    )
    for i in range(1, 4):
        b[i]
    assert b.seconds()["read"] < 0.005 * B * 4 + spent["read"] + 1


# --------------------------------------------------------------------------------------------------
# Random crops of the host


def test_crops_are_drawn_per_row_and_repeatable():
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[...] = np.arange(90)[None, :, None]  # the column can be read off the colour
    sources = [FakeSource(N, pixels=pixels) for _ in range(2)]
    one, two = (batches(s, fields=dict(image=Picture(size=S, crop=(0.1, 0.6)))) for s in sources)
    a = one[2]
    assert_same(a, two[2])
    left = a["image"][:, 5, 0, 0].astype(int)
    right = a["image"][:, 5, -1, 0].astype(int)
    assert (right > left).all() and len(set(left)) > B // 2 and right.max() <= 89
    again = one[2 + N // B]  # the next epoch cuts the same pictures elsewhere
    assert {(p[5, 0, 0], p[5, -1, 0]) for p in a["image"]} != {
        (p[5, 0, 0], p[5, -1, 0]) for p in again["image"]
    }
    assert len(sources[0].reads) < 2 * N  # whole pictures are kept


# --------------------------------------------------------------------------------------------------
# Bad records


BAD = {
    3: BadRecord("record cannot be read", "hash mismatch"),
    7: {**record(7), "image": encoded(noise(7, S, S, 4))[:60]},
    8: {**record(8), "image": b""},
    11: {"key": "style/11", "image": record(11)["image"], "class_label": FIRST_CLASS + 11},
}
CAUSES = {"record cannot be read": 1, "image cannot be decoded": 2, "no text": 1}


def test_a_bad_record_is_replaced_by_the_next_good_one_and_counted():
    options = dict(fields=dict(text=NAME), **IN_ORDER)
    b = batches(FakeSource(N, BAD), **options)
    expected = list(range(N))
    for i, other in ((3, 4), (7, 9), (8, 9), (11, 12)):
        expected[i] = other
    assert numbers(b, 3) == expected
    assert skipped(b) == {
        **CAUSES,
        "image cannot be decoded": 3,
    }  # 8 was met twice: in its own place and in that of 7
    assert b.counts()[0] == N + 5
    assert_same(batches(FakeSource(N, BAD), **options)[0], b[0])


def test_hosts_replace_bad_records_alike_and_count_them_once():
    whole = batches(FakeSource(N, BAD))
    parts = [batches(FakeSource(N, BAD), rows=part(rows)) for rows in np.split(np.arange(B), 2)]
    # Two more hosts that read all rows; each row is counted by one of them.
    every = [
        batches(FakeSource(N, BAD), rows=Rows(np.arange(B), np.arange(B) % 2 == k))
        for k in range(2)
    ]
    for i in range(6):
        expected = whole[i]
        assert_same(expected, joined([p[i] for p in parts]))
        for host in every:
            assert_same(expected, host[i])
    assert sum(skipped(whole).values()) > 4
    for hosts in (parts, every):
        assert sum(host.counts()[0] for host in hosts) == whole.counts()[0]
        assert sum(
            (collections.Counter(skipped(host)) for host in hosts), collections.Counter()
        ) == skipped(whole)


def test_rows_that_others_count_are_not_counted():
    b = batches(rows=Rows(np.arange(4), np.zeros(4, bool)))
    b[0]
    assert b.counts() == (0, {})


def test_the_last_record_is_replaced_by_the_first():
    b = batches(FakeSource(N, {N - 1: BAD[3]}), **IN_ORDER)
    assert b[2]["group_id"][-1] == FIRST_CLASS


def test_a_damaged_record_in_a_file(tmp_path):
    """Through the reader of stored records: its checksum tells."""
    path = tmp_path / "records.array_record"
    records = [
        dict(key=f"{i}", image=record(i, size=48)["image"], label=i, style="", captions={})
        for i in range(N)
    ]
    write_records(path, records)
    data = bytearray(path.read_bytes())
    data[data.find(records[5]["image"][40:60])] ^= 255
    path.write_bytes(data)
    stored = RecordSource(path, np.arange(N))

    class OnDisk(FakeSource):
        def read(self, i, columns=None):
            found = stored[i]
            return {"image": found["image"], "class_label": found["label"]}

    b = batches(OnDisk(N), fields=dict(text=None), **IN_ORDER)
    assert b[0]["group_id"].tolist() == [0, 1, 2, 3, 4, 6, 6, 7] and skipped(b) == {
        "record cannot be read": 1
    }


def budget_of(b, **options):
    seen, by_cause = b.counts()
    config = dataclasses.replace(b.config, **options)
    check_budget(config, "/data/shards", seen, sum(by_cause.values()), f" ({causes(by_cause)})")


def test_the_error_budget():
    source = FakeSource(N, {i: BAD[3] for i in range(0, N, 2)})
    b = batches(source, error_budget=0.25, error_minimum=4)
    for i in range(9):
        b[i]
    message = (
        "/data/shards: 36 of 108 records are bad .record cannot be read: 36., more than "
        "error_budget 0.1 allows"
    )
    with pytest.raises(DataError, match=message):
        budget_of(b, error_budget=0.1)
    b.check_budget()  # 36 of 108 may be bad where a quarter is: by chance one time in thirty
    strict = batches(source, error_budget=0.0, error_minimum=4)
    strict[0]
    with pytest.raises(DataError, match=r"fake: \d of \d+ records are bad"):
        strict.check_budget()


def test_a_bad_beginning_does_not_end_a_run():
    """Ten bad ones of the first 490, then none: within a budget of 1 % that happens to one in fifty
    hosts."""
    b = batches(FakeSource(600, {50 * i: BAD[3] for i in range(10)}), error_minimum=10, **IN_ORDER)
    for i in range(60):
        b[i]
    assert b.counts() == (490, {"record cannot be read": 10})
    b.check_budget()


def test_a_source_with_nothing_good_in_it():
    b = batches(FakeSource(N, {i: BAD[8] for i in range(N)}), error_budget=1.0, error_minimum=10**9)
    with pytest.raises(
        DataError, match=rf"fake: {REPLACEMENTS} bad records in a row .image cannot be decoded"
    ):
        b[0]
    with pytest.raises(DataError, match="fake has no records"):
        batches(FakeSource(0))


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a bug in a source"), DataError("shard 7 is gone")], ids=str
)
def test_an_error_that_is_no_bad_record_is_not_swallowed(error):
    b = batches(FakeSource(N, {10: error}), **IN_ORDER)
    b[0]
    with pytest.raises(type(error), match=str(error)):
        b[1]
    assert not skipped(b)
    b[2]


# --------------------------------------------------------------------------------------------------
# What a source cannot serve


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            dict(image=Picture("imgae")),
            r"fields.image.column: 'imgae' is no column of fake; did you mean 'image'\? \(columns: key \(text\), ",
        ),
        (
            dict(image=Picture("name/en")),
            "fields.image.column: 'name/en' of fake holds text; must be image",
        ),
        (dict(text=Caption("title/*")), r"fields.text.columns: 'title/\*' is no column of fake"),
        (
            dict(text=Caption("image")),
            "fields.text.columns: 'image' of fake holds image; must be text or texts",
        ),
        (dict(group_id=Group("shape")), "fields.group_id.column: 'shape' is no column"),
        (
            dict(label=Label("name/en")),
            "fields.label.column: 'name/en' of fake holds text; must be class or int",
        ),
        (dict(width=Array("width", (2,))), "fields.width.column: 'width' is no column"),
        (dict(image=PictureWithBoxes(size=S)), "fields.image.boxes: 'boxes' is no column of fake"),
        (
            dict(image=PictureWithBoxes(size=S, boxes="key")),
            "fields.image.boxes: 'key' of fake holds text; must be array",
        ),
        (
            dict(video=Frames(size=S)),
            r"fields.video.column: 'frames' is no column of fake.*\(columns: key \(text\), image \(image\)",
        ),
        (
            dict(sound=Waveform("speech/*")),
            r"fields.sound.columns: 'speech/\*' is no column of fake.*\(columns: key",
        ),
        (
            dict(hidden=MaskedText("title", mask_id=2)),
            "fields.hidden.columns: 'title' is no column of fake",
        ),
        (
            dict(hidden=MaskedText("name/en", mask_id=10**6)),
            "fields.hidden.mask_id: 1000000 must be < ",
        ),
        (
            dict(width=Number("image")),
            "fields.width.column: 'image' of fake holds image; must be float or int or class",
        ),
    ],
)
def test_a_field_that_the_source_cannot_serve_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        batches(fields=fields)


def test_an_order_that_the_source_cannot_have_is_named():
    with pytest.raises(ConfigError, match="sampler.name: needs a source of parts"):
        batches(sampler=Mixture())
