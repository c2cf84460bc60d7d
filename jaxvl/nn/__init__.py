"""Layers shared by all models.

Axes in shapes and einsums, here and in `models/`: B batch, T tokens, P patches, D width, H heads, K
width of a head, F hidden width of an MLP, V vocabulary, L layers, S image side, C channels.

Parameters are float32 and carry `axes`: one logical name per dimension (`sharding.rules`). Layers
compute in their `dtype`; statistics of norms and softmax are float32. Nothing holds random state:
what is random takes a `key`.
"""
