"""`python -m jaxvl.plan`: the whole training step compiled for TPUs that are not here."""

import json
import pathlib

import pytest

from jaxvl import plan
from jaxvl.config import ConfigError
from jaxvl.sharding.topology import compile_only_devices

CONFIG = str(pathlib.Path(__file__).parent.parent / "configs" / "align.py")
SMALL = {
    "model.image.stages": '("mbconv_r1_k3_s2_e2_o32_se0.25",)', "model.text.variant": "tiny", "tasks.pairs.data.batch": "8192",
    "tasks.pairs.data.image_size": "32", "preprocess.image_size": "32", "tasks.pairs.data.text_length": "16", "mesh.fsdp": "2",
}  # fmt: skip


@pytest.fixture(autouse=True)
def compiler():
    try:
        compile_only_devices("v5e")
    except ConfigError as error:
        pytest.skip(f"no TPU compiler (launch/test.sh installs it): {error}")


SLOW = [pytest.param(t, marks=pytest.mark.slow) for t in ("v4:2x2x1", "v5p:2x2x1", "v6e:2x2")]


@pytest.mark.parametrize("topology", ["v5e:2x2", *SLOW])
def test_the_align_step_compiles(topology, tmp_path, capsys):
    assignments = [f"--config.{key}={value}" for key, value in SMALL.items()]
    assert plan.main([f"--config={CONFIG}", f"--topology={topology}", f"--json={tmp_path / 'plan.json'}", *assignments]) == 0
    printed, figures = capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())
    assert f"4 x {topology}" in printed and f"{figures['parameters']:,} parameters" in printed
    assert figures["mesh"] == {"data": 2, "fsdp": 2}
    cost = figures["tasks"]["pairs"]
    assert cost["collectives"] and 0 < cost["temporary"] < 3 * 2**30
    # Parameters and both moments are halved by fsdp wherever an axis has a rule for it.
    assert sum(figures["sharding"].values()) == figures["parameters"] and figures["sharding"]["fsdp"] > 0.99 * figures["parameters"]
    assert figures["bytes"]["parameters"] < 0.51 * 4 * figures["parameters"]
    assert 1.9 < figures["bytes"]["optimiser"] / figures["bytes"]["parameters"] < 2.1


@pytest.mark.slow
def test_what_does_not_fit_is_told(capsys):
    assignments = [f"--config.{key}={value}" for key, value in {**SMALL, "tasks.pairs.data.batch": "1048576"}.items()]
    assert plan.main([f"--config={CONFIG}", "--topology=v5e:2x2", *assignments]) == 1
    assert "does not compile" in capsys.readouterr().out
