"""What a number or text may be, as data on the fields of dataclasses: `depth: Depth | None = None`.

`resolve` refuses what lies outside, naming key and bounds. A number without bounds of its own must
be finite and fit the devices' int32 or float32. Upper bounds are several times the largest
published size: they catch slips of the keyboard before memory is asked for, they do not promise
that a model of that size fits.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval.

    Attributes:
      low, high: its bounds.
      above, below: whether `low` or `high` itself is outside.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether a number is inside; nan is not."""
        bottom = value > self.low if self.above else value >= self.low
        top = value < self.high if self.below else value <= self.high
        return bottom and top

    def __str__(self) -> str:
        return (
            f"{'>' if self.above else '>='} {_number(self.low)} and {'<' if self.below else '<='} "
            f"{_number(self.high)}"
        )


@dataclasses.dataclass(frozen=True)
class NonEmpty:
    """A text that may not be empty.

    Attributes:
      what: what it is, for the message.
    """

    what: str = "a text"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


INT32 = Range(-(2**31), 2**31 - 1)
INT64 = Range(-(2**63), 2**63 - 1)
FLOAT32 = Range(-3.4028234663852886e38, 3.4028234663852886e38)

Width = Annotated[int, Range(1, 65_536)]  # features of a token
Hidden = Annotated[int, Range(1, 1_048_576)]  # inner features of an MLP
Depth = Annotated[int, Range(1, 1_024)]  # layers
Heads = Annotated[int, Range(1, 4_096)]
Pixels = Annotated[int, Range(1, 8_192)]  # side of a picture
Tokens = Annotated[int, Range(3, 1_048_576)]  # of a text: at least one between two special tokens
VocabularySize = Annotated[int, Range(16, 16_777_216)]
Batch = Annotated[int, Range(1, 4_194_304)]  # rows
Count = Annotated[int, Range(1, 1_048_576)]  # of anything that a config counts one by one
Threads = Annotated[int, Range(1, 1_024)]
Steps = Annotated[int, Range(1, 2**31 - 1)]
Epsilon = Annotated[float, Range(0.0, 1.0)]  # what keeps a division from zero
TokenId = Annotated[int, Range(0, 16_777_215)]
Seed = Annotated[int, Range(0, 2**31 - 1)]
Scale = Annotated[float, Range(0.0, 1e6, above=True)]  # a temperature, its inverse, a capacity
Weight = Annotated[float, Range(0.0, 1e6)]  # of a loss or a penalty
PathText = Annotated[str, NonEmpty("a path")]
