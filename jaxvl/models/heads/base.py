"""Base classes of heads, and the heads of a model together."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import ConfigError, check, nearest
from jaxvl.models.base import Encoded, InputSpec


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Base class of the configurations of heads; see the package.

    Attributes:
      reads: what the head reads: inputs or views of the model, or outputs of other heads; a name,
        or several.
      registered_name: set by the registry.
      prefix: what stands before the label in the names of the outputs, as `logits/`.
      together: whether the head needs what it reads at once (`required`). Else it runs on each
        alone, on those that a batch has.
      any_widths: whether what it reads may be of several widths: each has parameters of its own.
    """

    reads: str | tuple[str, ...]

    registered_name: ClassVar[str] = ""
    prefix: ClassVar[str] = ""
    together: ClassVar[bool] = False
    any_widths: ClassVar[bool] = False

    @property
    def sources(self) -> tuple[str, ...]:
        """`reads` as a tuple."""
        return (self.reads,) if isinstance(self.reads, str) else self.reads

    @property
    def required(self) -> tuple[str, ...]:
        """Those of `sources` without which a head that is `together` does not run."""
        return self.sources

    def check_inputs(self, inputs: InputSpec) -> None:
        """Raises ConfigError where the head does not fit the model's inputs."""

    @property
    def names(self) -> dict[str, str]:
        """What is read -> name of the output that is made of it alone: "" where `reads` is one
        name, else that name without the label before it."""
        if isinstance(self.reads, str):
            return {self.reads: ""}
        return {source: source.rpartition("/")[2] for source in self.reads}

    @property
    def parts(self) -> dict[str, str]:
        """What is read -> name of the parameters that are for it alone."""
        return {source: name or "only" for source, name in self.names.items()}

    def output(self, label: str, name: str) -> str:
        """Whole name of the output `name` of the head at `label`."""
        return f"{self.prefix}{label}/{name}" if name else f"{self.prefix}{label}"

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Entries without which the head does not run."""
        return ()

    @property
    def class_count(self) -> int | None:
        """Number of classes of a head that classifies; else None."""
        return None

    def widths(self, inputs: Mapping[str, int]) -> dict[str, int]:
        """Name -> width D of each output [B, D] that other heads may read.

        Args:
          inputs: width of each that the head reads.
        """
        del inputs
        return {}

    def build(
        self, inputs: Mapping[str, int], rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> Head:
        """The head's module; parameters are float32 and name their logical axes.

        Args:
          inputs: width of each that the head reads.
        """
        raise NotImplementedError(f"{type(self).__name__} must build its module")


class Head(nnx.Module):
    """Base class of the modules of heads."""

    def __call__(
        self,
        encoded: Mapping[str, Encoded],
        batch: Mapping[str, jax.Array],
        *,
        train: bool,
        key: jax.Array | None,
        progress: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """Named outputs of some rows.

        Args:
          encoded: what the head reads. An output of another head has one token.
          batch: the model's batch.
          train, key, progress: as for `Model`; the key is this head's own.

        Returns:
          Arrays [B, …] or []; the name "" is the output `LABEL`, another one `LABEL/NAME`.
        """
        raise NotImplementedError(f"{type(self).__name__} must give named outputs")


def one_width(inputs: Mapping[str, int]) -> int:
    """The width of all that a head reads. Raises ConfigError where they differ."""
    widths = set(inputs.values())
    check(
        len(widths) == 1,
        "reads",
        f"{', '.join(f'{name!r} of width {width}' for name, width in inputs.items())} must be of "
        f"one width, for they share the parameters",
    )
    return widths.pop()


@dataclasses.dataclass(frozen=True)
class Heads:
    """The heads of a model.

    Attributes:
      configs: label -> head.
      inputs: what the model encodes -> width of the pooled output.
    """

    configs: Mapping[str, HeadConfig]
    inputs: Mapping[str, int]

    @property
    def order(self) -> list[str]:
        """Labels, each after those that it reads.

        Raises ConfigError at `heads.LABEL.reads` for what is not there, or a head that reads what
        depends on itself.
        """
        done: list[str] = []
        left = list(self.configs)
        while left:
            ready = [label for label in left if not self._waits_for(label) & set(left)]
            if not ready:
                problem = f"{self.configs[left[0]].reads!r} depends on the head itself"
                check(False, f"heads.{left[0]}.reads", problem)
            done += ready
            left = [label for label in left if label not in ready]
        return done

    def _waits_for(self, label: str) -> set[str]:
        sources = self.configs[label].sources
        return {source.partition("/")[0] for source in sources if source not in self.inputs}

    def check(self, reserved: tuple[str, ...] = ()) -> None:
        """Raises ConfigError at `heads.LABEL` where a head reads what is not there or is of several
        widths, or its outputs have a name twice.

        Args:
          reserved: further outputs of the model.
        """
        for label, config in self.configs.items():
            key = f"heads.{label}"
            check(label.isidentifier(), key, "must be letters, digits and underscores")
            taken = (*self.inputs, *reserved)
            check(label not in taken, key, "is an output of the model already; choose another name")
            check(bool(config.sources), f"{key}.reads", "must name at least one input")
            names = list(config.names.values())
            problem = f"{config.reads!r} gives two outputs of one name"
            distinct = config.together or len(set(names)) == len(names)
            check(distinct, f"{key}.reads", problem)
        self.all_widths()

    def all_widths(self) -> dict[str, int]:
        """Whatever a head may read -> its width. Raises ConfigError as `check`."""
        widths = dict(self.inputs)
        for label in self.order:
            config = self.configs[label]
            for source in config.sources:
                problem = (
                    f"{source!r} is not there{nearest(source, list(widths))} (there are: "
                    f"{', '.join(widths)})"
                )
                check(source in widths, f"heads.{label}.reads", problem)
            given = {source: widths[source] for source in config.sources}
            try:
                if not (config.together or config.any_widths):
                    one_width(given)
                own = config.widths(given)
            except ConfigError as error:
                raise error.under(f"heads.{label}") from None
            widths |= {config.output(label, name): width for name, width in own.items()}
        return widths

    def build(self, rngs: nnx.Rngs, dtype: DTypeLike) -> nnx.Dict:
        """Label -> module."""
        widths = self.all_widths()
        modules = {}
        for label in self.order:
            config = self.configs[label]
            given = {source: widths[source] for source in config.sources}
            modules[label] = config.build(given, rngs, dtype)
        return nnx.Dict(modules)

    def run(
        self,
        modules: Mapping[str, Head],
        encoded: Mapping[str, Encoded],
        batch: Mapping[str, jax.Array],
        *,
        train: bool,
        key: jax.Array | None,
        progress: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """Outputs of the heads whose inputs are there, by their whole names.

        Args:
          modules: as `build` gives them.
          encoded: of the model's inputs that the batch has.
          train, key, progress: as for `Model`.
        """
        encoded = dict(encoded)
        outputs = {}
        for label in self.order:
            config = self.configs[label]
            given = {source: encoded[source] for source in config.sources if source in encoded}
            complete = not config.together or all(name in given for name in config.required)
            if not given or not complete or any(k not in batch for k in config.batch_keys):
                continue
            own = None if key is None else jax.random.fold_in(key, zlib.crc32(label.encode()))
            with jax.named_scope(f"heads/{label}"):
                found = modules[label](given, batch, train=train, key=own, progress=progress)
            for name, value in found.items():
                outputs[config.output(label, name)] = value
                if value.ndim == 2:
                    encoded[config.output(label, name)] = Encoded(value, value[:, None])
        return outputs
