"""Weights of Hugging Face transformers' `AlignModel`, `CLIPModel` and `SiglipModel`.

The tables are in `hf_align.py` and `hf_dual.py`. Nothing here imports torch or transformers; a state dict of NumPy arrays is all that
is read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxvl.interop import hf_align, hf_dual
from jaxvl.interop.mapping import ConversionError, Source, StateDict, read_arrays
from jaxvl.models.align import AlignConfig
from jaxvl.models.dual_encoder import DualEncoderConfig

BUFFERS = ("*position_ids", "*num_batches_tracked", "*token_type_ids")


def from_transformers(state: StateDict, config: Any, shapes: Any) -> dict[str, np.ndarray]:
    """Our arrays (parameters and batch statistics) from their state dict; see `mapping.read_arrays`."""
    return read_arrays(table(config), state, shapes, spare=BUFFERS + (hf_align.spare(config) if isinstance(config, AlignConfig) else ()))


def table(config: Any) -> dict[str, Source]:
    """Our path -> `Source`, for a model's configuration.

    Raises:
      ConversionError: a configuration that transformers has no counterpart of.
    """
    towers = (config.image.registered_name, config.text.registered_name)
    if isinstance(config, AlignConfig) and towers == ("efficientnet", "bert"):
        return dict(hf_align.align_table(config))
    if isinstance(config, DualEncoderConfig) and towers == ("vit", "text_transformer"):
        return dict(hf_dual.siglip_table(config) if config.init_bias is not None else hf_dual.clip_table(config))
    raise ConversionError(f"{type(config).__name__} of {towers[0]} and {towers[1]} has no counterpart in transformers")
