"""Corpora by name. A corpus's config has `prepare(log)`, which builds it where needed and gives a `store.Corpus`."""

from jaxvl.config import Registry

_MODULES = (
    "emoji",
    "mixture",
    "motion",
    "questions",
    "shapes",
    "shapes_vqa",
    "stamps",
)
CORPORA = Registry("corpus", load=[f"jaxvl.data.corpora.{name}" for name in _MODULES])
