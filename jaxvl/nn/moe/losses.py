"""Auxiliary losses of routers, in closed form.

All take arrays [G, S, …] of groups of tokens and `real` float32 [G, S], 1 for a token and 0 for
padding; each is computed group by group, and the mean over groups is returned, float32 []. So a
batch in which no group crosses two examples gives the mean of what its parts give, however it is
cut.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def entropy(probs: jax.Array) -> jax.Array:
    """Over the last axis, in nats; its gradient is finite where a probability has underflown to
    0."""
    return -(probs * jnp.log(jnp.maximum(probs, 1e-30))).sum(-1)


def _mean(x: jax.Array, real: jax.Array) -> jax.Array:
    """Mean over the real tokens of each group: x [G, S, …] -> [G, …]; 0 for a group of none."""
    weight = real.reshape(*real.shape, *[1] * (x.ndim - 2))
    return (x * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)


def router_z(logits: jax.Array, real: jax.Array) -> jax.Array:
    """mean_t (log sum_e exp(logits_te))^2, which keeps logits [G, S, E] small (Zoph et al. 2022,
    ST-MoE, eq. 5)."""
    return _mean(jnp.square(jax.nn.logsumexp(logits, -1)), real).mean()


def balance(probs: jax.Array, chosen: jax.Array, real: jax.Array) -> jax.Array:
    """E · sum_e f_e P_e; 1 where the load is even (Fedus et al. 2021, Switch, eq. 4 to 6; CLIP-MoE
    with K choices).

    Args:
      probs: [G, S, E]; P_e is their mean.
      chosen: [G, S, E], 1 where a token chose an expert, before any capacity; f_e is an expert's
        share of all choices.
    """
    share = _mean(chosen, real)
    share = share / jnp.maximum(share.sum(-1, keepdims=True), 1e-9)
    return probs.shape[-1] * (jax.lax.stop_gradient(share) * _mean(probs, real)).sum(-1).mean()


def variation(amount: jax.Array) -> jax.Array:
    """Squared coefficient of variation over experts, (std / mean)^2, of amounts [G, E] (Riquelme et
    al. 2021, V-MoE, appendix A)."""
    mean = amount.mean(-1)
    return (
        jnp.square(amount - mean[:, None]).mean(-1) / jnp.maximum(jnp.square(mean), 1e-12)
    ).mean()


def importance(gates: jax.Array, real: jax.Array) -> jax.Array:
    """V-MoE's importance loss: the variation of sum_t g_te, of router probabilities [G, S, E]
    before the choice."""
    return variation((gates * real[..., None]).sum(1))


def load(clean: jax.Array, bar: jax.Array, std: float, real: jax.Array) -> jax.Array:
    """V-MoE's load loss: the variation of sum_t P(expert e stays among the first `top` if only its
    own noise is drawn again).

    Args:
      clean: logits [G, S, E] without noise. bar: the smallest chosen logit with noise, [G, S]. std:
        of the noise.
    """
    bar = bar[..., None]
    return variation((jax.scipy.stats.norm.sf((bar - clean) / std) * real[..., None]).sum(1))


def local_entropy(probs: jax.Array, real: jax.Array) -> jax.Array:
    """mean_t H(p_t) in nats: low where each token is sure of its expert (Mustafa et al. 2022,
    LIMoE, eq. 3)."""
    return _over_groups(_mean(entropy(probs), real), real)


def global_entropy(probs: jax.Array, real: jax.Array, threshold: float | None = None) -> jax.Array:
    """-H(mean_t p_t) in nats: low where the tokens together use many experts (LIMoE, eq. 4).

    Args:
      threshold: log of how many experts are enough: max(0, threshold - H), which then pulls no
        further. None: no bound.
    """
    h = entropy(_mean(probs, real))
    return _over_groups(-h if threshold is None else jnp.maximum(0.0, threshold - h), real)


def _over_groups(x: jax.Array, real: jax.Array) -> jax.Array:
    """Mean of x [G] over the groups that have a real token."""
    there = (real.sum(1) > 0).astype(jnp.float32)
    return (x * there).sum() / jnp.maximum(there.sum(), 1.0)
