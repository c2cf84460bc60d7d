"""Encoders in chunks: what the step holds of a batch, and what a chunk meets of the model's
state."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxvl.objectives import OBJECTIVES, Loss, Objective
from jaxvl.sharding.chunks import join, take
from jaxvl.sharding.mesh import batch_sharding, make_mesh
from jaxvl.training.build import (
    Vocabulary,
    build_model,
    fresh_state,
    make_forward,
    make_tasks,
)
from jaxvl.training.checkpoint import abstract_state
from jaxvl.training.compile import make_part, make_update
from jaxvl.training.forward import split_keys
from jaxvl.training.step import _chunked, make_step

CHUNK = 32
EMBEDDING = 16  # width of the miniature's embedding space


@OBJECTIVES.register("means_apart")
@dataclasses.dataclass(frozen=True)
class MeansApart(Objective):
    """Reads every row of the batch, and takes no more memory than they do; the tile of a
    contrastive loss grows up to 1,024 rows."""

    reads = ("image", "text")
    batch_keys = ("group_id",)

    def __call__(self, outputs, batch, state, context):
        assert "image" not in batch
        apart = outputs["image"].mean(0) - outputs["text"].mean(0)
        return Loss(jnp.square(apart).sum() + 0 * batch["group_id"].sum()), state


def compiled(rows, chunks, objectives=None, **changes):
    """The step of the miniature with batches of `rows`, and the bytes of a row as the loader gives
    it; `changes`: of the config."""
    pairs = tiny.config().to_dict()["tasks"]["pairs"]
    pairs |= dict(
        data={**pairs["data"], "batch": rows},
        microbatches=chunks,
        objectives=objectives or dict(means_apart=1.0),
    )
    experiment = tiny.experiment(tasks=dict(pairs=pairs), mesh=dict(data=1), **changes)
    mesh = make_mesh(experiment.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        model = build_model(experiment, Vocabulary(64, 0, 1))
        _, shapes, shardings = fresh_state(experiment, model, mesh)
        abstract = abstract_state(shapes, shardings)
        task = make_tasks(experiment)["pairs"]
        where = batch_sharding(mesh)
        batch = {
            k: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where)
            for k, s in task.config.data.shapes.items()
        }
        update = make_update(experiment, model)
        part = make_part(make_forward(experiment, task, model), 1.0, update, abstract, batch)
        step = make_step([part], update, ["pairs"])
        numbers = jax.ShapeDtypeStruct((1,), np.int32)
        program = jax.jit(step, donate_argnums=0).lower(abstract, (batch,), numbers).compile()
    return program, sum(s.size * s.dtype.itemsize for s in batch.values()) // rows


@pytest.fixture(scope="module")
def programs():
    """Programs of batches in chunks of the same size, by rows; and bytes of a row."""
    made = {rows: compiled(rows, rows // CHUNK) for rows in (512, 2048)}
    return {rows: program for rows, (program, _) in made.items()}, made[512][1]


def test_memory_does_not_grow_with_the_batch(programs):
    """But for what objectives read: the two embeddings and their gradients, as stacked by the loop
    and as joined; and ids."""
    by_rows, row = programs
    used = {rows: program.memory_analysis().temp_size_in_bytes for rows, program in by_rows.items()}
    read = 2 * EMBEDDING * 4
    assert row + 5 * read < 4 * 16 * 16 * 4, "a float picture would be seen"
    assert used[2048] - used[512] <= (2048 - 512) * (row + 5 * read), used


def test_scopes_are_in_the_program(programs):
    by_rows, _ = programs
    names = set(re.findall(r'op_name="([^"]*)"', by_rows[512].as_text()))
    for scope in (
        "prepare",
        "model",
        "image",
        "text",
        "objectives/means_apart",
        "optimiser",
        "average",
    ):
        assert any(f"{scope}/" in name or f"({scope})" in name for name in names), scope
    backward = [name for name in names if "transpose" in name]
    assert any("image" in name for name in backward) and any("text" in name for name in backward)


def test_chunks_are_dealt_and_joined():
    x = jnp.arange(24).reshape(12, 2)
    chunks = [take(x, i, 3) for i in range(3)]
    np.testing.assert_array_equal(chunks[1], x[1::3])
    np.testing.assert_array_equal(join(jnp.stack(chunks)), x)


# --------------------------------------------------------------------------------------------------
# A model whose output in training depends on what it remembers, and on what is dropped


def remembering(params, rest, rows, key):
    """Counts its calls, and adds to each row what it has made of the rows before, through which
    gradients go; half of what it makes is dropped."""
    y = jnp.tanh(rows["x"] @ params["w"] * (1 + 0.1 * rest["calls"]) + rest["memory"])
    y = y * jax.random.bernoulli(key, 0.5, y.shape)
    memory = 0.5 * rest["memory"] + y.mean(0) * params["scale"]
    return {"y": y, "scale": params["scale"]}, {"calls": rest["calls"] + 1, "memory": memory}


def contrast(outputs):
    """Every row with every other, and a scalar output."""
    y = outputs["y"]
    return jnp.square(y @ y.T).mean() * outputs["scale"] + jnp.sin(y).sum(), {"mean": y.mean()}


def test_the_gradient_is_that_of_the_chunks_in_turn():
    """Oracle: automatic differentiation straight through the loop, in float64. A chunk's second
    pass drops what its first one did."""
    with jax.enable_x64(True):
        n = 4
        draw = np.random.default_rng(0).normal
        params = {"w": jnp.asarray(draw(size=(5, 3))), "scale": jnp.asarray(0.7)}
        rest = {"calls": jnp.int32(2), "memory": jnp.asarray(draw(size=3))}
        x = jnp.asarray(draw(size=(8, 5)))
        keys = jax.random.split(jax.random.key(0), n)

        def in_turn(params):
            state = rest
            parts = []
            for i in range(n):
                outputs, state = remembering(params, state, {"x": x[i::n]}, keys[i])
                parts.append(outputs["y"])
            y = jnp.stack(parts, axis=1).reshape(8, 3)  # rows as they were
            loss, extra = contrast({"y": y, "scale": params["scale"]})
            return loss, (extra, state)

        (want, (extra, last)), gradient = jax.value_and_grad(in_turn, has_aux=True)(params)
        loss, figures, got, after = jax.jit(
            lambda p: _chunked(n, remembering, contrast, p, rest, {"x": x}, jax.random.key(0))
        )(params)
        assert got["w"].dtype == jnp.float64
        np.testing.assert_allclose(loss, want, rtol=1e-12)
        np.testing.assert_allclose(figures["mean"], extra["mean"], rtol=1e-12)
        for name in params:
            np.testing.assert_allclose(got[name], gradient[name], rtol=1e-11, err_msg=name)
        assert after["calls"] == 6
        np.testing.assert_allclose(after["memory"], last["memory"], rtol=1e-12)


def test_what_rows_draw_is_apart_from_what_chunks_draw():
    keys = split_keys(jax.random.key(3))
    chunks = [jax.random.fold_in(keys.model, chunk) for chunk in range(8)]
    drawn = [jax.random.key_data(k).tobytes() for k in (keys.rows, keys.model, *chunks)]
    assert len(set(drawn)) == 10
