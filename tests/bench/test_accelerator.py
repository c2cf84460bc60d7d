"""The benchmark of an accelerator, in its tiny form on a CPU; and whether it notices what is wrong."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxvl.bench import accelerator
from jaxvl.bench.accelerator_parts import (
    attention,
    beside_open_clip,
    core,
    numbers,
    steps,
    tiles,
)
from jaxvl.bench.accelerator_parts.part import TINY, Deadline
from jaxvl.bench.accelerator_parts.verdict import judge
from jaxvl.kernels.contrastive import sizes


def test_all_parts_but_the_steps_run_and_the_kernels_agree(tmp_path, capsys):
    path = tmp_path / "found.json"
    blocks = tmp_path / "blocks.json"
    parts = "numbers,core,tiles,open_clip,attention"
    argv = ["--tiny", f"--parts={parts}", f"--json={path}", f"--blocks={blocks}"]
    assert accelerator.main(argv) == 0
    found = json.loads(path.read_text())["parts"]
    assert list(found) == parts.split(",")
    assert not any("failed" in part or part["cut"] for part in found.values())
    assert not any("failed" in row for part in found.values() for row in part["rows"])
    skipped = {
        "core: inf_cl: needs a CUDA GPU, torch and inf-cl",
        "open_clip: CLIP ViT-B/16: needs a CUDA GPU, torch and open_clip",
        "open_clip: CLIP ViT-L/14: needs a CUDA GPU, torch and open_clip",
        "attention: flash: needs a TPU",
        "attention: cudnn: needs a GPU",
    }
    assert set(judge(found).skipped) == skipped
    printed = capsys.readouterr().out.splitlines()
    assert {line.removeprefix("skipped: ") for line in printed if "skipped: " in line} == skipped
    assert "all kernels agree with float64" in printed
    rows = found["numbers"]["rows"]
    kernels = {"pallas_tpu", "pallas_hopper", "pallas_triton", "chunked"}
    assert {row["kernel"] for row in rows} == kernels
    assert len(rows) == 14 and all(row["passed"] for row in rows)
    losses = [row["loss"] for row in found["core"]["rows"] if "loss" in row]
    np.testing.assert_allclose(losses, losses[0], rtol=2e-2)
    assert len(losses) == 5
    table = json.loads(blocks.read_text())
    assert sizes._read(str(blocks)) == table  # it is what the kernels read
    (entries,) = [chip["pallas_tpu"] for chip in table.values()]
    assert {entry["pass"] for entry in entries} == {"forward", "backward"}


@pytest.mark.slow
def test_steps_of_five_systems():
    rows = list(steps.run(TINY, Deadline(1e9)))
    assert [row["system"] for row in rows] == list(steps.SYSTEMS)
    for row in rows:
        assert "failed" not in row, row
        assert np.isfinite(row["loss"]) and row["examples_per_second"] > 0


def test_a_step_of_clip():
    step = steps._measured("CLIP ViT-B/16", 8, TINY, 1e12)
    assert np.isfinite(step["loss"])
    np.testing.assert_allclose(step["mfu"], step["tflop"] / step["seconds"], rtol=1e-6)


@pytest.mark.parametrize("kind", numbers.KINDS)
def test_closed_forms_are_those_of_autodiff_in_float64(kind):
    u, v = numbers.unit_rows(12, 5, "float32")

    def loss(u, v, log_scale, bias):
        logits = jnp.exp(log_scale) * u @ v.T
        if kind == "softmax":
            diagonal = jnp.diag(logits)
            both = jax.nn.logsumexp(logits, 0) + jax.nn.logsumexp(logits, 1)
            return (both / 2 - diagonal).mean()
        logits = logits + bias
        return (jax.nn.softplus(logits).sum() - jnp.trace(logits)) / len(u)

    with jax.enable_x64(True):
        arguments = [jnp.asarray(np.float64(x)) for x in (u, v, numbers.LOG_SCALE, numbers.BIAS)]
        value, gradients = jax.value_and_grad(loss, (0, 1, 2, 3))(*arguments)
    want = numbers.exact(u, v, kind)
    for name, got in zip(numbers.NAMES, (value, *gradients)):
        np.testing.assert_allclose(want[name], got, atol=1e-12, err_msg=name)


def test_gradients_of_attention_are_those_of_autodiff():
    rng = np.random.default_rng(0)
    q, k, v, slope = (rng.standard_normal((2, 5, 3, 4)) for _ in range(4))
    out, pull = jax.vjp(jax.nn.dot_product_attention, *(jnp.float32(x) for x in (q, k, v)))
    for got, want in zip((out, *pull(jnp.float32(slope))), attention.exact(q, k, v, slope)):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_a_wrong_kernel_is_told(monkeypatch):
    right = numbers.contrastive_loss
    monkeypatch.setattr(
        numbers, "contrastive_loss", lambda *args, **options: 1.001 * right(*args, **options)
    )
    monkeypatch.setattr(numbers, "kernels", lambda sizes, dtype: {"chunked": "chunked"})
    console = Console(quiet=True)
    result = accelerator.measure(["numbers"], TINY, 1e9, None, console)
    wrong = judge(result["parts"]).wrong
    assert "numbers: chunked (softmax, float32, 128): off by more than is allowed" in wrong


def test_a_part_that_fails_leaves_the_others_theirs(monkeypatch, tmp_path):
    def broken(sizes, deadline):
        yield {"implementation": "chunked", "seconds": 1.0}
        raise ZeroDivisionError("a bug")

    monkeypatch.setitem(accelerator.PARTS, "core", (broken, 0.5))
    path = tmp_path / "found.json"
    parts = ["core", "open_clip"]
    result = accelerator.measure(parts, TINY, 1e9, path, Console(quiet=True))
    assert judge(result["parts"]).wrong == ("core: ZeroDivisionError: a bug",)
    found = json.loads(path.read_text())["parts"]
    assert found["core"]["rows"] == [{"implementation": "chunked", "seconds": 1.0}]
    assert "ZeroDivision" in found["core"]["failed"]
    assert found["open_clip"]["rows"]


def test_time_that_is_up_ends_a_part_and_is_told():
    result = accelerator.measure(["numbers"], TINY, -1.0, None, Console(quiet=True))
    assert result["parts"]["numbers"]["rows"] == []
    assert judge(result["parts"]).wrong == ("numbers: nothing was measured",)


def broken(*args, **options):
    raise RuntimeError("no such instruction")


@pytest.mark.parametrize(
    "part, module, function, subjects",
    [
        ("numbers", numbers, "contrastive_loss", 14),
        ("core", core, "_ours", 5),
        ("tiles", tiles, "_step", 2),
        ("steps", steps, "_measured", 5),
        ("attention", attention, "_measured", 2),
    ],
)
def test_what_fails_at_every_size_is_told(monkeypatch, capsys, part, module, function, subjects):
    """Exceptions of single rows, of which the part itself knows nothing."""
    monkeypatch.setattr(module, function, broken)
    assert accelerator.main(["--tiny", f"--parts={part}"]) == 1
    printed = capsys.readouterr().out
    told = [line for line in printed.splitlines() if line.startswith("WRONG: ")]
    assert len(told) == subjects
    for line in told:
        assert line.startswith(f"WRONG: {part}: ")
        assert line.endswith(": RuntimeError: no such instruction")
    assert "agree with float64" not in printed


def test_open_clip_that_crashes_is_told(monkeypatch, capsys):
    """On a GPU with torch and open_clip, as far as the part can tell."""
    monkeypatch.setattr(beside_open_clip, "platform", lambda: "gpu")
    monkeypatch.setattr(beside_open_clip, "NEEDED", ())
    monkeypatch.setattr(beside_open_clip, "isolated", broken)
    assert accelerator.main(["--tiny", "--parts=open_clip"]) == 1
    told = capsys.readouterr().out
    for system in beside_open_clip.MODELS:
        assert f"WRONG: open_clip: {system}: RuntimeError: no such instruction" in told


def test_a_batch_that_has_no_room_is_told_and_is_no_fault(monkeypatch, capsys):
    def measured(system, batch, sizes, peak):
        if batch > 128:
            raise RuntimeError("RESOURCE_EXHAUSTED: 1 TiB")
        return {"seconds": 1.0}

    monkeypatch.setattr(steps, "_measured", measured)
    assert accelerator.main(["--parts=steps"]) == 0
    told = capsys.readouterr().out
    assert "failed at some sizes: steps: CLIP ViT-B/16: out of memory" in told
    assert "WRONG" not in told and "agree with float64" not in told


def test_tiles_are_for_accelerators(capsys):
    assert accelerator.main(["--parts=tiles"]) == 0
    assert "skipped: tiles: all: needs a GPU or TPU" in capsys.readouterr().out


def test_one_implementation_that_fails_among_others_is_told():
    rows = [{"implementation": "xla", "seconds": 1.0}, {"implementation": "cudnn", "failed": "no"}]
    verdict = judge({"attention": {"rows": rows, "cut": False}})
    assert verdict.wrong == ("attention: cudnn: no",) and not verdict.failed


def test_the_fastest_tile_counts():
    row = {"kernel": "k", "pass": "forward", "dtype": "bfloat16", "width": 512}
    rows = [
        {**row, "tile": {"rows": 1}, "seconds": 3.0},
        {**row, "tile": {"rows": 2}, "seconds": 1.0},
        {**row, "tile": {"rows": 3}, "seconds": 2.0},
        {**row, "tile": {"rows": 4}, "failed": "out of memory"},
    ]
    (entry,) = tiles.table(rows, "chip")["chip"]["k"]
    assert entry["tile"] == {"rows": 2}


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        accelerator.main(["--parts=speed"])
    assert "'speed' is not known; must be some of numbers, core" in capsys.readouterr().err
