"""What tests of objectives share: a call, and checks of values and gradients against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvl.objectives import Context
from jaxvl.sharding.mesh import MeshConfig, batch_sharding, make_mesh


def unit(x):
    """Rows of length 1, float64."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embeddings(*shapes, seed=0):
    """Unit rows float64 of each shape."""
    rng = np.random.default_rng(seed)
    return [unit(rng.normal(size=shape)) for shape in shapes]


def call(objective, outputs, batch, context=None):
    """The loss of an objective that keeps no state."""
    assert not objective.keeps_state
    loss, state = objective(outputs, batch, {}, context)
    assert state == {}
    assert all(np.shape(m) == () for m in loss.metrics.values())
    return loss


def low(tree):
    """A tree of float64 and integers in float32 and int32."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32 if np.asarray(x).dtype.kind == "f" else jnp.int32),
        tree,
    )


def log_softmax(logits, axis):
    """Float64 [..., N]."""
    top = logits.max(axis, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis, keepdims=True))


def nce(u, v, scale, smoothing=0.0):
    """CLIP's loss of float64 rows."""
    logits = scale * u @ v.T
    target = (1 - smoothing) * np.eye(len(u)) + smoothing / len(u)
    rows = -(target * log_softmax(logits, 1)).sum(1).mean()
    return (rows - (target * log_softmax(logits, 0)).sum(0).mean()) / 2


def slopes(function, arrays, step=1e-6):
    """Central differences of a float64 function of a dict of arrays: name -> its shape."""
    found = {}
    for name, array in arrays.items():
        slope = np.zeros(np.shape(array))
        for place in np.ndindex(slope.shape):
            ends = []
            for sign in (1, -1):
                moved = np.array(array, np.float64)
                moved[place] += sign * step
                ends.append(function({**arrays, name: moved}))
            slope[place] = (ends[0] - ends[1]) / (2 * step)
        found[name] = slope
    return found


def compare(objective, outputs, batch, oracle, context=None, fixed=(), tolerance=1e-5):
    """Holds value and gradients against those of `oracle`, a function of the outputs in float64;
    outputs named in `fixed` have the gradient 0."""
    low = {name: jnp.asarray(x, jnp.float32) for name, x in outputs.items()}
    value, gradients = value_and_gradients(objective, low, batch, context)
    exact = {name: np.asarray(x, np.float64) for name, x in low.items()}
    np.testing.assert_allclose(value, oracle(exact), rtol=tolerance, atol=tolerance)
    want = slopes(oracle, exact)
    for name, gradient in gradients.items():
        if name in fixed:
            np.testing.assert_array_equal(gradient, 0.0, err_msg=name)
            continue
        most = max(np.abs(want[name]).max(), 1e-3)
        np.testing.assert_allclose(
            gradient, want[name], rtol=tolerance, atol=tolerance * most, err_msg=name
        )


def value_and_gradients(objective, outputs, batch, context=None):
    """The loss, and its gradient by each output."""

    def loss(outputs, batch, where):
        where = None if where is None else Context(*where)
        return call(objective, outputs, batch, where).value

    where = None if context is None else (context.key, context.step, context.progress)
    return jax.jit(jax.value_and_grad(loss))(outputs, batch, where)


def context(key=0, progress=0.0):
    """Of a step of a run."""
    return Context(jax.random.key(key), jnp.int32(0), jnp.float32(progress))


def same_on_a_mesh(objective, outputs, batch, context=None):
    """Holds eight devices against one: value and gradients to 1e-5. Rows of the batch are sharded;
    what has no rows is not."""
    outputs = {name: jnp.asarray(x, jnp.float32) for name, x in outputs.items()}
    batch = {name: jnp.asarray(x) for name, x in batch.items()}
    value, gradients = value_and_gradients(objective, outputs, batch, context)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    rows = lambda x: jax.device_put(x, batch_sharding(mesh)) if np.ndim(x) and len(x) > 1 else x
    with jax.set_mesh(mesh):
        there = [{name: rows(x) for name, x in part.items()} for part in (outputs, batch)]
        whole, spread = value_and_gradients(objective, *there, context)
    np.testing.assert_allclose(whole, value, rtol=1e-5)
    for name, gradient in gradients.items():
        most = max(float(np.abs(gradient).max()), 1e-3)
        np.testing.assert_allclose(
            spread[name], gradient, rtol=1e-5, atol=1e-5 * most, err_msg=name
        )


def trainer(loss, rate=1e-2):
    """`run(params, data, steps)`: parameters after some steps of Adam on `loss(params, key, data)`;
    step i has the key i. All runs share one compilation."""
    tx = optax.adam(rate)

    @jax.jit
    def step(params, state, key, data):
        updates, state = tx.update(jax.grad(loss)(params, key, data), state)
        return optax.apply_updates(params, updates), state

    def run(params, data, steps):
        state = tx.init(params)
        for i in range(steps):
            params, state = step(params, state, jax.random.key(i), data)
        return params

    return run
