"""The benchmark of a step, and of its time by kind of operation, on small programs."""

import json
import os

import jax
import jax.numpy as jnp
import pytest

from jaxvl.bench import step as bench
from jaxvl.bench.harness import isolated
from jaxvl.bench.kinds import kind_of, time_by_kind
from jaxvl.hlo.program import read


def test_time_by_kind_counts_each_run_of_a_loop():
    """Four products of matrices in a loop, one by head, a concatenation, a transposed copy, a
    gather."""

    def f(w, x, ids):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)
        rows = x.reshape(8, 16, 128)
        by_head = jnp.einsum("bij,bkj->bik", rows, rows)
        return by_head, jnp.concatenate([jnp.sin(x), x[::-1]]), x.T.copy(), jnp.take(x, ids, 0)

    shapes = ((4, 128, 128), (128, 128))
    args = [*(jnp.ones(shape) for shape in shapes), jnp.arange(0, 128, 7)[::-1]]
    compiled = jax.jit(f).lower(*args).compile()
    kinds = {kind.name: kind for kind in time_by_kind(compiled, lambda: compiled(*args), steps=2)}
    assert kinds["products of matrices"].calls == 4
    assert kinds["products by head"].calls == kinds["concatenations"].calls == 1
    assert kinds["gathers and scatters"].calls == 1 and kinds["copies and transposes"].calls >= 1
    assert all(kind.seconds > 0 and kind.longest for kind in kinds.values())


@pytest.mark.parametrize(
    "f, kind",
    [
        (lambda x: x.sum(0), "reductions"),
        (lambda x: x.T.copy(), "copies and transposes"),
        (lambda x: x[2:5], "slices"),
        (lambda x: x[2:5] + 1, "elementwise"),
        (lambda x: jnp.tanh(x), "elementwise"),
        (lambda x: x @ x, "products of matrices"),
    ],
)
def test_kinds(f, kind):
    program = read(jax.jit(f).lower(jnp.ones((8, 8))).compile())
    found = [kind_of(o, program) for o in program.entry.operations if o.opcode != "parameter"]
    assert any(name.startswith(kind) for name in found)


def allocator_of():
    return lambda: os.environ.get("GLIBC_TUNABLES")


@pytest.mark.parametrize("value", ["glibc.malloc.hugetlb=1", None])
def test_a_process_begins_with_its_own_allocator(monkeypatch, value):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    with isolated(allocator_of, environment={"GLIBC_TUNABLES": value}) as take:
        assert take() == value
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=0"


@pytest.mark.slow
def test_a_small_step_under_both_allocators(tmp_path, monkeypatch):
    """In processes of their own, whose allocator alone is told."""
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    path = tmp_path / "found.json"
    found = bench.main(["--variant=S/32", "--batch=2", "--rounds=1", f"--json={path}"])
    assert list(found["allocators"]) == [bench.HUGE, bench.PLAIN]
    for figures in found["allocators"].values():
        assert len(figures["seconds"]["jaxvl"]) == 1 and figures["seconds"]["jaxvl"][0] > 0
        assert 2**28 < figures["peak_bytes"]["jaxvl"] < 2**33
    assert json.loads(path.read_text()) == found


def test_a_small_step_by_kind():
    found = bench.main(["--variant=S/32", "--batch=2", "--rounds=1", "--by-kind"])
    kinds = {kind["name"]: kind for kind in found["kinds"]}
    # A layer: six products forward, twelve backward; 24 layers, and what stands around them.
    assert 24 * 18 <= kinds["products of matrices"]["calls"] <= 24 * 18 + 12
    assert kinds["products by head"]["calls"] == 24 * 6
