"""Compiled programs are kept: a second run finds those of the first, and says so."""

import json
import os

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.experimental.compilation_cache import compilation_cache

from jaxvl import train as train_command
from jaxvl.training import programs


@pytest.fixture
def no_folder(monkeypatch, tmp_path):
    """As for a user who has said nothing of where programs are kept."""
    keys = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {key: getattr(jax.config, key) for key in keys}
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()
    monkeypatch.setenv("JAXVL_LOCAL_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "programs" / programs.machine()
    for key, value in before.items():
        jax.config.update(key, value)
    compilation_cache.reset_cache()


def test_a_program_is_found_again(no_folder):
    def compiled():
        before = programs.figures()
        jax.jit(lambda x: jnp.sin(x) @ x).lower(jax.ShapeDtypeStruct((7, 7), "float32")).compile()
        now = programs.figures()
        return now["kept"] - before["kept"], now["found"] - before["found"]

    programs.keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(no_folder)
    assert compiled() == (1, 0)
    jax.clear_caches()
    assert compiled() == (0, 1)
    assert f"new in {no_folder}" in programs.describe_programs()


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_second_run_finds_the_programs_of_the_first(no_folder, tmp_path, capsys):
    config = tiny.config_file(tmp_path / "config.py", steps=2, evals={})

    def run(name):
        """What it says of its programs, and what it records."""
        jax.clear_caches()
        before = programs.figures()
        folder = tmp_path / name
        assert train_command.main([f"--config={config}", f"--workdir={folder}"]) == 0
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        [event] = [line for line in lines if line.get("name") == "programs"]
        now = {key: event[key] - before[key] for key in before}
        return " ".join(capsys.readouterr().err.split()), now

    _, first = run("first")
    assert first["kept"] > 0
    assert any(path.name.startswith("jit_step") for path in no_folder.iterdir())
    said, second = run("second")
    assert second["kept"] == 0 and second["found"] >= first["kept"] + first["found"]
    assert "programs: none found" not in said and " found, " in said


def test_a_folder_that_the_user_names_is_left(no_folder, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    programs.keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    assert not no_folder.exists()


def test_the_oldest_programs_make_room(tmp_path):
    for i in range(6):
        (tmp_path / str(i)).write_bytes(bytes(100))
        os.utime(tmp_path / str(i), (i, i))
    (tmp_path / "of_xla").mkdir()
    programs.trim(tmp_path, 600)
    assert len(list(tmp_path.iterdir())) == 7
    programs.trim(tmp_path, 599)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "5", "of_xla"]
