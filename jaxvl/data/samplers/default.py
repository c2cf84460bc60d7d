"""The sampler of a source for which none is named."""

from __future__ import annotations

from jaxvl.data.samplers.base import SamplerConfig
from jaxvl.data.samplers.mixture import Mixture
from jaxvl.data.samplers.shuffled import Shuffled
from jaxvl.data.sources.base import Source


def default_sampler(source: Source) -> SamplerConfig:
    """`mixture` where the source has parts, else `shuffled`.

    Also for parts without weights: a run that gives them some later goes on with what it has seen
    of each.
    """
    return Mixture() if source.parts else Shuffled()
