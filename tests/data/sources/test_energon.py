"""Datasets of Megatron-Energon: the files are as `energon prepare` 7.4.1 writes them."""

import json

import numpy as np
import pytest
from tar_cases import write_tar

from jaxvl.config import ConfigError
from jaxvl.data.records import DataError
from jaxvl.data.sources.energon import Energon

DATASET = """sample_type:
  __module__: megatron.energon
  __class__: CaptioningSample
field_map:
  image: jpg
  caption: json[alt],txt
"""
CRUDE = """sample_type:
  __module__: megatron.energon
  __class__: CrudeWebdataset
"""
SPLIT = """split_parts:
  train:
  - shards/shard_{000..002}.tar
  val:
  - shards/shard_003.tar
exclude: []
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "en" / "shards").mkdir(parents=True)
    (tmp_path / "en" / ".nv-meta").mkdir()
    for s in range(4):
        members = []
        for i in range(5):
            alt = {"alt": f"alt {s} {i}"} if i else {}
            members += [
                (f"{s}{i}.jpg", bytes([s, i])),
                (f"{s}{i}.txt", f"cap {s} {i}".encode()),
                (f"{s}{i}.json", json.dumps(alt).encode()),
            ]
        write_tar(tmp_path / "en" / "shards" / f"shard_{s:03d}.tar", members)
    meta = tmp_path / "en" / ".nv-meta"
    (meta / "dataset.yaml").write_text(DATASET)
    (meta / "split.yaml").write_text(SPLIT)
    (meta / ".info.json").write_text(
        json.dumps(
            {
                "energon_version": "7.4.1",
                "shard_counts": {f"shards/shard_{s:03d}.tar": 5 for s in range(4)},
            }
        )
    )
    return tmp_path / "en"


def test_splits_and_fields(folder):
    log = []
    source = Energon(str(folder)).open(log.append)
    assert len(source) == 15 and {
        name: column.kind for name, column in source.columns.items() if name in ("image", "caption")
    } == {
        "image": "image",
        "caption": "text",
    }
    assert source.read(0, ["image", "caption"]) == {"image": bytes([0, 0]), "caption": "cap 0 0"}
    assert source.read(14, ["caption", "key"]) == {"caption": "alt 2 4", "key": "24"}
    assert [line for line in log if not line.startswith("indexed")] == []
    assert [
        Energon(str(folder), split="val").open(log.append).read(i, ["caption"])["caption"]
        for i in (0, 4)
    ] == ["cap 3 0", "alt 3 4"]


def test_shards_and_samples_that_are_left_out(folder):
    exclude = (
        "exclude:\n- shards/shard_001.tar\n- shards/shard_002.tar/2{0,3}\n- "
        "shards/shard_000.tar/9\n"
    )
    (folder / ".nv-meta" / "split.yaml").write_text(SPLIT.replace("exclude: []\n", exclude))
    source = Energon(str(folder)).open(print)
    assert [source.read(i, ["key"])["key"] for i in range(len(source))] == [
        "00",
        "01",
        "02",
        "03",
        "04",
        "21",
        "22",
        "24",
    ]
    np.testing.assert_array_equal(source.shards(), [5, 3])
    np.testing.assert_array_equal(source.column("key")[5:], ["21", "22", "24"])
    (folder / ".nv-meta" / "split.yaml").write_text(
        SPLIT.replace("exclude: []\n", "exclude:\n- shards/shard_001.tar\n")
    )
    assert Energon(str(folder)).open(print).fingerprint != source.fingerprint


def test_crude_samples_need_columns(folder):
    (folder / ".nv-meta" / "dataset.yaml").write_text(CRUDE)
    with pytest.raises(ConfigError, match="^columns: must be given: dataset.yaml has no field_map"):
        Energon(str(folder)).open(print)
    source = Energon(str(folder), columns={"text": "txt"}).open(print)
    assert source.read(3, ["text"]) == {"text": "cap 0 3"}


def test_counts_that_differ_are_said(folder):
    (folder / ".nv-meta" / ".info.json").write_text(
        json.dumps({"shard_counts": {"shards/shard_001.tar": 7}})
    )
    log = []
    Energon(str(folder)).open(log.append)
    assert any(
        "shards/shard_001.tar: holds 5 samples, but" in line and "says 7" in line for line in log
    )


def test_what_is_not_there_is_said(folder, tmp_path):
    with pytest.raises(
        ConfigError, match="split: 'trian' is not in split.yaml; did you mean 'train'"
    ):
        Energon(str(folder), split="trian").open(print)
    with pytest.raises(DataError, match="split.yaml: is not there; `energon prepare` writes it"):
        Energon(str(tmp_path)).open(print)
    (folder / ".nv-meta" / "split.yaml").write_text("split_parts: [")
    with pytest.raises(DataError, match="split.yaml: cannot be read"):
        Energon(str(folder)).open(print)
    (folder / ".nv-meta" / "split.yaml").write_text("- a")
    with pytest.raises(DataError, match="split.yaml: must be a group of keys"):
        Energon(str(folder)).open(print)
    (folder / ".nv-meta" / "split.yaml").write_text("!!python/object/apply:os.mkdir [made]")
    with pytest.raises(DataError, match="split.yaml: cannot be read"):
        Energon(str(folder)).open(print)
