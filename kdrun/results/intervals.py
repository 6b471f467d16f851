"""Differences of means and how sure they are: Welch's interval, and the paired one (Student's t)."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A difference of means with its two-sided 95 % interval."""

    difference: float
    low: float
    high: float
    df: float
    """Degrees of freedom; NaN where nothing varies."""
    p: float
    """Two-sided, of the difference being 0; NaN where nothing varies and nothing differs."""
    n: int
    """Pairs, or values on both sides."""

    @property
    def holds_zero(self) -> bool:
        return self.low <= 0 <= self.high


def welch(mean: float, std: float, n: int, other_mean: float, other_std: float, other_n: int) -> Interval | None:
    """Of mean - other_mean, of independent runs with their own spreads (Welch 1947). None: a side has one value.

    Args:
        std, other_std: with ddof 1.
    """
    if min(n, other_n) < 2:
        return None
    a, b = std**2 / n, other_std**2 / other_n
    df = (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (other_n - 1)) if a + b > 0 else math.nan
    return _interval(mean - other_mean, math.sqrt(a + b), df, n + other_n)


def paired_interval(differences: Sequence[float]) -> Interval | None:
    """Of the mean difference of pairs, such as two rows on the same seeds. None: fewer than two pairs."""
    n = len(differences)
    if n < 2:
        return None
    return _interval(statistics.mean(differences), statistics.stdev(differences) / math.sqrt(n), n - 1, n)


def reach(n: int) -> float:
    """Standard errors to each side of a mean of n values: 12.7 of two, 4.3 of three."""
    return _quantile(n - 1)


def _quantile(df: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + LEVEL) / 2))


def _interval(difference: float, error: float, df: float, n: int) -> Interval:
    from scipy.special import stdtr

    if error == 0:
        return Interval(difference, difference, difference, df, math.nan if difference == 0 else 0.0, n)
    half = _quantile(df) * error
    p = 2 * float(stdtr(df, -abs(difference) / error))
    return Interval(difference, difference - half, difference + half, df, p, n)
