"""`python -m jaxvl.plan`: the whole training step compiled for TPUs that are not here."""

import json
import pathlib

import jax
import processes
import pytest

from jaxvl import plan
from jaxvl.planning.prices import read_prices
from jaxvl.sharding.topology import chip

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
    assert figures["mesh"] == {"data": 2, "fsdp": 2} and figures["fits"]
    [step] = figures["steps"]
    assert step["name"] == "pairs" and step["rows"] == 8192
    assert step["collectives"] and 0 < step["bytes"]["temporaries"] < 3 * 2**30
    assert {c["axes"] for c in step["collectives"]} <= {"data", "fsdp", "data x fsdp"}
    check_roofline(figures, step)
    # Parameters and both moments are halved by fsdp wherever an axis has a rule for it.
    assert (
        sum(figures["sharding"].values()) == figures["parameters"]
        and figures["sharding"]["fsdp"] > 0.99 * figures["parameters"]
    )
    assert figures["state"]["parameters"] < 0.51 * 4 * figures["parameters"]
    assert 1.9 < figures["state"]["optimiser"] / figures["state"]["parameters"] < 2.1
    assert step["bytes"]["state"] == figures["state"]["total"]


def check_roofline(figures, step):
    """A step's times follow from its figures and the chip's."""
    roofline = step["roofline"]
    known = chip(figures["topology"])
    devices = figures["devices"]
    assert roofline["compute"] == pytest.approx(step["flops"] / devices / known.flops)
    assert roofline["memory"] == pytest.approx(step["traffic"] / known.bandwidth)
    assert roofline["ici"] == pytest.approx(sum(c["seconds"] for c in step["collectives"]))
    assert 0 < roofline["exposed"] <= roofline["ici"] and roofline["dcn"] == 0
    slow, fast = step["examples_per_second"]
    assert slow == pytest.approx(step["rows"] / roofline["high"])
    assert fast == pytest.approx(step["rows"] / roofline["low"]) and fast > slow
    hourly = read_prices(None)[figures["topology"].partition(":")[0]].price
    assert step["price"][1] == pytest.approx(hourly * devices / 3600 * 1e9 / slow)
    # A step reads its parameters and moments at least once.
    assert step["traffic"] > figures["state"]["total"]
    assert (roofline["scheduled"] is None) == (known.clock is None)


@pytest.mark.slow
def test_a_v4_takes_bert_large():
    """Its products, fused into each other, overflow stacks that the compiler has by itself."""
    changes = {**SMALL, "model.text.variant": "large", "model.text.remat": "full"}
    changes |= {"tasks.pairs.data.batch": "256", "tasks.pairs.data.fields.text.length": "64"}
    assignments = [f"--config.{key}={value}" for key, value in (changes | {"mesh.fsdp": 4}).items()]
    options = [f"--config={CONFIG}", "--topology=v4:2x2x1", "--quick"]
    running = processes.start(["-m", "jaxvl.plan", *options, *assignments])
    processes.finish(running)  # a fault of the compiler would end this process too


@pytest.mark.slow
def test_what_does_not_fit_is_told(capsys):
    assignments = [
        f"--config.{key}={value}"
        for key, value in {**SMALL, "tasks.pairs.data.batch": "1048576"}.items()
    ]
    assert plan.main([f"--config={CONFIG}", "--topology=v5e:2x2", *assignments]) == 1
    printed = capsys.readouterr().out
    assert "does not compile" in printed and "too much" in printed
    assert "largest on a device" in printed  # what can be told is


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
    assert figures["mesh"] == {"data": 2, "expert": 2}
    assert {step["name"] for step in figures["steps"]} == set(pictures)
    for step in figures["steps"]:
        exchanges = [c for c in step["collectives"] if c["kind"] == "all-to-all"]
        assert any("expert" in c["axes"] for c in exchanges), step["name"]
    # Half of the experts' weights on a device; all of the others'.
    assert 0.5 < figures["state"]["parameters"] / (4 * figures["parameters"]) < 1


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
    for step in figures["steps"]:
        assert any(c["kind"] == "all-to-all" for c in step["collectives"]), step["name"]


@pytest.mark.slow
def test_a_search_finds_what_fits(tmp_path, capsys, little_effort):
    """As it is, the config has no room on four v5e; recomputed or in microbatches it has, and
    little is compiled to find that out."""
    changes = {**SMALL, "tasks.pairs.data.batch": "32768"}
    changes |= {"preprocess.image_size": "128", "tasks.pairs.data.fields.image.size": "128"}
    assignments = [f"--config.{key}={value}" for key, value in changes.items()]
    written = tmp_path / "search.json"
    options = ["--topology=v5e:2x2", "--search", "--budget=1200", f"--json={written}"]
    assert plan.main([f"--config={CONFIG}", *options, *assignments]) == 0
    found = json.loads(written.read_text())
    first = found["trials"][0]
    assert first["outcome"] == "fits" and first["needed"] < found["memory"]
    chosen = first["candidate"]
    assert chosen["remat"] != "none" or chosen["microbatches"] > 1
    as_it_is = next(t for t in found["trials"] if not t["assignments"])
    assert as_it_is["outcome"] == "no room" and "too many" in as_it_is["reason"]
    assert 2 <= sum(t["compile_seconds"] > 0 for t in found["trials"]) <= 12
    printed = capsys.readouterr()
    assert "--config.tasks.pairs.microbatches=" in printed.out and "compiling" in printed.err
