"""Whether a table bears out what a paper claims: holds, fails, or cannot be tested with the runs that there are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, stdev

from kdrun.results.intervals import welch
from kdrun.results.papers import TEACHER, Claim

Values = Callable[[str, str, str], Sequence[float]]
"""(row, column, metric) -> the figure of each seed, in percent where tables show percent; of `Teacher of <row>` too."""


@dataclass(frozen=True)
class Verdict:
    claim: Claim
    verdict: str
    """holds, fails or not testable."""
    detail: str

    def text(self) -> str:
        return f"{self.verdict}: {self.claim.name} ({self.detail})"


def verdict_on(claim: Claim, columns: Sequence[str], values: Values) -> Verdict:
    """One counterexample refutes a claim; without one, a column without runs leaves it open."""
    named = claim.columns or list(columns)
    if not any(column in columns for column in named):
        return Verdict(claim, "not testable", "the table has none of its columns")
    if claim.kind == "shrinking":
        return _shrinking(claim, named, values)
    if claim.kind == "follows_teacher":
        return _follows(claim, named, values)
    held: dict[str, float] = {}
    broken: dict[str, float] = {}
    unsure = 0
    for column in named:
        a = values(claim.rows[0], column, claim.metric)
        b = values(claim.rows[1] if len(claim.rows) == 2 else f"{TEACHER} of {claim.rows[0]}", column, claim.metric)
        if not a or not b:
            continue
        if claim.kind == "ratio":
            figure = abs(mean(a)) / abs(mean(b)) if mean(b) else float("inf")
        else:
            figure = mean(a) - mean(b)
            interval = welch(mean(a), stdev(a), len(a), mean(b), stdev(b), len(b)) if min(len(a), len(b)) > 1 else None
            unsure += interval is not None and interval.low <= claim.margin <= interval.high
        good = figure > claim.margin and (claim.most is None or figure < claim.most)
        (held if good else broken)[column] = figure
    sign = "" if claim.kind == "ratio" else "+"
    noise = f"; within the spread of {unsure} of them" if unsure else ""
    if broken:
        worst = min(broken, key=lambda column: broken[column])
        detail = f"{len(broken)} of {len(held) + len(broken)} columns{noise}; {worst}: {broken[worst]:{sign}.2f}"
        return Verdict(claim, "fails", detail)
    if len(held) < len(named):
        return Verdict(claim, "not testable", f"{len(held)} of {len(named)} columns have runs of both{noise}")
    least = min(held, key=lambda column: held[column])
    return Verdict(claim, "holds", f"{len(held)} columns{noise}; least in {least}: {held[least]:{sign}.2f}")


def _shrinking(claim: Claim, named: Sequence[str], values: Values) -> Verdict:
    pairs = [[values(row, column, claim.metric) for row in claim.rows] for column in named]
    if len(named) < 2 or not all(a and b for a, b in pairs):
        return Verdict(
            claim, "not testable", f"{sum(bool(a and b) for a, b in pairs)} of {len(named)} columns have runs"
        )
    gains = [mean(a) - mean(b) for a, b in pairs]
    falls = all(first > second for first, second in pairwise(gains))
    return Verdict(claim, "holds" if falls else "fails", ", ".join(f"{gain:+z.2f}" for gain in gains))


def _follows(claim: Claim, named: Sequence[str], values: Values) -> Verdict:
    row = claim.rows[0]
    pairs = [[values(name, column, claim.metric) for name in (f"{TEACHER} of {row}", row)] for column in named]
    if len(named) < 2 or not all(a and b for a, b in pairs):
        return Verdict(
            claim, "not testable", f"{sum(bool(a and b) for a, b in pairs)} of {len(named)} columns have runs"
        )
    points = sorted((mean(a), mean(b)) for a, b in pairs)
    order = all(first[1] <= second[1] for first, second in pairwise(points))
    detail = ", ".join(f"{x:+z.2f} -> {y:+z.2f}" for x, y in points)
    return Verdict(claim, "holds" if order else "fails", f"teacher -> student: {detail}")
