"""`python -m jaxvl.plan`: the whole training step compiled for TPUs that are not here."""

import json
import pathlib

import jax
import pytest

from jaxvl import plan
from jaxvl.config import ConfigError, load_file, override, resolve
from jaxvl.sharding.topology import compile_only_devices
from jaxvl.training.experiment import Experiment

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


def experiment(**changes):
    return resolve(Experiment, override(load_file(CONFIG), {**SMALL, **changes}))


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_align_step_compiles(topology):
    figures = plan.plan(experiment(), topology)
    cost = figures["tasks"]["pairs"]["cost"]
    assert figures["mesh"] == {"data": 2, "fsdp": 2} or figures["devices"] != 4
    # The loss alone, materialised: three [8192, 8192 / devices] float32 matrices.
    assert cost.collectives and 0 < cost.temporary < 700 * 2**20
    # Parameters and both moments are halved by fsdp wherever an axis has a rule for it.
    assert figures["bytes"]["parameters"] < 0.6 * 4 * figures["parameters"]
    assert 1.9 < figures["bytes"]["optimiser"] / figures["bytes"]["parameters"] < 2.1


def test_flops_do_not_depend_on_the_mesh_or_the_layout_of_layers():
    flops = [
        plan.plan(experiment(**{"model.text.scan": str(scan), "mesh.fsdp": str(fsdp)}), "v5e:2x2")["tasks"]["pairs"]["cost"].flops
        for scan, fsdp in ((True, 1), (False, 2))
    ]
    assert flops[0] == pytest.approx(flops[1], rel=1e-3)


def test_command_prints_and_writes_the_figures(tmp_path, capsys):
    assignments = [f"--config.{key}={value}" for key, value in SMALL.items()]
    assert plan.main([f"--config={CONFIG}", "--topology=v5e:2x2", f"--json={tmp_path / 'plan.json'}", *assignments]) == 0
    printed, written = capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())
    assert "4 x v5e:2x2" in printed and f"{written['parameters']:,} parameters" in printed
    assert sum(written["sharding"].values()) == written["parameters"] and "fsdp" in written["sharding"]


def test_what_does_not_fit_is_told(capsys):
    assignments = [f"--config.{key}={value}" for key, value in {**SMALL, "tasks.pairs.data.batch": "2097152"}.items()]
    assert plan.main([f"--config={CONFIG}", "--topology=v5e:2x2", *assignments]) == 1
    assert "does not compile" in capsys.readouterr().out
    assert jax.default_backend() == "cpu"
