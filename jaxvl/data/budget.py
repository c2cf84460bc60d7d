"""How many bad records a run goes on with.

A run ends when the share of bad records is surely above its budget: when, at a share equal to the
budget, so many of so many would be bad with a probability below `CHANCE` (one-sided binomial test).
The counts are those of all hosts together, so that the answer does not depend on how many hosts
there are. It is asked again and again during a run; `CHANCE` is so small that this does not matter.
A run of 1,024 hosts with 0.3 % bad records goes on under a budget of 1 %; one with 3 % ends after
about a thousand records.
"""

from __future__ import annotations

from scipy.special import betainc

CHANCE = 1e-9


def exceeded(bad: int, seen: int, budget: float, minimum: int) -> bool:
    """Whether `bad` of `seen` records are more than the share `budget` allows.

    Args:
      minimum: so many bad ones are always allowed, less one.
    """
    if bad < minimum or bad <= budget * seen:
        return False
    return (
        float(betainc(bad, seen - bad + 1, budget)) < CHANCE
    )  # P(at least `bad` of `seen`) at the share `budget`
