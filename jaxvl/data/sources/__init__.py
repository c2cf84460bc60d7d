"""Sources of records by name: formats that teams hold, and recipes that build the demo data.

A source's config is a frozen dataclass with `open(log) -> base.Source`. A file of this package
registers one with `@SOURCES.register("NAME")`; `data = dict(source=dict(name="NAME", …))` chooses
it.
"""

from jaxvl.config import Registry

SOURCES = Registry("source", __name__)
