"""What every library's CLIP and SigLIP have in common, seen from `dual_encoder`."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from jaxvl.aliases import Leaf
from jaxvl.interop.bundle import named_sizes
from jaxvl.interop.mapping import ConversionError
from jaxvl.models.base import SIZES, ModelConfig
from jaxvl.nn.transformer import Sizes


def vit_node(sizes: Sizes, patch: int, image_size: int) -> dict[str, Leaf]:
    """Name and sizes of an image tower."""
    node = named_sizes(sizes, SIZES, "B")
    return {
        **node,
        "name": "vit",
        "variant": f"{node['variant']}/{patch}",
        "uneven": image_size % patch != 0,
    }


def text_node(sizes: Sizes, positions: int) -> dict[str, Leaf]:
    """Name and sizes of a text tower."""
    return {"name": "text_transformer", "positions": positions, **named_sizes(sizes, SIZES, "B")}


def sizes_fields(sizes: Sizes) -> tuple[int, int, int, int]:
    """width, hidden, depth, heads."""
    return sizes.width, sizes.hidden, sizes.depth, sizes.heads


def must_be(theirs: str, model: ModelConfig, values: Mapping[str, tuple]) -> None:
    """Raises ConversionError where a field of ours has a value that `theirs` has no counterpart of.

    Args:
      values: path of a field -> the values that it may have.
    """
    for path, allowed in values.items():
        value = operator.attrgetter(path)(model)
        if value not in allowed:
            raise ConversionError(
                f"model.{path}: {value!r} has no counterpart in {theirs}, whose models have "
                f"{' or '.join(map(repr, allowed))}"
            )
