"""The benchmark of loading runs in small, and all its ways read the same rows."""

import json

import pytest

pytest.importorskip("webdataset")

from jaxvl.bench import loading


@pytest.mark.slow  # of whole loaders
def test_figures_of_each_way(tmp_path):
    out = loading.main(
        ["--images=100", "--rounds=1", "--ways=jaxvl,webdataset", f"--json={tmp_path / 'out.json'}"]
    )
    assert json.loads((tmp_path / "out.json").read_text())["ratios"].keys() == {
        "jaxvl",
        "webdataset",
    }
    for way in ("jaxvl", "webdataset"):
        (figures,) = out["rounds"][way]
        stages = [figures[f"{stage} µs"] for stage in loading.STAGES]
        assert min(stages) > 0
        assert 0.9 * figures["core µs"] < sum(stages) < 1.01 * figures["core µs"]


def test_stages_of_a_pipeline_are_told_apart():
    seconds = {}

    def busy(samples, loops):
        for sample in samples:
            yield sum(range(loops)) and sample

    first = loading.metered(seconds, "read", busy(iter(range(1, 21)), 1_000))
    second = loading.metered(seconds, "decode", busy(first, 200_000))
    assert list(second) == list(range(1, 21))
    assert 0 < 5 * seconds["read"] < seconds["decode"]


def test_ours_reads_every_row_of_the_shards_once(tmp_path):
    loading.write_shards(tmp_path, 600, distinct=2)
    source = loading.WebDataset(f"{tmp_path}/*.tar").open(lambda text: None)
    assert source.shards().tolist() == [500, 100]
    assert len({source.read(i, ("key",))["key"] for i in range(len(source))}) == 600
