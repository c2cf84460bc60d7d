"""A plan for GPUs that are not here, by the CUDA compiler's own program."""

import json

import pytest
from training import tiny

from jaxvl import plan
from jaxvl.chips import CHIPS
from jaxvl.config import ConfigError
from jaxvl.sharding.topology import compile_only_devices


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["h100", "h200", "b200"])
def test_a_tiny_run_is_planned_for_two_hosts(gpu, tmp_path, capsys):
    try:
        compile_only_devices(f"{gpu}:1x1x1")
    except ConfigError as error:
        pytest.skip(f"no CUDA compiler: {error}")
    # The compiler finds no tiles for products of fewer rows, or of numbers of rows such as 12.
    texts = dict(name="caption", columns="name/en", length=8)
    task = tiny.task(batch=256, fields=tiny.fields(text=texts))
    tower = dict(width=64, depth=1, heads=2, pool="mean")
    model = dict(
        name="dual_encoder",
        image=dict(name="vit", variant="Ti/8", **tower),
        text=dict(name="text_transformer", variant="Ti", **tower),
        embed_dim=64,
    )
    changes = dict(model=model, tasks=dict(pairs=task))
    config = tiny.config_file(tmp_path / "config.py", **changes)
    written = tmp_path / "plan.json"
    options = [f"--config={config}", f"--topology={gpu}:1x2x4", f"--json={written}"]
    assert plan.main(options) == 0
    figures = json.loads(written.read_text())
    assert figures["devices"] == 8 and figures["memory"] == CHIPS[gpu].memory
    [step] = figures["steps"]
    roofline = step["roofline"]
    assert roofline["scheduled"] is None and roofline["ici"] > 0 and roofline["dcn"] > 0
    assert any(c["kind"] == "all-reduce" and c["axes"] == "data" for c in step["collectives"])
    printed = capsys.readouterr().out
    assert "kernels are not tuned" in printed
    assert ("price: not known" in printed) == (gpu == "b200")
