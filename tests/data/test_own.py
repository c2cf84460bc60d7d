"""Configs that take a path of a user's own data, on a folder of pictures with texts: they resolve,
and their fields find their columns."""

import pathlib

import pytest
from data_samples import encoded, noise

from jaxvl.config import ConfigError, load_file, resolve
from jaxvl.data.own import open_source
from jaxvl.training.experiment import Experiment
from jaxvl.training.inputs import open_sources

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
TAKING = sorted(path.name for path in CONFIGS.glob("*.py") if "own_evals" in path.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        (made / f"{i}.png").write_bytes(encoded(noise(i, 20, 20, 3)))
        (made / f"{i}.txt").write_text(f"text {i}\n")
    return made


def test_a_path_opens_whatever_its_format(folder):
    source = open_source(folder)
    assert [record["text"] for record in source] == [f"text {i}" for i in range(6)]
    assert open_source({"name": "folder", "path": str(folder)}).fingerprint == source.fingerprint
    with pytest.raises(ConfigError, match="'/no/such' is not there"):
        open_source("/no/such")
    with pytest.raises(
        ConfigError, match="source.name: 'foldr' is not a known source; did you mean 'folder'"
    ):
        open_source({"name": "foldr", "path": str(folder)})


@pytest.mark.parametrize("name", TAKING)
def test_a_config_reads_it(name, folder):
    experiment = resolve(
        Experiment,
        load_file(
            f"{CONFIGS / name}:data={folder},val={folder},benchmarks={folder},steps=12,batch=4"
        ),
    )
    assert experiment.steps == 12
    assert {"val", "benchmarks"} <= set(experiment.evals)
    sources = open_sources(experiment, lambda text: None)
    assert {source.name for source in sources.values()} == {str(folder)}
    assert {task.data.batch for task in experiment.tasks.values()} == {4}


def test_a_wrong_path_is_told_at_its_argument(tmp_path):
    for argument in ("data", "val"):
        with pytest.raises(ConfigError, match=f"{argument}: '/no/such' is not there"):
            load_file(f"{CONFIGS / 'align.py'}:{argument}=/no/such")


def test_the_demo_keeps_its_own_tests():
    plain = load_file(str(CONFIGS / "align_emoji.py"))
    assert (plain.steps, plain.optim.warmup, plain.checkpoint.every, set(plain.evals)) == (
        1100,
        60,
        275,
        {"unseen_style", "retrieval"},
    )
    assert set(load_file(f"{CONFIGS / 'align_emoji.py'}:split=b").evals) == {
        "unseen_style",
        "retrieval",
        "unseen_concepts",
    }
