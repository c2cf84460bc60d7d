"""Classes apart from records: their names in each language, and texts made of a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, eq=False)
class ClassSet:
    """What the numbers of a class column mean.

    Attributes:
      names: language -> name of class 0, of class 1, …; None where a class has no name in that
        language.
      templates: texts that prompts are made with, `{}` for the name; empty: the evaluator's own.
    """

    names: Mapping[str, tuple[str | None, ...]]
    templates: tuple[str, ...] = ()

    def __post_init__(self):
        lengths = {len(names) for names in self.names.values()}
        if len(lengths) > 1:
            raise ValueError(f"names: every language must name as many classes ({sorted(lengths)})")

    def __len__(self) -> int:
        """Number of classes."""
        return len(next(iter(self.names.values()), ()))
