"""What a run says of its speed, its time and its steps: the log, Weights & Biases, a trace."""

import importlib.util
import io
import json
import time

import jax
import numpy as np
import pytest
import tiny
import wandb_files
from rich.console import Console

from jaxvl import train as train_command
from jaxvl.config import ConfigError
from jaxvl.data.tokenizers import make_tokenizer
from jaxvl.sharding.mesh import make_mesh
from jaxvl.training.build import build_model, fresh_state, make_forward, make_tasks
from jaxvl.training.compile import make_update
from jaxvl.training.cost import count_flops
from jaxvl.training.profile import Profile
from jaxvl.training.sinks import WandbConfig
from jaxvl.training.step import Part, make_step
from jaxvl.training.terminal import Terminal
from jaxvl.training.writer import Writer

LOG = dict(
    every=2,
    tensorboard=True,
    report=False,
    peak_flops=1e12,
    wandb=dict(project="pairs", mode="offline"),
)
CHIPS = 2
EVALS = dict(style=dict(name="zero_shot", source=tiny.TEST, every=3))


def experiment(remat="full", microbatches=2):
    root = tiny.config().to_dict()
    for tower in ("image", "text"):
        root["model"][tower]["remat"] = remat
    root["tasks"]["pairs"]["microbatches"] = microbatches
    return tiny.experiment(model=root["model"], tasks=root["tasks"], log=LOG, evals=EVALS)


def two_chips(config):
    """A mesh of more than one chip, whose step compiles faster than that of all eight."""
    return make_mesh(config, jax.devices()[:CHIPS])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workdir, and what its run said."""
    workdir = tmp_path_factory.mktemp("logged")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxvl.train.make_mesh", two_chips)
        train_command.train(experiment(), workdir, Console(file=said, width=100), "4:5")
    return workdir, said.getvalue()


def lines(workdir, kind):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_speed_is_told_per_chip_and_as_a_share_of_its_peak(finished):
    workdir, said = finished
    (compiled,) = [line for line in lines(workdir, "event") if line["name"] == "compile/pairs"][:1]
    records = lines(workdir, "train")
    assert [line["step"] for line in records] == [2, 4, 6]
    for line in records:
        step = line["seconds_per_step"]
        assert line["examples_per_second"] == pytest.approx(16 / step)
        assert line["examples_per_second_per_chip"] == pytest.approx(16 / step / CHIPS)
        assert line["tflops_per_chip"] == pytest.approx(
            compiled["model_gflop"] / 1e3 / step / CHIPS
        )
        assert line["mfu"] == pytest.approx(line["tflops_per_chip"])  # of a peak of 1 TFLOP/s
        assert line["hfu"] / line["mfu"] == pytest.approx(
            compiled["gflop"] / compiled["model_gflop"]
        )
    progress = [line for line in said.splitlines() if line.startswith("step ") and "/6 " in line]
    assert len(progress) == 3
    for line in progress:
        assert " ex/s/chip  MFU " in line and len(line) <= 100


def test_the_time_is_accounted_for(finished):
    workdir, said = finished
    parts = ("goodput", "share_data", "share_startup", "share_evaluation", "share_checkpoint")
    events = [line for line in lines(workdir, "event") if line["name"] == "goodput"]
    for line in [*lines(workdir, "train"), *events]:
        assert sum(line[part] for part in parts) == pytest.approx(1)
        assert all(0 <= line[part] <= 1 for part in parts)
    last = lines(workdir, "train")[-1]
    whole = events[0]
    evaluated = sum(line["seconds"] for line in lines(workdir, "eval") if line["step"] <= 6)
    assert whole["share_evaluation"] * whole["wall_seconds"] == pytest.approx(evaluated, rel=0.05)
    assert whole["share_startup"] < last["share_startup"] and whole["share_checkpoint"] > 0
    assert 0 < last["goodput_interval"] <= 1
    assert f"goodput {100 * whole['goodput']:.1f} % of " in said


def test_model_flop_leave_recomputation_out(finished):
    """Layers that are computed again, and the second forward pass of microbatches, are in the
    devices' FLOP only."""
    plain = experiment(remat="none", microbatches=1)
    tokens = make_tokenizer(plain.tokenizer, ["red circle"])
    mesh = two_chips(plain.mesh)
    with jax.set_mesh(mesh):
        model = build_model(plain, tokens)
        _, shapes, _ = fresh_state(plain, model, mesh, {})
        task = make_tasks(plain)["pairs"]
        update = make_update(plain, model)
        part = Part(make_forward(plain, task, model), 1.0, frozenset(update.trained))
        step = make_step([part], update, ["pairs"])
        batch = {
            k: jax.ShapeDtypeStruct(s.shape, s.dtype) for k, s in task.config.data.shapes.items()
        }
        once = count_flops(
            jax.make_jaxpr(step)(shapes, (batch,), jax.ShapeDtypeStruct((1,), np.int32))
        )
    workdir, said = finished
    compiled = next(line for line in lines(workdir, "event") if line["name"] == "compile/pairs")
    assert compiled["model_gflop"] * 1e9 == pytest.approx(once)
    assert (
        1.3 * once < compiled["gflop"] * 1e9 < 2 * once
    )  # two forward passes more, of the towers alone
    assert "of them recomputation)" in said


def test_the_trace_has_the_steps_that_were_asked_for(finished):
    workdir, said = finished
    (path,) = (workdir / "profile").rglob("*.xplane.pb")
    steps = []
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            steps += [
                dict(event.stats)["step_num"] for event in line.events if event.name == "train"
            ]
    assert sorted(int(step) for step in steps) == [4, 5]
    assert f"profile of steps 4 to 5: {workdir / 'profile'}" in said


@pytest.mark.parametrize("window", ["10", "0:3", "4:3", "5:7", "a:b", "-1:2"])
def test_impossible_steps_to_trace(window, tmp_path):
    with pytest.raises(ConfigError, match=r"^--profile: '"):
        Profile(window, tmp_path, 6, print)


def test_a_resumed_run_says_what_it_cannot_trace(tmp_path):
    said = []
    for window in ("2:5", "1:2"):
        Profile(window, tmp_path, 6, said.append).begin(3)
    assert said == [
        "profile: the run goes on after step 3; steps 4 to 5 are traced",
        "profile: nothing is traced, the run goes on after step 3 and step 2 is past",
    ]


def values(items):
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def test_weights_and_biases_has_config_history_and_summary(finished):
    workdir, _ = finished
    (records,) = wandb_files.finished(workdir)
    (started,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    config = values(started.config.update)
    assert config["steps"] == 6 and config["model"]["image"]["remat"] == "full"
    assert started.project == "pairs" and started.display_name == workdir.name
    history = [values(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]
    for kind, name, key in (
        ("train", "pairs", "loss"),
        ("train", "pairs", "mfu"),
        ("eval", "style", "acc@1"),
    ):
        expected = {line["step"]: line[key] for line in lines(workdir, kind)}
        figure = f"{kind}/{name}/{key}"
        assert {item["step"]: item[figure] for item in history if figure in item} == expected
    summary = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary |= values(record.summary.update)
    assert summary["eval/style/acc@1"] == lines(workdir, "eval")[-1]["acc@1"]
    assert records[-1].exit.exit_code == 0


def test_a_resumed_run_goes_on_in_its_run_of_weights_and_biases(tmp_path):
    for project in ("pairs", "pairs", "another"):
        with Writer(
            tmp_path, 6, tensorboard=False, wandb=WandbConfig(project, mode="offline")
        ) as writer:
            writer.record(1, "eval", "style", {"acc@1": 0.5})
        time.sleep(1)  # W&B names the folder of a run by its second
    runs = wandb_files.finished(tmp_path)
    ids = [
        r.run.run_id for records in runs for r in records if r.WhichOneof("record_type") == "run"
    ]
    assert len(ids) == 3 and ids[0] == ids[1] != ids[2]


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name)
    )
    with pytest.raises(
        ConfigError, match=r"^log\.wandb: needs the package wandb.*pip install 'jaxvl\[wandb\]'$"
    ):
        train_command.train(experiment(), tmp_path)


def test_the_progress_line_stays_one_line():
    scalars = {
        "loss": 1.23456,
        "examples_per_second": 123456.7,
        "examples_per_second_per_chip": 15432.1,
        "mfu": 0.4123,
    }
    scalars |= {"data_wait": 0.0012, "seconds_per_step": 0.5, "lr": 1e-3, "skipped": 3.0}
    for tasks, name, more in (
        (1, "pairs", {}),
        (20, "all", {f"loss/a_long_name_of_a_task_{i}": 2.0 for i in range(20)}),
    ):
        shown = io.StringIO()
        terminal = Terminal(
            Console(file=shown, width=100, force_terminal=True, color_system=None), 100_000, tasks
        )
        terminal.advance(12_345)
        terminal.record(12_345, "train", name, scalars | more)
        console = Console(file=io.StringIO(), width=100)
        with console.capture() as capture:
            console.print(terminal._progress.get_renderable())
        (line,) = capture.get().splitlines()
        assert (
            len(line) <= 100 and "loss 1.235" in line and "12345/100000" in line and "eta" in line
        )
        assert tasks > 1 or "15,432 ex/s/chip  MFU 41.2 %" in line
