"""Models: configuration, module and named outputs; chosen by name.

A model's configuration (`MODELS`) extends `base.ModelConfig`, its module `base.Model`: it maps
`dict(image=[B, S, S, C], text=[B, T])` to named outputs, and encodes each input alone. An encoder's
configuration (`IMAGE_ENCODERS`, `TEXT_ENCODERS`) extends `base.EncoderConfig`; any encoder goes with
any two-tower model. `heads` are parameters that a config adds to a model. `models.functional` turns
a configuration into pure functions.
"""

from jaxvl.config import Registry
from jaxvl.models.base import Capabilities as Capabilities
from jaxvl.models.base import Encoded as Encoded
from jaxvl.models.base import InputSpec as InputSpec
from jaxvl.models.base import Model as Model
from jaxvl.models.base import ModelConfig as ModelConfig
from jaxvl.models.heads import HEADS as HEADS

MODELS = Registry("model", __name__)
IMAGE_ENCODERS = Registry("image encoder", __name__)
TEXT_ENCODERS = Registry("text encoder", __name__)
