"""`python -m jaxvl.plan`: the whole training step compiled for TPUs that are not here."""

import json
import pathlib

import jax
import pytest

from jaxvl import plan

CONFIG = str(pathlib.Path(__file__).parent.parent / "configs" / "align.py")
SMALL = {
    "model.image.stages": '("mbconv_r1_k3_s2_e2_o32_se0.25",)',
    "model.image.width": "1.0",
    "model.image.depth": "1.0",
    "model.text.variant": "tiny",
    "tasks.pairs.data.batch": "8192",
    "tasks.pairs.data.fields.image.size": "32",
    "preprocess.image_size": "32",
    "tasks.pairs.data.fields.text.length": "16",
    "mesh.fsdp": "2",
}


pytestmark = pytest.mark.usefixtures("tpu_compiler")
SLOW = [pytest.param(t, marks=pytest.mark.slow) for t in ("v4:2x2x1", "v5p:2x2x1", "v6e:2x2")]


@pytest.fixture
def little_effort():
    """The compiler optimises little, in a third of the time."""
    before = jax.config.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    yield
    jax.config.update("jax_exec_time_optimization_effort", before)


@pytest.mark.parametrize("topology", ["v5e:2x2", *SLOW])
def test_the_align_step_compiles(topology, tmp_path, capsys, little_effort):
    assignments = [f"--config.{key}={value}" for key, value in SMALL.items()]
    assert (
        plan.main(
            [
                f"--config={CONFIG}",
                f"--topology={topology}",
                f"--json={tmp_path / 'plan.json'}",
                *assignments,
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert f"4 x {topology}" in printed and f"{figures['parameters']:,} parameters" in printed
    assert figures["mesh"] == {"data": 2, "fsdp": 2}
    cost = figures["tasks"]["pairs"]
    assert cost["collectives"] and 0 < cost["temporary"] < 3 * 2**30
    # Parameters and both moments are halved by fsdp wherever an axis has a rule for it.
    assert (
        sum(figures["sharding"].values()) == figures["parameters"]
        and figures["sharding"]["fsdp"] > 0.99 * figures["parameters"]
    )
    assert figures["bytes"]["parameters"] < 0.51 * 4 * figures["parameters"]
    assert 1.9 < figures["bytes"]["optimiser"] / figures["bytes"]["parameters"] < 2.1


@pytest.mark.slow
def test_what_does_not_fit_is_told(capsys):
    assignments = [
        f"--config.{key}={value}"
        for key, value in {**SMALL, "tasks.pairs.data.batch": "1048576"}.items()
    ]
    assert plan.main([f"--config={CONFIG}", "--topology=v5e:2x2", *assignments]) == 1
    assert "does not compile" in capsys.readouterr().err


CONFIGS = pathlib.Path(CONFIG).parent
SPARSE = {
    "model.width": "128",
    "model.depth": "2",
    "model.heads": "2",
    "model.hidden": "256",
    "model.moe.last": "1",
    "model.moe.experts": "4",
    "mesh.fsdp": "1",
    "preprocess.image_size": "64",
    "tokenizer.vocab_size": "512",
    "schedule.intervals": "{}",
}


@pytest.mark.slow
def test_the_sparse_imp_steps_compile_with_experts_on_an_axis(tmp_path):
    pictures = dict(
        image_text="image", video_text="video", small_video_text="video", audio_text="image"
    )
    sizes = {f"tasks.{task}.data.batch": "64" for task in pictures}
    sizes |= {f"tasks.{task}.data.fields.{field}.size": "64" for task, field in pictures.items()}
    assignments = [f"--config.{key}={value}" for key, value in {**SPARSE, **sizes}.items()]
    config = f"{CONFIGS / 'imp.py'}:variant=small,expert=2"
    assert (
        plan.main(
            [
                f"--config={config}",
                "--topology=v5e:2x2",
                f"--json={tmp_path / 'plan.json'}",
                *assignments,
            ]
        )
        == 0
    )
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["mesh"] == {"data": 2, "expert": 2} and set(figures["tasks"]) == set(pictures)
    for name, cost in figures["tasks"].items():
        assert any("all-to-all" in collective for collective in cost["collectives"]), (
            name,
            cost["collectives"],
        )
    # Half of the experts' weights on a device; all of the others'.
    assert 0.5 < figures["bytes"]["parameters"] / (4 * figures["parameters"]) < 1


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v4:4x4x4", "v5p:4x4x4"])
def test_the_step_of_imp_moe_large_compiles_for_a_pod(topology, tmp_path, capsys):
    config = f"{CONFIGS / 'imp.py'}:variant=large,fsdp=4,expert=4"
    assert (
        plan.main(
            [f"--config={config}", f"--topology={topology}", f"--json={tmp_path / 'plan.json'}"]
        )
        == 0
    )
    assert f"64 x {topology}" in capsys.readouterr().out
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["mesh"] == {"data": 4, "fsdp": 4, "expert": 4}
    for name, cost in figures["tasks"].items():
        assert any("all-to-all" in collective for collective in cost["collectives"]), name
