"""Changes of a model's parameters: those that are added beside them, by path, and upcycling.

An adapter (`ADAPTERS`, `c.adapters = dict(LABEL=dict(name="lora", paths=REGEX))`) is a frozen
dataclass that extends `adapters.base.Adapter`. Its parameters are at `MODULE/adapter/LABEL/…`,
where MODULE is the path of the module that it sits on. What it does is a module of `jaxvl.nn`.
"""

from jaxvl.config import Registry

ADAPTERS = Registry("adapter", __name__)
