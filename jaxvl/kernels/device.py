"""For which device a program is being traced."""

from __future__ import annotations

import jax


def device() -> tuple[str, str]:
    """Platform ("cpu", "gpu", "tpu") and device kind of the mesh set by `jax.set_mesh`, else of the
    default devices.

    The mesh may be of a topology that is only compiled for, with no such device here.
    """
    of_mesh = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    platform = of_mesh.platform
    return {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform), of_mesh.device_kind
