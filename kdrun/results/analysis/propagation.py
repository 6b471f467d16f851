"""Whether calibration propagates (Medina et al. 2026, arXiv 2606.12171): a student's confidence gap on its teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from kdrun.core.errors import KdrunError
from kdrun.results.analysis.options import Propagation as Options
from kdrun.results.cell import value_of
from kdrun.results.fill import planned_records
from kdrun.results.plots.figure import GRAY, color, drawn, legend, legend_height, marker, panels, places, told
from kdrun.results.plots.points import Points
from kdrun.runs.metric import Metric


@dataclass(frozen=True)
class Line:
    """An ordinary least-squares line y = intercept + slope x through n points. NaN where undefined."""

    n: int
    slope: float
    intercept: float
    error: float
    """Standard error of the slope; needs 3 points."""
    low: float
    """95 % interval of the slope, by Student's t with n - 2 degrees of freedom."""
    high: float
    correlation: float
    """Pearson's; NaN where all y are equal."""


def fit(points: Points) -> Line:
    """The line through (x, y). It takes errors as independent, which those of seeds that share a teacher are not quite.

    Raises:
        KdrunError: all x are equal, or there are fewer than two points.
    """
    from scipy.stats import linregress, t

    n = len(points)
    if len({x for x, _ in points}) < 2:
        raise KdrunError(f"a line needs teachers that differ, and all {n} runs have the same teacher's value")
    x, y = zip(*points, strict=True)
    found = linregress(x, y)
    error = float(found.stderr) if n > 2 else float("nan")
    reach = float(t.ppf(0.975, n - 2)) * error if n > 2 else float("nan")
    slope, correlation = float(found.slope), float(found.rvalue) if len(set(y)) > 1 else float("nan")
    return Line(n, slope, float(found.intercept), error, slope - reach, slope + reach, correlation)


def report(options: Options) -> str:
    """For each column of the table: the line over all runs, and over the means of the teachers' runs; and a picture."""
    found: dict[str, dict[str, Points]] = {}
    accuracy: dict[str, list[float]] = {}
    missing = alone = 0
    metric = Metric(options.split, options.net, options.metric)
    ours, theirs, top1 = str(metric), str(metric.of("teacher")), str(Metric(options.split, "teacher", "top1"))
    for row, column, records in planned_records(options.table, Path(options.outputs)):
        done = [r for r in records if r is not None and r["status"] == "done"]
        taught = [r for r in done if theirs in r["metrics"]]
        missing, alone = missing + len(records) - len(done), alone + len(done) - len(taught)
        if taught:
            found.setdefault(column, {})[row] = [(value_of(r, theirs), value_of(r, ours)) for r in taught]
            accuracy.setdefault(row, []).extend(value_of(r, top1) for r in taught)
    if not found:
        nothing = f"{missing} runs are missing in {options.outputs}, {alone} have no {theirs}"
        raise KdrunError(f"table={options.table}: nothing to fit: {nothing}")
    lines = [f"{options.split}/{options.metric}: student's = intercept + slope x teacher's; table={options.table}"]
    lines += [f"{count} runs {what}" for count, what in ((missing, "missing"), (alone, f"without {theirs}")) if count]
    fits = {}
    for column, rows in found.items():
        everything = [point for points in rows.values() for point in points]
        try:
            fits[column] = fit(everything)
            lines += ["", f"{column}", f"  over runs:     {_told(fits[column])}"]
            lines.append(f"  over teachers: {_told(fit([_middle(points) for points in rows.values()]))}")
        except KdrunError as error:
            raise KdrunError(f"table={options.table}, {column}: {error}") from None
        wide = max(map(len, rows))
        lines.append(f"  {'':<{wide}}  {'accuracy':>9}{'teacher':>9}{'student':>9}{'runs':>6}")
        for row, points in rows.items():
            x, y = _middle(points)
            lines.append(f"  {row:<{wide}}  {mean(accuracy[row]):>9.4f}{x:>+9.4f}{y:>+9.4f}{len(points):>6}")
    paths = places(Path(options.outputs) / "figures" / f"propagation-{options.table}", options.out)
    draw(found, fits, options.metric, paths)
    return "\n".join([*lines, "", told(paths)])


def draw(
    found: Mapping[str, Mapping[str, Points]], fits: Mapping[str, Line], metric: str, paths: Sequence[Path]
) -> None:
    """A panel for each column; a point for each run, in its teacher's color; the line; dashed: student = teacher."""
    rows = list(dict.fromkeys(row for by_row in found.values() for row in by_row))
    name = metric.replace("_", " ")
    with drawn(paths, 3.2 + legend_height(rows)) as figure:
        for axes, (column, by_row) in zip(panels(figure, 1, len(found), sharey=True), found.items(), strict=True):
            ends = [f(x for points in by_row.values() for x, _ in points) for f in (min, max)]
            axes.axline((0, 0), slope=1, color=GRAY, linewidth=1, linestyle=(0, (4, 3)))
            line = fits[column]
            axes.plot(ends, [line.intercept + line.slope * x for x in ends], color="black", linewidth=1.3)
            for row, points in by_row.items():
                k = rows.index(row)
                x, y = zip(*points, strict=True)
                axes.plot(x, y, marker(k), color=color(k), label=row, markeredgecolor="white", markeredgewidth=0.6)
            axes.set(title=f"{column}: slope {line.slope:.2f}, r = {line.correlation:.3f}", xlabel=f"teacher's {name}")
        figure.axes[0].set_ylabel(f"student's {name}")
        legend(figure)


def _middle(points: Points) -> tuple[float, float]:
    return mean(x for x, _ in points), mean(y for _, y in points)


def _told(line: Line) -> str:
    sure = f" ± {line.error:.3f} (95 % from {line.low:.3f} to {line.high:.3f})" if line.n > 2 else ""
    return f"slope {line.slope:.3f}{sure}, intercept {line.intercept:+.4f}, r = {line.correlation:.3f}, n = {line.n}"
