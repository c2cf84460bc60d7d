"""Steps whose layers are computed again a part of the rows at a time, against steps that keep
all."""

import numpy as np
import pytest
from training import tiny

from jaxvl.bench.one_step import one_step

STACK = dict(width=32, depth=2, heads=2)
STEPS = 5


def losses(remat, dtype):
    stack = dict(STACK, remat=remat)
    towers = dict(
        image=dict(name="vit", variant="Ti/8", **stack),
        text=dict(name="text_transformer", variant="Ti", **stack),
    )
    experiment = tiny.experiment(
        model=dict(name="dual_encoder", embed_dim=32, init_bias=-10.0, **towers),
        tasks=dict(pairs=dict(tiny.task(batch=16), objectives=dict(siglip=1.0))),
        optim=dict(lr=1e-3, warmup=1),
        dtype=dtype,
    )
    step = one_step(experiment)
    return np.array([float(step.take()) for _ in range(STEPS)]), step.cost


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 5e-3)])
def test_losses_are_those_without(dtype, tolerance):
    wanted, _ = losses("none", dtype)
    full, whole = losses("full", dtype)
    found, cut = losses("chunks", dtype)
    assert wanted[-1] < 0.97 * wanted[0]
    np.testing.assert_allclose(full, wanted, rtol=tolerance)
    np.testing.assert_allclose(found, wanted, rtol=tolerance)
    assert cut.flops == whole.flops
    assert cut.model_flops == whole.model_flops < cut.flops
