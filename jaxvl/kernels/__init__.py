"""Kernels: plain arguments in, arrays out. Import sub-packages through their top level."""
