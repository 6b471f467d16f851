"""Mean confidence against accuracy, a point for each run of a table: above the diagonal it is too sure of itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdrun.results.plots.figure import GRAY, color, drawn, legend, legend_height, marker, panels, places, told
from kdrun.results.plots.options import Confidence as Options
from kdrun.results.plots.points import Points, axis, points_of


def report(options: Options) -> str:
    runs = points_of(options, "top1", "confidence")
    teachers = points_of(options, "top1", "confidence", "teacher")
    paths = places(Path(options.outputs) / "figures" / f"confidence-{options.table}", options.out)
    draw(runs, teachers, paths)
    return told(paths)


def draw(
    runs: Mapping[tuple[str, str], Points], teachers: Mapping[tuple[str, str], Points], paths: Sequence[Path]
) -> None:
    """A color for each row, a marker for each column; teachers are stars in the color of their row."""
    rows, columns = (list(dict.fromkeys(place[k] for place in runs)) for k in (0, 1))
    with drawn(paths, 4 + legend_height([*rows, *columns])) as figure:
        [axes] = panels(figure)
        right = max(accuracy for points in runs.values() for accuracy, _ in points)
        axes.axline((right, right), slope=1, color=GRAY, linewidth=1, linestyle=(0, (4, 3)))
        for (row, _), points in teachers.items():
            axes.plot(*zip(*sorted(set(points)), strict=True), "*", color=color(rows.index(row)), markersize=11,
                      markeredgecolor="black", markeredgewidth=0.7)  # fmt: skip
        for (row, column), points in runs.items():
            shape = marker(columns.index(column) if len(columns) > 1 else rows.index(row))
            axes.plot(*zip(*points, strict=True), shape, color=color(rows.index(row)), alpha=0.85,
                      markeredgecolor="white", markeredgewidth=0.6)  # fmt: skip
        for k, row in enumerate(rows):
            axes.plot([], [], "s" if len(columns) > 1 else marker(k), color=color(k), label=row)
        for k, column in enumerate(columns if len(columns) > 1 else []):
            axes.plot([], [], marker(k), color=GRAY, label=column)
        if teachers:
            axes.plot([], [], "*", color="white", markeredgecolor="black", markersize=10, label="its teacher")
        axes.set(xlabel=axis("top1"), ylabel=f"mean {axis('confidence')}")
        legend(figure)
