"""The benchmark of streamed scores in miniature: every way gives the same loss."""

import pytest

from jaxvl.bench.pair_scores import main


def test_every_way_gives_the_same_loss(tmp_path):
    options = ["--batch", "24", "--width", "8", "--block", "10", "--rounds", "1"]
    out = tmp_path / "out.json"
    rows = main([*options, "--score", "dot,clips", "--reduce", "softmax", "--json", str(out)])
    losses = {(r["score"], r["way"]): r["loss"] for r in rows}
    assert len(losses) == 5 and out.exists()
    assert losses["dot", "streamed"] == pytest.approx(losses["dot", "dense"], rel=1e-5)
    assert losses["dot", "streamed"] == pytest.approx(losses["dot", "fused"], rel=1e-5)
    assert losses["clips", "streamed"] == pytest.approx(losses["clips", "dense"], rel=1e-5)
