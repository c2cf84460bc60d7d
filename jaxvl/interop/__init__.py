"""Weights of other libraries, to and from."""
