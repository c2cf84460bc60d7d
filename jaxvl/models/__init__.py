"""Models: configuration, module and named outputs; chosen by name.

A model's configuration (`MODELS`) has

* `check_inputs(inputs)`: raises ConfigError where the model cannot take such inputs, before anything is built;
* `build(inputs, rngs, dtype)`: the module, parameters float32, computing in `dtype`.

Its module maps `dict(image=[B, S, S, C], text=[B, T])` to named outputs and has `encode_image` and `encode_text`.
An encoder's configuration (`IMAGE_ENCODERS`, `TEXT_ENCODERS`) has the same two methods; any encoder goes with any
two-tower model. `models.functional` turns a configuration into pure functions.
"""

from jaxvl.config import Registry
from jaxvl.models.base import Encoded as Encoded
from jaxvl.models.base import InputSpec as InputSpec

_MODULES = ("align", "coca", "cosmo", "dual_encoder", "imp", "sycoca")
MODELS = Registry("model", load=[f"jaxvl.models.{name}" for name in _MODULES])
IMAGE_ENCODERS = Registry("image encoder", load=["jaxvl.models.efficientnet", "jaxvl.models.vit"])
TEXT_ENCODERS = Registry("text encoder", load=["jaxvl.models.bert", "jaxvl.models.text"])
