"""MoE layers as loops over tokens in float64 NumPy, written from the papers' equations; and the
small layer that is tested."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxvl.nn.moe import MoeConfig

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

D = 6
F = 10
E = 4


def layer_of(
    router,
    dispatch="gather",
    experts=E,
    group_size=12,
    bias=True,
    width=D,
    eval_span="batch",
    **options,
):
    """(graphdef, params): weights large enough that the router decides clearly."""
    config = MoeConfig(
        router=router,
        experts=experts,
        last=1,
        group_size=group_size,
        dispatch=dispatch,
        bias=bias,
        eval_span=eval_span,
        **options,
    )
    graphdef, shapes = nnx.split(
        nnx.eval_shape(lambda: config.build(width, F, rngs=nnx.Rngs(params=0))), nnx.Param
    )
    rng = np.random.default_rng(0)

    def draw(shape):
        fan = shape[-2] if len(shape) > 1 else 4
        return jnp.asarray(rng.normal(size=shape) * fan**-0.5 if shape else 1.0, jnp.float32)

    return graphdef, nnx.from_flat_state(
        [(p, v.replace(draw(v.shape))) for p, v in nnx.to_flat_state(shapes)]
    )


def flat(params):
    return {"/".join(path): np.asarray(v[...], np.float64) for path, v in nnx.to_flat_state(params)}


def softmax(z, axis=-1):
    z = np.exp(z - z.max(axis, keepdims=True))
    return z / z.sum(axis, keepdims=True)


def ffn(w, e, x):
    h = x @ w["experts/up/kernel"][e] + w["experts/up/bias"][e]
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return h @ w["experts/down/kernel"][e] + w["experts/down/bias"][e]


def capacity(factor, tokens):
    return max(1, min(len(tokens), round(factor * len(tokens) / E)))


def expert_choice(w, x, real, factor):
    """One group x [S, D] -> y, losses."""
    logits = x @ w["router/map/kernel"]
    probs = softmax(logits)
    y = np.zeros_like(x)
    for e in range(E):
        best = sorted(range(len(x)), key=lambda t: -probs[t, e] * real[t])
        for t in best[: capacity(factor, x)]:
            y[t] += probs[t, e] * real[t] * ffn(w, e, x[t])
    return y, {"z": z_loss(logits, real)}


def token_choice(w, x, real, top, factor, priority, renormalise):
    """One group x [S, D] -> y, losses."""
    logits = x @ w["router/map/kernel"]
    probs = softmax(logits)
    y = np.zeros_like(x)
    filled = np.zeros(E, int)
    chosen = [sorted(range(E), key=lambda e: -probs[t, e])[:top] for t in range(len(x))]
    tokens = [t for t in range(len(x)) if real[t]]
    if priority == "score":
        tokens.sort(key=lambda t: -probs[t].max())
    queue = (
        [(t, k) for t in tokens for k in range(top)]
        if priority == "order"
        else [(t, k) for k in range(top) for t in tokens]
    )
    for t, k in queue:
        e = chosen[t][k]
        gate = probs[t, e] / (sum(probs[t, i] for i in chosen[t]) if renormalise else 1)
        if factor is None or filled[e] < capacity(factor * top, x):
            y[t] += gate * ffn(w, e, x[t])
        filled[e] += 1
    mean = probs[real > 0].mean(0)
    n = max(1, real.sum())
    imp = probs[real > 0].sum(0)
    found = {
        "balance": E * sum(filled[e] / (n * top) * mean[e] for e in range(E)),
        "importance": imp.var() / imp.mean() ** 2,
    }
    return y, {**found, "z": z_loss(logits, real)}


def soft(w, x, real, slots):
    """One group x [S, D] -> y, losses."""
    keys = w["router/kernel"].reshape(len(x[0]), -1)
    keys = w["router/scale"] * keys / np.linalg.norm(keys, axis=0)
    logits = x / np.linalg.norm(x, axis=1, keepdims=True) @ keys
    combine = softmax(logits)
    y = np.zeros_like(x)
    there = [t for t in range(len(x)) if real[t]]
    dispatch = softmax(logits[there], axis=0)
    for s in range(keys.shape[1]):
        mixed = sum(dispatch[i, s] * x[t] for i, t in enumerate(there))
        for t in there:
            y[t] += combine[t, s] * ffn(w, s // slots, mixed)
    return y, {}


def z_loss(logits, real):
    return sum(np.log(np.exp(z).sum()) ** 2 for z in logits[real > 0]) / max(1, real.sum())


def by_groups(group, w, x, real, size, **options):
    """A whole batch: y [B, T, D] and losses averaged over groups."""
    rows = x.reshape(-1, size, x.shape[-1])
    reals = real.reshape(-1, size)
    parts = [group(w, r, m, **options) for r, m in zip(rows, reals)]
    return np.stack([y for y, _ in parts]).reshape(x.shape), {
        k: np.mean([p[1][k] for p in parts]) for k in parts[0][1]
    }
