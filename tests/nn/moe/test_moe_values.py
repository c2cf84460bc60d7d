"""Each router's layer against a loop over tokens in float64: values, and gradients by finite
differences of the loop."""

import jax
import jax.numpy as jnp
import moe_oracle as oracle
import numpy as np
import pytest
from flax import nnx

from jaxvl.nn.moe import ExpertChoice, Soft, TokenChoice

CASES = {
    "expert_choice": (ExpertChoice(), oracle.expert_choice, dict(factor=1.0), ["gather", "einsum"]),
    "expert_choice_scarce": (ExpertChoice(0.4), oracle.expert_choice, dict(factor=0.4), ["gather"]),
    "switch": (
        TokenChoice(),
        oracle.token_choice,
        dict(top=1, factor=1.25, priority="choice", renormalise=False),
        ["gather"],
    ),
    "v_moe": (
        TokenChoice(top=2, capacity_factor=0.7, priority="score"),
        oracle.token_choice,
        dict(top=2, factor=0.7, priority="score", renormalise=False),
        ["gather", "einsum", "ragged"],
    ),
    "in_order": (
        TokenChoice(top=2, capacity_factor=0.7, priority="order", renormalise=True),
        oracle.token_choice,
        dict(top=2, factor=0.7, priority="order", renormalise=True),
        ["gather"],
    ),
    "clip_moe": (
        TokenChoice(top=2, capacity_factor=None, renormalise=True),
        oracle.token_choice,
        dict(top=2, factor=None, priority="choice", renormalise=True),
        ["gather", "ragged"],
    ),
    "soft": (Soft(3), oracle.soft, dict(slots=3), ["gather"]),
}
WEIGHTS = {"z": 0.3, "balance": 0.7, "importance": 0.2}  # of the losses in what is differentiated


@pytest.mark.parametrize("case", CASES)
def test_layer_is_a_loop_over_tokens(case):
    router, group, options, forms = CASES[case]
    rng = np.random.default_rng(1)
    x, cotangent = rng.normal(size=(2, 3, 8, oracle.D))
    x = np.float64(np.float32(x))
    real = (np.arange(8) < np.array([[8], [5], [3]])).astype(float)

    def by_hand(w, x):
        y, losses = oracle.by_groups(group, w, x, real, 12, **options)
        return (y * cotangent).sum() + sum(WEIGHTS[k] * v for k, v in losses.items()), y, losses

    w = None
    for form in forms:
        graphdef, params = oracle.layer_of(router, form)

        @oracle.quick_jit
        def run(params, x, graphdef=graphdef):
            def loss(params, x):
                out = nnx.merge(graphdef, params)(x, mask=jnp.asarray(real > 0), train=True)
                total = (out.y * cotangent).sum() + sum(
                    WEIGHTS[k] * v for k, v in out.losses.items() if k in WEIGHTS
                )
                return total, out

            return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

        (_, out), (d_params, d_x) = run(params, jnp.asarray(x, jnp.float32))
        if w is None:
            w = oracle.flat(params)
            _, y, losses = by_hand(w, x)
            directions = {k: rng.normal(size=np.shape(v)) for k, v in {**w, "x": x}.items()}
            slopes = {k: slope(by_hand, w, x, k, d) for k, d in directions.items()}
        np.testing.assert_allclose(out.y, y, atol=2e-5 * np.abs(y).max(), err_msg=form)
        for name, value in losses.items():
            np.testing.assert_allclose(out.losses[name], value, rtol=2e-5, err_msg=name)
        gradient = {**oracle.flat(d_params), "x": np.float64(d_x)}
        for name, direction in directions.items():
            scale = np.linalg.norm(gradient[name]) * np.linalg.norm(direction)
            np.testing.assert_allclose(
                np.vdot(gradient[name], direction),
                slopes[name],
                atol=2e-5 * scale,
                err_msg=f"{form} {name}",
            )


def slope(f, w, x, name, direction, eps=1e-6):
    """Central difference of f along a direction of one argument."""
    ends = []
    for sign in (1, -1):
        moved = {
            k: v + sign * eps * direction if k == name else v for k, v in {**w, "x": x}.items()
        }
        ends.append(f({k: v for k, v in moved.items() if k != "x"}, moved["x"])[0])
    return (ends[0] - ends[1]) / (2 * eps)
