"""The benchmark of compilation, on a small tower."""

import json

import jax

from jaxvl.bench import compile as bench


def test_a_scanned_tower_is_the_smaller_program(tmp_path):
    path = tmp_path / "found.json"
    small = ["--layers=6", "--width=16", "--heads=2", "--rows=2", "--tokens=4", "--rounds=1"]
    before = jax.config.jax_enable_compilation_cache
    rows = bench.main([*small, "--dtype=float32", f"--json={path}"])
    assert [row["layers"] for row in rows] == ["scanned", "unrolled"]
    scanned, unrolled = rows
    assert scanned["instructions"] < unrolled["instructions"] / 2
    assert unrolled["share"] == 1 and scanned["share"] == scanned["seconds"] / unrolled["seconds"]
    for row in rows:
        assert row["seconds"] == row["trace_seconds"] + row["compile_seconds"] > 0
    written = json.loads(path.read_text())
    assert written["rows"] == rows and written["machine"]["cores"]
    assert jax.config.jax_enable_compilation_cache == before
