"""Kernels: plain arguments in, arrays out. Each sub-package is imported through its own top level
only."""
