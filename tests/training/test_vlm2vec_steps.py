"""VLM2Vec in training: GradCache's gradient with LoRA and its dropout, and the batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_accumulation import compiled
from test_step import batch, tasks, tokenizer

from jaxvl.data.samplers.per_cluster import PerCluster
from jaxvl.data.sources.demo.shapes import Shapes
from jaxvl.sharding.chunks import join, take
from jaxvl.sharding.mesh import make_mesh
from jaxvl.training.build import build_model, fresh_state, make_forward, make_tasks
from jaxvl.training.compile import make_update
from jaxvl.training.step import Part, _differentiate, split_keys

CHUNKS = 2
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
LORA = dict(name="lora", paths="attention/|mlp/", rank=8, dropout=0.5)


@functools.cache
def parts(chunks, dropout):
    experiment = tiny.experiment(
        adapters=dict(low=dict(LORA, dropout=dropout)),
        **tasks(objectives=dict(vlm2vec=1.0), microbatches=chunks),
    )
    mesh = make_mesh(experiment.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        model = build_model(experiment, tokenizer())
        fresh, *_ = fresh_state(experiment, model, mesh)
        update = make_update(experiment, model)
        forward = make_forward(experiment, make_tasks(experiment)["pairs"], model)
        state = fresh()
    noise = lambda path, x: x + 0.1 * np.random.default_rng(len(path)).normal(size=x.shape)
    moved = {p: noise(p, x).astype(jnp.float32) for p, x in state.params.items()}
    learns = frozenset(p for p, yes in update.trained.items() if yes)
    return Part(forward, 1.0, learns), dataclasses.replace(state, params=moved)


@functools.cache
def differentiate(chunks, dropout):
    part, _ = parts(chunks, dropout)
    return quick_jit(lambda state, b, k: _differentiate(part, state, b, split_keys(k)))


def gradient(chunks, dropout, key=0):
    _, state = parts(chunks, dropout)
    loss, _, slope, _ = differentiate(chunks, dropout)(state, batch(), jax.random.key(key))
    return loss, slope


def in_turn(part, state, values, key):
    """Loss and gradient straight through all chunks at once: nothing is computed twice."""
    keys = split_keys(key)
    context = part.forward.context(state.step, keys.objective)
    learns = {p: v for p, v in state.params.items() if p in part.learns}

    def loss_of(learns):
        found = []
        for i, model_key in enumerate(jax.random.split(keys.model, CHUNKS)):
            rows = jax.tree.map(lambda x, i=i: take(x, i, CHUNKS), values)
            of_chunk = dataclasses.replace(keys, model=model_key)
            params = {**state.params, **learns}
            outputs, _ = part.forward.outputs(params, {}, rows, of_chunk, context.progress)
            found.append(outputs)
        whole = {name: join(jnp.stack([o[name] for o in found])) for name in ("image", "text")}
        return part.task.loss(whole, values, state.objective_state, context)[0]

    return jax.value_and_grad(loss_of)(learns)


def same(got, want, tolerance=1e-5):
    assert got.keys() == want.keys() and all("/adapter/low/" in path for path in got)
    for path, slope in want.items():
        most = float(jnp.abs(slope).max())
        np.testing.assert_allclose(got[path], slope, rtol=0, atol=tolerance * most, err_msg=path)


@pytest.mark.slow
def test_gradcache_gives_the_gradient_of_the_whole_batch():
    loss, slope = gradient(CHUNKS, dropout=0.0)
    want_loss, want = gradient(1, dropout=0.0)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
    same(slope, want)
    assert max(float(jnp.abs(s).max()) for s in want.values()) > 1e-3


@pytest.mark.slow  # a smaller model: `test_the_gradient_is_that_of_the_chunks_in_turn`
def test_dropout_is_replayed():
    """The second pass of a chunk drops what the first one did."""
    loss, slope = gradient(CHUNKS, dropout=0.5)
    part, state = parts(CHUNKS, dropout=0.5)
    want_loss, want = quick_jit(functools.partial(in_turn, part))(state, batch(), jax.random.key(0))
    np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
    same(slope, want)
    other, _ = gradient(CHUNKS, dropout=0.5, key=1)
    assert abs(float(other - loss)) > 1e-3, "nothing is dropped"


def test_parts_of_a_batch_are_of_one_kind():
    source = Shapes(size=16, variants=1, split="train_a").open(lambda text: None)
    order = PerCluster("shape", batch=16).order(source, seed=0)
    rows = order(np.arange(order.epoch // 64 * 64)).reshape(-1, 4, 16)
    shapes = np.asarray(source.column("shape"))[rows]
    alike = (shapes == shapes[..., :1]).all(-1)
    assert alike.mean() > 0.8, "all but what is left over of each shape"
    assert len({part[0] for whole in shapes for part in whole}) == 8


@pytest.mark.slow
def test_memory_does_not_grow_with_the_batch():
    """But for the embeddings and the rows that the loader gives; against a step without chunks."""
    how = dict(objectives=dict(vlm2vec=1.0), adapters=dict(low=dict(LORA, dropout=0.1)))
    used = {
        (rows, chunks): compiled(rows, chunks, **how)[0].memory_analysis().temp_size_in_bytes
        for rows, chunks in ((2048, 64), (4096, 128), (2048, 1), (4096, 1))
    }
    chunked = used[4096, 128] - used[2048, 64]
    whole = used[4096, 1] - used[2048, 1]
    print(used)
    assert chunked < 0.2 * whole, used
