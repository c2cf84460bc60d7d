"""A run on every kind of source is killed and goes on with other processes: 1, 4, then 2. Its steps
tell which records they learnt from."""

import json
import pathlib
import signal
import sys
from typing import NamedTuple

import numpy as np
import processes
import pytest
import tiny

from jaxvl.config import to_dict
from jaxvl.training.checkpoint import Checkpoints

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "data" / "sources"))

from every_source import ALL, EVERY, IDS, assert_epochs, break_picture, mixture, own_folder  # noqa: E402
from once_plugin import BITS  # noqa: E402
from twelve_records import RECORDS, write_tars  # noqa: E402

HERE = pathlib.Path(__file__).parent
B = 4  # rows, one for each device of a run
ROUNDS = 6  # batches of every task: two epochs of twelve records
PATIENCE = 600  # seconds that a run may take
# a record whose picture is none, and the one that takes its place
BAD = 7
AFTER = 8
WEIGHTS = (
    (2.0, 1.0, 1.0),
    (1.0, 1.0, 4.0),
)  # of a mixture's parts, before the last kill and after it


class Life(NamedTuple):
    """Processes of a run, until one of them is killed."""

    processes: int
    kill: str = ""
    saved: tuple[int, ...] = ()  # checkpoints one of which is the newest whole one then


def tasks(folder, weights):
    """Task -> its source, and numbers of the records that this has."""
    found = {}
    for name, write in EVERY.items():
        config, records = write(own_folder(folder, name.replace(" ", "_")))
        found[name.replace(" ", "_")] = config, records
    config = write_tars(own_folder(folder, "bad"))
    break_picture(folder / "bad" / "00001.tar", f"00001{BAD - 5:04d}.png")
    found["bad"] = config, tuple(i for i in ALL if i != BAD)
    found["weighted"] = mixture(own_folder(folder, "weighted"), weights)
    return found


def write_config(path, sources, steps, every):
    fields = dict(
        image=dict(name="picture", size=16),
        text=dict(name="caption", columns="text", length=8),
        group_id=dict(name="group", column="text"),
    )
    options = dict(batch=B, fields=fields, reader=dict(threads=2), error_budget=1.0)
    data = {name: dict(source=to_dict(config), **options) for name, (config, _) in sources.items()}
    objectives = dict(align=1.0, ids=dict(name="row_ids", weight=0.0))
    tiny.config_file(
        path,
        tasks={name: dict(data=each, objectives=objectives) for name, each in data.items()},
        steps=steps,
        schedule=dict(name="round_robin"),
        checkpoint=dict(every=every, keep=4),
        plugins=(str(HERE / "once_plugin.py"),),
        resume=dict(accept=("tasks.weighted.data.source",)),
    )


def live(life, config, workdir):
    """Runs the processes until they end; all of them do, however one of them was killed."""
    log = workdir.with_suffix(".log")
    with open(log, "a") as file, pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXVL_TEST_KILL", life.kill)
        running = processes.start(
            processes.train(config, workdir), life.processes, devices=B, stdout=file, stderr=file
        )
    try:
        codes = [process.wait(PATIENCE) for process in running]
    finally:
        for process in running:
            process.kill()
    if not life.kill:
        assert codes == [0] * life.processes, log.read_text()[-5000:]
        return
    assert codes[int(life.kill.split(":")[-1])] == -signal.SIGKILL, log.read_text()[-5000:]
    assert 0 not in codes, log.read_text()[-5000:]
    newest = Checkpoints(workdir / "checkpoints", read_only=True).steps[-1]
    assert newest in life.saved, newest


def records_of(workdir):
    """What the run has recorded, without what a kill has cut off."""
    found = []
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def learnt(records, steps):
    """Task -> low bits of the ids of its rows, in the order of its steps. A step that was lost was
    done again with the same rows."""
    rows = {}
    for record in records:
        if record["kind"] != "train" or record["name"] == "all":
            continue
        name = record["name"]
        step = record["step"]
        ids = [int(record[f"ids/row{r}"]) for r in range(B)]
        assert name == "weighted" or rows.get(step, (name, ids)) == (
            name,
            ids,
        )  # that of other weights may be another one
        rows[step] = name, ids
    assert sorted(rows) == list(range(1, steps + 1))
    found = {}
    for step in sorted(rows):
        name, ids = rows[step]
        found.setdefault(name, []).extend(ids)
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_each_record_is_learnt_once_in_an_epoch_through_two_kills(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_LOCAL_CACHE", str(tmp_path / "cache"))
    before, after = (
        tasks(own_folder(tmp_path, f"data{i}"), weights) for i, weights in enumerate(WEIGHTS)
    )
    sources = before | {"weighted": after["weighted"]}
    count = len(sources)
    steps = ROUNDS * count
    low = [number & BITS for number in IDS]
    assert len(set(low)) == len(low)
    config = tmp_path / "run.py"
    workdir = tmp_path / "run"
    # An epoch of most tasks is three rounds. The first kill is in the second round, the second in
    # the third.
    every = count // 3
    first = 4 * every
    second = 7 * every
    begun = Life(1, f"save:{first}:0", (first - every, first))
    write_config(config, before, steps, every)
    live(begun, config, workdir)
    start = Checkpoints(workdir / "checkpoints", read_only=True).steps[-1]
    live(Life(4, f"take:{second - start + 2}:2", (second - every, second)), config, workdir)
    write_config(config, sources, steps, every)
    live(Life(2), config, workdir)

    records = records_of(workdir)
    found = learnt(records, steps)
    assert set(found) == set(sources)
    for name, (_, numbers) in sources.items():
        if name not in ("bad", "weighted"):
            assert_epochs(found[name], [low[i] for i in numbers])
    for label in range(3):  # the parts of the mixture whose weights have changed
        own = [low[i] for i in ALL if RECORDS[i]["class_label"] == label]
        assert_epochs([each for each in found["weighted"] if each in own], own)
    for epoch in np.array(found["bad"]).reshape(-1, len(ALL)):
        expected = [low[AFTER if i == BAD else i] for i in ALL]
        assert sorted(epoch) == sorted(expected)
    (told,) = [record for record in records if record["name"] == "skipped/bad"]
    assert told["image cannot be decoded"] == 2, (
        "once in each epoch, whichever process met it and whenever"
    )
    print(
        f"{count} sources, {steps} steps by 1, 4 and 2 processes: "
        f"{sum(map(len, found.values()))} rows, each record once in an epoch"
    )
