"""Models: configuration, module and named outputs; chosen by name.

A model's configuration (`MODELS`) has

* `check_inputs(inputs)`: raises ConfigError where the model cannot take such inputs, before
  anything is built;
* `build(inputs, rngs, dtype)`: the module, parameters float32, computing in `dtype`.

Its module maps `dict(image=[B, S, S, C], text=[B, T])` to named outputs and has `encode_image` and
`encode_text`. An encoder's configuration (`IMAGE_ENCODERS`, `TEXT_ENCODERS`) has the same two
methods; any encoder goes with any two-tower model. `models.functional` turns a configuration into
pure functions.
"""

from jaxvl.config import Registry
from jaxvl.models.base import Encoded as Encoded
from jaxvl.models.base import InputSpec as InputSpec

MODELS = Registry("model", __name__)
IMAGE_ENCODERS = Registry("image encoder", __name__)
TEXT_ENCODERS = Registry("text encoder", __name__)
