"""One metric against another along the rows of a table (accuracy against ECE along temperatures), a line a column."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from kdrun.results.plots.figure import color, drawn, legend, marker, panels, places, told
from kdrun.results.plots.options import Tradeoff as Options
from kdrun.results.plots.points import Points, axis, points_of


def report(options: Options) -> str:
    points = points_of(options, options.x, options.y)
    paths = places(Path(options.outputs) / "figures" / f"tradeoff-{options.table}", options.out)
    draw(points, options.x, options.y, paths)
    return told(paths)


def draw(points: Mapping[tuple[str, str], Points], x: str, y: str, paths: Sequence[Path]) -> None:
    """Mean over seeds, with standard deviations (ddof 1) as error bars, in the order of the rows."""
    columns = list(dict.fromkeys(column for _, column in points))
    with drawn(paths, 3.7) as figure:
        [axes] = panels(figure)
        for k, column in enumerate(columns):
            cells = {row: seeds for (row, own), seeds in points.items() if own == column}
            middle = {row: _each(seeds, mean) for row, seeds in cells.items()}
            spread = [_each(seeds, lambda v: stdev(v) if len(v) > 1 else 0.0) for seeds in cells.values()]
            n = sorted({len(seeds) for seeds in cells.values()})
            seeds = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
            xs, ys = zip(*middle.values(), strict=True)
            dx, dy = zip(*spread, strict=True)
            axes.errorbar(xs, ys, dy, dx, color=color(k), marker=marker(k), linewidth=1.2, elinewidth=0.8, capsize=2,
                          label=f"{column} (n={seeds})")  # fmt: skip
            for row, place in middle.items():
                axes.annotate(
                    row, place, (6, 5 if k == 0 else -11), textcoords="offset points", fontsize=8, color=color(k)
                )
        axes.set(xlabel=axis(x), ylabel=axis(y))
        axes.margins(x=0.1, y=0.12)
        legend(figure, "upper")


def _each(points: Points, of: Callable[[Sequence[float]], float]) -> tuple[float, float]:
    return of([x for x, _ in points]), of([y for _, y in points])
