"""jaxvl: pretraining of vision-language models in JAX (ALIGN, CoCa, IMP and their family)."""

__version__ = "0.1.0"
