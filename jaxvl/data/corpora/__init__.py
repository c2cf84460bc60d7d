"""Corpora by name. A corpus's config has `prepare(log)`, which builds it where needed and gives a `store.Corpus`."""

from jaxvl.config import Registry

CORPORA = Registry("corpus", load=[f"jaxvl.data.corpora.{name}" for name in ("emoji", "mixture", "motion", "shapes", "stamps")])
