"""The benchmark of loading runs in small, and all its ways read the same rows."""

import json

import pytest

pytest.importorskip("webdataset")

from jaxvl.bench import loading


def test_figures_of_each_way(tmp_path):
    out = loading.main(["--images=100", "--rounds=1", "--ways=jaxvl,webdataset", f"--json={tmp_path / 'out.json'}"])
    assert json.loads((tmp_path / "out.json").read_text())["ratios"].keys() == {"jaxvl", "webdataset"}
    (figures,) = out["rounds"]["jaxvl"]
    assert figures["core µs"] > 0
    assert all(figures[f"{stage} µs"] > 0 for stage in ("read", "decode", "transform"))


def test_ours_reads_every_row_of_the_shards_once(tmp_path):
    loading.write_shards(tmp_path, 600, distinct=2)
    source = loading.WebDataset(f"{tmp_path}/*.tar").open(lambda text: None)
    assert source.shards().tolist() == [500, 100]
    assert len({source.read(i, ("key",))["key"] for i in range(len(source))}) == 600
