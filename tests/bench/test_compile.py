"""The benchmark of compilation, and what it finds: layers that are scanned compile in a quarter of the
time, at the most."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from jaxvl.bench import compile as bench

LAYERS = 24
MOST = 1 / 4  # of the unrolled tower


def test_a_scanned_tower_is_the_smaller_program(tmp_path):
    path = tmp_path / "found.json"
    small = [f"--layers={LAYERS}", "--width=16", "--heads=2", "--rows=2", "--tokens=4"]
    before = jax.config.jax_enable_compilation_cache
    rows = bench.main([*small, "--rounds=1", "--dtype=float32", f"--json={path}"])
    assert [row["layers"] for row in rows] == ["scanned", "unrolled"]
    scanned, unrolled = rows
    assert scanned["instructions"] <= MOST * unrolled["instructions"]
    assert unrolled["share"] == 1 and scanned["share"] == scanned["seconds"] / unrolled["seconds"]
    spent = [row["processor_seconds"] for row in rows]
    assert unrolled["processor_share"] == 1 and scanned["processor_share"] == spent[0] / spent[1]
    for row in rows:
        assert row["seconds"] == row["trace_seconds"] + row["compile_seconds"] > 0
    written = json.loads(path.read_text())
    assert written["rows"] == rows and written["machine"]["cores"]
    assert jax.config.jax_enable_compilation_cache == before


@pytest.mark.slow
def test_a_scanned_tower_compiles_in_a_quarter_of_the_processors_time(tmp_path):
    """The tower of a ViT-L, by the compiler as runs have it, in a process of its own."""
    path = tmp_path / "found.json"
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    environment.pop("XLA_FLAGS", None)  # which say that it shall optimise little
    command = ["-m", "jaxvl.bench.compile", f"--layers={LAYERS}", f"--json={path}"]
    subprocess.run([sys.executable, *command], env=environment, check=True, timeout=1200)
    scanned, unrolled = json.loads(path.read_text())["rows"]
    assert unrolled["processor_seconds"] > 5, "too short to be measured"
    assert scanned["processor_share"] <= MOST
