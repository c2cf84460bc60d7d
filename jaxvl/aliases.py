"""Names of types that the signatures of several packages share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax
    import numpy as np

# Arrays by name: a batch, a model's outputs, an objective's state.
Arrays = Mapping[str, "jax.Array"]
# Arrays of a host by name: rows before they are put on the devices.
HostArrays = Mapping[str, "np.ndarray"]
# A pytree: nested dicts, tuples and registered dataclasses, whose leaves are arrays, or shapes or
# shardings of arrays. jax has no narrower type for it.
Tree = Any
# (params, model_state) of `models.functional.Functional`: path -> array.
Weights = tuple[dict[str, "jax.Array"], dict[str, "jax.Array"]]
# What is written as JSON, or was read from it.
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
# A value of a config before it is resolved: a number, a text, None, a tuple or list, or a Node.
Leaf = Any
# A part of a config before it is resolved: names of fields -> values.
Node = Mapping[str, Leaf]
# What a column of a record holds: a text, a number, bytes, a list; the column's kind says which.
ColumnValue = Any
# A module or an object of a library without types of its own.
Foreign = Any
