"""Claims made from intervals: what is expected, what was measured, and whether it holds."""

from __future__ import annotations

from jaxlab.analysis import Interval
from jaxlab.results import Claim

WITH_INTERVAL = "with its 95% interval"


def above(
    claim: str, interval: Interval, bound: float = 0.0, what: str = "difference over seeds"
) -> Claim:
    """A claim that holds if a whole interval lies above a bound.

    Args:
      claim: the statement, in words.
      interval: an estimate with its 95% interval.
      bound: what it must be above.
      what: what the estimate is of, in words.

    >>> above("It is better.", Interval(0.2, 0.1, 0.3)).holds
    True
    """
    expected = f"{what} above {bound:g}, {WITH_INTERVAL}"
    return Claim(claim, expected, str(interval), interval.low > bound)


def below(
    claim: str, interval: Interval, bound: float = 0.0, what: str = "difference over seeds"
) -> Claim:
    """A claim that holds if a whole interval lies below a bound; see `above`."""
    expected = f"{what} below {bound:g}, {WITH_INTERVAL}"
    return Claim(claim, expected, str(interval), interval.high < bound)
