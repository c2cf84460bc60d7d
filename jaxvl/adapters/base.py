"""What adapters have in common: where they are put, what is trained beside them, how they are
merged."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import jax
from flax import nnx

from jaxvl.aliases import Arrays
from jaxvl.config import ConfigError, check
from jaxvl.nn.stack import stack

INSIDE = re.compile(r"(^|/)adapter/")  # of an adapter's own parameters


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Base of adapters' configurations.

    Attributes:
      paths: regular expression of the paths of the modules that get one (`re.search`), such as
        `^image/.*attention/(query|value)$`.
      trains: regular expression of the parameters that are trained beside the adapters. With
        adapters, all others are frozen. The default is the heads, which are new as well.
    """

    paths: str
    trains: str = r"(^|/)heads/"

    kind = "module"  # what the modules that it sits on are called, for messages

    def __post_init__(self):
        for name in ("paths", "trains"):
            check_pattern(name, getattr(self, name))

    def fits(self, module: nnx.Module) -> bool:
        """Whether it can sit on the module."""
        raise NotImplementedError

    def build(self, module: nnx.Module, number: int, rngs: nnx.Rngs) -> nnx.Module:
        """Its module on another, or on one layer of a stacked one."""
        raise NotImplementedError

    def stacked(self, module: nnx.Module) -> int | None:
        """Layers L of a stacked module, whose parameters have a leading axis; None: it is not."""
        raise NotImplementedError

    def attach(self, label: str, model: nnx.Module, rngs: nnx.Rngs) -> None:
        """Puts it on every module that `paths` names.

        Raises ConfigError where there is none, or one that cannot have it.
        """
        for number, (path, module) in enumerate(self.chosen(model, self.paths)):
            layers = self.stacked(module)
            make = lambda rngs, module=module, number=number: self.build(module, number, rngs)
            put(module, label, make(rngs) if layers is None else stack(make, layers, rngs), path)

    def chosen(self, model: nnx.Module, pattern: str) -> list[tuple[str, nnx.Module]]:
        """(path, module) of those that it can sit on and `pattern` names, by path.

        Raises ConfigError where there is none.
        """
        able = sorted((p, m) for p, m in modules(model) if self.fits(m))
        found = [(path, module) for path, module in able if re.search(pattern, path)]
        some = ", ".join(p for p, _ in able[:6]) + (", …" if len(able) > 6 else "")
        check(
            bool(found),
            "paths",
            f"{pattern!r} names no {self.kind} of the model that can have this adapter "
            f"({len(able)} can: {some or 'none'})",
        )
        return found

    def merge(self, label: str, params: Arrays) -> dict[str, jax.Array]:
        """The parameters of a model without it that gives the same.

        Raises ConfigError where there are none.
        """
        del label, params
        problem = f"{self.registered_name} adapters have no place in the model's own weights"
        raise ConfigError("name", f"{problem}; only lora can be merged")


def modules(model: nnx.Module) -> list[tuple[str, nnx.Module]]:
    """(path, module) of all modules of the model but those of adapters, the model itself first."""
    found = [("/".join(map(str, path)), node) for path, node in nnx.iter_modules(model)]
    return sorted((p, m) for p, m in found if not INSIDE.search(f"{p}/"))


def put(
    module: nnx.Module, label: str, adapter: nnx.Module, path: str, most: int | None = None
) -> None:
    """Adds an adapter to a module. Raises ConfigError for one more than `most`."""
    own = dict(module.adapter or {})
    free = most is None or len(own) < most
    check(free, "paths", f"{path} has the adapter {', '.join(own)!r} already")
    module.adapter = nnx.Dict({**own, label: adapter})


def merge(adapters: Mapping[str, Adapter], params: Arrays) -> dict[str, jax.Array]:
    """Parameters of the plain model that gives what the one with `adapters` does.

    Raises ConfigError, at `adapters.LABEL`, for those that cannot be merged.
    """
    for label, adapter in adapters.items():
        try:
            params = adapter.merge(label, params)
        except ConfigError as error:
            raise error.under(f"adapters.{label}") from None
    return dict(params)


def check_pattern(key: str, pattern: str) -> None:
    """Raises ConfigError for a text that is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(key, f"{pattern!r} is not a regular expression: {error}") from None
