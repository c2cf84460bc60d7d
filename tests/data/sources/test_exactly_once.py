"""Each record once in an epoch, for every source, by what tells the records apart: on any hosts,
and on others after each kill."""

import dataclasses
import json
import types
from typing import NamedTuple

import numpy as np
import pytest
from data_samples import FakeConfig, tokenizer
from every_source import ALL, EVERY, IDS, assert_epochs, break_picture, mixture
from twelve_records import RECORDS, write_tars

from jaxvl.data import feed
from jaxvl.data.batches import Batches, Start
from jaxvl.data.config import DataConfig, ReaderConfig
from jaxvl.data.fields.numbers import Group
from jaxvl.data.fields.picture import Picture
from jaxvl.data.samplers.shuffled import Shuffled

B = 4
FIELDS = dict(image=Picture(size=4), id=Group("text"))
CONFIG = DataConfig(
    FakeConfig(), batch=B, fields=FIELDS, reader=ReaderConfig(threads=2), error_minimum=1000
)
TOKENIZER = tokenizer()
AHEAD = 2  # batches that a process had begun to read when it was killed
# (hosts, batches) of each life of a run: one epoch of twelve records is three batches.
PLANS = [
    [(1, 12)],
    [(2, 12)],
    [(4, 12)],
    [(1, 1), (4, 1), (2, 1)],
    [(1, 4), (4, 7), (2, 11), (1, 2), (4, 9)],
]
NAMES = ["1", "2", "4", "1-4-2 in one epoch", "1-4-2-1-4"]


@pytest.fixture(scope="module", params=list(EVERY))
def written(request, tmp_path_factory):
    """A source's config, and ids of its records in their order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVL_LOCAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        config, records = EVERY[request.param](tmp_path_factory.mktemp("written"))
        yield config, [IDS[i] for i in records]


class Device(NamedTuple):
    number: int
    process_index: int


def rows_of_hosts(monkeypatch, hosts, copies=1):
    """The rows of a batch that each host fills, on a mesh of four devices for each copy of the
    batch."""
    count = B * copies
    devices = [Device(i, i * hosts // count) for i in range(count)]
    places = {device: (slice(device.number % B, device.number % B + 1),) for device in devices}
    sharding = types.SimpleNamespace(devices_indices_map=lambda shape: places)
    found = []
    for host in range(hosts):
        monkeypatch.setattr(feed.jax, "process_index", lambda host=host: host)
        found.append(feed.own_rows(sharding, B))
    return found


class Life:
    """What the processes of a run read between two checkpoints, each with a source that it has
    opened itself."""

    def __init__(self, data, rows, start):
        self._hosts = [
            Batches(
                data,
                data.select(data.source.open(quiet)),
                TOKENIZER,
                seed=7,
                rows=each,
                start=start,
            )
            for each in rows
        ]

    def read(self, batches, ahead=AHEAD):
        """Ids of global batches, in the order of their rows."""
        ids = np.zeros((batches, B), np.int64)
        for host in self._hosts:
            for i in range(batches):
                ids[i, host.rows.index] = host[i]["id"]
            for i in range(ahead):  # what else is on its way is lost with the process
                host.begin(batches + i)
        return ids.reshape(-1)

    def counts(self):
        """Records that all hosts have counted, and the bad ones by cause."""
        seen, skipped = zip(*(host.counts() for host in self._hosts))
        causes = {}
        for each in skipped:
            for cause, count in each.items():
                causes[cause] = causes.get(cause, 0) + count
        return sum(seen), causes

    def end(self, position):
        """What a checkpoint at `position` keeps of the order."""
        states = [json.loads(json.dumps(host.order.state(position))) for host in self._hosts]
        for host in self._hosts:
            host.close()
        assert all(state == states[0] for state in states)
        return states[0]


def quiet(line):
    pass


def read(monkeypatch, plan, lives, copies=1):
    """Ids of a whole run, whose processes are all killed after each life, and go on from the
    checkpoint on other hosts.

    Args:
      lives: the run's data in each life; the last one for all that follow.
    """
    position = 0
    state = None
    found = []
    for number, (hosts, batches) in enumerate(plan):
        data = lives[min(number, len(lives) - 1)]
        life = Life(data, rows_of_hosts(monkeypatch, hosts, copies), Start(position, sampler=state))
        found.append(life.read(batches))
        position += batches * B
        state = life.end(position)
    return np.concatenate(found)


@pytest.mark.parametrize("plan", PLANS, ids=NAMES)
def test_each_record_comes_once_in_an_epoch(written, plan, monkeypatch):
    source, records = written
    data = dataclasses.replace(CONFIG, source=source)
    ids = read(monkeypatch, plan, [data])
    assert len(ids) == B * sum(batches for _, batches in plan) >= len(records)
    assert_epochs(ids, records)
    alone = read(monkeypatch, [(1, len(ids) // B)], [data])
    np.testing.assert_array_equal(
        ids, alone, "the order is that of a run on one host that nothing befell"
    )


def test_rows_that_several_hosts_hold_are_the_same_record(written, monkeypatch):
    source, records = written
    data = dataclasses.replace(CONFIG, source=source)
    ids = read(monkeypatch, [(1, 1), (4, 5), (2, 6)], [data], copies=2)
    assert_epochs(ids, records)


@pytest.mark.parametrize("first", [(2.0, 1.0, 1.0), (None, None, None)], ids=["weights", "none"])
def test_other_weights_after_a_kill_keep_what_was_seen(first, tmp_path, monkeypatch):
    """The weights change with the hosts, twice; each part goes on through its own epochs, also if
    it had no weight at first."""
    lives = []
    for number, weights in enumerate([first, (1.0, 5.0, 1.0), (0.5, 0.1, 3.0)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        lives.append(dataclasses.replace(CONFIG, source=mixture(folder, weights).config))
    ids = read(monkeypatch, [(1, 5), (4, 6), (2, 30)], lives)
    for label in range(3):
        own = [IDS[i] for i in ALL if RECORDS[i]["class_label"] == label]
        mine = ids[np.isin(ids, own)]
        assert len(mine) > len(own)
        assert_epochs(mine, own)
    for begin, end, label, share in (
        (0, 5, 0, 0.25),
        (5, 11, 1, 0.45),
        (11, 41, 2, 0.45),
    ):  # each life had weights of its own
        own = [IDS[i] for i in ALL if RECORDS[i]["class_label"] == label]
        assert np.isin(ids[B * begin : B * end], own).mean() > share


@pytest.mark.parametrize("hosts, copies", [(1, 1), (2, 1), (4, 1), (4, 2)])
def test_a_bad_record_is_counted_once_over_all_hosts(hosts, copies, tmp_path, monkeypatch):
    """Its place goes to the record after it, and every other record is where it was."""
    config = write_tars(tmp_path)
    data = dataclasses.replace(CONFIG, source=config, sampler=Shuffled())
    whole = read(monkeypatch, [(1, 3)], [data])
    break_picture(tmp_path / "00001.tar", "000010002.png")  # the eighth record
    life = Life(data, rows_of_hosts(monkeypatch, hosts, copies), None)
    ids = life.read(3, ahead=0)
    assert life.counts() == (len(RECORDS) + 1, {"image cannot be decoded": 1})
    life.end(3 * B)
    np.testing.assert_array_equal(ids, np.where(whole == IDS[7], IDS[8], whole))
    assert sorted(whole) == sorted(IDS)
