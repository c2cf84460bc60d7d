"""Samplers by name: which record stands at each position of a task's stream.

A sampler's config is a frozen dataclass that extends `base.SamplerConfig`. A file of this package
registers one with `@SAMPLERS.register("NAME")`; `data = dict(sampler=dict(name="NAME", …))`
chooses it.

    base           what every sampler is
    permutation    permutations and random numbers in closed form
    shares         exact shares of several streams in closed form
    tables         columns and .npy files that samplers read
"""

from jaxvl.config import Registry

SAMPLERS = Registry("sampler", __name__)
