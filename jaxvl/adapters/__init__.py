"""Transforms of a model's parameters, chosen by path."""
