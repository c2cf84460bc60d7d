"""Corpora by name. A corpus's config has `prepare(log)`, which builds it where needed and gives a `store.Corpus`."""

from jaxvl.config import Registry

CORPORA = Registry("corpus", __name__)
