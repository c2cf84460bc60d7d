"""Runs of several stages: their configs, kills at every place, the tables between them."""

import dataclasses
import json

import numpy as np
import pytest
import tiny
from tiny import assert_same_state

from jaxvl import train as train_command
from jaxvl.config import ConfigError, load_file, resolve
from jaxvl.data import tables
from jaxvl.data.feed import Feed
from jaxvl.data.tables import read_table
from jaxvl.jobs import kmeans as kmeans_job
from jaxvl.training import stages as stages_module
from jaxvl.training.experiment import Command, Experiment
from jaxvl.training.stages import (
    build_stages,
    is_done,
    merged,
    one_of,
    recorded_stages,
    stages_of,
    train_stages,
    with_folders,
)

pytestmark = pytest.mark.usefixtures("one_device", "programs_kept")

CLUSTERS = dict(name="kmeans", k=3, features=None, of="pair", text="name/en")
PER_CLUSTER = dict(
    tables=dict(clusters="{stages.one}/tables/clusters"),
    sampler=dict(name="per_cluster", table="clusters"),
)
STAGES = dict(
    one=dict(after=dict(clusters=CLUSTERS)),
    two=dict(tasks=dict(pairs=dict(data=PER_CLUSTER))),
)
SHARED = tiny.config(
    steps=4,  # as in every run here, so that one program serves them all
    checkpoint=dict(every=2),
    evals=dict(style=dict(name="zero_shot", source=tiny.TEST, gallery=0)),
).to_dict()


class Killed(BaseException):
    """What ends a process in these tests: nothing in the package catches it."""


def run(workdir, shared=SHARED, stages=STAGES):
    return train_stages(build_stages(shared, stages, workdir), train_command.train, workdir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two stages that nobody has touched."""
    workdir = tmp_path_factory.mktemp("finished")
    run(workdir)
    return workdir


def dying(call, at):
    """`call`, but its call number `at` kills."""
    left = [at]

    def called(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return call(*args, **kwargs)

    return called


# where -> what is called there, and which of its calls kills
KILLS = {
    "in the first stage": (Feed, "take", 3),
    "in the job": (kmeans_job, "kmeans", 1),
    "while the table is written": (tables.json, "dumps", 1),
    "between the stages": (stages_module, "_record", 1),
    "before the second stage's first step": (Feed, "take", 1),
    "in the second stage": (Feed, "take", 4),
}


def test_a_run_that_is_killed_everywhere_ends_as_if_it_was_not(finished, tmp_path, monkeypatch):
    for where, (owner, name, at) in KILLS.items():
        with monkeypatch.context() as patch:
            if owner is tables.json:  # the module is everybody's
                fake = type("json", (), dict(vars(json), dumps=dying(json.dumps, at)))
                patch.setattr(tables, "json", fake)
            else:
                patch.setattr(owner, name, dying(getattr(owner, name), at))
            with pytest.raises(Killed):
                run(tmp_path)
            print(where)
    run(tmp_path)
    assert_same_state(finished / "one", tmp_path / "one", 4)
    assert_same_state(finished / "two", tmp_path / "two", 4)
    assert recorded_stages(tmp_path) == recorded_stages(finished)
    mine, theirs = (read_table(w / "one/tables/clusters") for w in (tmp_path, finished))
    assert mine.content == theirs.content
    np.testing.assert_array_equal(mine.array("cluster"), theirs.array("cluster"))


def test_each_stage_leaves_what_a_run_leaves(finished):
    first, second = recorded_stages(finished)
    assert (first["stage"], first["step"]) == ("one", 4)
    assert (second["stage"], second["step"]) == ("two", 4)
    assert 0 <= first["figures"]["style/acc@1"] <= 1
    assert first["figures"].keys() == second["figures"].keys(), "the evaluator ran in both"
    for name in ("one", "two"):
        assert (finished / name / "metrics.jsonl").is_file()
    config = json.loads((finished / "two" / "config.json").read_text())
    assert [rule["source"] for rule in config["start"]] == [str(finished / "one")]
    table = read_table(finished / "one/tables/clusters")
    labels = table.array("cluster")
    assert isinstance(labels, np.memmap) and set(labels) == {0, 1, 2}
    assert table.made_from["step"] == 4 and table.made_from["job"]["k"] == 3


def test_a_second_stage_starts_with_the_weights_of_the_first(finished, tmp_path):
    start = tiny.saved_state(finished / "one", 4)
    _, two = build_stages(SHARED, STAGES, finished)
    begun = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command, "loop", lambda run, *_: begun.update(run.state.params))
        train_command.train(two.experiment, tmp_path)
    for path, value in start["ema"].items():
        if path in begun:
            np.testing.assert_array_equal(begun[path], value, err_msg=path)
    assert begun.keys() == start["params"].keys()


def test_a_stage_that_is_done_is_not_begun_again(finished, monkeypatch):
    begun = []

    def train(experiment, workdir, *_):
        begun.append(workdir.name)
        return {}

    stages = build_stages(SHARED, STAGES, finished)
    assert all(is_done(stage) for stage in stages)
    train_stages(stages, train, finished)
    assert begun == ["two"], "the last one is opened, to see that it can be read"
    changed = {**STAGES, "one": dict(STAGES["one"], after=dict(clusters=dict(CLUSTERS, k=4)))}
    assert [is_done(stage) for stage in build_stages(SHARED, changed, finished)] == [False, True]
    with pytest.raises(ConfigError, match=r"^stages\.one\.optim\.lr: "):
        run(finished, stages={**STAGES, "one": dict(STAGES["one"], optim=dict(lr=2e-3))})


def test_a_signal_ends_the_run_and_no_further_stage_begins(tmp_path):
    begun = []

    def train(experiment, workdir, console, profile, stop):
        begun.append(workdir.name)
        stop.name = "SIGTERM"
        return {}

    train_stages(build_stages(SHARED, STAGES, tmp_path), train, tmp_path)
    assert begun == ["one"] and recorded_stages(tmp_path) == []


def test_another_clustering_is_noticed_by_the_stage_that_reads_it(finished, tmp_path):
    stage = build_stages(SHARED, STAGES, finished)[1]
    table = read_table(finished / "one/tables/clusters")
    labels = np.array(table.array("cluster"))
    labels[:2] = labels[1::-1] = (labels[:2] + 1) % 3
    folder = tmp_path / "clusters"
    tables.write_table(
        folder / "3",
        {"cluster": labels},
        records=len(labels),
        source=table.source,
        made_from={},
        step=3,
    )
    changed = with_tables(stage.experiment, str(folder))
    with pytest.raises(ConfigError, match=r"^tasks\.pairs\.data: .*in the checkpoint of step 4"):
        train_command.train(changed, finished / "two")


def with_tables(experiment, folder):
    node = tiny.config(
        steps=4,
        start=[dataclasses.asdict(rule) for rule in experiment.start],
        checkpoint=dict(every=2),
        tasks=dict(pairs=tiny.task(**{**PER_CLUSTER, "tables": dict(clusters=folder)})),
    )
    return resolve(Experiment, node)


# --------------------------------------------------------------------------------------------------
# Jobs inside a run


EVERY = dict(
    after=dict(clusters=dict(CLUSTERS, every=2)),
    steps=4,
    checkpoint=dict(every=3, keep=2),
    tasks=dict(
        pairs=tiny.task(
            tables=dict(clusters="clusters"), sampler=dict(name="per_cluster", table="clusters")
        )
    ),
)


def test_a_table_made_every_two_steps_is_read_at_once_and_a_resume_is_exact(tmp_path, monkeypatch):
    opened = []
    reopen = Feed.reopen
    monkeypatch.setattr(
        Feed, "reopen", lambda self, source: (opened.append(self.steps), reopen(self, source))
    )
    train_command.train(tiny.experiment(**EVERY), tmp_path / "whole")
    assert opened == [2]
    made = tables.versions(tmp_path / "whole/tables/clusters")
    assert made == [2, 4], "no checkpoint is left that needs the one before the first step"
    contents = [read_table(tmp_path / "whole/tables/clusters", step).content for step in made]
    assert len(set(contents)) > 1

    kills = [
        (Feed, "take", 2),  # between two jobs; nothing is saved yet
        (kmeans_job, "kmeans", 1),  # in the job of step 2: that of step 0 was done
        (Feed, "take", 2),  # after step 3, which is saved and needs the table of step 2
        (kmeans_job, "kmeans", 1),  # in the job after the last step
    ]
    for owner, name, at in kills:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dying(getattr(owner, name), at))
            with pytest.raises(Killed):
                train_command.train(tiny.experiment(**EVERY), tmp_path / "killed")
    train_command.train(tiny.experiment(**EVERY), tmp_path / "killed")
    assert_same_state(tmp_path / "whole", tmp_path / "killed", 4)


def test_a_table_that_was_removed_is_named(tmp_path):
    experiment = tiny.experiment(**EVERY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Feed, "take", dying(Feed.take, 4))
        with pytest.raises(Killed):
            train_command.train(experiment, tmp_path)
    for file in (tmp_path / "tables/clusters/2").iterdir():
        file.unlink()
    with pytest.raises(ConfigError, match=r"^tasks\.pairs\.data\.tables\.clusters: .*of step 2"):
        train_command.train(experiment, tmp_path)


# --------------------------------------------------------------------------------------------------
# Configs


def test_a_stage_is_the_shared_config_with_its_keys():
    shared = dict(a=1, group=dict(b=2, c=3), model=dict(name="x", width=4), tasks=dict(t=dict(d=5)))
    own = dict(group=dict(c=6), model=dict(name="y"), tasks=dict(t=None, u=dict(d=7)))
    assert merged(shared, own) == dict(
        a=1, group=dict(b=2, c=6), model=dict(name="y"), tasks=dict(u=dict(d=7))
    )
    assert shared["tasks"] == dict(t=dict(d=5)), "nothing is changed in place"
    shared = dict(tasks=dict(t=dict(objectives=dict(clip=1.0, other=2.0), data=dict(keep="x"))))
    own = dict(tasks=dict(t=dict(objectives=dict(clip=None, third=1.0), data=dict(keep=None))))
    task = dict(objectives=dict(other=2.0, third=1.0), data=dict(keep=None))
    assert merged(shared, own) == dict(tasks=dict(t=task)), "a number goes where it is an objective"


def test_references_to_earlier_stages():
    folders = dict(one="/runs/one")
    node = dict(start=(dict(source="{stages.one}"),), n=3, files="a/{0..9}.tar")
    assert with_folders(node, folders) == dict(
        start=(dict(source="/runs/one"),), n=3, files="a/{0..9}.tar"
    )
    with pytest.raises(ConfigError, match=r"'oen' is no earlier stage; did you mean 'one'\?"):
        with_folders("{stages.oen}", folders)


def test_what_a_stage_starts_with(tmp_path):
    stages = dict(one={}, two={}, three=dict(start=()), four=dict(start="{stages.one}"))
    found = build_stages(dict(SHARED, start="runs/before"), stages, tmp_path)
    assert [[rule.source for rule in stage.experiment.start] for stage in found] == [
        ["runs/before"],
        [str(tmp_path / "one")],
        [],
        [str(tmp_path / "one")],
    ]


FILE = """
from ml_collections import ConfigDict

def get_config():
    c = ConfigDict({shared})
    c.stages = {stages}
    return c
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    stages = tuple(dict(name=name, **own) for name, own in STAGES.items())
    path.write_text(FILE.format(shared=SHARED, stages=stages))
    return path


def test_a_config_file_with_stages(config, tmp_path):
    assert load_file(str(config)).stages
    command = Command(str(config), {"optim.lr": "0.5", "stages.two.steps": "9"}, {})
    one, two = stages_of(command, tmp_path)
    assert (one.name, one.workdir, one.experiment.steps) == ("one", tmp_path / "one", 4)
    assert (two.name, two.experiment.steps, two.experiment.optim.lr) == ("two", 9, 0.5)
    assert one_of(command, "two").steps == 9
    with pytest.raises(ConfigError, match="^stages: are several runs"):
        command.experiment()
    with pytest.raises(ConfigError, match=r"^--stage: 'tow' is no stage; did you mean 'two'\?"):
        one_of(command, "tow")
    with pytest.raises(ConfigError, match="^--stage: is required, .* has stages: one, two$"):
        one_of(command, None)
    wrong = Command(str(config), {"stages.tow.steps": "9"}, {})
    with pytest.raises(ConfigError, match=r"^--config\.stages\.tow\.steps: 'tow' is no stage"):
        stages_of(wrong, tmp_path)


@pytest.mark.parametrize(
    "stages, message",
    [
        (dict(one=dict(stpes=3)), r"^stages\.one\.stpes: unknown key; did you mean 'steps'\?"),
        (
            dict(one=dict(after=dict(clusters=dict(name="kmeans", task="piars")))),
            r"^stages\.one\.after\.clusters\.task: 'piars' is no task; did you mean 'pairs'\?",
        ),
        (
            dict(one=dict(tasks=dict(pairs=dict(data=dict(tables=dict(c="clusters")))))),
            r"^stages\.one\.tasks\.pairs\.data\.tables\.c: 'clusters' is neither the folder",
        ),
        (
            dict(one=dict(after=dict(a=dict(name="kmeans", tables=dict(b="b"))))),
            r"^stages\.one\.after\.a\.tables: 'b' is neither the folder of a table",
        ),
    ],
)
def test_wrong_stages(tmp_path, stages, message):
    with pytest.raises(ConfigError, match=message):
        build_stages(SHARED, stages, tmp_path)


def test_jobs_run_after_those_whose_tables_they_read():
    after = dict(
        a=dict(name="kmeans", features="b", tables=dict(b="c")),
        b=dict(name="kmeans"),
        c=dict(name="cache_features", features=("image",)),
    )
    assert tiny.experiment(after=after).jobs_in_order == ["b", "c", "a"]
    after["c"]["tables"] = dict(a="a")
    with pytest.raises(ConfigError, match=r"^after: \['a', 'c'\] wait for each other's tables"):
        tiny.experiment(after=after)
