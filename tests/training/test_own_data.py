"""Training on a team's own files: the same records in any format give the same run, to the last
bit."""

import io
import pathlib
import tarfile

import pyarrow as pa
import pyarrow.parquet
import pytest
import tiny

from jaxvl import train
from jaxvl.config import ConfigError, load_file, override, resolve
from jaxvl.data.sources.opened import opened
from jaxvl.training.experiment import Experiment

pytestmark = pytest.mark.usefixtures("programs_kept", "one_device")

ROOT = pathlib.Path(__file__).parents[2]
FIELDS = {name: field for name, field in tiny.FIELDS.items() if name != "group_id"}


@pytest.fixture(scope="module")
def pairs():
    """(PNG, English name) of every record of the recipe that the oracle trains on."""
    source = opened(tiny.experiment().tasks["pairs"].data.source, print)
    records = [source.read(i, ("image", "name/en")) for i in range(len(source))]
    return [(record["image"], record["name/en"]) for record in records]


def write_tar(folder, pairs):
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for i, (image, text) in enumerate(pairs):
            for suffix, content in (("png", image), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{i:09d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_parquet(folder, pairs):
    images, texts = zip(*pairs)
    pyarrow.parquet.write_table(
        pa.table({"image": images, "text": texts}), folder / "0.parquet", row_group_size=len(pairs)
    )


def write_folder(folder, pairs):
    for i, (image, text) in enumerate(pairs):
        (folder / f"{i:05d}.png").write_bytes(image)
        (folder / f"{i:05d}.txt").write_text(text)


def task(source, column):
    fields = dict(FIELDS, text=dict(name="caption", columns=column, length=6))
    return dict(
        pairs=dict(
            data=dict(source=source, batch=16, fields=fields, reader=dict(threads=2)),
            objectives=dict(align=1.0),
        )
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("recipe")
    train.train(tiny.experiment(tasks=task(tiny.TRAIN, "name/en")), workdir)
    return tiny.losses(workdir)


WRITERS = {"webdataset": write_tar, "parquet": write_parquet, "folder": write_folder}


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_records_in_another_format_are_the_same_run(name, pairs, expected, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    WRITERS[name](data, pairs)
    path = (
        str(data / "00000.tar")
        if name == "webdataset"
        else str(data / "0.parquet" if name == "parquet" else data)
    )
    key = "path" if name == "folder" else "files"
    train.train(tiny.experiment(tasks=task({"name": name, key: path}, "text")), tmp_path / "run")
    assert tiny.losses(tmp_path / "run") == expected


@pytest.mark.parametrize("config", ["align.py", "clip.py", "siglip.py", "coca.py", "imp.py"])
def test_published_configs_take_a_path(config, pairs, tmp_path):
    write_folder(tmp_path, pairs[:8])
    node = load_file(f"{ROOT}/configs/{config}:data={tmp_path},val={tmp_path},batch=8,steps=20")
    experiment = resolve(Experiment, override(node, {}))
    (task,) = experiment.tasks.values()
    assert task.data.batch == 8
    assert experiment.steps == 20
    assert len(opened(task.data.source)) == 8
    assert len(opened(experiment.evals["val"].source)) == 8


def test_a_path_that_holds_nothing_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"--config=…:data: .*nothing.* is not there"):
        load_file(f"{ROOT}/configs/clip.py:data={tmp_path}/nothing")
