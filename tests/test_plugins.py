"""Files of a user's own, outside the tree, through the commands and from any folder."""

import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
import textwrap

import pytest
from training import tiny

from jaxvl import convert
from jaxvl.config import (
    ConfigError,
    PluginWarning,
    load_file,
    load_plugins,
    plugin_changes,
    plugins,
    recall_plugins,
    resolve,
    to_dict,
)
from jaxvl.data.sources.demo.shapes import Shapes
from jaxvl.evals import EVALUATORS
from jaxvl.objectives import OBJECTIVES
from jaxvl.training.experiment import Experiment, parse_command

pytestmark = pytest.mark.usefixtures("one_device")

ROOT = pathlib.Path(__file__).parent.parent
PLUGIN = """
from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from jaxvl.data.sources.opened import opened
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.source_options import SourceOptions
from jaxvl.objectives import OBJECTIVES, Loss, Objective


@OBJECTIVES.register("pull")
@dataclasses.dataclass(frozen=True)
class Pull(Objective):
    strength: float = 1.0

    reads: ClassVar[tuple[str, ...]] = ("image", "text")
    batch_keys: ClassVar[tuple[str, ...]] = ()

    def __call__(self, outputs, batch, state, context):
        return Loss(self.strength * jnp.mean((outputs["image"] - outputs["text"]) ** 2)), state


@EVALUATORS.register("counting")
@dataclasses.dataclass(frozen=True)
class Counting(SourceOptions):
    factor: float = 1.0
    figures = ("records",)

    def run(self, encoders):
        return EvalResult({"records": self.factor * len(opened(self.source))}, [])
"""
CONFIG = f"""
import sys
import textwrap
sys.path.insert(0, {str(ROOT / "tests")!r})
from training import tiny

def get_config():
    data = tiny.config().tasks.pairs.data
    return tiny.config(
        plugins=("parts/mine.py",), steps=2, optim=dict(warmup=0),
        tasks=dict(pairs=dict(data=data, objectives=dict(pull=dict(weight=0.5, strength=2.0)))),
        evals=dict(count=dict(name="counting", source=tiny.TEST, factor=2.0)),
    )
"""


@pytest.fixture(autouse=True)
def registries_as_they_were(monkeypatch):
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    for registry in (OBJECTIVES, EVALUATORS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        monkeypatch.setattr(registry, "_files", dict(registry._files))


def write(folder, plugin=PLUGIN):
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "mine.py").write_text(plugin)
    (folder / "config.py").write_text(CONFIG)


def named(text, objective="pull", evaluator="counting"):
    return text.replace('"pull"', f'"{objective}"').replace('"counting"', f'"{evaluator}"')


def command(folder, module, *words):
    """(what the command printed, its exit status), run in `folder`."""
    folder.mkdir(exist_ok=True)
    one_device = re.sub(r"device_count=\d+", "device_count=1", os.environ["XLA_FLAGS"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": one_device}
    done = subprocess.run(
        [sys.executable, "-m", f"jaxvl.{module}", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr, done.returncode


def test_an_objective_and_an_evaluator_of_ones_own_from_three_folders(tmp_path, capsys):
    write(tmp_path / "project")
    said, status = command(
        tmp_path / "a", "train", "--config=../project/config.py", "--workdir=../run"
    )
    assert status == 0, said
    records = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert any("loss/pull" in record for record in records)
    count = len(Shapes(size=16, variants=1, split="test_a").open())
    assert re.search(rf"records\W+{2 * count}\b", said)

    file = tmp_path / "project" / "parts" / "mine.py"
    file.write_text(PLUGIN + "# another line\n")
    said, status = command(
        tmp_path / "b", "evaluate", "--workdir=../run", "--config.evals.count.factor=3.0"
    )
    assert status == 0 and re.search(rf"records\W+{3 * count}\b", said), said
    assert f"PluginWarning: plugin {file} has changed since the checkpoint was written" in said

    file.rename(tmp_path / "elsewhere.py")
    places = [f"--from=jaxvl:{tmp_path / 'run'}", f"--to=jaxvl:{tmp_path / 'copy'}"]
    assert (
        convert.main(places) == 2
        and f"plugins: 'mine.py' is not at {file} any more" in capsys.readouterr().err
    )
    assert convert.main([*places, "--plugins=recorded"]) == 0
    assert (
        json.loads((tmp_path / "copy" / "config.json").read_text())["plugins"][0]["source"]
        == PLUGIN
    )


def test_a_config_keeps_place_hash_and_text(tmp_path):
    write(tmp_path)
    experiment = parse_command([f"--config={tmp_path / 'config.py'}"], {}).experiment()
    record = to_dict(experiment)["plugins"][0]
    assert record["file"] == str(tmp_path / "parts" / "mine.py") and record["source"] == PLUGIN
    assert resolve(Experiment, json.loads(json.dumps(to_dict(experiment)))) == experiment
    assert experiment.tasks["pairs"].objectives["pull"].objective.strength == 2.0


def test_relative_paths_are_those_of_the_config_file_then_of_the_current_folder(
    tmp_path, monkeypatch
):
    write(tmp_path / "project")
    (tmp_path / "here" / "parts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    pathlib.Path("parts/mine.py").write_text("1 / 0\n")
    assert load_file("../project/config.py").plugins == (
        str(tmp_path / "project" / "parts" / "mine.py"),
    )
    (tmp_path / "project" / "parts" / "mine.py").rename("parts/mine.py")
    assert load_file("../project/config.py").plugins == (
        str(tmp_path / "here" / "parts" / "mine.py"),
    )
    pathlib.Path("parts/mine.py").unlink()
    with pytest.raises(
        ConfigError,
        match=rf"plugins: no file 'parts/mine.py' \(looked for {tmp_path}/project/parts/mine.py and {tmp_path}/here/",
    ):
        load_file("../project/config.py")


def test_plugins_of_the_command_line(tmp_path, monkeypatch):
    write(tmp_path)
    (tmp_path / "config.py").write_text(CONFIG.replace('plugins=("parts/mine.py",), ', ""))
    monkeypatch.chdir(tmp_path)
    assert (
        parse_command(["--config=config.py", "--config.plugins=parts/mine.py"], {})
        .experiment()
        .plugins[0]
        .name
        == "mine.py"
    )


def test_modules_beside_the_config_file(tmp_path):
    write(tmp_path)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "parts.py").write_text(PLUGIN)
    (tmp_path / "config.py").write_text(CONFIG.replace("parts/mine.py", "my_package.parts"))
    experiment = parse_command([f"--config={tmp_path / 'config.py'}"], {}).experiment()
    assert (
        experiment.plugins[0].file == str(tmp_path / "my_package" / "parts.py")
        and experiment.plugins[0].source == PLUGIN
    )
    sys.path.remove(str(tmp_path))
    plugins._loaded.clear()
    del sys.modules["my_package"], sys.modules["my_package.parts"]
    assert recall_plugins(to_dict(experiment)["plugins"]) == experiment.plugins, (
        "found again by its place"
    )
    del sys.modules["my_package"], sys.modules["my_package.parts"]


def test_the_same_file_is_imported_once(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import builtins\nbuiltins.times = getattr(builtins, 'times', 0) + 1\n"
    )
    (tmp_path / "link.py").symlink_to(tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    found = load_plugins(("mine.py", str(tmp_path / "mine.py"), "./mine.py", "link.py"))
    import builtins

    assert builtins.times == 1 and {plugin.file for plugin in found} == {str(tmp_path / "mine.py")}
    del builtins.times


def test_another_process_imports_what_this_one_has(tmp_path, monkeypatch):
    """A file by its text, which may be gone since; a module by its name."""
    names = [f"{tmp_path.name}_{kind}" for kind in ("file", "module")]
    for name in names:
        (tmp_path / f"{name}.py").write_text(f"NAME = {name!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugins = load_plugins([str(tmp_path / f"{names[0]}.py"), names[1]])
    (tmp_path / f"{names[0]}.py").unlink()
    program = """
        import pickle, sys
        sys.path[:], plugins = pickle.load(sys.stdin.buffer)
        from jaxvl.config.plugins import load_again
        load_again(plugins)
        print(*sorted(module.NAME for name, module in sys.modules.items() if hasattr(module, "NAME") and "_file" in name or "_module" in name))
    """
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        input=pickle.dumps((sys.path, plugins)),
        capture_output=True,
    )
    assert said.stdout.decode().split() == names, said.stderr.decode()


def test_names_that_clash_say_which_two_files(tmp_path):
    (tmp_path / "a.py").write_text(named(PLUGIN, "mine_a"))
    (tmp_path / "b.py").write_text(named(PLUGIN, "mine_b"))
    with pytest.raises(
        ConfigError,
        match=r"cannot import .*/b.py, line \d+: ValueError: evaluator 'counting' is already registered by .*/a.py; .*/b.py must",
    ):
        load_plugins((str(tmp_path / "a.py"), str(tmp_path / "b.py")))
    (tmp_path / "c.py").write_text(named(PLUGIN, "clip"))
    with pytest.raises(
        ConfigError,
        match=r"objective 'clip' is already registered by .*/jaxvl/objectives/clip.py; .*/c.py must choose another",
    ):
        load_plugins(str(tmp_path / "c.py"))


def test_a_plugin_that_another_one_imports_is_said_to_be_loaded_twice(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "twice_a.py").write_text(named(PLUGIN, "twice_a"))
    (tmp_path / "twice_b.py").write_text("import twice_a\n")
    with pytest.raises(ConfigError, match=r"'twice_a': .*/twice_a.py is loaded twice, as a plugin"):
        load_plugins((str(tmp_path / "twice_a.py"), str(tmp_path / "twice_b.py")))


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "x = 1\ny = x.z\n",
            "cannot import {file}, line 2: AttributeError: 'int' object has no attribute 'z'",
        ),
        ("def (:\n", "cannot import {file}, line 1: invalid syntax"),
        ("import sys\nsys.exit(3)\n", "cannot import {file}, line 2: SystemExit: 3"),
        (
            "import none_such\n",
            "cannot import {file}, line 1: ModuleNotFoundError: No module named 'none_such'",
        ),
        (
            "from jaxvl.config import check\ncheck(False, 'x', 'is no')\n",
            "cannot import {file}, x: is no",
        ),
        (None, "no file '{file}'"),
    ],
)
def test_what_cannot_be_imported_is_one_line(tmp_path, text, message):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolve(Experiment, tiny.config(plugins=(str(file),)))
    assert str(caught.value).startswith(
        "plugins: " + message.format(file=file)
    ) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entries",
    [3, (3,), ("",), "no_such_module", "no_such.module", (None,), {"name": "x"}, "a\0.py"],
)
def test_what_is_no_plugin_is_refused(entries):
    with pytest.raises(ConfigError, match="^plugins: "):
        load_plugins(entries)


def test_a_checkpoints_plugin_that_moved_or_changed(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    records = [to_dict(plugin) for plugin in load_plugins(str(tmp_path / "mine.py"))]

    def forget():
        plugins._loaded.clear()
        for registry, name in ((OBJECTIVES, "pull"), (EVALUATORS, "counting")):
            del registry._entries[name]

    forget()
    (tmp_path / "mine.py").write_text(PLUGIN + "\n")
    with pytest.warns(
        PluginWarning,
        match=(
            "has changed since .* sha256 [0-9a-f]{12} then, [0-9a-f]{12} now; it is used as it "
            "is now"
        ),
    ):
        changed = recall_plugins(records)
    assert (
        len(plugin_changes(records, changed)) == 1
        and plugin_changes([to_dict(changed[0])], changed) == []
    )

    forget()
    (tmp_path / "mine.py").unlink()
    with pytest.raises(
        ConfigError,
        match=r"'mine.py' is not at .* any more, where the checkpoint has recorded it; say where it is \(--config.plugins",
    ):
        recall_plugins(records)
    assert "pull" not in OBJECTIVES, "text of a checkpoint is not run unasked"
    assert recall_plugins(records, "recorded")[0].source == PLUGIN and "pull" in OBJECTIVES

    forget()
    (tmp_path / "new_name.py").write_text(PLUGIN)
    assert recall_plugins(records, str(tmp_path / "new_name.py"))[0].file == str(
        tmp_path / "new_name.py"
    )
