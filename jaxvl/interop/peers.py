"""The libraries that weights come from, imported when something needs them."""

from __future__ import annotations

import functools
import sys
import types
from typing import Any

from jaxvl.interop.files import need


@functools.cache
def _torch() -> Any:
    """torch, with a torchvision that can be imported.

    torchvision declares its own operators from a library that is built for one build of torch;
    beside another (one for GPUs beside torch for CPUs) it fails at the first of them. The peers use
    none of them, so that it is enough that they are declared.
    """
    torch = need("torch")
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        for name in [
            name
            for name in sys.modules
            if name.split(".")[0] in ("torchvision", "timm", "open_clip")
        ]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
        _torch.library = library  # operators live as long as this
    return torch


def peer(name: str) -> types.ModuleType:
    """`torch`, `transformers`, `open_clip` or `timm`. Raises ConversionError, naming the extra,
    where it is not installed."""
    torch = _torch()
    return torch if name == "torch" else need(name)
