"""The sampler of a source for which none is named."""

from __future__ import annotations

from jaxvl.data.samplers.base import SamplerConfig
from jaxvl.data.samplers.mixture import Mixture
from jaxvl.data.samplers.shuffled import Shuffled
from jaxvl.data.sources.base import Source


def default_sampler(source: Source) -> SamplerConfig:
    """`mixture` where the parts of the source have weights, else `shuffled`."""
    weighted = any(part.weight is not None for part in source.parts)
    return Mixture() if weighted else Shuffled()
