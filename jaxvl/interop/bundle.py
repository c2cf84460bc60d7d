"""What travels between libraries: a configuration, weights, and what these need."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from jaxvl.aliases import Json, Leaf, Node
from jaxvl.config import ConfigError, choose
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.tokenizers import Tokenizer
from jaxvl.interop.mapping import ConversionError
from jaxvl.models import MODELS, InputSpec
from jaxvl.models.base import ModelConfig
from jaxvl.models.functional import Functional, functional
from jaxvl.nn.transformer import Sizes


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A model with its weights.

    Attributes:
      model: a registered model configuration.
      inputs: the sizes and token ids that it is built for.
      arrays: our path -> float32 array, of parameters and of batch statistics.
      tokenizer: None where it was left behind on request.
      preprocess: pictures to model input.
      origin: library -> its configuration as it was read, so that what our own has no word for (a
        name, a licence) comes back when the model returns unchanged to where it came from.
      notes: what is told to whoever converts: lossless, but not self-evident.
    """

    model: ModelConfig
    inputs: InputSpec
    arrays: Mapping[str, np.ndarray]
    tokenizer: Tokenizer | None
    preprocess: Preprocess
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def functional(self) -> Functional:
        return built(self.model, self.inputs)


def model_of(node: Node) -> ModelConfig:
    """The registered configuration of a node. Raises ConversionError for what ours refuses."""
    with refusing("model"):
        return choose(MODELS, node, "model")


def built(model: ModelConfig, inputs: InputSpec) -> Functional:
    """The model as functions. Raises ConversionError where model and inputs do not fit."""
    with refusing("model"):
        return functional(model, inputs)


def shapes_of(model: Functional) -> dict[str, tuple[int, ...]]:
    """Path -> shape, of parameters and of batch statistics."""
    return {
        path: tuple(s.shape)
        for part in (model.params, model.model_state)
        for path, s in part.items()
    }


def same_model(a: ModelConfig, b: ModelConfig) -> bool:
    """Whether two configurations compute the same, whatever is set for training."""
    if type(a) is not type(b):
        return False
    fields = [f.name for f in dataclasses.fields(a) if f.name not in a.training_fields]
    return all(getattr(a, name) == getattr(b, name) for name in fields)


def without_limit(model: ModelConfig, arrays: Mapping[str, np.ndarray]) -> ModelConfig:
    """The configuration without its limit of the scale where the weights are beyond it: they would
    not give their own logits."""
    most = model.max_scale
    beyond = most is not None and float(arrays["log_scale"]) > math.log(most) + 1e-6
    return dataclasses.replace(model, max_scale=None) if beyond else model


@contextlib.contextmanager
def refusing(path: str) -> Iterator[None]:
    """Turns a ConfigError into a ConversionError under `path`."""
    try:
        yield
    except ConfigError as error:
        raise ConversionError(
            str(error if str(error).startswith(path) else error.under(path))
        ) from None


# --------------------------------------------------------------------------------------------------
# Reading other libraries' configurations

_MISSING = object()


def _is_number(value: Any) -> bool:
    """Whether a finite float holds the value."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )


Found = TypeVar("Found")


class Section:
    """A group of keys of another library's configuration; every refusal names the key, its value
    and what would be valid.

    Args:
      values: the group. where: its path, for messages.
    """

    def __init__(self, values: Json, where: str = ""):
        if not isinstance(values, Mapping):
            raise ConversionError(f"{where or 'config'}: {values!r} must be a group of keys")
        self.values = values
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def path(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def refuse(self, key: str, valid: str) -> ConversionError:
        """To be raised."""
        value = self.values.get(key)
        return ConversionError(
            f"{self.path(key)}: {'is missing' if key not in self.values else repr(value)}; {valid}"
        )

    def section(self, key: str, default: Json = _MISSING) -> Section:
        """A group of keys; none given (or null): `default`, or an empty one."""
        value = self.values.get(key)
        if value is None:
            value = {} if default is _MISSING else default
        return Section(value, self.path(key))

    def get(self, key: str, default: Json = _MISSING) -> Json:
        """The value; None counts as not there. Raises ConversionError where there is none and no
        default."""
        value = self.values.get(key)
        if value is None:
            if default is _MISSING:
                raise ConversionError(f"{self.path(key)}: is missing")
            return default
        return value

    def size(self, key: str, default: Json = _MISSING) -> int:
        """A whole number >= 1, or a list of equal ones (a square)."""
        value = self.get(key, default)
        if isinstance(value, (list, tuple)) and len(set(value)) == 1:
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.refuse(
                key,
                "must be a whole number >= 1"
                + (
                    " (only square ones can be taken over)"
                    if isinstance(value, (list, tuple))
                    else ""
                ),
            )
        return value

    def token(self, key: str, default: Json = _MISSING) -> int:
        """The id of a token, >= 0."""
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.refuse(key, "must be the id of a token")
        return value

    def tokens(self, key: str, default: Json = _MISSING) -> tuple[int, ...]:
        """The ids of one token, or of a list of them, all >= 0."""
        value = self.get(key, default)
        ids = value if isinstance(value, (list, tuple)) else [value]
        if not ids or not all(
            isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids
        ):
            raise self.refuse(key, "must be the id of a token, or a list of such ids")
        return tuple(ids)

    def number(self, key: str, default: Json = _MISSING) -> float:
        value = self.get(key, default)
        if not _is_number(value):
            raise self.refuse(key, "must be a number")
        return float(value)

    def numbers(self, key: str, default: Json = _MISSING) -> tuple[float, ...]:
        """Three numbers, of the channels of a picture."""
        value = self.get(key, default)
        many = isinstance(value, (list, tuple)) and len(value) == 3
        if not many or not all(map(_is_number, value)):
            raise self.refuse(key, "must be 3 numbers")
        return tuple(map(float, value))

    def only(
        self, key: str, valid: Mapping[Json, Found] | tuple[Found, ...], default: Json = _MISSING
    ) -> Found:
        """What `valid` has for the value, or the value itself where `valid` is a tuple of those
        that can be taken over."""
        value = self.get(key, default)
        try:
            known = value in valid
        except TypeError:
            known = False
        if not known:
            raise self.refuse(key, f"can be taken over as {', '.join(map(repr, valid))} only")
        return valid[value] if isinstance(valid, Mapping) else value

    def known(self, *keys: str) -> None:
        """Raises ConversionError for a key that is not among `keys`: it could change what the model
        computes."""
        for key in self.values:
            if key not in keys:
                raise self.refuse(
                    key, f"is not a field that is known here (known: {', '.join(sorted(keys))})"
                )


def rounding_note(preprocess: Preprocess, theirs: str, library: str) -> tuple[str, ...]:
    """What is to be told where a library begins the centre that it cuts at another pixel
    (`Preprocess.crop_rounding`)."""
    nothing_is_cut = preprocess.resize == "squash" and preprocess.scale_to in (
        None,
        preprocess.image_size,
    )
    if nothing_is_cut or preprocess.crop_rounding == theirs:
        return ()
    return (
        (
            f"{library} cuts the centre of some pictures one pixel beside where this model's is "
            f"cut: it rounds {theirs}"
        ),
    )


def named_sizes(sizes: Sizes, table: Mapping[str, Sizes], nearest: str) -> dict[str, Leaf]:
    """`variant` and the sizes that differ from it: a name of `table` where the sizes are exactly
    its, else `nearest` with all four given."""
    for name, known in table.items():
        if known == sizes:
            return {"variant": name}
    return {
        "variant": nearest,
        "width": sizes.width,
        "depth": sizes.depth,
        "heads": sizes.heads,
        "hidden": sizes.hidden,
    }
