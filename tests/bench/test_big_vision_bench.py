"""big_vision beside ours: arguments and table without a checkout, and its own step with one.

JAXVL_BIG_VISION=/path/of/a/clone python -m pytest tests/bench/test_big_vision_bench.py
"""

import dataclasses
import io
import json
import math
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxvl.bench import big_vision as bench
from jaxvl.bench import big_vision_side as side
from jaxvl.config import ConfigError
from jaxvl.planning.figures import StepBytes
from jaxvl.training.cost import count_flops

CHECKOUT = os.environ.get("JAXVL_BIG_VISION")
MODULE = "import jax\n"


def make_checkout(folder, without=None, utils=MODULE):
    for file in side.FILES:
        path = folder / "big_vision" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(utils if file == "utils.py" else MODULE)
    if without:
        (folder / "big_vision" / without).unlink()
    return folder


def test_a_checkout_must_have_the_files(tmp_path):
    side.check_checkout(make_checkout(tmp_path / "whole"))
    folder = make_checkout(tmp_path / "part", without=side.SHARDING)
    with pytest.raises(ConfigError, match="lacks big_vision/sharding.py; must be a clone of https"):
        side.check_checkout(folder)


@pytest.mark.parametrize("line", ["import {}.io as io", "from {} import io"])
def test_a_package_that_its_files_import_must_be_there(tmp_path, monkeypatch, line):
    folder = make_checkout(tmp_path, utils=line.format("absent_package"))
    with pytest.raises(ConfigError, match="utils.py imports absent_package, .* pip install absent"):
        side.check_checkout(folder)
    monkeypatch.setitem(side.PACKAGES, "absent_package", "its-name")
    with pytest.raises(ConfigError, match="not installed: pip install its-name$"):
        side.check_checkout(folder)


def test_what_only_a_function_imports_need_not_be_there(tmp_path):
    side.check_checkout(make_checkout(tmp_path, utils="def f():\n  import absent_package\n"))


@pytest.fixture
def forgotten(monkeypatch):
    """Modules called big_vision are gone afterwards, as is what led to them."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "big_vision"]:
        del sys.modules[name]


@pytest.mark.usefixtures("forgotten")
def test_another_big_vision_is_not_taken_for_the_checkout(tmp_path, monkeypatch):
    first = tmp_path / "first"
    make_checkout(first)
    (first / "big_vision" / "__init__.py").touch()  # a package hides folders without one
    monkeypatch.syspath_prepend(str(first))
    monkeypatch.setattr(side, "MODULES", (side.VIT,))
    checkout = make_checkout(tmp_path / "second")
    with pytest.raises(ConfigError, match=f"{first}.*vit.py is found instead of the one of"):
        side.load(checkout)


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "--checkout: is required for the side big_vision"),
        (["--sides=chunks,half"], "--sides: 'half' is not valid; must be of big_vision, full"),
        (["--sides=full", "--topology=cpu:8", "--batch=12"], "--batch: 12 must divide by 8 chips"),
        (["--sides=full", "--topology=cpu:8", "--fsdp=3"], "--fsdp: 3 must divide the 8 chips"),
        (
            ["--sides=full", "--topology=cpu:8", "--variant=Q/16"],
            "model.image.variant: 'Q' is not a known",
        ),
        (
            ["--checkout=absent", "--topology=cpu:8"],
            "--checkout: absent lacks big_vision/models/proj/image",
        ),
    ],
)
def test_bad_arguments_end_in_one_line(argv, message, capsys):
    with pytest.raises(SystemExit):
        bench.main(argv)
    assert f": error: {message}" in capsys.readouterr().err.splitlines()[-1]


def test_both_sides_have_the_sizes_of_the_config():
    sizes = side.Sizes.of(bench.experiment_of("L/16", 4096, "chunks", 16), "L/16")
    assert sizes == side.Sizes(
        variant="L/16",
        batch=4096,
        image_size=224,
        length=64,
        vocabulary=32_000,
        temperature=10.0,
        bias=-10.0,
        lr=1e-3,
        b2=0.95,
        weight_decay=1e-4,
        warmup=10_000,
        steps=275_000,
    )


def test_each_side_of_ours_recomputes_and_shards_as_it_is_called():
    for name, remat, shards in (("full", "full", 1), ("chunks", "chunks", 1)):
        experiment = bench.experiment_of("B/16", 64, name, 16)
        assert experiment.model.image.remat == experiment.model.text.remat == remat
        assert experiment.mesh.fsdp == shards
    assert bench.experiment_of("B/16", 64, "chunks+fsdp", 16).mesh.fsdp == 16


def test_collectives_of_a_kind_are_summed():
    found = [("all-reduce", 2, 24, 2.0 * 2**20), ("all-gather", 1, 1, 2**19)]
    kinds = bench.by_kind([*found, ("all-reduce", 1, 1, 2**20)])
    assert kinds == {
        "all-reduce": {"number": 3, "times": 25, "sent_mib": 3.0},
        "all-gather": {"number": 1, "times": 1, "sent_mib": 0.5},
    }


def test_the_table_and_the_file(tmp_path, monkeypatch, capsys):
    kinds = {"all-reduce": {"number": 7, "times": 40, "sent_mib": 1169.2}}
    peer = dict(temporaries_gib=5.0, above_arguments_gib=4.0, traffic_gib=200.0, tflop=40.0)
    ours = dict(temporaries_gib=3.0, above_arguments_gib=1.0, traffic_gib=100.0, tflop=40.0)
    rows = [
        {"side": "big_vision, fsdp", "failed": "refused: needs 23.3 GiB of 15.8"},
        {"side": "big_vision, replicated", **peer, "collectives": kinds, "seconds": 9.0},
        {"side": "jaxvl, chunks", **ours, "collectives": {}, "seconds": 8.0},
    ]
    monkeypatch.setattr(bench, "rows_of", lambda args, log: rows)
    path = tmp_path / "found.json"
    assert bench.main(["--sides=full", "--variant=L/16", f"--json={path}"]) == rows
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "SigLIP L/16, 4,096 rows on v5e:4x4"
    split = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    cells = {name: values for name, *values in split}
    assert cells["temporaries GiB"] == ["", "5.00", "3.00 (0.60 x)"]
    assert cells["peak less arguments GiB"] == ["", "4.00", "1.00 (0.25 x)"]
    assert cells["through memory GiB"] == ["", "200.00", "100.00 (0.50 x)"]
    assert cells["TFLOP"] == ["", "40.00", "40.00 (1.00 x)"]
    assert cells["all-reduce"] == ["", "7, 40, 1,169", ""]
    assert cells[""] == ["refused: needs 23.3 GiB of 15.8", "", ""]
    written = json.loads(path.read_text())
    assert written["rows"] == rows and written["variant"] == "L/16" and written["batch"] == 4096


@pytest.fixture(scope="module")
def library():
    if not CHECKOUT:
        pytest.skip("JAXVL_BIG_VISION names no checkout of big_vision")
    return side.load(pathlib.Path(CHECKOUT))


@pytest.fixture(scope="module")
def sizes():
    return side.Sizes.of(bench.experiment_of("Ti/16", 16, "full", 1), "Ti/16")


def needed_flops(sizes, width, depth):
    """Closed form: a layer is done forwards twice, the second time without its last product, which
    no gradient reads, and backwards for twice a forward."""
    layer = lambda tokens: 2 * tokens * (4 * 12 - 4) * width**2 + 4 * 4 * tokens**2 * width
    patches = (sizes.image_size // 16) ** 2
    towers = depth * (layer(patches) + layer(sizes.length))
    embedding = 2 * 2 * patches * 3 * 16**2 * width  # its input has no gradient
    pooler = 3 * 2 * (patches * 2 + 10) * width**2 + 3 * 4 * patches * width
    head = 3 * 2 * width**2
    pairs = 3 * 2 * sizes.batch * width
    return sizes.batch * (towers + embedding + pooler + head + pairs)


def test_its_step_does_what_siglip_needs(library, sizes):
    step = side.trace(library, sizes, "cpu:8", "replicated")
    width, depth = 192, 12
    flops = count_flops(step.traced.jaxpr)
    assert math.isclose(flops, needed_flops(sizes, width, depth), rel_tol=0.01)
    params = sum(leaf.size for leaf in jax.tree.leaves(step.state["params"]))
    layer = 12 * width**2 + 13 * width
    ends = 16**2 * 3 * width + sizes.vocabulary * width
    assert math.isclose(params, 2 * depth * layer + ends, rel_tol=0.1)
    moments = [leaf for leaf in jax.tree.leaves(step.state["opt"]) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * params
    # big_vision makes the table of positions in the activations' dtype, and its moments in its own.
    positions = 14**2 * width
    assert sum(leaf.size for leaf in moments if leaf.dtype == jnp.float32) == 2 * (
        params - positions
    )


def test_its_own_rules_shard_its_state(library, sizes):
    whole = side.trace(library, sizes, "cpu:8", "replicated")
    parted = side.trace(library, sizes, "cpu:8", "fsdp")
    assert all(s.is_fully_replicated for s in jax.tree.leaves(whole.shardings))
    embedding = parted.shardings["params"]["txt"]["Embed_0"]["embedding"]
    assert embedding.spec == jax.sharding.PartitionSpec("data", None)
    assert parted.shardings["params"]["t"].is_fully_replicated


def test_its_compiled_step_sums_all_gradients(library, sizes):
    row = bench.compiled_peer(pathlib.Path(CHECKOUT), sizes, "cpu:8", "replicated")
    gradients = 4 * row["parameters"]
    assert row["collectives"]["all-reduce"]["sent_mib"] >= 2 * 7 / 8 * gradients / 2**20
    assert row["arguments_gib"] >= 3 * gradients / 2**30
    assert row["temporaries_gib"] > 0 and row["traffic_gib"] > 3 * gradients / 2**30


def test_its_loss_is_the_mean_over_pictures_of_all_pairs(library, sizes):
    """Against float64 from its own embeddings; the first step of the warm-up moves nothing."""
    sizes = dataclasses.replace(sizes, batch=8, image_size=32, length=4, vocabulary=50)
    rng = np.random.default_rng(0)
    image = rng.standard_normal((8, 32, 32, 3), np.float32)
    labels = rng.integers(0, 50, (8, 4)).astype(np.int32)
    model = side.make_model(library, sizes)
    params = model.init(jax.random.key(0), image, labels)["params"]
    squares = [np.sum(np.asarray(p, np.float64) ** 2) for p in jax.tree.leaves(params)]
    u, v, _ = model.apply({"params": params}, image, labels)
    logits = 10 * np.asarray(u, np.float64) @ np.asarray(v, np.float64).T - 10
    signs = 2 * np.eye(8) - 1
    expected = np.sum(np.logaddexp(0, -signs * logits)) / 8

    optimiser = side.make_optimiser(library, sizes, params)
    step = side.trace(library, sizes, "cpu:8", "replicated")
    state = jax.device_put({"params": params, "opt": optimiser.init(params)}, step.shardings)
    batch = {"image": image, "labels": labels}
    _, metrics = step.traced.lower().compile()(state, jax.random.key(0), batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))  # it was donated
    np.testing.assert_allclose(metrics["training_loss"], expected, rtol=1e-3)
    np.testing.assert_allclose(metrics["l2_params"], np.sqrt(sum(squares)), rtol=1e-3)
    assert metrics["l2_updates"] == 0 and metrics["l2_grads"] > 0


def test_a_peak_that_no_compiler_tells_is_not_made_up():
    """As on CPUs; the other figures stay."""
    size = StepBytes(state=2**30, batch=0, temporaries=2**31, output=0, code=0, peak=None)
    row = bench.memory_of(size)
    assert row == dict(temporaries_gib=2.0, above_arguments_gib=None, arguments_gib=1.0)
    rows = [dict(row, side=name, traffic_gib=1.0, tflop=1.0) for name in ("one", "other")]
    console = Console(width=bench.WIDTH, record=True, file=io.StringIO())
    console.print(bench.table(rows, "title"))
    [line] = [line for line in console.export_text().splitlines() if "peak" in line]
    assert line.count("not told") == 2
