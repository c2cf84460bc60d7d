"""Records that other processes read: the batches are those of threads, to the last bit."""

import dataclasses
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import weakref

import numpy as np
import pytest
from data_samples import FakeConfig, FakeSource, assert_same, record, tokenizer

from jaxvl.config import ConfigError, load_plugins
from jaxvl.data.augment import Augment
from jaxvl.data.batches import Batches, Rows, Start
from jaxvl.data.config import DataConfig, ReaderConfig
from jaxvl.data.feed import MOST_AHEAD, Feed
from jaxvl.data.fields.caption import Caption
from jaxvl.data.fields.numbers import Group, Number
from jaxvl.data.fields.picture import Picture
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.reading.fill import REPLACEMENTS
from jaxvl.data.reading.processes import ended_by
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.samplers.in_order import InOrder
from jaxvl.sharding import make_mesh

sys.path.insert(
    0, str(pathlib.Path(__file__).parent)
)  # for the workers too: they import what this process can
from reading_samples import Slow, Stubborn, write_mixture

B = 12
S = 16
T = 12
TOKENIZER = tokenizer()
CROP = Picture(size=S, crop=(0.3, 0.9), augment=Augment(flip=0.5))
FIELDS = dict(
    image=CROP, text=Caption({"text": 1, "name/en": 1}, length=T), group_id=Group("image")
)
THREADS = ReaderConfig(threads=2)
SMALL = ReaderConfig(threads=2, processes=1)
CONFIG = DataConfig(
    FakeConfig(),
    B,
    FIELDS,
    reader=ReaderConfig(threads=2, processes=2, cache_mb=4),
    error_minimum=10**6,
)
TEXTS = dataclasses.replace(
    CONFIG, fields=dict(text=Caption("name/en", length=T)), reader=SMALL, batch=4, sampler=InOrder()
)


def made(config, source, **options):
    return Batches(config, source, TOKENIZER, **{"seed": 5, **options})


def by_threads(config, source, **options):
    return made(dataclasses.replace(config, reader=THREADS), source, **options)


def alive(pid):
    """Whether a process runs; one that has ended and is not waited for does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(what, seconds=60):
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert what()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Tars with bad records, Parquet and a recipe's records, as one source."""
    return write_mixture(tmp_path_factory.mktemp("mixture")).open(log=lambda line: None)


@pytest.fixture(scope="module")
def pooled(source):
    """Batches that two workers of two threads each read."""
    batches = made(CONFIG, source)
    yield batches
    batches.close()


# --------------------------------------------------------------------------------------------------
# The same as threads


def test_batches_and_counts_are_those_of_threads(pooled, source):
    expected = by_threads(CONFIG, source)
    ahead = [pooled.begin(i) for i in range(20)]
    for i, pending in enumerate(ahead):
        assert_same(pending.result(), expected[i])
    assert pooled.counts() == expected.counts()
    assert pooled.counts()[1]["image cannot be decoded"] >= 3
    assert pooled.seconds().keys() == expected.seconds().keys() and all(
        0 < spent < 600 for spent in pooled.seconds().values()
    )
    assert pooled[7].keys() == pooled.config.shapes.keys()
    pooled.check_budget()
    expected.close()


def test_memory_is_used_again_and_never_while_it_can_be_read(pooled, source):
    expected = by_threads(CONFIG, source)
    kept = {i: pooled[i] for i in range(3)}
    one_row = {i: pooled[i]["image"][2] for i in range(3, 6)}  # keeps the memory of its batch
    before = pooled._pool.slots
    for i in range(6, 60):
        pooled[i]
    assert pooled._pool.slots <= before + 2
    for i, batch in kept.items():
        assert_same(batch, expected[i])
    for i, row in one_row.items():
        np.testing.assert_array_equal(row, expected[i]["image"][2])
    expected.close()


def test_a_batch_that_nobody_takes_does_not_disturb_others(pooled, source):
    expected = by_threads(CONFIG, source)
    for i in range(30):
        pooled.begin(i)  # its memory must not be given away before all of its rows are there
        assert_same(pooled[i + 1], expected[i + 1])
    expected.close()


def test_interrupts_are_left_to_the_parent(pooled):
    for pid in pooled.workers:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
    assert len(pooled[3]["position"]) == B and all(map(alive, pooled.workers))


def test_nothing_is_left_in_named_shared_memory(pooled):
    pooled[0]
    memory = pathlib.Path("/dev/shm")
    assert not memory.exists() or not [file for file in memory.iterdir() if "jaxvl" in file.name]


def test_hosts_and_positions(source):
    """Two hosts' rows from a position on, read by one worker each; a row that both read is counted
    once."""
    start = Start(5 * B + 1)
    whole = by_threads(CONFIG, source, start=start)
    config = dataclasses.replace(CONFIG, reader=SMALL)
    hosts = [
        made(config, source, start=start, rows=Rows(rows, np.ones(len(rows), bool)))
        for rows in np.split(np.arange(B)[::-1], 2)
    ]
    for i in range(4):
        parts = [host[i] for host in hosts]
        assert_same(
            {name: np.concatenate([part[name] for part in parts])[::-1] for name in parts[0]},
            whole[i],
        )
    assert sum(host.counts()[0] for host in hosts) == whole.counts()[0]
    for batches in (whole, *hosts):
        batches.close()


def test_rows_that_lack_something_are_empty_in_memory_that_was_used_before():
    columns = ("name/it",)
    odd = {
        i: {name: value for name, value in record(i).items() if name != "name/en"}
        for i in range(1, 24, 2)
    }
    config = dataclasses.replace(
        TEXTS, missing="mask", fields=TEXTS.fields | dict(image=Picture(size=S))
    )
    source = FakeSource(24, odd, known=columns)
    batches = made(config, source)
    expected = by_threads(config, source)
    for i in range(12):
        assert_same(batches[i], expected[i])
    assert not expected[0]["has_text"].all() and batches._pool.slots <= 3
    batches.close()
    expected.close()


# --------------------------------------------------------------------------------------------------
# On the mesh


def test_a_feed_gives_the_same_arrays_however_long_they_are_held():
    """Arrays of jax on a CPU may be the workers' memory itself. And there is no more of it than
    `prefetch_mb` allows."""
    reader = dataclasses.replace(SMALL, prefetch_mb=1)
    config = dataclasses.replace(
        TEXTS, batch=8, fields=TEXTS.fields | dict(image=Picture(size=200)), reader=reader
    )
    source = FakeSource(24, size=70)
    expected = by_threads(config, source)
    feed = Feed(config, source, TOKENIZER, seed=5, mesh=make_mesh())
    held = [next(feed) for _ in range(6)]
    used = []
    for i in range(6, 40):
        assert_same(next(feed), expected[i])
        used.append((len(os.listdir("/proc/self/task")), feed._batches._pool.slots))
    assert len(set(used[-15:])) == 1, "threads and memory are as many as before"
    for i, batch in enumerate(held):
        assert_same(batch, expected[i])
    # Those held, one in flight, two on the mesh, one being put there, one in use and one that jax
    # has not given back yet.
    assert feed._batches._pool.slots <= 6 + 1 + 5 < 6 + MOST_AHEAD
    assert all(0 < seconds < 600 for seconds in feed.stage_seconds.values())
    feed.close()
    expected.close()


# --------------------------------------------------------------------------------------------------
# What a worker is


def test_workers_read_and_start_no_devices(tmp_path):
    """And a source and its records may be of a plugin, which the worker loads too."""
    file = tmp_path / "own_source.py"
    text = """
        import dataclasses
        from jaxvl.data.sources import SOURCES
        from reading_samples import Odd

        class Trouble(Exception):
            def __init__(self, one, two):
                super().__init__(f"{one} and {two}")

        class Own(Odd):
            name = "own"

            def read(self, i, columns=None):
                if i == 20:
                    raise Trouble("this", "that")
                return super().read(i, columns)

        @SOURCES.register("own_source_of_a_test")
        @dataclasses.dataclass(frozen=True)
        class OwnConfig:
            def open(self, log=print):
                return Own(24)
    """
    file.write_text(textwrap.dedent(text))
    (plugin,) = load_plugins(str(file))
    module = next(
        module for name, module in sys.modules.items() if name.startswith("jaxvl_plugin_own_source")
    )
    file.unlink()  # the worker runs the text that this process has run
    fields = dict(pid=Number("pid"), devices=Number("devices"))
    config = dataclasses.replace(TEXTS, source=module.OwnConfig(), fields=fields)
    batches = made(config, module.OwnConfig().open())
    batch = batches[0]
    assert set(batch["pid"].tolist()) == set(batches.workers) and not batch["devices"].any()
    with pytest.raises(Exception, match="this and that") as raised:
        batches[5]
    assert "own_source.py" in "".join(raised.value.__notes__)
    batches[6]
    batches.close()
    assert plugin.name == "own_source.py" and not any(map(alive, batches.workers))
    with pytest.raises(RuntimeError, match="shutdown"):
        batches[0]


def test_errors_are_those_of_threads():
    bad = {i: BadRecord("record cannot be read", "x") for i in range(24)}
    messages = []
    for reader in (ReaderConfig(threads=1), dataclasses.replace(SMALL, threads=1)):
        batches = made(dataclasses.replace(TEXTS, reader=reader), FakeSource(24, bad))
        with pytest.raises(DataError) as raised:
            batches[0]
        messages.append(str(raised.value))
        batches.close()
    assert all(
        message.startswith(f"fake: {REPLACEMENTS} bad records in a row (record cannot be read: ")
        for message in messages
    )


def test_wrong_fields_are_told_before_a_worker_starts():
    with pytest.raises(ConfigError, match="fields.text.columns: 'title' is no column of fake"):
        made(dataclasses.replace(TEXTS, fields=dict(text=Caption("title"))), FakeSource(24))


def test_a_source_that_no_other_process_can_have():
    class Lambda(FakeSource):
        def __getstate__(self):
            raise TypeError("holds a lock")

    with pytest.raises(
        ConfigError,
        match=r"^reader.processes: fake cannot be given to other processes \(TypeError: holds a lock\)",
    ):
        made(TEXTS, Lambda(24))
    batches = made(TEXTS, Stubborn(24))
    for _ in range(2):
        with pytest.raises(DataError, match="the disk is not mounted there"):
            batches[0]
    batches.close()


# --------------------------------------------------------------------------------------------------
# How workers end


def test_a_worker_that_dies_is_told_with_its_cause():
    batches = made(
        dataclasses.replace(TEXTS, reader=ReaderConfig(threads=1, processes=2)), Slow(24)
    )
    batches[0]
    first, second = batches.workers
    pending = [batches.begin(i) for i in (2, 3)]
    os.kill(second, signal.SIGKILL)
    message = rf"^fake: reader process 2 of 2 \(pid {second}\) was ended by SIGKILL; the system does so when memory runs out"
    for one in pending:
        with pytest.raises(DataError, match=message):
            one.result()
    with pytest.raises(DataError, match=message):
        batches[0]
    began = time.monotonic()
    os.kill(first, signal.SIGKILL)  # it would sleep on
    batches.close()
    assert time.monotonic() - began < 5 and not alive(first)


@pytest.mark.parametrize("how", ["kill", pytest.param("exit", marks=pytest.mark.slow)])
def test_workers_end_with_their_parent(how, tmp_path):
    """Killed, or ended without closing; and a child of the parent that inherits its descriptors
    changes nothing."""
    program = f"""
        import os, sys, time
        sys.path[:0] = {[str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parent.parent), os.getcwd()]!r}
        from test_processes import TEXTS, FakeSource, made

        class Here(FakeSource):
            "Of the script itself, which no worker imports."

        batches = made(TEXTS, Here(24))
        batches[0]
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        print(*batches.workers, flush=True)
        if {how!r} == "kill":
            time.sleep(60)
    """
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(program))
    with subprocess.Popen(
        [sys.executable, str(file)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        try:
            pids = list(map(int, parent.stdout.readline().split()))
            if how == "kill":
                parent.kill()
            assert len(pids) == 1
            wait_for(lambda: not any(map(alive, pids)), 20)
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def test_exit_statuses_in_words():
    assert ended_by(-11) == "was ended by SIGSEGV"
    assert ended_by(3) == "has ended with exit status 3; its last words are above"
    assert "memory" in ended_by(-9) and "signal 200" in ended_by(-200)


def test_a_closed_pool_is_not_kept():
    batches = made(dataclasses.replace(TEXTS, reader=SMALL), FakeSource(24))
    one = batches[0]
    pool = weakref.ref(batches._pool)
    descriptors = len(os.listdir("/proc/self/fd"))
    batches.close()
    assert len(os.listdir("/proc/self/fd")) < descriptors
    del batches
    wait_for(lambda: pool() is None, 5)
    assert one["position"].tolist() == [0, 1, 2, 3]  # what was taken stays


def test_batches_can_be_pickled_as_parts_of_a_recipe():
    recipe = pickle.dumps((CONFIG, TOKENIZER, Preprocess(32)))
    config, _, preprocess = pickle.loads(recipe)
    assert config == CONFIG and preprocess == Preprocess(32)
