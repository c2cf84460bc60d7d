"""Steps of published objectives: encoded in parts and over eight devices as on one."""

import numpy as np
import pytest
from test_step import SGD_LIKE, close, run, tasks

METHODS = dict(gap=1.0, cwcl=1.0, m3col=1.0)


@pytest.mark.slow  # each one's devices are in its own tests, parts in `test_step.py`
def test_parts_and_devices_equal_the_whole():
    """Three objectives of one task; mixtures are drawn alike everywhere."""
    whole, m1 = run(**SGD_LIKE, **tasks(objectives=METHODS), mesh=dict(data=1))
    spread, m2 = run(
        **SGD_LIKE, **tasks(objectives=METHODS, microbatches=2), devices=8, mesh=dict(data=8)
    )
    for name in METHODS:
        np.testing.assert_allclose(m1[f"loss/{name}"], m2[f"loss/{name}"], rtol=1e-5, err_msg=name)
    close(whole, spread, 1e-5)
