"""Accuracy on the classes of training and on new ones, and their harmonic mean."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import SourceConfig
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.zero_shot import ZeroShot


@EVALUATORS.register("base_to_new")
@dataclasses.dataclass(frozen=True)
class BaseToNew(ZeroShot):
    """Generalisation from base to new classes (CoCoOp, Zhou et al. 2022, arXiv 2203.05557, section
    4.1; MaPLe, Khattak et al. 2023, arXiv 2210.03117, table 3): `harmonic` = 2 b n / (b + n).

    b and n are `acc@1` of `zero_shot` on the pictures of the base classes (`source`) among these,
    and on those of the new ones (`new`) among these.

    Figures: `harmonic`, `base`, `new`.

    Attributes:
      new: records of the new classes.
      classes: of each part, see `zero_shot`.
      gallery: is not used.
      Others: as of `zero_shot`.
    """

    new: Annotated[Any, SOURCES] = dataclasses.field(kw_only=True)

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        return (self.source, self.new)

    @property
    def figures(self) -> tuple[str, ...]:
        return ("harmonic", "base", "new")

    def _parts(self) -> dict[str, ZeroShot]:
        """`zero_shot` on either source."""
        names = [field.name for field in dataclasses.fields(ZeroShot)]
        options = {name: getattr(self, name) for name in names} | {"gallery": 0}
        return {
            "base": ZeroShot(**options),
            "new": ZeroShot(**{**options, "source": self.new}),
        }

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        for part in self._parts().values():
            part.check(encoders)

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises as `zero_shot`."""
        found = {name: part.run(encoders).metrics["acc@1"] for name, part in self._parts().items()}
        return EvalResult({"harmonic": harmonic(found["base"], found["new"]), **found}, [])


def harmonic(a: float, b: float) -> float:
    """Harmonic mean of two shares; 0 where one is 0."""
    return 2 * a * b / (a + b) if a and b else 0.0
